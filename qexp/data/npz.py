"""Arrays in one .npz file, with the keys x_train, y_train, x_test, y_test, and x_val, y_val where they exist.

Without y_train the training images have no labels: `qexp ptq` calibrates on them, nothing trains.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qexp.data.arrays import ArraySource
from qexp.data.cache import UNREADABLE
from qexp.data.checks import given_shape
from qexp.data.splits import NO_LABEL, Splits, make_split
from qexp.errors import DataError

NEEDED = ("x_train", "y_train", "x_test", "y_test")


def read_npz(file: Path) -> Splits:
    """Read the splits of an .npz file.

    Images are uint8 (samples, height, width[, channels]), labels integers (samples,).

    Raises:
        DataError: the file is damaged, a key is missing, an array has another type or shape, or a y_train that is
            there holds no label.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            keys = list(archive.files)
            if missing := [key for key in NEEDED if key not in keys and key != "y_train"]:
                raise DataError(
                    f"{file}: no {', '.join(missing)} in it, only {', '.join(keys) or 'nothing'};"
                    f" a data file has {', '.join(NEEDED)}."
                )
            pairs = (("x_val", "y_val"), ("y_val", "x_val"))
            if half := [key for key, other in pairs if key in keys and other not in keys]:
                raise DataError(f"{file}: {half[0]} has no partner; a validation split has x_val and y_val.")
            images = {name: archive[f"x_{name}"] for name in ("train", "val", "test") if f"x_{name}" in keys}
            arrays = {
                name: (each, archive[f"y_{name}"] if f"y_{name}" in keys else np.full(each.shape[:1], NO_LABEL))
                for name, each in images.items()
            }
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file}: not a readable .npz file ({reason}); fetch or write it again.") from error
    splits = {name: make_split(*pair, where=f"{file}, {name} split") for name, pair in arrays.items()}
    if "y_train" in keys and not splits["train"].labelled:
        raise DataError(
            f"{file}: label {NO_LABEL} of sample 0 and of every other in y_train; labels are 0 or more, and a file"
            " without training labels has no y_train."
        )
    return splits


class Npz(ArraySource):
    """Any set of images in an .npz file.

    Args:
        file: name of the file in `root`, or a path.
        shape: (channels, height, width), or None to take it from the file.
        num_classes: or None for the largest training label + 1; without training labels, test label.

    The other arguments are those of `ArraySource`.
    """

    def __init__(
        self,
        *,
        file: str,
        name: str = "npz",
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
            raise DataError("dataset.download=true: an npz file has no source to download from; set it to false.")
        super().__init__(
            name=name,
            root=root,
            download=download,
            mean=mean,
            std=std,
            shape=given_shape(shape),
            num_classes=num_classes,
            augment=augment,
            padding=padding,
            validation=validation,
            train_samples=train_samples,
            eval_batch_size=eval_batch_size,
        )
        if not isinstance(file, str):
            raise DataError(f"dataset.file={file!r}: the name of a file in dataset.root, or a path.")
        self.file = self.root / Path(file).expanduser()

    def files(self) -> list[Path]:
        """Return the one file."""
        if not self.file.is_file():
            raise DataError(
                f"dataset.file={str(self.file)!r}: no such file for the data set {self.name}; give the path of one"
                f" with {', '.join(NEEDED)}, or set dataset.root."
            )
        return [self.file]

    def decode(self) -> Splits:
        """Read the file."""
        return read_npz(self.file)
