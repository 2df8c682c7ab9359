"""Uniform grids over a range that is given, not learned: what post-training methods round to.

Fang et al. 2020, "Post-Training Piecewise Linear Quantization for Deep Neural Networks", equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qexp.ops.codes import Codes
from qexp.ops.rounding import ste

Kind = Literal["full", "restricted", "asymmetric"]

KINDS = ("full", "restricted", "asymmetric")

SMALLEST = 2.0**-118
"""Of a range: 255 steps in a smaller one overflow float32, so it counts as none."""


@dataclass(frozen=True)
class Grid:
    """The values step * i + offset for the integers i from `lowest` to `highest`.

    Attributes:
        step: at least 0, broadcasts against what is rounded; where it is 0 there is one value, the offset.
        offset: as `step`; None for 0.
    """

    step: Tensor
    lowest: int
    highest: int
    offset: Tensor | None = None

    def round(self, x: Tensor, rounding: Callable[[Tensor], Tensor] = ste) -> Tensor:
        """Return the nearest of the values, in x's dtype; computed in float32."""
        if torch.is_grad_enabled():
            return self._values(self._integers(x, rounding)).to(x.dtype)
        # Without a gradient in the block that is new: fewer passes over memory.
        values = rounding(self._quotients(x)).clamp_(self.lowest, self.highest).mul_(self.step)
        return (values if self.offset is None else values.add_(self.offset)).to(x.dtype)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the values each element takes, from 0 (the lowest) up."""
        integers = self._integers(x.detach(), torch.round) - self.lowest
        every = torch.arange(self.lowest, self.highest + 1, dtype=torch.float32, device=x.device)
        return Codes(integers.int(), self._values(every.reshape(-1, *([1] * self.step.dim()))))

    def _integers(self, x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(self._quotients(x)).clamp(self.lowest, self.highest)

    def _quotients(self, x: Tensor) -> Tensor:
        shifted = x.float() if self.offset is None else x.float() - self.offset
        return shifted / torch.where(self.step > 0, self.step, 1.0)

    def _values(self, integers: Tensor) -> Tensor:
        return integers * self.step if self.offset is None else integers * self.step + self.offset


def make_grid(kind: Kind, bits: int, low: Tensor, high: Tensor) -> Grid:
    """Return the grid of `bits` bits for values from `low` to `high`.

    `full` is the paper's for values of both signs: m the larger magnitude, 2^bits values at distance
    2 m / (2^bits - 1), one more below zero than above, zero among them; so m itself is met only by half a step.
    `restricted` leaves the lowest away and ends at -m and m. `asymmetric` spreads 2^bits values from low to high,
    the paper's for values that are never negative (low = 0).

    Args:
        kind: as above.
        bits: 1 to 8; `restricted` needs 2.
        low, high: float32 of one shape, low <= high.

    >>> make_grid("full", 2, torch.tensor(-3.0), torch.tensor(2.0)).codes(torch.zeros(1)).codebook.tolist()
    [-4.0, -2.0, 0.0, 2.0]
    """
    if kind == "asymmetric":
        return Grid((high - low) / (2**bits - 1), 0, 2**bits - 1, low)
    largest = torch.maximum(low.abs(), high.abs())
    half = 2 ** (bits - 1)
    if kind == "full":
        return Grid(largest / (2**bits - 1) * 2, -half, half - 1)
    return Grid(largest / (half - 1), 1 - half, half - 1)


def spread_axes(x: Tensor, channels: bool) -> tuple[int, ...]:
    """Return the axes of a weight over which one range is taken: all, or all but the first (the channels)."""
    return tuple(range(1 if channels else 0, x.dim()))


def extremes(x: Tensor, channels: bool) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value in float32: scalars, or (channels, 1, ...) to broadcast."""
    axes = spread_axes(x, channels)
    low, high = torch.aminmax(x.float().flatten(1), dim=1) if channels and axes else torch.aminmax(x.float())
    return (low.reshape(-1, *([1] * len(axes))), high.reshape(-1, *([1] * len(axes)))) if channels else (low, high)
