"""Handwritten digits that ship with scikit-learn: real data, 8 x 8 pixels, no download; the default data set.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository (its test part).
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np

from qexp.data import cache
from qexp.data.arrays import ArraySource
from qexp.data.checks import grey_or_colour
from qexp.data.resizing import resize
from qexp.data.splits import Split, Splits, make_split, stratified_rows

SHAPE = (1, 8, 8)

TEST_SAMPLES = 360
"""Of the 1797 images; the other 1437 are for training. The set itself brings no division."""


class Digits(ArraySource):
    """1797 grey images of 8 x 8 pixels, 0 ... 16, ten classes; one fixed stratified division, 1437 / 360.

    Args:
        shape: (channels, height, width) that they are shown at: resized, and with 3 channels the grey in each. It
            lets networks made for photographs run on data that every installation has. None: (1, 8, 8).
        mean, std: one number, or one per channel.

    The other arguments are those of `ArraySource`; `root` and `download` are accepted and not needed.
    """

    peak = 16

    def __init__(
        self,
        *,
        name: str = "digits",
        root: str = "",
        download: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        shape: list[int] | None = None,
        augment: str = "none",
        padding: int = 1,
        validation: float = 0.0,
        train_samples: int | None = None,
        eval_batch_size: int = 500,
    ) -> None:
        shown = grey_or_colour(shape) or SHAPE
        super().__init__(
            name=name,
            root=root,
            download=download,
            mean=_of_each_channel(mean, shown[0]),
            std=_of_each_channel(std, shown[0]),
            shape=shown,
            num_classes=10,
            augment=augment,
            padding=padding,
            validation=validation,
            train_samples=train_samples,
            eval_batch_size=eval_batch_size,
        )

    def files(self) -> list[Path]:
        """Return nothing: the images come with a package."""
        return []

    def digest(self) -> str:
        """Return the digest of the arrays as they ship; the shape they are shown at is a setting, no content."""
        return cache.splits_digest(_read_and_divide())

    def decode(self) -> Splits:
        """Read scikit-learn's copy, divide it, and bring it to its shape."""
        return {
            name: Split(_shown(split.images, self.shape), split.labels)
            for name, split in _read_and_divide().items()
        }

    def _read(self) -> Splits:
        return self.decode()


def _shown(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return np.ascontiguousarray(resize(images, *shape[1:]).repeat(shape[0], axis=3))


def _of_each_channel(values: list[float] | None, channels: int) -> list[float] | None:
    return values * channels if isinstance(values, list) and len(values) == 1 else values


@functools.cache
def _read_and_divide() -> Splits:
    """Once for all jobs of a sweep."""
    table = _table()
    images, labels = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1].astype(np.int64)
    train, test = stratified_rows(labels, TEST_SAMPLES)
    where = "scikit-learn's digits"
    return {
        "train": make_split(images[train], labels[train], where),
        "test": make_split(images[test], labels[test], where),
    }


def _table() -> np.ndarray:
    """Return scikit-learn's file, (1797, 65): 64 pixels and the label; importing the package takes a second."""
    spec = importlib.util.find_spec("sklearn")
    path = Path(spec.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if spec else Path()
    if path.is_file():
        return np.loadtxt(path, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target]).astype(np.int64)
