"""Pre-activation ResNets for ImageNet: batch norm and ReLU stand in front of each convolution.

He et al. 2016, "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027), section 4 and appendix. Choi et
al. 2018 (arXiv 1805.06085), appendix B, calls its ResNet18 and ResNet50 full pre-activation and gives no more
detail. Where the first activation of a stage goes, projections without batch norm and the stride in a bottleneck's
3x3 convolution are therefore our choice: as in the public ResNet example of tensorpack, which that paper used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.models.initialization import he_initialize


@dataclass(frozen=True)
class Convolution:
    """One convolution of a residual unit; it keeps the sides but for its stride, and has no bias."""

    channels: int
    kernel: int
    stride: int = 1


@dataclass(frozen=True)
class Layout:
    """Units in each of the four stages, and whether they are bottlenecks (1x1, 3x3, 1x1) or two 3x3."""

    units: tuple[int, int, int, int]
    bottleneck: bool

    def unit(self, width: int, stride: int) -> tuple[Convolution, ...]:
        """Return the convolutions of one unit; `width` is that of its 3x3 convolutions."""
        if self.bottleneck:
            return Convolution(width, 1), Convolution(width, 3, stride), Convolution(4 * width, 1)
        return Convolution(width, 3, stride), Convolution(width, 3)


LAYOUTS = {
    18: Layout((2, 2, 2, 2), bottleneck=False),
    34: Layout((3, 4, 6, 3), bottleneck=False),
    50: Layout((3, 4, 6, 3), bottleneck=True),
    101: Layout((3, 4, 23, 3), bottleneck=True),
}
"""By depth, which counts the weight layers without the projections (He et al. 2016, arXiv 1512.03385, table 1)."""


def convolve(channels_in: int, to: Convolution) -> nn.Conv2d:
    """Return the module of one convolution."""
    return nn.Conv2d(channels_in, to.channels, to.kernel, stride=to.stride, padding=to.kernel // 2, bias=False)


class ResidualUnit(nn.Module):
    """bn1 -> act1 -> conv1 -> bn2 -> act2 -> conv2 (-> bn3 -> act3 -> conv3), added to the shortcut.

    The shortcut carries the sum as it came in, never activated. Where channels or sides change it is a 1x1
    convolution without batch norm, which reads what `conv1` reads: the activated sum.

    Args:
        channels_in: channels of the sum that comes in.
        convolutions: of the branch, first to last.
        activated: the input is activated already (the network's first unit): there is no bn1 and no act1.
    """

    def __init__(self, channels_in: int, convolutions: Sequence[Convolution], *, activated: bool = False) -> None:
        super().__init__()
        self.activated, self.depth = activated, len(convolutions)
        channels = channels_in
        for number, convolution in enumerate(convolutions, start=1):
            if number > 1 or not activated:
                self.add_module(f"bn{number}", nn.BatchNorm2d(channels))
                self.add_module(f"act{number}", nn.ReLU())
            self.add_module(f"conv{number}", convolve(channels, convolution))
            channels = convolution.channels
        stride = max(convolution.stride for convolution in convolutions)
        projected = stride > 1 or channels != channels_in
        self.shortcut = convolve(channels_in, Convolution(channels, 1, stride)) if projected else None

    def forward(self, total: Tensor) -> Tensor:
        """Return the next sum (N, C', H / stride, W / stride) from the present one (N, C, H, W)."""
        branch = activated = total if self.activated else self._activate(1, total)
        for number in range(1, self.depth + 1):
            if number > 1:
                branch = self._activate(number, branch)
            branch = getattr(self, f"conv{number}")(branch)
        return branch + (total if self.shortcut is None else self.shortcut(activated))

    def _activate(self, number: int, x: Tensor) -> Tensor:
        x = getattr(self, f"bn{number}")(x)
        return getattr(self, f"act{number}")(x)


class PreactivationImageNetResNet(nn.Module):
    """conv7x7/2 -> bn -> act -> max pooling, four stages of residual units, bn -> act, pooling, a linear layer.

    The stem is activated before its pooling, so the first unit starts without an activation of its own, and the
    last sum is activated before the global pooling. That makes as many activations as in the post-activation
    network of the same depth: 17 for 18 layers, 49 for 50. Modules are named as torchvision's where they
    have a counterpart: `conv1`, `bn1`, `act1`, `layer1.0.conv1` ... `fc`; `bn` and `act` are the last ones.

    Args:
        input_shape: (C, H, W) of one image; 224x224 in the papers, any sides here.
        num_classes: width of the output.
        depth: 18, 34, 50 or 101 weight layers.
        width: channels of the stem and of the 3x3 convolutions in the first stage, doubled from stage to stage.

    Raises:
        ConfigError: another depth, or a width below 1.
    """

    def __init__(
        self, *, input_shape: tuple[int, int, int], num_classes: int, depth: int = 18, width: int = 64
    ) -> None:
        super().__init__()
        if depth not in LAYOUTS:
            raise ConfigError(f"model.depth={depth}: choose one of {', '.join(map(str, LAYOUTS))}.")
        if width < 1:
            raise ConfigError(f"model.width={width}: the first stage has 1 channel or more (the papers' 64).")
        layout, channels = LAYOUTS[depth], width
        self.conv1 = convolve(input_shape[0], Convolution(width, 7, stride=2))
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage, units in enumerate(layout.units):
            made = []
            for index in range(units):
                convolutions = layout.unit(width * 2**stage, stride=2 if stage > 0 and index == 0 else 1)
                made.append(ResidualUnit(channels, convolutions, activated=stage == index == 0))
                channels = convolutions[-1].channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images `x` (N, C, H, W)."""
        total = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            total = getattr(self, f"layer{stage}")(total)
        return self.fc(torch.flatten(self.pool(self.act(self.bn(total))), 1))
