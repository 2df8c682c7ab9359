"""Splits as arrays: what a readable split looks like, and drawing a share of it class by class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qexp.errors import DataError

NO_LABEL = -1
"""Stands for each label of training images without any: enough to calibrate on, not to train on."""


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    Attributes:
        images: uint8 (samples, height, width, channels).
        labels: int64 (samples,), 0 ... classes - 1; `NO_LABEL` throughout where there are none.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return bool((self.labels != NO_LABEL).any())


Splits = dict[str, Split]
"""`train` and `test`, and `val` where the set brings one."""


def make_split(images: np.ndarray, labels: np.ndarray, where: str) -> Split:
    """Check one split's arrays and bring them into the form of `Split`.

    Args:
        images: uint8 (samples, height, width) or (samples, height, width, channels).
        labels: integers (samples,) or (samples, 1).
        where: file and split, for the error.

    Raises:
        DataError: another type or shape, no samples, or numbers of images and labels that differ.
    """
    if images.dtype != np.uint8:
        raise DataError(f"{where}: the images are {images.dtype}; they must be uint8, 0 to 255.")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        raise DataError(
            f"{where}: the images have shape {images.shape}; it must be (samples, height, width) or"
            " (samples, height, width, channels) with 1, 3 or 4 channels."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: the labels are {labels.dtype} of shape {labels.shape}; they must be integers, one a sample."
        )
    if len(images) != len(labels) or len(images) == 0:
        raise DataError(
            f"{where}: {len(images)} images and {len(labels)} labels; there must be one label for each image,"
            " and at least one."
        )
    return Split(np.ascontiguousarray(images), labels.astype(np.int64))


def check_labels(split: Split, num_classes: int, where: str) -> None:
    """Refuse labels outside 0 ... num_classes - 1 with a DataError that names the first one."""
    outside = np.flatnonzero((split.labels < 0) | (split.labels >= num_classes))
    if len(outside):
        raise DataError(
            f"{where}: label {split.labels[outside[0]]} of sample {outside[0]} is outside 0 ... {num_classes - 1}"
            f" ({num_classes} classes)."
        )


def stratified_rows(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` samples with each class's share as in `labels`; always the same ones.

    The draw has a fixed seed of its own: a run's seed must not decide which samples are tested or held out.
    numpy's RandomState is used because its stream is frozen for all versions.

    Args:
        labels: (samples,), any integers.
        count: 0 ... samples.

    Returns:
        Row numbers (int64, ascending) of the rest, and of the drawn ones.
    """
    random = np.random.RandomState(0)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / max(len(labels), 1))
    quotas = np.floor(exact).astype(np.int64)
    # The samples left over by rounding down go to the classes with the largest remainders.
    missing = count - int(quotas.sum())
    quotas[np.argsort(-(exact - quotas), kind="stable")[:missing]] += 1
    drawn = np.zeros(len(labels), dtype=bool)
    for label, quota in zip(classes, quotas, strict=True):
        drawn[random.permutation(np.flatnonzero(labels == label))[:quota]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def carve(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers for training and for validation, `share` of the samples being the latter.

    Raises:
        DataError: a share that leaves one of the two without samples.
    """
    if share == 0:
        return np.arange(len(labels)), np.arange(0)
    count = round(share * len(labels))
    if not 0 < count < len(labels):
        raise DataError(
            f"dataset.validation={share}: of {len(labels)} training samples it leaves {len(labels) - count} to"
            f" train and {count} to choose by; give a share between 0 and 1 that leaves both some."
        )
    return stratified_rows(labels, count)


def even_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` samples, as many of each class as of any other while the class has some; always the same ones.

    It is the beginning of one fixed order in which the classes take turns: a smaller draw is part of a larger one.

    Args:
        labels: (samples,), any integers.
        count: 0 ... samples.

    Returns:
        Row numbers (int64, ascending).
    """
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, first, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    turn = np.empty(len(labels), dtype=np.int64)
    turn[by_class] = np.arange(len(labels)) - np.repeat(first, sizes)
    # Within a turn the classes come as the shuffle has them, so no class is favoured by its number.
    return np.sort(shuffled[np.argsort(turn[shuffled], kind="stable")[:count]])


def training_rows(
    labels: np.ndarray, validation: float, train_samples: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers for training and for validation.

    Args:
        labels: of the training split.
        validation: share of its samples set apart; what is left is for training.
        train_samples: how many of those are used, drawn by `even_rows`; None: all.

    Raises:
        DataError: a share that leaves one of the two without samples, or more samples than there are.
    """
    rows, held = carve(labels, validation)
    if train_samples is None:
        return rows, held
    if train_samples > len(rows):
        raise DataError(
            f"dataset.train_samples={train_samples}: there are {len(rows)} samples to train on; give at most as"
            " many, or null for all."
        )
    return rows[even_rows(labels[rows], train_samples)], held


def pick(labels: np.ndarray, rows: np.ndarray, count: int, seed: int | None = None) -> np.ndarray:
    """Return `count` of `rows`, all where there are fewer.

    Args:
        labels: (samples,) of the whole split.
        rows: int64, ascending, those that may be taken.
        seed: of a draw at random, in the order in which they were drawn; None takes always the same ones,
            ascending, and of each class its share.

    Raises:
        DataError: `count` is below 1.
    """
    if count < 1:
        raise DataError(f"{count} training samples: take 1 or more.")
    if seed is not None:
        return np.random.default_rng(seed).permutation(rows)[:count]
    return rows if count >= len(rows) else rows[stratified_rows(labels[rows], count)[1]]
