"""ResNets for small images: pre-activation (as in the PACT paper) and post-activation (the original).

Sources: He et al. 2016, "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027) and He et al.
2016, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385, section 4.2).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.models.initialization import he_initialize

STAGES = (1, 2, 3)
"""Stage numbers; widths grow by two and sides shrink by two from one to the next."""


def blocks_per_stage(depth: int, width: int) -> int:
    """Return n for a network of `depth` = 6 n + 2 weight layers whose first stage has `width` channels.

    >>> blocks_per_stage(20, 16), blocks_per_stage(56, 16)
    (3, 9)

    Raises:
        ConfigError: no whole n of 1 or more gives this depth, or the width is below 1.
    """
    if width < 1:
        raise ConfigError(f"model.width={width}: the first stage has 1 channel or more (the papers' 16).")
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ConfigError(
            f"model.depth={depth}: a CIFAR ResNet has 6n + 2 layers; choose 8, 14, 20, 32, 44 or 56."
        )
    return blocks


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution with padding 1 and without bias (a batch norm follows each one)."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def pad_channels(x: Tensor, extra: int) -> Tensor:
    """Return `x` (N, C, H, W) with `extra` channels of zeros, half of them before its own and half behind."""
    return F.pad(x, (0, 0, 0, 0, extra // 2, extra - extra // 2))


class PreactivationBlock(nn.Module):
    """One residual unit: conv1 -> bn1 -> stemact -> conv2, added to the shortcut, then bn2 -> act.

    In a pre-activation network the batch norm and the ReLU in front of a block read the sum that the block
    before it put out. They are kept here with the block that made the sum, so that each block owns its two
    activations and the last block owns the one in front of the pooling; the shortcut carries the sum
    itself, never activated.

    The shortcut has no parameters: the sum's 2x2 average, and channels of zeros for the new ones.

    Args:
        channels_in: channels of the sum that comes in.
        channels_out: channels of the sum that goes out.
        stride: 1, or 2 to halve the sides.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra_channels = channels_out - channels_in
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.stemact = nn.ReLU()
        self.conv2 = conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.act = nn.ReLU()

    def forward(self, total: Tensor, activated: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next (sum, its activation) from the present one, each (N, C, H, W)."""
        branch = self.conv2(self.stemact(self.bn1(self.conv1(activated))))
        if self.stride > 1:
            # Sides that are odd round up, as they do in the strided convolution.
            total = F.avg_pool2d(total, self.stride, ceil_mode=True)
        if self.extra_channels:
            total = pad_channels(total, self.extra_channels)
        total = total + branch
        return total, self.act(self.bn2(total))


class PreactivationResNet(nn.Module):
    """The pre-activation ResNet of depth 6n + 2: conv0, three stages of n blocks, pooling, a linear layer.

    The first activation comes right behind conv0 and before the first shortcut leaves, the last one right
    behind the last sum (arXiv 1603.05027, section 4 and appendix): 6n + 1 activations, 19 for ResNet20.
    Names are those of figure 2 of the PACT paper: `act0`, then `conv<stage>blk<block>.stemact` and `.act`.
    Shortcuts between stages are 2x2 averages with zero channels on both sides, the option without
    parameters of the code base that the paper was built on, so that every weight layer but the first and
    the last lies in a quantized branch.

    Args:
        input_shape: (C, H, W) of one image; any sides.
        num_classes: width of the output.
        depth: 6n + 2 weight layers.
        width: channels of the first stage; twice and four times as many in the next ones.

    Raises:
        ConfigError: `depth` is not 6n + 2.
    """

    def __init__(
        self, *, input_shape: tuple[int, int, int], num_classes: int, depth: int = 20, width: int = 16
    ) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth, width)
        self.conv0 = conv3x3(input_shape[0], width)
        self.bn0 = nn.BatchNorm2d(width)
        self.act0 = nn.ReLU()
        self.block_names = [f"conv{stage}blk{block}" for stage in STAGES for block in range(1, blocks + 1)]
        channels = width
        for index, name in enumerate(self.block_names):
            out = width * 2 ** (index // blocks)
            self.add_module(name, PreactivationBlock(channels, out, stride=1 if out == channels else 2))
            channels = out
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images `x` (N, C, H, W)."""
        total = activated = self.act0(self.bn0(self.conv0(x)))
        for name in self.block_names:
            total, activated = getattr(self, name)(total, activated)
        return self.fc(torch.flatten(self.pool(activated), 1))


class BasicBlock(nn.Module):
    """One post-activation unit: conv1 -> bn1 -> relu1 -> conv2 -> bn2, added to the shortcut, then relu2.

    The shortcut is option A of the paper: every second pixel, and channels of zeros for the new ones.

    Args:
        channels_in: channels that come in.
        channels_out: channels that go out.
        stride: 1, or 2 to halve the sides.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra_channels = channels_out - channels_in
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (N, channels_out, H / stride, W / stride), activated."""
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.extra_channels:
            x = pad_channels(x, self.extra_channels)
        return self.relu2(x + branch)


class ResNetV1(nn.Module):
    """The post-activation ResNet of depth 6n + 2 with option-A shortcuts, as in public CIFAR-10 checkpoints.

    Names follow those checkpoints (`conv1`, `layer1.0.conv1` ...); their last layer `linear` is `fc` here.

    Args:
        input_shape: (C, H, W) of one image; any sides.
        num_classes: width of the output.
        depth: 6n + 2 weight layers.
        width: channels of the first stage; twice and four times as many in the next ones.

    Raises:
        ConfigError: `depth` is not 6n + 2.
    """

    renamed: ClassVar[dict[str, str]] = {"linear.": "fc."}
    """Beginnings of names in foreign checkpoints, and what they are called here."""

    def __init__(
        self, *, input_shape: tuple[int, int, int], num_classes: int, depth: int = 20, width: int = 16
    ) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth, width)
        self.conv1 = conv3x3(input_shape[0], width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        channels = width
        for stage in STAGES:
            out = width * 2 ** (stage - 1)
            first = BasicBlock(channels, out, stride=1 if out == channels else 2)
            others = [BasicBlock(out, out, stride=1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *others))
            channels = out
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images `x` (N, C, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in STAGES:
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(torch.flatten(self.pool(x), 1))
