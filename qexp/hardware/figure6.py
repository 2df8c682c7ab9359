"""PACT's figure 6c beside the system model: the fit of its constant, and how far each point is off without it.

Source: arXiv 1805.06085, figure 6c, the published artefact `pact/fig6`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from scipy.optimize import minimize_scalar

from qexp.hardware.system import USABLE_MEMORY, Layer, Machine, estimate
from qexp.published import load_artefact

_LEAST, _STEPS = 0.1, 18


@dataclass(frozen=True)
class Point:
    """One throughput of the figure: images per second as published and as modelled; `bandwidth` in GB/s."""

    bits: int
    bandwidth: float
    published: float
    modelled: float

    @property
    def error(self) -> float:
        """Relative error of the model: +0.05 is 5% too many images."""
        return self.modelled / self.published - 1


@dataclass(frozen=True)
class LeftOut:
    """A point and its relative errors when the constant is fitted without it, its bit-width, or its bandwidth."""

    point: Point
    without_point: float
    without_bits: float
    without_bandwidth: float


def points(layers: Sequence[Layer], usable: float = USABLE_MEMORY) -> list[Point]:
    """Return the figure's 12 points with the model's throughputs, by bandwidth, then from 16 bits down.

    Args:
        layers: of the figure's network, ResNet50 at 224 x 224.
        usable: the fitted constant.
    """
    return list(_points(tuple(layers), usable, tuple(published())))


@cache  # the fits that leave something out all start on the same grid
def _points(
    layers: tuple[Layer, ...], usable: float, figure: tuple[tuple[int, float, float], ...]
) -> tuple[Point, ...]:
    machine = Machine(usable=usable)
    return tuple(
        Point(bits, bandwidth, value, throughput(layers, bits, bandwidth, machine))
        for bits, bandwidth, value in figure
    )


@cache
def published() -> list[tuple[int, float, float]]:
    """Return (bits, bandwidth in GB/s, images/s) of each of the figure's points, in the order of `points`."""
    found = []
    for cell in load_artefact("pact/fig6").cells:
        bandwidth = math.inf if cell.column == "no limit" else float(cell.column.removesuffix(" GB/s"))
        found.append((int(cell.row.removesuffix(" bits")), bandwidth, cell.value))
    return sorted(found, key=lambda point: (point[1], point[0]), reverse=True)


def throughput(layers: Sequence[Layer], bits: int, bandwidth: float, machine: Machine | None = None) -> float:
    """Return images per second as in the figure: one width, both ends as in the paper, images one by one.

    Args:
        layers: in the order they run.
        bits: of weights and activations.
        bandwidth: GB/s.
        machine: None for the paper's.
    """
    return estimate(layers, (bits, bits), bandwidth=bandwidth * 1e9, machine=machine).throughput


def fit(layers: Sequence[Layer], keep: Callable[[Point], bool] = lambda point: True) -> float:
    """Return the usable share of the memory that fits the figure best.

    The sum of squared errors of log(throughput) is least there, over the points that `keep` keeps: first on a grid
    of the shares from 0.1 to 1, then between the neighbours of its best.

    Raises:
        ValueError: `keep` keeps nothing.
    """
    if not any(keep(point) for point in points(layers)):
        raise ValueError("there is no point left to fit")

    def loss(usable: float) -> float:
        return sum(math.log1p(point.error) ** 2 for point in points(layers, usable) if keep(point))

    width = (1 - _LEAST) / _STEPS
    best = min((_LEAST + width * step for step in range(_STEPS + 1)), key=loss)
    bounds = (max(_LEAST, best - width), min(1.0, best + width))
    return float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


def left_out(layers: Sequence[Layer]) -> tuple[list[LeftOut], list[float]]:
    """Fit once without each point, each bit-width and each bandwidth.

    Returns:
        The 12 points with their errors under those fits, and the constants of all the fits.
    """
    refits: dict[tuple[int | None, float | None], float] = {}

    def error(point: Point, bits: int | None, bandwidth: float | None) -> float:
        """Return the error at `point` without the points of these bits and this bandwidth; None is every one."""

        def keep(other: Point) -> bool:
            return not (bits in (None, other.bits) and bandwidth in (None, other.bandwidth))

        if (bits, bandwidth) not in refits:
            refits[bits, bandwidth] = fit(layers, keep)
        machine = Machine(usable=refits[bits, bandwidth])
        return throughput(layers, point.bits, point.bandwidth, machine) / point.published - 1

    rows = [
        LeftOut(
            point,
            without_point=error(point, point.bits, point.bandwidth),
            without_bits=error(point, point.bits, None),
            without_bandwidth=error(point, None, point.bandwidth),
        )
        for point in points(layers)
    ]
    return rows, list(refits.values())
