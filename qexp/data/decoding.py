"""Decoding processes: batches of files become batches of pixels, the same ones for any number of processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qexp import forkserver
from qexp.data import images
from qexp.data.augment import normalise
from qexp.data.batches import Batch, Batches, Plan
from qexp.data.crops import cut
from qexp.data.trees import Tree
from qexp.errors import DataError

_PRELOADED = ["qexp.data.decoding"]

_AT_WORK: set[object] = set()
"""Loaders' iterators whose workers are at work. One that only the garbage collector finds has lost its queues
before it could tell its workers to end, and waits for each of them in vain, for ten seconds."""


class Decoding(Dataset):
    """Decodes whole batches in a worker: (epoch, row numbers) -> uint8 images and labels, or the error's text.

    The text travels as a value: an exception would come out of the loader with the worker's traceback inside.
    """

    def __init__(self, tree: Tree, augment: str, resize: int, crop: int, seed: int) -> None:
        self.tree = tree
        self.augment, self.resize, self.crop, self.seed = augment, resize, crop, seed

    def __getitem__(self, request: tuple[int, list[int]]) -> tuple[Tensor, Tensor] | str:
        """Return uint8 (samples, crop, crop, 3) and int64 (samples,)."""
        epoch, rows = request
        batch = np.empty((len(rows), self.crop, self.crop, 3), dtype=np.uint8)
        try:
            for place, row in enumerate(rows):
                image = images.decode(self.tree.file(row), 3)
                sample = (self.seed, epoch, row)
                batch[place] = images.pixels(cut(image, self.augment, self.resize, self.crop, sample))
        except DataError as error:
            return str(error)
        return torch.from_numpy(batch), torch.from_numpy(self.tree.labels[rows])


class FileBatches(Batches):
    """Batches decoded from files by worker processes, normalised on the training device.

    The workers live for one epoch: they start in milliseconds, and between epochs they hold no memory.
    """

    def __init__(
        self, decoding: Decoding, plan: Plan, scale: Tensor, shift: Tensor, workers: int, channels_last: bool
    ) -> None:
        super().__init__(plan)
        self.decoding = decoding
        self.scale, self.shift = scale, shift
        self.workers = workers
        self.channels_last = channels_last

    def _load(self, shares: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        device = self.scale.device
        loader = DataLoader(
            self.decoding,
            batch_size=None,
            sampler=((epoch, share.tolist()) for share in shares),
            num_workers=self.workers,
            worker_init_fn=_begin_worker,
            multiprocessing_context=forkserver.context(_PRELOADED) if self.workers else None,
            pin_memory=device.type == "cuda",
            # A generator of its own: the loader draws a number, and must not move the run's generators.
            generator=torch.Generator(),
        )
        with forkserver.following():
            batches = iter(loader)
        _AT_WORK.add(batches)
        try:
            while (batch := self._next(batches)) is not None:
                if isinstance(batch, str):
                    raise DataError(batch)
                images_, labels = (each.to(device, non_blocking=True) for each in batch)
                values = normalise(images_, self.scale, self.shift)
                yield values if self.channels_last else values.contiguous(), labels
        finally:
            _AT_WORK.discard(batches)
            # Now, not when the last reference is gone: an error keeps it as long as somebody keeps the error.
            if (end := getattr(batches, "_shutdown_workers", None)) is not None:
                end()

    def _next(self, batches: Iterator[tuple[Tensor, Tensor] | str]) -> tuple[Tensor, Tensor] | str | None:
        try:
            return next(batches, None)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # Noticed missing, or what it had begun to hand over can no longer be fetched from it.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a decoding process was ended from outside, most likely because memory ran out; {self.workers}"
                " were at work: dataset.workers=N takes fewer."
            ) from error


def _begin_worker(number: int) -> None:
    """Leave signals to the parent, and end with it.

    Ctrl-C and a scheduler's SIGTERM reach every process: the workers go on, so that the step can be finished.
    """
    forkserver.ignore_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed says nothing; DataLoader's own watch looks at the server instead."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
