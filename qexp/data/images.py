"""Trees of image files: finding them class by class, and decoding one to the size that a network takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from qexp.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Files with another ending in a class folder are not images and are passed over."""


@dataclass(frozen=True)
class Tree:
    """One split of a tree.

    Attributes:
        classes: names of the class folders, sorted; their positions are the labels.
        names: files relative to `folder`, sorted within each class.
        labels: int64, one for each file.
        sizes: int64, bytes of each file.
    """

    folder: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    sizes: np.ndarray

    @property
    def files(self) -> list[Path]:
        """The files' paths."""
        return [self.folder / name for name in self.names]


def scan(folder: Path, classes: tuple[str, ...] | None = None) -> Tree:
    """List the images of `folder/<class>/**`.

    Args:
        folder: one split.
        classes: the class folders that must be there and no others (those of the training split); None: any.

    Raises:
        DataError: no such folder, no class folders, other classes, or a class without an image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; images lie in <root>/<split>/<class>/, set dataset.root.")
    try:
        found = tuple(sorted(each.name for each in os.scandir(folder) if each.is_dir() and each.name[0] != "."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error}).") from error
    if not found:
        raise DataError(f"{folder}: no class folders in it; images lie in {folder}/<class>/.")
    if classes is not None and (other := sorted(set(found) ^ set(classes))):
        raise DataError(
            f"{folder}: its classes are not those of the training split ({other[0]!r} is only in one of them)."
        )
    names: list[str] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, each in enumerate(found):
        images = sorted(_images(folder, each))
        if not images:
            raise DataError(f"{folder / each}: no image in this class; add some or remove the folder.")
        names += [name for name, _ in images]
        sizes += [size for _, size in images]
        labels += [label] * len(images)
    return Tree(folder, found, tuple(names), np.array(labels, dtype=np.int64), np.array(sizes, dtype=np.int64))


def _images(folder: Path, inside: str) -> list[tuple[str, int]]:
    found = []
    with os.scandir(folder / inside) as entries:
        for entry in entries:
            name = f"{inside}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += _images(folder, name)
            elif entry.name.lower().endswith(SUFFIXES):
                found.append((name, entry.stat().st_size))
    return found


def decode(file: Path, channels: int) -> Image.Image:
    """Read one image file whole, as RGB (3 channels) or grey (1).

    Raises:
        DataError: the file is not an image, is truncated, or cannot be read.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be decoded ({error}); replace or remove it.") from error


def resize_shorter(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize (bilinear, antialiased) so that the image just covers height x width, keeping its proportions."""
    factor = max(height / image.height, width / image.width)
    size = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def centre(image: Image.Image, height: int, width: int) -> Image.Image:
    """Cut height x width out of the middle."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def pixels(image: Image.Image) -> np.ndarray:
    """Return the image as uint8 (height, width, channels)."""
    array = np.asarray(image, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array
