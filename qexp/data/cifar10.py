"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in ten classes, 50,000 to train and 10,000 to test.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

from pathlib import Path

from qexp.data.archives import PARTS, find_or_fetch, read_train_and_test
from qexp.data.arrays import ArraySource
from qexp.data.splits import Splits

FILES = tuple(
    f"cifar-10-batches-py/{name}"
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
)


class CIFAR10(ArraySource):
    """CIFAR-10 from `root/cifar10.npz`, or from the official archive as torchvision reads it.

    Args:
        download: fetch the official archive into `root` where neither is there.

    The other arguments are those of `ArraySource`.
    """

    def __init__(
        self,
        *,
        name: str = "cifar10",
        root: str = "data",
        download: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augment: str = "crop_flip",
        padding: int = 4,
        validation: float = 0.0,
        train_samples: int | None = None,
        eval_batch_size: int = 500,
    ) -> None:
        super().__init__(
            name=name,
            root=root,
            download=download,
            mean=mean,
            std=std,
            shape=(3, 32, 32),
            num_classes=10,
            augment=augment,
            padding=padding,
            validation=validation,
            train_samples=train_samples,
            eval_batch_size=eval_batch_size,
        )

    def files(self) -> list[Path]:
        """Return the .npz file, else those of the official archive."""
        return find_or_fetch("CIFAR10", self.root, FILES, list(PARTS.values()), self.download, "cifar10.npz")

    def decode(self) -> Splits:
        """Read the .npz file, or torchvision's arrays."""
        return read_train_and_test("CIFAR10", self.root, self.files()[0])
