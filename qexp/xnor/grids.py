"""Uniform grids as whole numbers: what a quantizer's codes stand for, without its scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEAR = 1e-3
"""Of a step: how far a codebook's values may lie from a grid at most."""

ROUNDED = 2.0**-21
"""Of the largest magnitude: how far float32 puts them, a product and a sum rounded, there and at the ends."""


@dataclass(frozen=True)
class Grid:
    """Values `half_step * (2 k - (2^bits - 1) + shift) + offset` for codes k: odd numbers, moved.

    In a product the odd numbers are what planes of +1 and -1 add up to: sum over j of 2^j (2 bit j - 1).

    Attributes:
        bits: planes of a code.
        levels: codes go from 0 to levels - 1.
        half_step: float32, half the distance of two levels; scalar, or one for each output channel (out,).
        shift: whole number.
        offset: what no whole number of half steps reaches, however little it is; 0 for most methods.
    """

    bits: int
    levels: int
    half_step: Tensor
    shift: int
    offset: float = 0.0

    @property
    def largest(self) -> int:
        """The largest magnitude of the whole numbers."""
        odd = 2**self.bits - 1
        return max(abs(self.shift - odd), abs(self.shift - odd + 2 * (self.levels - 1)))

    @property
    def reach(self) -> Tensor:
        """No value is larger in magnitude; float64, as `half_step`."""
        return self.half_step.double() * self.largest + abs(self.offset)

    @property
    def signs(self) -> bool:
        """Whether it has two levels, one on each side of zero and as far."""
        return self.bits == 1 and not self.shift and not self.offset and bool((self.half_step > 0).all())

    def integers(self, codes: Tensor) -> Tensor:
        """Return the whole numbers of codes, in their dtype."""
        return 2 * codes - (2**self.bits - 1) + self.shift

    def values(self, codes: Tensor) -> Tensor:
        """Return the values of codes (float32), for a grid with one step."""
        return self.integers(codes.float()) * self.half_step + self.offset

    def codes(self, values: Tensor) -> Tensor:
        """Return the codes (float32, whole) of values that lie on the grid, for a grid with one step."""
        lowest = self.half_step * (self.shift - (2**self.bits - 1)) + self.offset
        step = torch.where(self.half_step > 0, 2 * self.half_step, 1.0)  # 0: one value alone, by any code
        return torch.round((values.float() - lowest) / step)


def grid_of(codebook: Tensor) -> Grid | str:
    """Return the grid of a codebook (levels,) or (levels, out, 1, ...), or why it is none.

    >>> grid_of(torch.tensor([-1.0, -0.5, 0.0, 0.5])).integers(torch.arange(4)).tolist()
    [-4, -2, 0, 2]
    >>> grid_of(torch.tensor([-1.0, -0.5, 0.5, 1.0]))
    'its levels are not equally spaced'
    """
    table = codebook.detach().double().reshape(len(codebook), -1)
    levels = len(table)
    if levels < 2 or levels > 256:
        return f"it has {levels} levels, the kernel takes 2 to 256"
    step = (table[-1] - table[0]) / (levels - 1)
    even = table[0] + step * torch.arange(levels, dtype=torch.float64, device=table.device).unsqueeze(1)
    rounded = torch.minimum(ROUNDED * table.abs().amax(0), NEAR * step)
    if not bool(((table - even).abs() <= rounded).all()):
        return "its levels are not equally spaced"
    bits = (levels - 1).bit_length()
    used = step > 0  # a filter of zeros has no step; its shift is that of the others
    if bool((table[0][~used] != 0).any()):
        return "a channel of it has one value alone, which is not 0"
    places = 2 * table[0][used] / step[used] + (2**bits - 1)
    half = (step / 2).float() if codebook.dim() > 1 else (step[0] / 2).float()
    if not len(places):
        return Grid(bits, levels, half, 0)
    shift = round(float(places[0]))
    if bool(((places - shift).abs() * step[used] / 2 <= rounded[used]).all()):  # what is more adds up in a sum
        return Grid(bits, levels, half, shift)
    if table.shape[1] > 1 and bool((table != table[:, :1]).any()):
        return "its channels have grids of their own that zero is no point of"
    shift = 2**bits - 1  # codes from 0, and the lowest level as the offset
    return Grid(bits, levels, half, shift, float(table[0, 0]))


def one_step(codebook: Tensor) -> Tensor:
    """Return a codebook whose channels are all alike without them: (levels,); others as they are."""
    flat = codebook.reshape(len(codebook), -1)
    return flat[:, 0] if bool((flat == flat[:, :1]).all()) else codebook
