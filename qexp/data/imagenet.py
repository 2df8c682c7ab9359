"""ImageNet in its folders, train/<class>/* and val/<class>/*: decoded and augmented as it goes, by workers.

Source: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015. Preparation as in PACT
(arXiv 1805.06085, appendix B): shorter side to 256, random crop of 224; the centre crop for evaluation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qexp.data import images
from qexp.data.augment import normalise
from qexp.data.base import DataSource, normalisation
from qexp.data.batches import Batch, Batches, Plan
from qexp.data.checks import check_common, check_statistics, check_whole
from qexp.data.crops import CROPS, cut
from qexp.data.splits import carve, pick
from qexp.errors import DataError

MOST_WORKERS = 16


class ImageNet(DataSource):
    """ImageNet, or any tree of the same form that is too large for memory; `val` is the test split.

    Args:
        name: short name.
        root: folder with `train` and `val`.
        download: must be false: ImageNet is given on request only.
        num_classes: class folders in `train`.
        resize: the shorter side before a crop, pixels.
        crop: height and width of what the network sees, pixels.
        mean, std: per channel, images on the scale 0 ... 1.
        augment: of the training images: `none` (centre crop), `crop_flip` or `resized_crop` (with flip).
        validation: share of the training samples set apart for choosing, 0 for none; always the same ones.
        eval_batch_size: samples of one batch of validation and test.
        workers: decoding processes; 0 decodes in this one, None takes one per processor, at most 16.

    Raises:
        DataError: an argument without meaning.
    """

    def __init__(
        self,
        *,
        mean: list[float],
        std: list[float],
        name: str = "imagenet",
        root: str = "data/imagenet",
        download: bool = False,
        num_classes: int = 1000,
        resize: int = 256,
        crop: int = 224,
        augment: str = "crop_flip",
        validation: float = 0.0,
        eval_batch_size: int = 500,
        workers: int | None = None,
    ) -> None:
        self.root = check_common(
            root=root,
            download=download,
            augment=augment,
            augmentations=CROPS,
            validation=validation,
            eval_batch_size=eval_batch_size,
        )
        check_statistics(mean, std, 3)
        if download:
            raise DataError(
                "dataset.download=true: ImageNet is given on request only (https://image-net.org);"
                " put train and val into dataset.root and set it to false."
            )
        check_whole("num_classes", num_classes, 1)
        check_whole("crop", crop, 1, " pixels")
        check_whole("resize", resize, crop, " pixels: no smaller than dataset.crop")
        if workers is not None:
            check_whole("workers", workers, 0, " decoding processes, or null")
        self.name = name
        self.augment, self.resize, self.crop = augment, resize, crop
        self.validation, self.eval_batch_size, self.workers = validation, eval_batch_size, workers
        self._num_classes, self._mean, self._std = num_classes, tuple(mean), tuple(std)
        self._trees: dict[str, images.Tree] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, crop, crop)."""
        return 3, self.crop, self.crop

    @property
    def num_classes(self) -> int:
        """As given."""
        return self._num_classes

    @property
    def mean(self) -> tuple[float, ...]:
        """As given."""
        return self._mean

    @property
    def std(self) -> tuple[float, ...]:
        """As given."""
        return self._std

    def trees(self) -> dict[str, images.Tree]:
        """Return the listing of `train` and `test`, made at the first call."""
        if self._trees is None:
            train = images.scan(self.root / "train")
            if len(train.classes) != self._num_classes:
                raise DataError(
                    f"dataset.num_classes={self._num_classes}: {train.folder} has {len(train.classes)}"
                    " class folders; give their number."
                )
            self._trees = {"train": train, "test": images.scan(self.root / "val", train.classes)}
        return self._trees

    def digest(self) -> str:
        """Return the sha256 over names and sizes of all files; their contents would take minutes to read."""
        total = hashlib.sha256()
        for split, tree in self.trees().items():
            for name, size in zip(tree.names, tree.sizes.tolist(), strict=True):
                total.update(f"{split}/{name} {size}\n".encode())
        return total.hexdigest()

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        *,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> Batches:
        """Return the augmented training batches; `batch_size` counts the samples of all ranks together."""
        rows, _ = carve(self.trees()["train"].labels, self.validation)
        plan = Plan(torch.from_numpy(rows), batch_size, True, shuffle, seed, rank, world_size)
        return self._batches("train", plan, device, self.augment, channels_last)

    def validation_batches(
        self,
        batch_size: int | None,
        device: torch.device | str,
        *,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> Batches | None:
        """Return the samples set apart for choosing, not augmented; None when there are none."""
        _, rows = carve(self.trees()["train"].labels, self.validation)
        if not len(rows):
            return None
        plan = Plan(torch.from_numpy(rows), self._size(batch_size), rank=rank, world_size=world_size)
        return self._batches("train", plan, device, "none", channels_last)

    def test_batches(
        self,
        batch_size: int | None,
        device: torch.device | str,
        *,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> Batches:
        """Return `val`, every sample once, centre crops."""
        rows = torch.arange(len(self.trees()["test"].names))
        plan = Plan(rows, self._size(batch_size), rank=rank, world_size=world_size)
        return self._batches("test", plan, device, "none", channels_last)

    def training_samples(
        self,
        count: int,
        batch_size: int | None,
        device: torch.device | str,
        *,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> Batches:
        """Return `count` of the training samples as centre crops, each class with its share."""
        labels = self.trees()["train"].labels
        rows = pick(labels, carve(labels, self.validation)[0], count)
        plan = Plan(torch.from_numpy(rows), self._size(batch_size), rank=rank, world_size=world_size)
        return self._batches("train", plan, device, "none", channels_last)

    def _size(self, batch_size: int | None) -> int:
        return self.eval_batch_size if batch_size is None else batch_size

    def _batches(
        self, split: str, plan: Plan, device: torch.device | str, augment: str, channels_last: bool
    ) -> Batches:
        decoding = Decoding(self.trees()[split], augment, self.resize, self.crop, plan.seed)
        workers = _processors() // plan.world_size if self.workers is None else self.workers
        numbers = [np.tile(each, self.crop**2) for each in normalisation(self.mean, self.std, self.peak)]
        scale, shift = (torch.from_numpy(each).to(device) for each in numbers)
        return FileBatches(decoding, plan, scale, shift, workers, channels_last)


def _processors() -> int:
    """Return how many processors this process may use, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_WORKERS)


class Decoding(Dataset):
    """Decodes whole batches in a worker: (epoch, row numbers) -> uint8 images and labels, or the error's text.

    The text travels as a value: an exception would come out of the loader with the worker's traceback inside.
    """

    def __init__(self, tree: images.Tree, augment: str, resize: int, crop: int, seed: int) -> None:
        self.tree = tree
        self.augment, self.resize, self.crop, self.seed = augment, resize, crop, seed

    def __getitem__(self, request: tuple[int, list[int]]) -> tuple[Tensor, Tensor] | str:
        """Return uint8 (samples, crop, crop, 3) and int64 (samples,)."""
        epoch, rows = request
        batch = np.empty((len(rows), self.crop, self.crop, 3), dtype=np.uint8)
        try:
            for place, row in enumerate(rows):
                image = images.decode(self.tree.folder / self.tree.names[row], 3)
                sample = (self.seed, epoch, row)
                batch[place] = images.pixels(cut(image, self.augment, self.resize, self.crop, sample))
        except DataError as error:
            return str(error)
        return torch.from_numpy(batch), torch.from_numpy(self.tree.labels[rows])


class FileBatches(Batches):
    """Batches decoded from files by worker processes, normalised on the training device."""

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
            pin_memory=device.type == "cuda",
            # A generator of its own: the loader draws a number, and must not move the run's generators.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, str):
                raise DataError(batch)
            images_, labels = (each.to(device, non_blocking=True) for each in batch)
            values = normalise(images_, self.scale, self.shift)
            yield values if self.channels_last else values.contiguous(), labels
