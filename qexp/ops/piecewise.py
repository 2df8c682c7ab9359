"""Piecewise-linear grids: a dense one around zero and coarser ones towards the tails, each with the same bits.

Fang et al. 2020, "Post-Training Piecewise Linear Quantization for Deep Neural Networks", equation 3; several
breakpoints from its supplement, section 1.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from qexp.ops.codes import Codes, ascending
from qexp.ops.rounding import ste
from qexp.ops.uniform import SMALLEST

Variant = Literal["paper", "authors"]

VARIANTS = ("paper", "authors")


class PiecewiseGrid:
    """Rounds magnitudes between neighbouring edges to equally spaced values, and keeps the sign.

    In the `paper` form every piece has 2^(bits-1) values of each sign, its two ends among them. The `authors` form
    is their code's, denser around zero: the centre (-p, p) is one signed grid of `bits` bits with the step
    2 p / (2^bits - 1). `overlap`: beyond the breakpoint a value is rounded on a grid of the whole range [-m, m],
    so that no offset is stored; the paper's figure 2 compares it, for one breakpoint. Such a value may come to lie
    before the breakpoint, so rounding twice is not rounding once; in all other forms it is.

    Args:
        edges: float32 (pieces + 1, ...), from 0 over the breakpoints to m, not decreasing; the other axes
            broadcast against what is rounded. What lies beyond m is clipped.
        bits: of each piece, sign included, at least 2.
        variant, overlap: as above.
        signed: False for values that are never negative, for which the sign's bit is free: each piece then has
            2^bits values, and what is below zero becomes zero (ours).
    """

    def __init__(
        self, edges: Tensor, bits: int, variant: Variant = "paper", *, overlap: bool = False, signed: bool = True
    ) -> None:
        count, self.last = edges.shape[0] - 1, 2 ** (bits - signed) - 1
        self.signed = signed
        self.edges = edges = _closed(edges)
        self.adjoining = variant == "paper" and not overlap
        self.beyond = torch.ge if variant == "authors" else torch.gt
        # Of each piece: whether one grid of two's complement serves both signs, where the integers of a magnitude
        # begin, how wide they reach, in how many steps, and how many of these a unit holds.
        self.joint = [variant == "authors" and (index == 0 or overlap) for index in range(count)]
        self.low = [edges[index] * (index == 0 or not overlap) for index in range(count)]
        self.width = [edges[index + 1] - low for index, low in enumerate(self.low)]
        self.steps = [self.last + 0.5 * joint for joint in self.joint]
        self.scales = [
            steps / torch.where(width > SMALLEST, width, 1.0)
            for steps, width in zip(self.steps, self.width, strict=True)
        ]

    def round(self, x: Tensor, rounding: Callable[[Tensor], Tensor] = ste) -> Tensor:
        """Return the quantized values, in x's dtype; computed in float32."""
        value = x.float() if self.signed else x.float().clamp(min=0)
        if self.adjoining:
            return self._summed(value, rounding).to(x.dtype)
        pieces = self._pieces(value)
        integers = self._integers(value, pieces, rounding)
        low, width = self._chosen(pieces, self.low), self._chosen(pieces, self.width)
        magnitude = low + width * self._shares(pieces, integers)
        # Not copysign(magnitude, value), whose gradient is zero where the magnitude is.
        return (magnitude * torch.copysign(torch.ones_like(value), value.detach())).to(x.dtype)

    def _summed(self, value: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum of what every piece makes of its own part of a value.

        Only where each piece is a grid of its own width from its edge: those nearer to zero are then filled and
        round to their ends. Nothing has to be looked up for each element, which takes three times as long.
        """
        parts = []
        inner: Tensor | float = 0.0
        for edge in self.edges[1:]:
            within = torch.minimum(torch.maximum(value, -edge) if self.signed else value, edge)
            parts.append(within - inner)
            inner = within
        total: Tensor | None = None
        for part, scale, steps, width in zip(parts, self.scales, self.steps, self.width, strict=True):
            # In place: new memory for a large tensor costs as much as the arithmetic. No gradient needs the old.
            rounded = rounding(part.mul_(scale)).div_(steps).mul_(width)
            total = rounded if total is None else total.add_(rounded)
        assert total is not None
        return total

    def codes(self, x: Tensor) -> Codes:
        """Return which value each element takes, the values of all pieces in ascending order."""
        value = x.detach().float() if self.signed else x.detach().float().clamp(min=0)
        pieces = self._pieces(value)
        integers = self._integers(value, pieces, torch.round).long()
        table, zeros = self._table()
        every = [torch.full_like(integers, zero) for zero in zeros]
        second = [torch.full_like(integers, not joint) for joint in self.joint]  # a zero for each sign, or one
        below = -integers - self._chosen(pieces, second)
        entry = self._chosen(pieces, every) + torch.where(value < 0, below, integers)
        return ascending(entry, table)

    def signed_integers(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return, for each piece, the integers of what lies in it and their signs, both 0 elsewhere; float64.

        A value is sign * low + integer * width / steps of its piece: what the accumulators of hardware multiply.
        """
        value = x.detach().float() if self.signed else x.detach().float().clamp(min=0)
        pieces = self._pieces(value)
        integers = self._integers(value, pieces, torch.round).double()
        sign = torch.where(value < 0, -1.0, 1.0).double()
        number = torch.stack([torch.zeros_like(sign), *(beyond.double() for beyond in pieces)]).sum(0)
        here = [(number == index).double() for index in range(len(self.low))]
        return [(sign * integers * mask, sign * mask) for mask in here]

    def _pieces(self, value: Tensor) -> list[Tensor]:
        """Return, for every breakpoint, which elements lie beyond it."""
        magnitude = value.detach().abs()
        return [self.beyond(magnitude, edge) for edge in self.edges[1:-1]]

    def _chosen(self, pieces: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """Return each element's own of `values`, which hold one a piece."""
        chosen = values[0]
        for beyond, value in zip(pieces, values[1:], strict=True):
            chosen = torch.where(beyond, value, chosen)
        return chosen

    def _integers(self, value: Tensor, pieces: Sequence[Tensor], rounding: Callable[[Tensor], Tensor]) -> Tensor:
        """Return each magnitude's integer within its piece."""
        magnitude = torch.minimum(value.abs(), self.edges[-1])
        integers = rounding((magnitude - self._chosen(pieces, self.low)) * self._chosen(pieces, self.scales))
        if not any(self.joint):
            return integers
        last = torch.full_like(value, self.last)
        further = last + (value.detach() < 0) if self.joint[-1] else last  # two's complement has one more below
        return torch.minimum(integers, self._chosen(pieces, [last, *([further] * len(pieces))]))

    def _shares(self, pieces: Sequence[Tensor], integers: Tensor) -> Tensor:
        """Return the integers as shares of their piece's width: 1 at its end, exactly."""
        if len(set(self.steps)) == 1:
            return integers / self.steps[0]
        return integers / self._chosen(pieces, [integers.new_tensor(steps) for steps in self.steps])

    def _table(self) -> tuple[Tensor, list[int]]:
        """Return every value, piece by piece and in each from the most negative up, and where each zero stands."""
        integers = torch.arange(self.last + 2, dtype=torch.float32, device=self.edges.device)
        integers = integers.reshape(-1, *([1] * (self.edges.dim() - 1)))
        parts: list[Tensor] = []
        zeros: list[int] = []
        for joint, low, width, steps in zip(self.joint, self.low, self.width, self.steps, strict=True):
            magnitudes = low + width * (integers / steps)
            negative = magnitudes[1:] if joint else magnitudes[:-1] if self.signed else magnitudes[:0]
            zeros.append(sum(part.shape[0] for part in parts) + negative.shape[0])
            parts += [-negative.flip(0), magnitudes[:-1]]
        return torch.cat(parts), zeros


def _closed(edges: Tensor) -> Tensor:
    """Return the edges as low + (high - low) gives them, so that a value at an end of a piece stays there."""
    closed = [edges[0]]
    for edge in edges[1:]:
        closed.append(closed[-1] + (edge - closed[-1]))
    return torch.stack(closed)
