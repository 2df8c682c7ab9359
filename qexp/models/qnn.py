"""The networks of the binarized-network papers: batch norm behind every layer, pooling before it, the sign last.

Courbariaux et al. 2016 (arXiv 1602.02830), section 2, and the authors' published code; Hubara et al. (arXiv
1609.07061). Each is a float network with ReLUs until quantizers take their places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.ops.numbers import is_count, is_positive

Start = Literal["unit", "glorot"]
"""Where weights start: uniform in [-1, 1], as in the papers' code, or in Glorot's range, for a float network."""


def start_weights(model: nn.Module, start: Start) -> None:
    """Draw the weights of every convolution and linear layer of `model` anew, in place."""
    if start not in ("unit", "glorot"):
        raise ConfigError(f"model.start={start}: choose unit or glorot.")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if start == "unit":
                nn.init.uniform_(module.weight, -1.0, 1.0)
            else:
                nn.init.xavier_uniform_(module.weight)


def widened(channels: int, width: float) -> int:
    """Return a layer's width times the factor, to the nearest whole number.

    Raises:
        ConfigError: nothing would be left.

    >>> widened(128, 0.25)
    32
    """
    if not is_positive(width) or round(channels * width) < 1:
        raise ConfigError(f"model.width={width}: a factor above 0 that leaves every layer a channel.")
    return round(channels * width)


def _require_widths(**settings: int | list[int]) -> None:
    for name, value in settings.items():
        if not all(is_count(width) for width in ([value] if isinstance(value, int) else value)):
            raise ConfigError(f"model.{name}={value}: the width of a layer is a whole number above 0.")


class QNNMLP(nn.Module):
    """The permutation-invariant MNIST network: three hidden layers, dropout before each layer, ends in batch norm.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: width of the output.
        hidden: widths of the hidden layers; 3 x 4096 (Theano) or 3 x 2048 (Torch) in the paper.
        width: factor on them.
        dropout: shares of (the image, each hidden layer) set to zero in training.
        start: as `start_weights`.

    Raises:
        ConfigError: no hidden layer, a width below 1, or a share that is none.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        hidden: Sequence[int] = (4096, 4096, 4096),
        width: float = 1.0,
        dropout: Sequence[float] = (0.2, 0.5),
        start: Start = "unit",
    ) -> None:
        super().__init__()
        if not hidden:
            raise ConfigError("model.hidden=[]: name one width per hidden layer.")
        _require_widths(hidden=list(hidden))
        if len(dropout) != 2 or not all(0.0 <= share < 1.0 for share in dropout):
            raise ConfigError(
                f"model.dropout={list(dropout)}: two shares (image, hidden), each 0 or more, below 1."
            )
        self.depth = len(hidden)
        self.drop0 = nn.Dropout(dropout[0])
        features = math.prod(input_shape)
        for number, wanted in enumerate(hidden, start=1):
            outputs = widened(wanted, width)
            self.add_module(f"fc{number}", nn.Linear(features, outputs, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm1d(outputs, eps=1e-4))
            self.add_module(f"act{number}", nn.ReLU())
            self.add_module(f"drop{number}", nn.Dropout(dropout[1]))
            features = outputs
        self.fc = nn.Linear(features, num_classes, bias=False)
        self.bn = nn.BatchNorm1d(num_classes, eps=1e-4)
        start_weights(self, start)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (N, num_classes) of images `x` (N, C, H, W)."""
        x = self.drop0(torch.flatten(x, 1))
        for number in range(1, self.depth + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"fc{number}")(x))
            x = getattr(self, f"drop{number}")(getattr(self, f"act{number}")(x))
        return self.bn(self.fc(x))


class Features(nn.Sequential):
    """A convolution, a pooling where one is given, batch norm, ReLU: the papers' order."""

    def __init__(self, convolution: nn.Conv2d, pool: nn.Module | None = None) -> None:
        parts = [convolution, pool, nn.BatchNorm2d(convolution.out_channels, eps=1e-4), nn.ReLU()]
        super().__init__(*(part for part in parts if part is not None))


class Dense(nn.Sequential):
    """A linear layer, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, eps=1e-4), nn.ReLU())


class QNNConvNet(nn.Module):
    """The CIFAR-10 network: 2 x 128C3, MP2, 2 x 256C3, MP2, 2 x 512C3, MP2, 2 x 1024FC, 10; SVHN's from 64 on.

    Args:
        input_shape: (C, H, W) of one image; at least 8 x 8, 32 x 32 in the paper.
        num_classes: width of the output.
        channels: of the first two convolutions; 128 for CIFAR-10, 64 for SVHN.
        hidden: width of the two hidden linear layers.
        width: factor on all widths.
        start: as `start_weights`.

    Raises:
        ConfigError: images too small for three poolings, or a width below 1.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        channels: int = 128,
        hidden: int = 1024,
        width: float = 1.0,
        start: Start = "unit",
    ) -> None:
        super().__init__()
        inputs, rows, columns = input_shape
        if min(rows, columns) < 8:
            raise ConfigError(f"model qnn_convnet: images of {rows}x{columns} are too small, the least is 8x8.")
        _require_widths(channels=channels, hidden=hidden)
        layers: list[nn.Module] = []
        for outputs in (widened(channels * factor, width) for factor in (1, 2, 4)):
            layers.append(Features(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)))
            layers.append(Features(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2)))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        dense = widened(hidden, width)
        flat = inputs * (rows // 8) * (columns // 8)
        self.classifier = nn.Sequential(Dense(flat, dense), Dense(dense, dense))
        self.fc = nn.Linear(dense, num_classes, bias=False)
        self.bn = nn.BatchNorm1d(num_classes, eps=1e-4)
        start_weights(self, start)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (N, num_classes) of images `x` (N, C, H, W)."""
        return self.bn(self.fc(self.classifier(torch.flatten(self.features(x), 1))))


class QNNAlexNet(nn.Module):
    """AlexNet as in the authors' PyTorch code: five convolutions, three linear layers, batch norm behind each.

    Args:
        input_shape: (C, H, W) of one image; at least 63 x 63, 224 x 224 there.
        num_classes: width of the output.
        width: factor on the first four convolutions; 3 in the authors' code. Which one the published accuracies
            stand on is not known.
        hidden: width of the two hidden linear layers.
        start: as `start_weights`.

    Raises:
        ConfigError: images too small for the poolings, or a width below 1.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        width: float = 1.0,
        hidden: int = 4096,
        start: Start = "unit",
    ) -> None:
        super().__init__()
        channels, *sides = input_shape
        if min(sides) < 63:
            raise ConfigError(
                f"model qnn_alexnet: images of {sides[0]}x{sides[1]} are too small, the least is 63x63."
            )
        _require_widths(hidden=hidden)
        first, second, third, fourth = (widened(wanted, width) for wanted in (64, 192, 384, 256))
        self.features = nn.Sequential(
            Features(nn.Conv2d(channels, first, 11, stride=4, padding=2, bias=False), nn.MaxPool2d(3, stride=2)),
            Features(nn.Conv2d(first, second, 5, padding=2, bias=False), nn.MaxPool2d(3, stride=2)),
            Features(nn.Conv2d(second, third, 3, padding=1, bias=False)),
            Features(nn.Conv2d(third, fourth, 3, padding=1, bias=False)),
            Features(nn.Conv2d(fourth, 256, 3, padding=1, bias=False), nn.MaxPool2d(3, stride=2)),
        )
        rows, columns = (pooled_side(side) for side in sides)
        self.classifier = nn.Sequential(Dense(256 * rows * columns, hidden), Dense(hidden, hidden))
        self.fc = nn.Linear(hidden, num_classes, bias=False)
        self.bn = nn.BatchNorm1d(num_classes, eps=1e-4)
        start_weights(self, start)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (N, num_classes) of images `x` (N, C, H, W)."""
        return self.bn(self.fc(self.classifier(torch.flatten(self.features(x), 1))))


def pooled_side(side: int) -> int:
    """Return the side of AlexNet's last feature map for an image's side.

    >>> pooled_side(224), pooled_side(63)
    (6, 1)
    """
    side = (side + 4 - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side
