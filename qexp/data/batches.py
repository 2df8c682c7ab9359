"""Batches of one split: their order, the share of each rank, and a position that a checkpoint can hold."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qexp.data import augment as augmentation
from qexp.errors import CheckpointError, DataError

Batch = tuple[Tensor, Tensor]
"""Images, float32 (samples, channels, height, width), and labels, int64 (samples,)."""


@dataclass(frozen=True)
class Plan:
    """Which samples come when.

    Attributes:
        rows: int64, the samples of this split as row numbers of the whole set.
        batch_size: samples of one step over all ranks together.
        training: draws a new order each epoch (if `shuffle`), drops the last partial batch, wants equal ranks.
        seed: of order and augmentation.
        rank, world_size: this process and their number; each takes its slice of every batch.

    Raises:
        DataError: the batch size has no meaning for this split or these ranks.
    """

    rows: Tensor
    batch_size: int
    training: bool = False
    shuffle: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise DataError(f"batch_size={self.batch_size}: a batch holds at least one sample.")
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank={self.rank}: it must lie in 0 ... {self.world_size - 1}.")
        if not self.training:
            return
        if self.batch_size > len(self.rows):
            raise DataError(
                f"batch_size={self.batch_size}: the training split has {len(self.rows)} samples;"
                f" choose batch_size={len(self.rows)} or less."
            )
        if self.batch_size % self.world_size:
            raise DataError(
                f"batch_size={self.batch_size}: it counts the samples of all processes and must be a multiple"
                f" of their number, {self.world_size}."
            )

    def __len__(self) -> int:
        if self.training:
            return len(self.rows) // self.batch_size
        return math.ceil(len(self.rows) / self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Return the row numbers in the order of `epoch`."""
        if not self.shuffle:
            return self.rows
        generator = augmentation.generator(self.seed, epoch, "order")
        return self.rows[torch.randperm(len(self.rows), generator=generator)]

    def share(self, order: Tensor, position: int) -> Tensor:
        """Return this rank's rows of batch `position`; the last batch of an evaluation may leave it none."""
        batch = order[position * self.batch_size : (position + 1) * self.batch_size]
        return batch.tensor_split(self.world_size)[self.rank]


class Batches(ABC):
    """The batches of one split, one epoch after another.

    Iterating starts at `position` and hands out the rest of the epoch; after the last batch the position is 0
    again, so the next loop gives the whole split. Another object made with the same arguments, told epoch and
    position, continues there with the very same batches.

    Attributes:
        epoch: selects order and augmentation.
        position: batches handed out so far in this epoch.
    """

    def __init__(self, plan: Plan, rows_on: torch.device | str = "cpu") -> None:
        self.plan = plan
        self.rows_on = torch.device(rows_on)
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.plan)

    @property
    def samples(self) -> int:
        """Number of samples of this split over all ranks, before the last partial batch is dropped."""
        return len(self.plan.rows)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at the `epoch` and `position` of `state`.

        Raises:
            CheckpointError: the state belongs to another split or batch size.
        """
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position <= len(self):
            raise CheckpointError(
                f"data position {position} of epoch {epoch}: an epoch has {len(self)} batches here;"
                " the checkpoint was made with another batch size or data set."
            )
        self.epoch, self.position = epoch, position

    def __iter__(self) -> Iterator[Batch]:
        order = self.plan.order(self.epoch).to(self.rows_on)
        positions = range(self.position, len(self))
        shares = (self.plan.share(order, position) for position in positions)
        for position, batch in zip(positions, self._load(shares, self.epoch), strict=True):
            self.position = position + 1
            yield batch
        self.position = 0

    @abstractmethod
    def _load(self, shares: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        """Yield one finished batch, on its device, for each of `shares` (row numbers, int64, on `rows_on`)."""


@dataclass(frozen=True)
class Pixels:
    """A whole set on the training device.

    Attributes:
        images: uint8 (samples, height, width, channels), contiguous.
        labels: int64 (samples,).
        scale, shift: float32 (height * width * channels,): normalised = pixel * scale + shift.
    """

    images: Tensor
    labels: Tensor
    scale: Tensor
    shift: Tensor


class ArrayBatches(Batches):
    """Batches of a set that lies in memory: gathered, augmented and normalised as a whole, without workers.

    Args:
        pixels: the whole set; `plan.rows` says which samples of it belong here.
        plan: which samples come when.
        augment: one of `AUGMENTATIONS`.
        padding: pixels of black on each side that a crop may show.
        channels_last: memory format of the images; the values are the same.
    """

    def __init__(
        self, pixels: Pixels, plan: Plan, augment: str = "none", padding: int = 4, channels_last: bool = True
    ) -> None:
        super().__init__(plan, rows_on=pixels.images.device)
        self.pixels = pixels
        self.augment = augment
        self.padding = padding
        self.channels_last = channels_last

    def _load(self, shares: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        device = self.pixels.images.device
        samples = len(self.pixels.images)
        draws = augmentation.draw(self.augment, samples, self.padding, self.plan.seed, epoch, device)
        for rows in shares:
            images = self._augmented(rows, draws)
            values = augmentation.normalise(images, self.pixels.scale, self.pixels.shift)
            if not self.channels_last:
                values = values.contiguous()
            yield values, self.pixels.labels.index_select(0, rows)

    def _augmented(self, rows: Tensor, draws: augmentation.Draws) -> Tensor:
        images = self.pixels.images.index_select(0, rows)
        if draws.offsets is not None:
            images = augmentation.pad_crop(images, draws.offsets.index_select(0, rows), self.padding)
        if draws.mirrored is not None:
            images = augmentation.flip(images, draws.mirrored.index_select(0, rows))
        return images
