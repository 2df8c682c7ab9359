"""MNIST: 70,000 grey images of handwritten digits, 28 x 28 pixels, 60,000 to train and 10,000 to test.

Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-Based Learning Applied to Document Recognition, 1998.
"""

from __future__ import annotations

from pathlib import Path

from qexp.data.archives import PARTS, find_or_fetch, read_train_and_test
from qexp.data.arrays import ArraySource
from qexp.data.splits import Splits

FILES = tuple(
    f"MNIST/raw/{name}-ubyte"
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
)


class MNIST(ArraySource):
    """MNIST from `root/mnist.npz`, or from the official archive as torchvision reads it.

    Args:
        download: fetch the official archive into `root` where neither is there.

    The other arguments are those of `ArraySource`.
    """

    def __init__(
        self,
        *,
        name: str = "mnist",
        root: str = "data",
        download: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augment: str = "none",
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
            shape=(1, 28, 28),
            num_classes=10,
            augment=augment,
            padding=padding,
            validation=validation,
            train_samples=train_samples,
            eval_batch_size=eval_batch_size,
        )

    def files(self) -> list[Path]:
        """Return the .npz file, else those of the official archive."""
        return find_or_fetch("MNIST", self.root, FILES, list(PARTS.values()), self.download, "mnist.npz")

    def decode(self) -> Splits:
        """Read the .npz file, or torchvision's arrays."""
        return read_train_and_test("MNIST", self.root, self.files()[0])
