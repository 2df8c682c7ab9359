"""Numbers over time from a run's `metrics.csv`, one value per epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qexp.runs import RunDirectory


@dataclass(frozen=True)
class Series:
    """One number over time: `epochs` counts finished ones, so that 0 is the start of the training."""

    name: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]


def read_series(run: Path) -> dict[str, Series]:
    """Read every number of a run, in the order in which it was first logged (for layers: by depth).

    Several values of one epoch (an epoch begun twice, a number logged per step) count with the last one.
    """
    found: dict[str, dict[int, float]] = {}
    for epoch, _, name, value in RunDirectory(run).metrics.rows():
        found.setdefault(name, {})[epoch] = value
    series = {}
    for name, points in found.items():
        epochs = tuple(sorted(points))
        series[name] = Series(name, epochs, tuple(points[epoch] for epoch in epochs))
    return series


def learned(series: dict[str, Series], kind: str) -> list[Series]:
    """Return what the quantizers learned of one kind (`alpha`, `step`), each series named by its site alone."""
    prefix = f"{kind}/"
    return [
        Series(one.name.removeprefix(prefix), one.epochs, one.values)
        for one in series.values()
        if one.name.startswith(prefix)
    ]
