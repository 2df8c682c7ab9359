"""The promise of a data set: what every network, loop and report may rely on, before and after it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from qexp.data.batches import Batches, Plan
from qexp.errors import DataError


class DataSource(ABC):
    """A data set with its splits served as batches on the training device.

    Constructing one touches no file: files are read when batches, `digest`, or a value that only the data
    knows are asked for, and every failure to do so is a DataError.

    Attributes:
        name: short name, part of every run's name.
        shape: of one sample as the network sees it, (channels, height, width) of an image.
        num_classes: number of classes; labels are 0 ... num_classes - 1.
    """

    task: ClassVar[str] = "classification"
    """What its labels are for; a network says the same of its outputs."""

    primary_metric: str = "accuracy"
    """The number that an evaluation is known by."""

    higher_is_better: ClassVar[bool] = True
    """Whether that number grows as networks get better."""

    name: str

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @abstractmethod
    def digest(self) -> str:
        """Return a hexadecimal digest of the content, the same wherever the files lie."""

    @abstractmethod
    def train_batches(
        self,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        *,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> Batches:
        """Return the augmented training batches; `batch_size` counts the samples of all ranks together."""

    @abstractmethod
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

    @abstractmethod
    def test_batches(
        self,
        batch_size: int | None,
        device: torch.device | str,
        *,
        channels_last: bool = True,
    ) -> Batches:
        """Return the test split, every sample once, in its own order, not augmented."""

    @abstractmethod
    def training_samples(
        self,
        count: int,
        batch_size: int | None,
        device: torch.device | str,
        *,
        channels_last: bool = True,
        seed: int | None = None,
    ) -> Batches:
        """Return `count` of the training samples, all where there are fewer, not augmented and none twice.

        Samples set apart for choosing are not among them: what a network is looked at or calibrated with, so that
        the test split is never touched. With a `seed` they are drawn at random; without one they are always the
        same, and each class keeps its share where samples have one.

        Raises:
            DataError: `count` is below 1.
        """

    @property
    def train_labelled(self) -> bool:
        """Whether the training samples have labels; calibration needs none."""
        return True

    def missing_labels(self) -> str:
        """Return what an error says of training samples without labels: where they were looked for."""
        return f"{self.name}: no labels of its training samples"

    def require_training_labels(self, what: str, way_out: str = "qexp ptq calibrates without any") -> None:
        """Raise DataError where the training samples have no labels, which `what` needs.

        Args:
            what: the beginning of "... needs labels of the training samples".
            way_out: what can be done instead.
        """
        if not self.train_labelled:
            raise DataError(f"{self.missing_labels()}; {what} needs labels of the training samples, {way_out}.")

    def check(self) -> None:  # noqa: B027 - most sets are known by their digest
        """Read the data as far as that finds mistakes, before a run's folder is made. Default: nothing.

        Raises:
            DataError: what is there cannot be trained on.
        """

    def input_range(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return by channel the lowest and the highest value of an input; None where it is no number."""
        return None


class ImageSource(DataSource):
    """What sets of images share: their statistics, and how the splits are served.

    Attributes:
        mean, std: per-channel statistics of the images on the scale 0 ... 1; normalised = (image - mean) / std.
        peak: the pixel value that stands for 1.0 (white).
        eval_batch_size: batch size of validation and test where the caller names none.
    """

    peak: int = 255
    eval_batch_size: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""

    @property
    @abstractmethod
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean, images on the scale 0 ... 1."""

    @property
    @abstractmethod
    def std(self) -> tuple[float, ...]:
        """Per-channel standard deviation, images on the scale 0 ... 1."""

    def validation_batches(
        self,
        batch_size: int | None,
        device: torch.device | str,
        *,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> Batches | None:
        """Return the rows of `validation_rows`."""
        split, rows = self.validation_rows()
        if not len(rows):
            return None
        plan = Plan(rows, self._size(batch_size), rank=rank, world_size=world_size)
        return self.unaugmented(split, plan, device, channels_last)

    def test_batches(
        self,
        batch_size: int | None,
        device: torch.device | str,
        *,
        channels_last: bool = True,
    ) -> Batches:
        """Return all `test_size` rows."""
        rows = torch.arange(self.test_size())
        plan = Plan(rows, self._size(batch_size))
        return self.unaugmented("test", plan, device, channels_last)

    def training_samples(
        self,
        count: int,
        batch_size: int | None,
        device: torch.device | str,
        *,
        channels_last: bool = True,
        seed: int | None = None,
    ) -> Batches:
        """Return the rows of `chosen_rows`."""
        rows = self.chosen_rows(count, seed)
        plan = Plan(rows, self._size(batch_size))
        return self.unaugmented("train", plan, device, channels_last)

    def _size(self, batch_size: int | None) -> int:
        return self.eval_batch_size if batch_size is None else batch_size

    @abstractmethod
    def test_size(self) -> int:
        """Return the number of samples of the test split."""

    @abstractmethod
    def validation_rows(self) -> tuple[str, Tensor]:
        """Return the split that holds the samples set apart for choosing, and which of its rows they are."""

    @abstractmethod
    def chosen_rows(self, count: int, seed: int | None) -> Tensor:
        """Return the rows of the training split that `training_samples` shows."""

    @abstractmethod
    def unaugmented(self, split: str, plan: Plan, device: torch.device | str, channels_last: bool) -> Batches:
        """Return the samples of a split that `plan` names, as they are evaluated."""

    def input_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return per channel the lowest and the highest normalised value that an image can have.

        They are the float32 numbers that a black and a white pixel really become, so a fixed grid between them
        clips nothing.
        """
        scale, shift = normalisation(self.mean, self.std, self.peak)
        return tuple(shift.tolist()), tuple((np.float32(self.peak) * scale + shift).tolist())


def normalisation(mean: tuple[float, ...], std: tuple[float, ...], peak: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 (scale, shift) per channel: normalised = pixel * scale + shift, `peak` being white.

    >>> scale, shift = normalisation((0.5,), (0.25,), peak=255)
    >>> float(255 * scale[0] + shift[0]), float(shift[0])
    (2.0, -2.0)
    """
    deviation = np.asarray(std, dtype=np.float64)
    scale = (1.0 / (peak * deviation)).astype(np.float32)
    shift = (-np.asarray(mean, dtype=np.float64) / deviation).astype(np.float32)
    return scale, shift
