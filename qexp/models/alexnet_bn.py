"""AlexNet with batch norm in place of local response normalization: the DoReFa and PACT papers' AlexNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.models.initialization import he_initialize

SMALLEST_SIDE = 48
"""Of an image: below it nothing is left for the last pooling's 3x3 window."""


class AlexNetBN(nn.Module):
    """Five convolutions (three of them in two groups) and three linear layers; seven activations.

    `conv0` has neither bias nor batch norm, the other hidden layers a batch norm and no bias; pooling comes
    before the activation; there is no dropout. At 224x224 the sides are 54, 27, 14, 14, 6. Activations are named
    `act0` to `act4` behind the convolutions, `act5` and `act6` behind the two hidden linear layers.

    Sources: Zhou et al. 2016 (arXiv 1606.06160) with their public training script, which has the layers; Choi et
    al. 2018 (arXiv 1805.06085), section 5 and appendix B.

    Args:
        input_shape: (C, H, W) of one image; 224x224 in the papers.
        num_classes: width of the output.
        hidden: width of the two hidden linear layers.

    Raises:
        ConfigError: the image is smaller than 48x48.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int, hidden: int = 4096) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < SMALLEST_SIDE:
            raise ConfigError(
                f"model alexnet_bn: images of {height}x{width} are too small, the least is "
                f"{SMALLEST_SIDE}x{SMALLEST_SIDE}; resize them (the papers use 224x224)."
            )
        self.conv0 = nn.Conv2d(channels, 96, 12, stride=4, bias=False)
        self.act0 = nn.ReLU()
        self.conv1, self.bn1, self.act1 = convolution(96, 256, kernel=5, padding=2, groups=2)
        # At 224x224 the original's window starts at the first pixel here (side 54), one before it in pool2 (27).
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2, self.bn2, self.act2 = convolution(256, 384, kernel=3, padding=1)
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv3, self.bn3, self.act3 = convolution(384, 384, kernel=3, padding=1, groups=2)
        self.conv4, self.bn4, self.act4 = convolution(384, 256, kernel=3, padding=1, groups=2)
        self.pool4 = nn.MaxPool2d(3, stride=2)
        self.fc5, self.bn5, self.act5 = linear(256 * final_side(height) * final_side(width), hidden)
        self.fc6, self.bn6, self.act6 = linear(hidden, hidden)
        self.fc = nn.Linear(hidden, num_classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images `x` (N, C, H, W)."""
        x = self.act0(self.conv0(x))
        x = self.act1(self.pool1(self.bn1(self.conv1(x))))
        x = self.act2(self.pool2(self.bn2(self.conv2(x))))
        x = self.act3(self.bn3(self.conv3(x)))
        x = self.act4(self.pool4(self.bn4(self.conv4(x))))
        x = torch.flatten(x, 1)
        x = self.act5(self.bn5(self.fc5(x)))
        x = self.act6(self.bn6(self.fc6(x)))
        return self.fc(x)


def convolution(
    channels_in: int, channels_out: int, *, kernel: int, padding: int, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    """Return a convolution without bias, its batch norm and its activation, for `model=svhn` too."""
    module = nn.Conv2d(channels_in, channels_out, kernel, padding=padding, groups=groups, bias=False)
    # The original keeps 0.9 of its running averages, which torch calls a momentum of 0.1.
    return module, nn.BatchNorm2d(channels_out, eps=1e-4, momentum=0.1), nn.ReLU()


def linear(features_in: int, features_out: int) -> tuple[nn.Linear, nn.BatchNorm1d, nn.ReLU]:
    """Return a linear layer without bias, its batch norm and its activation."""
    module = nn.Linear(features_in, features_out, bias=False)
    return module, nn.BatchNorm1d(features_out, eps=1e-4, momentum=0.1), nn.ReLU()


def final_side(side: int) -> int:
    """Return the side of the last feature map for an image's side.

    >>> final_side(224), final_side(48)
    (6, 1)
    """
    first = (side - 12) // 4 + 1
    second = -((3 - first) // 2) + 1
    third = (second - 1) // 2 + 1
    return (third - 3) // 2 + 1
