"""Weights that flip between two levels in training: how often each does, and holding those that do so too often.

Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", arXiv 2203.11086; from memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

OSCILLATES = 0.005
"""Flips per step above which a weight counts as oscillating (as that paper counts)."""


class Oscillation(nn.Module):
    """Counts, for each weight, the changes of its integer that go back on the one before.

    Args:
        shape: of the weights.
        momentum: of the moving averages, 0 to 1.
    """

    integers: Tensor
    direction: Tensor
    frequency: Tensor
    average: Tensor
    frozen: Tensor

    def __init__(self, shape: tuple[int, ...], momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        # int8 holds 8 signed bits; gloo, which hands buffers to other processes, has no int16.
        self.register_buffer("integers", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("direction", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("frequency", torch.zeros(shape))
        self.register_buffer("average", torch.zeros(shape))
        self.register_buffer("frozen", torch.zeros(shape, dtype=torch.bool))

    @torch.no_grad()
    def begin(self, integers: Tensor) -> None:
        """Take note of the integers before the first step."""
        self.integers.copy_(integers)
        self.average.copy_(integers)

    @torch.no_grad()
    def count(self, integers: Tensor, freeze_above: float | None) -> None:
        """Take note of the integers after a step; freeze what flips more often than `freeze_above`."""
        moved = (integers - self.integers).sign().to(torch.int8)
        flipped = (moved * self.direction < 0).float()  # a move against the last one
        self.frequency.lerp_(flipped, self.momentum)
        # The mean level of a frozen weight is the one it was frozen at.
        self.average.copy_(
            torch.where(self.frozen, self.average, self.average.lerp(integers.float(), self.momentum))
        )
        self.direction.copy_(torch.where(moved != 0, moved, self.direction))
        if freeze_above is not None:
            self.frozen |= self.frequency > freeze_above
        self.integers.copy_(torch.where(self.frozen, torch.round(self.average), integers.float()))

    def shares(self) -> dict[str, Tensor]:
        """Return the shares of weights that oscillate and that are frozen."""
        return {
            "oscillating": (self.frequency > OSCILLATES).float().mean(),
            "frozen": self.frozen.float().mean(),
        }
