"""Mean and spread of values that arrive in batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qexp.calibration.extremes import ends, flat
from qexp.calibration.histograms import CHUNK, Histogram
from qexp.quantizers.base import Site


class Moments:
    """Count, mean, spread and ends of all values of one site, in float64, by one pass over each batch.

    Parts are merged by the update of Chan, Golub and LeVeque 1979 ("Updating formulae and a pairwise algorithm
    for computing sample variances"), which takes no difference of large numbers.

    Args:
        site: where the values come from, for the errors.
        bins: cells of the histogram behind `deviation`.

    Attributes:
        count: number of values.
        mean: 0 before the first.
        low, high: the smallest and the largest, inf and -inf before the first.
    """

    def __init__(self, site: Site, bins: int = 2048) -> None:
        self.site = site
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0
        self._histogram = Histogram(bins)

    def observe(self, x: Tensor) -> None:
        """Take in the values of one batch, of any shape; an empty one changes nothing.

        Raises:
            ConfigError: NaN or infinity.
        """
        if x.numel() > 0:
            values = flat(x)
            self._histogram.add(values, *ends(values, self.site.name))
            for part in values.split(CHUNK):
                self._merge(part.double())

    @property
    def low(self) -> float:
        """The smallest value."""
        return self._histogram.low

    @property
    def high(self) -> float:
        """The largest value."""
        return self._histogram.high

    @property
    def std(self) -> float:
        """The standard deviation, unbiased (divided by count - 1); 0 where there is one value or none."""
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else 0.0

    @property
    def deviation(self) -> float:
        """The mean absolute deviation E|x - mean|; 0 where there is no value.

        From the histogram: its values, zeros apart, count as the middle of their cell. So it is off by at most
        half a cell, which is at most (high - low) / (bins - 1).
        """
        if self.count == 0:
            return 0.0
        edges = self._histogram.edges()
        middles = ((edges[1:] + edges[:-1]) / 2).clamp(self.low, self.high)
        total = (self._histogram.nonzero_counts() * (middles - self.mean).abs()).sum().item()
        return (total + self._histogram.zeros * abs(self.mean)) / self.count

    def _merge(self, part: Tensor) -> None:
        mean = part.mean()
        centred = part - mean
        new_mean, squares = torch.stack([mean, centred.dot(centred)]).tolist()
        difference = new_mean - self.mean
        count = self.count + part.numel()
        self._squares += squares + difference**2 * self.count * part.numel() / count
        self.mean += difference * part.numel() / count
        self.count = count


class Half:
    """The spread of a density symmetric about zero, from its positive half alone: count, sum and squares of it.

    Attributes:
        mean: 0, that of the whole density.
        high: the largest value, 0 before the first above it.
    """

    mean = 0.0

    def __init__(self, site: Site) -> None:
        self.site = site
        self.count, self.total, self.squares, self.high = 0, 0.0, 0.0, 0.0

    def observe(self, x: Tensor) -> None:
        """Take in the values of one batch, of any shape; an empty one changes nothing.

        Raises:
            ConfigError: NaN or infinity.
        """
        if x.numel() == 0:
            return
        values = flat(x)
        self.high = max(self.high, ends(values, self.site.name)[1])
        for part in values.split(CHUNK):
            above = part.double().clamp_(min=0)
            # Their sign is 0 or 1: counted as floats, which takes a fraction of the time of counting booleans.
            count, total, squares = torch.stack([above.sign().sum(), above.sum(), above.dot(above)]).tolist()
            self.count += int(count)
            self.total += total
            self.squares += squares

    @property
    def deviation(self) -> float:
        """E|x| of the whole density."""
        return self.total / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """sqrt(E x^2) of the whole density."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0
