"""The SVHN network of the DoReFa and PACT papers: seven convolutions and a linear layer on 40x40 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.models.alexnet_bn import convolution
from qexp.models.initialization import he_initialize

SMALLEST_SIDE = 37
"""Of an image: below it nothing is left for the last convolution's 5x5 window."""


class SVHNNet(nn.Module):
    """conv5-48, pool | conv3-64, conv3-64, pool | 3 x conv3-128 | dropout, conv5-512 | linear.

    Seven activations, `act0` to `act6`, as in figure 3 of the PACT paper. `conv0` has a bias and no batch norm,
    the others a batch norm and no bias; pooling comes before the activation; `conv0`, `conv3`, `conv5` and
    `conv6` have no padding: sides of 40 -> 36 -> 18 -> 9 -> 7 -> 5 -> 1.

    Sources: Zhou et al. 2016 (arXiv 1606.06160) with their public training script, which has the layers; Choi et
    al. 2018 (arXiv 1805.06085), section 5 and appendix B.

    Args:
        input_shape: (C, H, W) of one image; the papers resize SVHN to 40x40.
        num_classes: width of the output.
        dropout: share of the features before `conv6` that is set to zero in training.

    Raises:
        ConfigError: the image is smaller than 37x37, or `dropout` is not in [0, 1).
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < SMALLEST_SIDE:
            raise ConfigError(
                f"model svhn: images of {height}x{width} are too small, the least is "
                f"{SMALLEST_SIDE}x{SMALLEST_SIDE}; resize them (the papers use 40x40)."
            )
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"model.dropout={dropout}: a share of at least 0 and below 1.")
        self.conv0 = nn.Conv2d(channels, 48, 5)
        self.pool0 = nn.MaxPool2d(2, ceil_mode=True)
        self.act0 = nn.ReLU()
        self.conv1, self.bn1, self.act1 = convolution(48, 64, kernel=3, padding=1)
        self.conv2, self.bn2, self.act2 = convolution(64, 64, kernel=3, padding=1)
        self.pool2 = nn.MaxPool2d(2, ceil_mode=True)
        self.conv3, self.bn3, self.act3 = convolution(64, 128, kernel=3, padding=0)
        self.conv4, self.bn4, self.act4 = convolution(128, 128, kernel=3, padding=1)
        self.conv5, self.bn5, self.act5 = convolution(128, 128, kernel=3, padding=0)
        self.dropout = nn.Dropout(dropout)
        self.conv6, self.bn6, self.act6 = convolution(128, 512, kernel=5, padding=0)
        self.fc = nn.Linear(512 * final_side(height) * final_side(width), num_classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images `x` (N, C, H, W)."""
        x = self.act0(self.pool0(self.conv0(x)))
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.pool2(self.bn2(self.conv2(x))))
        x = self.act3(self.bn3(self.conv3(x)))
        x = self.act4(self.bn4(self.conv4(x)))
        x = self.act5(self.bn5(self.conv5(x)))
        x = self.act6(self.bn6(self.conv6(self.dropout(x))))
        return self.fc(torch.flatten(x, 1))


def final_side(side: int) -> int:
    """Return the side of the last feature map for an image's side.

    >>> final_side(40), final_side(37), final_side(45)
    (1, 1, 3)
    """
    pooled = -((4 - side) // 4)  # conv0 takes 4 away, then two poolings halve and round up
    return pooled - 2 - 2 - 4
