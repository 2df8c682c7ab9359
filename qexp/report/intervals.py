"""Mean and 95% interval of a few runs: Student's t, from three runs on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

LEAST = 3
"""Runs that an interval needs; of two runs it would be wider than anything it could tell."""


@dataclass(frozen=True)
class Summary:
    """`n` values: their mean, and half the width of the 95% interval (None below `LEAST` values)."""

    n: int
    mean: float
    half_width: float | None

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.mean + self.half_width


def summarize(values: Sequence[float]) -> Summary:
    """Return mean and two-sided 95% t-interval, mean +- t(0.975, n - 1) * s / sqrt(n), s the sample deviation.

    Raises:
        ValueError: no values.

    >>> found = summarize([0.90, 0.91, 0.92])
    >>> found.n, round(found.mean, 4), round(found.half_width, 4)
    (3, 0.91, 0.0248)
    """
    if not values:
        raise ValueError("a summary needs at least one value")
    n, mean = len(values), statistics.fmean(values)
    if n < LEAST:
        return Summary(n, mean, None)
    return Summary(n, mean, float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n))
