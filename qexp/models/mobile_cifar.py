"""MobileNetV2 and ShuffleNetV2 for small images: torchvision's blocks, the early strides left out.

The papers give the networks for 224x224 (arXiv 1801.04381, table 2; arXiv 1807.11164, table 5), where the first
layers shrink the sides 4 to 8 times. For 32x32 it is common to let those layers keep the sides; which ones is our
choice and said at each network. Neither paper prints numbers for these versions.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import MobileNetV2, ShuffleNetV2

from qexp.errors import ConfigError
from qexp.models.initialization import he_initialize

MOBILENET_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, repeats and stride of each stage: table 2's, with stride 1 in place of 2 in the second."""

SHUFFLENET_STAGES = (4, 8, 4)
SHUFFLENET_CHANNELS = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}
"""Channels behind the first layer, the three stages and the last convolution, by width (table 5)."""


def mobilenet_v2_cifar(*, input_shape: tuple[int, int, int], num_classes: int, width: float = 1.0) -> nn.Module:
    """Return MobileNetV2 whose first layer and second stage have stride 1: sides shrink 8 times in all.

    Args:
        input_shape: (C, H, W) of one image; any channels and sides.
        num_classes: width of the output.
        width: multiplies the channels of every layer but the last convolution, which stays at 1280 below 1.

    Raises:
        ConfigError: `width` is not above 0.
    """
    if not 0 < width < float("inf"):
        raise ConfigError(f"model.width={width}: a number above 0 multiplies the channels; 1 is the paper's.")
    blocks = [list(block) for block in MOBILENET_BLOCKS]
    model = MobileNetV2(num_classes=num_classes, width_mult=width, inverted_residual_setting=blocks)
    model.features[0][0] = _first(input_shape[0], model.features[0][0])
    he_initialize(model)
    return model


def shufflenet_v2_cifar(*, input_shape: tuple[int, int, int], num_classes: int, width: float = 1.0) -> nn.Module:
    """Return ShuffleNetV2 whose first layer has stride 1 and no pooling behind it: sides shrink 8 times in all.

    Args:
        input_shape: (C, H, W) of one image; any channels and sides.
        num_classes: width of the output.
        width: 0.5, 1, 1.5 or 2, as in the paper.

    Raises:
        ConfigError: the paper has no such width.
    """
    if width not in SHUFFLENET_CHANNELS:
        raise ConfigError(f"model.width={width}: the paper has {', '.join(map(str, SHUFFLENET_CHANNELS))}.")
    model = ShuffleNetV2(list(SHUFFLENET_STAGES), list(SHUFFLENET_CHANNELS[width]), num_classes=num_classes)
    model.conv1[0] = _first(input_shape[0], model.conv1[0])
    model.maxpool = nn.Identity()
    he_initialize(model)
    return model


def _first(channels: int, layer: nn.Conv2d) -> nn.Conv2d:
    """Return `layer` with stride 1 for images of `channels`."""
    return nn.Conv2d(channels, layer.out_channels, 3, padding=1, bias=False)
