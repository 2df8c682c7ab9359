"""Counts over equal cells for values that arrive in batches, the same whatever the batches and their order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.quantizers.base import Site

CHUNK = 2**18
"""Values taken at a time, so that what is made on the way stays small beside the activation itself."""

_SMALLEST_EXPONENT = -120
_INDEX_BITS = 24


class Histogram:
    """Counts values in at most `bins` cells of width 2^e, each beginning at a whole multiple of it.

    The width is the smallest power of two for which all values seen fit, so at least half of the cells cover the
    range. A value out of range doubles the width until it fits; since cells begin at multiples of their width,
    each new cell is made of whole old ones. Hence the counts are a function of the values alone, exactly: of
    neither the batches nor their order. Only a range far narrower than its distance from zero, or all within
    1e-33 of zero, gets fewer cells: widths stay within 24 bits of the largest value, and above 2^-120. And a
    negative value nearer to zero than 2^-149 cells may count as zero.

    Attributes:
        exponent: e; None before the first value.
        first: the first cell begins at first * 2^e.
        counts: int64 (bins,), on the CPU.
        zeros: how many of the values are exactly 0; they are in `counts` too. A ReLU makes them by the million,
            and they cost nothing on any grid that has a zero, unlike the values they share their cell with.
        low, high: the smallest and the largest value.

    Raises:
        ConfigError: fewer than 16 bins.
    """

    def __init__(self, bins: int) -> None:
        if bins < 16:
            raise ConfigError(f"bins={bins} does not fit: a histogram has 16 or more (2048 is common).")
        self.exponent: int | None = None
        self.first = 0
        self.counts = torch.zeros(bins, dtype=torch.int64)
        self.zeros = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: Tensor, low: float, high: float) -> None:
        """Count the values of a vector; all of them lie in [low, high], which are finite."""
        self._cover(min(low, self.low), max(high, self.high))
        found = torch.zeros(len(self.counts) + 1, dtype=torch.int64, device=values.device)
        for part in values.split(CHUNK):
            # Exact: a product with a power of two, and an index below 2^24.
            cells = (part * (1 / self.width)).floor_().to(torch.int32).sub_(self.first)
            found[:-1] += torch.bincount(cells, minlength=len(self.counts))
            # Ones summed as floats, exact up to 2^24: count_nonzero takes ten times as long where half are zero.
            found[-1] += torch.eq(part, 0, out=torch.empty_like(part)).sum().long()
        *counts, zeros = found.tolist()
        self.counts += torch.tensor(counts)
        self.zeros += zeros

    @property
    def width(self) -> float:
        """The width of a cell."""
        return 0.0 if self.exponent is None else 2.0**self.exponent

    def edges(self) -> Tensor:
        """Return where the cells begin and end, float64 (bins + 1,)."""
        return (torch.arange(len(self.counts) + 1, dtype=torch.float64) + self.first) * self.width

    def nonzero_counts(self) -> Tensor:
        """Return the counts without the values that are exactly zero, float64 (bins,)."""
        counts = self.counts.double()
        if self.zeros:
            counts[-self.first] -= self.zeros
        return counts

    def _cover(self, low: float, high: float) -> None:
        exponent = _exponent(low, high, len(self.counts))
        first = math.floor(math.ldexp(low, -exponent))
        if self.exponent is not None and (exponent, first) != (self.exponent, self.first):
            old = torch.arange(len(self.counts)) + self.first
            seen = self.counts > 0
            cells = (old[seen] >> min(exponent - self.exponent, 63)) - first
            self.counts = torch.zeros_like(self.counts).index_add_(0, cells, self.counts[seen])
        self.exponent, self.first, self.low, self.high = exponent, first, low, high


def _exponent(low: float, high: float, bins: int) -> int:
    """Return the smallest e for which [low, high] touches at most `bins` cells of width 2^e."""
    exponent = _SMALLEST_EXPONENT
    if largest := max(-low, high):
        exponent = max(exponent, math.frexp(largest)[1] - _INDEX_BITS)
    if low < high:
        exponent = max(exponent, math.frexp((high - low) / bins)[1] - 1)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= bins:
        exponent += 1
    return exponent


class Magnitudes:
    """A histogram of what a clip level acts on, from 0 up: |x| where a site is signed, else max(x, 0)."""

    def __init__(self, bins: int, site: Site) -> None:
        self.histogram = Histogram(bins)
        self.signed = site.signed

    def add(self, values: Tensor, low: float, high: float) -> None:
        """Count the values of a vector; all of them lie in [low, high], which are finite."""
        largest = max(-low, high) if self.signed else max(high, 0.0)
        if low < 0:
            values = values.abs() if self.signed else values.clamp(min=0)
        self.histogram.add(values, 0.0, largest)

    def above_zero(self) -> tuple[Tensor, float, float]:
        """Return (counts, width, largest): float64 counts of the values above zero, up to the last cell used."""
        counts = self.histogram.nonzero_counts()
        used = int(counts.nonzero().max()) + 1 if counts.any() else 0
        return counts[:used], self.histogram.width, self.histogram.high
