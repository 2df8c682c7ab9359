"""Data sets that fit into memory: read once, kept as uint8 on the training device, served as whole batches."""

from __future__ import annotations

import functools
from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qexp.data import cache
from qexp.data.augment import AUGMENTATIONS
from qexp.data.base import ImageSource, normalisation
from qexp.data.batches import ArrayBatches, Pixels, Plan
from qexp.data.checks import check_common, check_statistics, check_whole
from qexp.data.splits import Split, Splits, check_labels, pick, training_rows
from qexp.errors import DataError

COUNTED = 1000
"""Images whose values are counted at once."""


class ArraySource(ImageSource):
    """What the sets in memory share. A data set says which files it is made of and how they are decoded.

    Args:
        name: short name.
        root: folder of the files.
        mean, std: per channel, images on the scale 0 ... 1; None takes them from the training images.
        shape: (channels, height, width); None takes it from the data.
        num_classes: number of classes; None takes it from the data.
        download: fetch missing files into `root`.
        augment: of the training images, one of `none`, `crop`, `flip`, `crop_flip`.
        padding: pixels of black on each side that a crop may show.
        validation: share of the training samples set apart for choosing, 0 for none; always the same ones.
        train_samples: train on this many of the others, all classes alike, always the same ones; None: on all.
        eval_batch_size: samples of one batch of validation and test.

    Raises:
        DataError: an argument without meaning.
    """

    def __init__(
        self,
        *,
        name: str,
        root: str,
        mean: list[float] | None,
        std: list[float] | None,
        shape: tuple[int, int, int] | None,
        num_classes: int | None,
        download: bool = False,
        augment: str = "none",
        padding: int = 4,
        validation: float = 0.0,
        train_samples: int | None = None,
        eval_batch_size: int = 500,
    ) -> None:
        self.root = check_common(
            root=root,
            download=download,
            augment=augment,
            augmentations=AUGMENTATIONS,
            validation=validation,
            train_samples=train_samples,
            eval_batch_size=eval_batch_size,
        )
        check_whole("padding", padding, 1, "; dataset.augment=none switches crops off")
        if num_classes is not None:
            check_whole("num_classes", num_classes, 1, ", or null")
        check_statistics(mean, std, None if shape is None else shape[0])
        self.name = name
        self.download = download
        self.augment = augment
        self.padding = padding
        self.validation = validation
        self.train_samples = train_samples
        self.eval_batch_size = eval_batch_size
        self._mean, self._std = mean, std
        self._shape = shape
        self._num_classes = num_classes
        self._splits: Splits | None = None
        self._on_device: dict[tuple[str, torch.device], Pixels] = {}

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the files that decide the data, downloading them where that was asked for.

        Raises:
            DataError: they are not there; says where they were looked for and how to get them.
        """

    @abstractmethod
    def decode(self) -> Splits:
        """Read `files()` into arrays.

        Raises:
            DataError: a file is damaged or holds something else.
        """

    def recipe(self) -> str:
        """Return how files become arrays, as far as arguments change it; part of the cache's key."""
        return ""

    def digest(self) -> str:
        """Return the digest of the files' names and contents."""
        return cache.content_digest(self.files(), self.root)

    @property
    def splits(self) -> Splits:
        """The decoded and checked splits, read at the first use."""
        if self._splits is None:
            splits = self._read()
            self._check(splits)
            self._splits = splits
        return self._splits

    def _read(self) -> Splits:
        return cache.decoded(self.name, f"{self.name}/{self.digest()}/{self.recipe()}", self.decode)

    def _check(self, splits: Splits) -> None:
        expected = self._shape or _shape(splits["train"])
        classes = self._num_classes or _classes(splits)
        for name, split in splits.items():
            where = f"{self.root}, {name} split of {self.name}"
            if _shape(split) != tuple(expected):
                raise DataError(
                    f"{where}: the images are {_shape(split)} (channels, height, width);"
                    f" {tuple(expected)} is expected."
                )
            if name != "train" or split.labelled:
                check_labels(split, classes, where)
        check_statistics(self._mean, self._std, expected[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width), as given or as the training images have it."""
        return self._shape or _shape(self.splits["train"])

    @property
    def num_classes(self) -> int:
        """As given, or the largest training label + 1; without training labels, the largest test label + 1."""
        return self._num_classes or _classes(self.splits)

    @property
    def train_labelled(self) -> bool:
        """Whether the training images have labels."""
        return self.splits["train"].labelled

    def missing_labels(self) -> str:
        """Name file and key: of what is read here, one .npz file alone may lack labels."""
        return f"{self.files()[0]}: no y_train in it"

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, as given or of the training images."""
        return self._statistics[0] if self._mean is None else tuple(self._mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, as given or of the training images; 1 for a channel that never changes."""
        return self._statistics[1] if self._std is None else tuple(self._std)

    @functools.cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel of the training images, by counting their 256 values."""
        images, found = self.splits["train"].images, []
        for channel in range(images.shape[-1]):
            counts = np.zeros(256, dtype=np.int64)
            for start in range(0, len(images), COUNTED):  # counting takes eight bytes a pixel
                counts += np.bincount(images[start : start + COUNTED, ..., channel].reshape(-1), minlength=256)
            values = np.arange(256) / self.peak
            mean = float(counts @ values / counts.sum())
            deviation = float(np.sqrt(counts @ np.square(values - mean) / counts.sum()))
            found.append((mean, deviation if deviation > 0 else 1.0))
        means, deviations = zip(*found, strict=True)
        return means, deviations

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        *,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> ArrayBatches:
        """Return the augmented training batches; `batch_size` counts the samples of all ranks together."""
        self.require_training_labels("training")
        rows, _ = self._training_rows()
        plan = Plan(torch.from_numpy(rows), batch_size, True, True, seed, rank, world_size)
        pixels = self._pixels("train", device)
        return ArrayBatches(pixels, plan, self.augment, self.padding, channels_last)

    def test_size(self) -> int:
        """Return the number of test samples."""
        return len(self.splits["test"].labels)

    def validation_rows(self) -> tuple[str, Tensor]:
        """Return the set's own `val` split, else the share carved from the training samples."""
        if "val" in self.splits:
            return "val", torch.arange(len(self.splits["val"].labels))
        held = torch.from_numpy(self._training_rows()[1])
        if len(held):
            way_out = "dataset.validation=0 does not"
            self.require_training_labels(f"dataset.validation={self.validation}", way_out)
        return "train", held

    def chosen_rows(self, count: int, seed: int | None) -> Tensor:
        """Return a random draw, or each class with its share."""
        return torch.from_numpy(pick(self.splits["train"].labels, self._training_rows()[0], count, seed))

    def unaugmented(self, split: str, plan: Plan, device: torch.device | str, channels_last: bool) -> ArrayBatches:
        """Return the samples of a split that `plan` names, from memory."""
        return ArrayBatches(self._pixels(split, device), plan, channels_last=channels_last)

    def _training_rows(self) -> tuple[np.ndarray, np.ndarray]:
        if self.validation and "val" in self.splits:
            raise DataError(
                f"dataset.validation={self.validation}: {self.name} brings a validation split of its own"
                f" ({self.root}/val); set dataset.validation=0 to use it."
            )
        return training_rows(self.splits["train"].labels, self.validation, self.train_samples)

    def _pixels(self, split: str, device: torch.device | str) -> Pixels:
        key = (split, torch.device(device))
        if key not in self._on_device:
            arrays = self.splits[split]
            _, height, width, _ = arrays.images.shape
            numbers = [np.tile(each, height * width) for each in normalisation(self.mean, self.std, self.peak)]
            tensors = [torch.from_numpy(each).to(device) for each in (arrays.images, arrays.labels, *numbers)]
            self._on_device[key] = Pixels(*tensors)
        return self._on_device[key]


def _classes(splits: Splits) -> int:
    return int(splits["train" if splits["train"].labelled else "test"].labels.max()) + 1


def _shape(split: Split) -> tuple[int, int, int]:
    _, height, width, channels = split.images.shape
    return channels, height, width
