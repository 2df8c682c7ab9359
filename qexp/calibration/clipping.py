"""Observers that give up large values for a finer grid: each takes the clip level that its measure finds best."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from qexp.calibration.extremes import ends
from qexp.calibration.histograms import Magnitudes
from qexp.calibration.moments import Half, Moments
from qexp.calibration.observers import Observer
from qexp.errors import ConfigError
from qexp.ops.aciq import gauss_clip, laplace_clip
from qexp.ops.clip_levels import divergences, squared_errors
from qexp.quantizers.base import Site, clip_steps


class KL(Observer):
    """The clip level whose quantized histogram has the least Kullback-Leibler divergence from the histogram.

    The search of TensorRT's calibration as commonly described (`ops.clip_levels.divergences`), [from memory]. The
    range is [0, a], or [-a, a] at a signed site, by |x|. Left out are exact zeros, and negative values at a site
    that should have none: every grid treats them alike, and a ReLU's zeros would outweigh all the rest. At 32
    bits, or without a value above zero, nothing is cut. Levels that would clip more than half of the values are
    not tried (ours): where the first cells are empty, a few others alone are a histogram that nothing diverges
    from.

    Args:
        bins: cells between 0 and the largest magnitude; between half of them and all are used.

    Raises:
        ConfigError: fewer bins than 4 for each of the grid's values; a signed site at 1 bit.
    """

    version = 2  # 1 tried every level

    def __init__(self, bits: int, site: Site, *, bins: int = 2048) -> None:
        super().__init__(bits, site)
        self.steps = clip_steps(bits, site)
        if self.steps is not None and bins < 4 * (self.steps + 1):
            raise ConfigError(
                f"{site.name}: bins={bins} does not fit: {bits} bits need at least {4 * (self.steps + 1)}."
            )
        self.magnitudes = Magnitudes(bins, site)

    def _take(self, values: Tensor) -> None:
        self.magnitudes.add(values, *ends(values, self.site.name))

    def _range(self) -> tuple[float, float]:
        counts, width, largest = self.magnitudes.above_zero()
        level = largest
        if self.steps is not None and len(counts) > self.steps:
            values = self.steps + 1
            kept = counts.cumsum(0)[values - 1 :]
            tried = divergences(counts, values).where(2 * kept >= kept[-1], torch.inf)
            level = min(largest, width * (values + int(tried.argmin())))
        return _around_zero(level, self.site)


class MSE(Observer):
    """The clip level of least squared error between the values and their rounding to a uniform grid of `bits`.

    The range is [0, a] with 2^bits - 1 steps; at a signed site [-a, a] with the steps 2 a / (2^bits - 1) of
    `UniformActivation`, one more below zero than above, and as if values of both signs were as many. At 32 bits,
    or without a value above zero, nothing is cut.

    Args:
        bins: cells of the histogram between 0 and the largest magnitude.
        candidates: levels that are tried: the largest magnitude times 1/candidates, 2/candidates ... 1.

    Raises:
        ConfigError: fewer than 16 bins, fewer than 1 candidate; a signed site at 1 bit.
    """

    def __init__(self, bits: int, site: Site, *, bins: int = 2048, candidates: int = 100) -> None:
        super().__init__(bits, site)
        if candidates < 1:
            raise ConfigError(f"candidates={candidates} does not fit: levels to try, 1 or more (100 is common).")
        self.steps = clip_steps(bits, site)
        self.candidates = candidates
        self.magnitudes = Magnitudes(bins, site)

    def _take(self, values: Tensor) -> None:
        self.magnitudes.add(values, *ends(values, self.site.name))

    def _range(self) -> tuple[float, float]:
        counts, width, largest = self.magnitudes.above_zero()
        level = largest
        if self.steps is not None and len(counts):
            levels = torch.arange(1, self.candidates + 1, dtype=torch.float64) / self.candidates * largest
            level = levels[self._errors(counts, width, levels, self.steps).argmin()].item()
        return _around_zero(level, self.site)

    def _errors(self, counts: Tensor, width: float, levels: Tensor, steps: int) -> Tensor:
        if not self.site.signed:
            return squared_errors(counts, width, levels, steps)
        step = 2 * levels / (2**self.bits - 1)
        above, below = (squared_errors(counts, width, step * last, last) for last in (steps, steps + 1))
        return above + below


class ACIQ(Observer):
    """An analytic clip level, from the mean and the spread alone (Banner et al. 2019, arXiv 1810.05723).

    At a signed site [mean - alpha, mean + alpha]. Elsewhere, behind a ReLU, [0, alpha] with alpha as for one more
    bit, since the grid covers half of the density: the paper's, for the spread of a density about zero in front of
    the ReLU. Ours is where that spread comes from, as only what the ReLU lets through is seen: the values above
    zero count as half of a symmetric density about zero. So b = E[x | x > 0], exact for a Laplace density whose
    mean is not above zero, and sigma = sqrt(E[x^2 | x > 0]), exact for a Gauss density of mean zero. No range goes
    beyond the values observed (ours).

    Args:
        distribution: `laplace` takes alpha in units of b (E|x - mean| at a signed site), `gauss` in units of
            sigma; `auto` takes the one whose ratio of the two (0.707 and 0.798) is nearer to that observed (ours).

    Raises:
        ConfigError: another distribution.
    """

    version = 2  # 1 took the moments of clipped values for those in front of the ReLU

    def __init__(
        self, bits: int, site: Site, *, distribution: Literal["laplace", "gauss", "auto"] = "laplace"
    ) -> None:
        super().__init__(bits, site)
        if distribution not in ("laplace", "gauss", "auto"):
            raise ConfigError(f"distribution={distribution} is not one of laplace, gauss, auto.")
        self.distribution = distribution
        self.moments = Moments(site) if site.signed else Half(site)

    def _take(self, values: Tensor) -> None:
        self.moments.observe(values)

    def _range(self) -> tuple[float, float]:
        seen, alpha = self.moments, self._alpha()
        if isinstance(seen, Moments):
            return max(seen.mean - alpha, seen.low), min(seen.mean + alpha, seen.high)
        return 0.0, min(alpha, seen.high)

    def _alpha(self) -> float:
        bits = self.bits if self.site.signed else self.bits + 1
        deviation, std = self.moments.deviation, self.moments.std
        middle = (math.sqrt(1 / 2) + math.sqrt(2 / math.pi)) / 2
        is_laplace = deviation < middle * std if self.distribution == "auto" else self.distribution == "laplace"
        return laplace_clip(bits) * deviation if is_laplace else gauss_clip(bits) * std


def _around_zero(level: float, site: Site) -> tuple[float, float]:
    return (-level if site.signed else 0.0), level
