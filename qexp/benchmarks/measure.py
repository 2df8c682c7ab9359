"""A measured value beside its limit, and how times are taken: in turns, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements with the lowest and the highest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    Attributes:
        topic: `step`, `data`, `memory`, `ptq`, `xnor`, `kernels`, `startup`, `sweep` or `digits`.
        what: in words, unique within the topic.
        spread: the value, or None where it could not be measured; `basis` then says why.
        limit: what the value must not exceed (must reach, with `at_least`); None for a value without a limit.
        form: how the value is written, a format string.
        basis: the absolute numbers behind a ratio.
    """

    topic: str
    what: str
    spread: Spread | None
    limit: float | None = None
    form: str = "{:.3f}"
    at_least: bool = False
    basis: str = ""

    @property
    def held(self) -> bool | None:
        """Whether the limit is held; None without a limit. What could not be measured does not hold it."""
        if self.limit is None:
            return None
        if self.spread is None:
            return False
        value = self.spread.median
        return value >= self.limit if self.at_least else value <= self.limit


def spread(values: Sequence[float]) -> Spread:
    """Return median, lowest and highest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(measured: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return the spread of the ratios round by round: what slows both measurements of a round cancels out.

    >>> ratios([2.0, 30.0, 4.4], [2.0, 20.0, 4.0])
    Spread(median=1.1, low=1.0, high=1.5)
    """
    return spread([mine / other for mine, other in zip(measured, reference, strict=True)])


def in_turns(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 0,
    finish: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Run each of `works` once per round (A B A B ...) and return the seconds of each, by its name.

    Args:
        works: what to time.
        rounds: timed rounds, at least 1.
        warm_up: rounds before, not timed: caches fill and first steps settle.
        finish: waits until a device has done what it was given; part of the time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-warm_up, rounds):
        for name, work in works.items():
            finish()
            start = time.perf_counter()
            work()
            finish()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def milliseconds(values: Sequence[float]) -> str:
    """Return the median of times in seconds as text in milliseconds."""
    return f"{1000 * statistics.median(values):.4g} ms"
