"""Observers: each sees a site's batches once, one after another, and then says which range to quantize.

PWLQ (Fang et al. 2020, "Post-training Piecewise Linear Quantization for Deep Neural Networks", supplement table 3)
compares top-k and percentiles; the source of each is named at its class.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from qexp.bits import BITS
from qexp.calibration.extremes import ends, flat, median_ends
from qexp.calibration.histograms import Histogram
from qexp.errors import ConfigError
from qexp.quantizers.base import Site


class Observer:
    """Chooses the range of one site from batches seen one after another; memory does not grow with their number.

    A subclass implements `_take` and `_range`. Ranges are per layer and need not hold zero (`MinMax` of 1 and 2):
    a grid that has to have a zero extends them.

    Args:
        bits: 1 to 8, or 32 for no rounding.
        site: where it stands.

    Raises:
        ConfigError: another width.
    """

    version: ClassVar[int] = 1
    """Of its maths; a new one gives the runs that use it new names."""

    def __init__(self, bits: int, site: Site) -> None:
        if bits not in BITS:
            raise ConfigError(f"{site.name}: bits={bits}: a width is 1 to 8, or 32 for no rounding.")
        self.bits = bits
        self.site = site
        self.batches = 0

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take in one batch, of any shape, layout, device and real dtype; it counts as float32.

        An empty batch holds no value and changes nothing, the number of batches included.

        Raises:
            ConfigError: NaN or infinity; the message names the site.
        """
        if x.numel() > 0:
            self._take(flat(x))
            self.batches += 1

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the range as float32 scalars on the CPU, low <= high; more batches may follow.

        Raises:
            ConfigError: nothing was observed.
        """
        if self.batches == 0:
            raise ConfigError(
                f"{self.site.name}: no batch was observed, so it has no range; run calibration data."
            )
        low, high = self._range()
        return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)

    def _take(self, values: Tensor) -> None:
        """Remember what is needed of one batch, a float32 vector with at least one value."""
        raise NotImplementedError(type(self).__name__)

    def _range(self) -> tuple[float, float]:
        """Return the range; at least one batch was taken."""
        raise NotImplementedError(type(self).__name__)


class MinMax(Observer):
    """The smallest and the largest value of all batches: nothing is clipped."""

    def __init__(self, bits: int, site: Site) -> None:
        super().__init__(bits, site)
        self.low, self.high = math.inf, -math.inf

    def _take(self, values: Tensor) -> None:
        low, high = ends(values, self.site.name)
        self.low, self.high = min(low, self.low), max(high, self.high)

    def _range(self) -> tuple[float, float]:
        return self.low, self.high


class MovingAverage(Observer):
    """The batches' minima and maxima, each averaged with weights that fade: the order of batches matters.

    The first batch starts both; each further one moves them towards its own ends by `momentum`. Source: Jacob et
    al. 2018, arXiv 1712.05877, section 3.1, who smooth ranges so in training.

    Args:
        momentum: share of the newest batch, above 0, at most 1.

    Raises:
        ConfigError: momentum out of range.
    """

    def __init__(self, bits: int, site: Site, *, momentum: float = 0.1) -> None:
        super().__init__(bits, site)
        if not 0 < momentum <= 1:
            raise ConfigError(f"momentum={momentum} does not fit: a share above 0 and at most 1 (0.1 is common).")
        self.momentum = momentum
        self.low, self.high = 0.0, 0.0

    def _take(self, values: Tensor) -> None:
        low, high = ends(values, self.site.name)
        share = self.momentum if self.batches else 1.0
        self.low += share * (low - self.low)
        self.high += share * (high - self.high)

    def _range(self) -> tuple[float, float]:
        return self.low, self.high


class Percentile(Observer):
    """Cuts a share `gamma` of all values at each side.

    PWLQ's supplement (table 3) tries 0.1, 0.01 and 0.001 as "gamma-th percentile" and does not say whether these
    are fractions or percents; here gamma is a fraction. The quantile is that of `torch.quantile` over all values,
    rounded outwards to the edge of a histogram cell: off by less than one cell, 2 (max - min) / (bins - 1) at
    most.

    Args:
        gamma: from 0 (nothing is cut) to below 0.5.
        bins: cells of the histogram.

    Raises:
        ConfigError: gamma out of range; fewer than 16 bins.
    """

    def __init__(self, bits: int, site: Site, *, gamma: float = 0.001, bins: int = 8192) -> None:
        super().__init__(bits, site)
        if not 0 <= gamma < 0.5:
            raise ConfigError(
                f"gamma={gamma} does not fit: a fraction cut at each side, at least 0, below 0.5 (0.001 is 0.1%)."
            )
        self.gamma = gamma
        self.histogram = Histogram(bins)

    def _take(self, values: Tensor) -> None:
        self.histogram.add(values, *ends(values, self.site.name))

    def _range(self) -> tuple[float, float]:
        edges = self.histogram.edges()
        low = self._quantile(self.gamma, edges[:-1])
        high = self._quantile(1 - self.gamma, edges[1:])
        return max(low, self.histogram.low), min(high, self.histogram.high)

    def _quantile(self, share: float, places: Tensor) -> float:
        """Interpolate between the two values in question, each standing at the place of its cell."""
        below = self.histogram.counts.cumsum(0)
        position = share * (int(below[-1]) - 1)
        ranks = torch.tensor([math.floor(position), math.ceil(position)])
        before, after = places[torch.searchsorted(below, ranks, right=True)].tolist()
        return float(before + (after - before) * (position - math.floor(position)))


class TopK(Observer):
    """PWLQ's: of each batch the median of the k smallest and that of the k largest values, then the batches' mean.

    Over the whole tensor, not per sample, with the lower middle of an even k, as in the authors' code (the paper's
    section 5.1 has k = 10). A batch of fewer than k values gives the median of all of them. Batches weigh the same
    whatever their size.

    Args:
        k: values at each end, at least 1, which is the mean of the batches' ends.

    Raises:
        ConfigError: k below 1.
    """

    def __init__(self, bits: int, site: Site, *, k: int = 10) -> None:
        super().__init__(bits, site)
        if k < 1:
            raise ConfigError(f"k={k} does not fit: a number of values at each end, 1 or more (the paper's 10).")
        self.k = k
        self.low, self.high = 0.0, 0.0

    def _take(self, values: Tensor) -> None:
        low, high = median_ends(values, self.k, self.site.name)
        self.low += (low - self.low) / (self.batches + 1)
        self.high += (high - self.high) / (self.batches + 1)

    def _range(self) -> tuple[float, float]:
        return self.low, self.high
