"""Any tree of images, root/train/<class>/* and root/test/<class>/*, decoded once and held in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qexp.data import images
from qexp.data.arrays import ArraySource
from qexp.data.checks import grey_or_colour
from qexp.data.splits import Split, Splits
from qexp.data.trees import Tree, scan
from qexp.errors import DataError

LARGEST_BYTES = 16 << 30
"""Of one split in memory; above it the set is refused before anything is decoded."""


class ImageFolder(ArraySource):
    """A tree of images small enough for memory; a class is a folder, its label the folder's place in the alphabet.

    `val/` beside `test/` is the validation split; without `test/`, `val/` is the test split.

    Args:
        shape: (channels, height, width) that every image is resized and cut to (1 channel: grey); None: all
            images have one size, and are read in colour.
        num_classes: or None to count the folders of train.
        download: must be false; a tree has no source to download from.

    The other arguments are those of `ArraySource`.
    """

    def __init__(
        self,
        *,
        name: str = "imagefolder",
        root: str = "data",
        download: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        shape: list[int] | None = None,
        num_classes: int | None = None,
        augment: str = "none",
        padding: int = 4,
        validation: float = 0.0,
        train_samples: int | None = None,
        eval_batch_size: int = 500,
    ) -> None:
        if download:
            raise DataError(
                "dataset.download=true: a tree of images has no source to download from; set it to false."
            )
        super().__init__(
            name=name,
            root=root,
            download=download,
            mean=mean,
            std=std,
            shape=grey_or_colour(shape),
            num_classes=num_classes,
            augment=augment,
            padding=padding,
            validation=validation,
            train_samples=train_samples,
            eval_batch_size=eval_batch_size,
        )
        self._trees: dict[str, Tree] | None = None

    def trees(self) -> dict[str, Tree]:
        """Return the listing of each split, made at the first call."""
        if self._trees is None:
            if not (self.root / "train").is_dir():
                raise DataError(
                    f"dataset.root={str(self.root)!r}: no data set {self.name} there (no folder train); images"
                    " lie in train/<class>/ and test/<class>/ (or val) below it. Set dataset.root, or QEXP_DATA."
                )
            train = scan(self.root / "train")
            if self._num_classes is not None and len(train.classes) != self._num_classes:
                raise DataError(
                    f"dataset.num_classes={self._num_classes}: {train.folder} has {len(train.classes)}"
                    " class folders; give their number, or null."
                )
            there = [name for name in ("val", "test") if (self.root / name).is_dir()]
            if not there:
                raise DataError(f"{self.root}: no folder test (or val) beside train; set dataset.root.")
            folders = {"test": "val"} if there == ["val"] else {name: name for name in there}
            self._trees = {"train": train}
            for split, folder in folders.items():
                self._trees[split] = scan(self.root / folder, train.classes)
        return self._trees

    def files(self) -> list[Path]:
        """Return all image files."""
        return [file for tree in self.trees().values() for file in tree.files]

    def recipe(self) -> str:
        """Return the shape that images are brought to."""
        return f"shape={self._shape}"

    def decode(self) -> Splits:
        """Decode every image."""
        return {name: Split(self._decode(tree), tree.labels) for name, tree in self.trees().items()}

    def _decode(self, tree: Tree) -> np.ndarray:
        files = tree.files
        channels, height, width = self._shape or (3, *_size(files[0]))
        needed = len(files) * channels * height * width
        if needed > LARGEST_BYTES:
            raise DataError(
                f"{tree.folder}: {len(files)} images of {height} x {width} need {needed >> 30} GiB in memory;"
                f" at most {LARGEST_BYTES >> 30} are allowed. Give a smaller dataset.shape, or use"
                " dataset=imagenet, which decodes as it goes."
            )
        array = np.empty((len(files), height, width, channels), dtype=np.uint8)
        for row, file in enumerate(files):
            image = images.decode(file, channels)
            if self._shape is None and image.size != (width, height):
                raise DataError(
                    f"{file}: {image.height} x {image.width} pixels, {files[0].name} has {height} x {width};"
                    " give dataset.shape=[channels,height,width] to bring all images to one size."
                )
            array[row] = images.pixels(images.centre(images.resize_shorter(image, height, width), height, width))
        return array


def _size(file: Path) -> tuple[int, int]:
    image = images.decode(file, 3)
    return image.height, image.width
