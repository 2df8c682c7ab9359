"""SVHN: house numbers cut to single digits, colour, 32 x 32 pixels, ten classes; PACT trains on them at 40 x 40.

Source: Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011. The size of 40
is appendix B of PACT (arXiv 1805.06085).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qexp.data.archives import find_or_fetch, read_part
from qexp.data.arrays import ArraySource
from qexp.data.checks import check_flag, check_whole
from qexp.data.resizing import resize
from qexp.data.splits import Split, Splits


class SVHN(ArraySource):
    """The cropped digits of SVHN, from the official .mat files as torchvision reads them; digit 0 has label 0.

    Args:
        size: height and width of the images; other than 32 they are resized (bilinear).
        extra: add the `extra` images to the training split.
        download: fetch missing files into `root`.

    The other arguments are those of `ArraySource`.
    """

    def __init__(
        self,
        *,
        name: str = "svhn",
        root: str = "data",
        download: bool = False,
        size: int = 40,
        extra: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augment: str = "none",
        padding: int = 4,
        validation: float = 0.0,
        train_samples: int | None = None,
        eval_batch_size: int = 500,
    ) -> None:
        check_whole("size", size, 1, " pixels")
        check_flag("extra", extra)
        super().__init__(
            name=name,
            root=root,
            download=download,
            mean=mean,
            std=std,
            shape=(3, size, size),
            num_classes=10,
            augment=augment,
            padding=padding,
            validation=validation,
            train_samples=train_samples,
            eval_batch_size=eval_batch_size,
        )
        self.size = size
        self.extra = extra

    def _parts(self) -> list[str]:
        return ["train", "test", "extra"] if self.extra else ["train", "test"]

    def files(self) -> list[Path]:
        """Return the .mat files."""
        names = [f"{part}_32x32.mat" for part in self._parts()]
        return find_or_fetch("SVHN", self.root, names, [{"split": part} for part in self._parts()], self.download)

    def recipe(self) -> str:
        """Return the size that the images are resized to."""
        return f"size={self.size}"

    def decode(self) -> Splits:
        """Read and resize the images."""
        parts = {
            part: read_part("SVHN", self.root, {"split": part}, channels_first=True) for part in self._parts()
        }
        splits = {
            part: Split(resize(split.images, self.size, self.size), split.labels) for part, split in parts.items()
        }
        if self.extra:
            more = splits.pop("extra")
            train = splits["train"]
            splits["train"] = Split(
                np.concatenate([train.images, more.images]), np.concatenate([train.labels, more.labels])
            )
        return splits
