"""A multilayer perceptron with batch norm: the small network that the embedded digits are learned with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.models.initialization import he_initialize


class MLP(nn.Module):
    """Flatten, then linear -> batch norm -> ReLU for each hidden width, then a linear classifier.

    Modules are named `fc1`, `bn1`, `act1`, `fc2` ... and `fc` for the classifier. Batch norm stands behind
    every hidden layer because some weight quantizers (DoReFa's) change the scale of what a layer puts out.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: width of the output.
        hidden: widths of the hidden layers, first to last.

    Raises:
        ConfigError: `hidden` is empty or holds a width below 1.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        hidden: Sequence[int] = (512, 512, 512),
    ) -> None:
        super().__init__()
        if not hidden or any(width < 1 for width in hidden):
            raise ConfigError(f"model.hidden={list(hidden)}: name one width of 1 or more per hidden layer.")
        self.depth = len(hidden)
        features = math.prod(input_shape)
        for number, width in enumerate(hidden, start=1):
            # The batch norm brings the shift, so a bias before it would be lost.
            self.add_module(f"fc{number}", nn.Linear(features, width, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm1d(width))
            self.add_module(f"act{number}", nn.ReLU())
            features = width
        self.fc = nn.Linear(features, num_classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images `x` (N, C, H, W)."""
        x = torch.flatten(x, 1)
        for number in range(1, self.depth + 1):
            x = getattr(self, f"fc{number}")(x)
            x = getattr(self, f"act{number}")(getattr(self, f"bn{number}")(x))
        return self.fc(x)
