"""Where a piecewise-linear grid breaks: the expected squared error, and the edges that minimize it.

Fang et al. 2020, "Post-Training Piecewise Linear Quantization for Deep Neural Networks", equations 4 to 9 and
lemmas 1 and 2; its supplement, sections 1.1 to 1.3 and algorithm 1. Everything is in units of the standard
deviation, of densities that are symmetric about zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Shape = Literal["gauss", "laplace"]

COARSE, FINE = 20, 55
"""Halvings of an interval: while the others still move, and to the last digits of float64."""

SWEEPS = 200
"""At most, of one breakpoint after the other, each to its optimum between its neighbours."""


@dataclass(frozen=True)
class Density:
    """A symmetric density of unit variance, not cut off at the range: `pdf`, and `cdf` from minus infinity."""

    pdf: Callable[[Tensor], Tensor]
    cdf: Callable[[Tensor], Tensor]


DENSITIES: dict[str, Density] = {
    "gauss": Density(
        lambda x: torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi),
        lambda x: torch.special.ndtr(x),
    ),
    "laplace": Density(
        lambda x: torch.exp(-math.sqrt(2) * x.abs()) / math.sqrt(2),
        lambda x: torch.where(
            x < 0, torch.exp(-math.sqrt(2) * x.abs()) / 2, 1 - torch.exp(-math.sqrt(2) * x.abs()) / 2
        ),
    ),
}


def step_error(bits: int) -> float:
    """Return C(b) = 1 / (12 (2^b - 1)^2): the squared error of a uniform grid of `bits` bits over a unit range."""
    return 1.0 / (12.0 * (2**bits - 1) ** 2)


def uniform_error(m: Tensor, bits: int) -> Tensor:
    """Return the expected squared error of `bits` bits spread over [-m, m] (equation 7: 4 C(b) m^2)."""
    return 4.0 * step_error(bits) * m.square()


def piecewise_error(edges: Tensor, bits: int, shape: Shape) -> Tensor:
    """Return the expected squared error of pieces of `bits` bits each (equation 4; for more, supplement eq. 2).

    The mass beyond m counts as the last piece's, as in equation 4.

    Args:
        edges: float64 (pieces + 1, ...), from 0 to m.
    """
    mass = DENSITIES[shape].cdf(edges)
    mass = torch.cat([mass[:-1], torch.ones_like(mass[-1:])])
    return 2.0 * step_error(bits - 1) * (edges.diff(dim=0).square() * mass.diff(dim=0)).sum(0)


def gain_bound(bits: int) -> float:
    """Return Lemma 2's factor: at its optimum one breakpoint's error is below this share of the uniform one's.

    C(b-1) / (16 C(b)), from 9/16 at 2 bits down to 1/4.

    >>> [round(gain_bound(bits), 4) for bits in (2, 3, 4, 8)]
    [0.5625, 0.3403, 0.287, 0.252]
    """
    return step_error(bits - 1) / (16.0 * step_error(bits))


def one_shot(m: Tensor, shape: Shape) -> Tensor:
    """Return the breakpoint by the paper's fitted formulas, for m between 3 and 10 within 1%.

    p = ln(0.8614 m + 0.6079) for Gauss and 0.8030 sqrt(m) - 0.3167 for Laplace, with the digits of the authors'
    code. The paper writes them as p / m; they give p. Outside the paper's 0 < p < m / 2 the nearest of m / 100 and
    m / 2 is taken (ours: their fit ends at m = 3).

    Args:
        m: largest magnitude in standard deviations.
    """
    if shape == "gauss":
        p = torch.log(0.86143114 * m + 0.607901097496529)
    else:
        p = 0.80304483 * m.sqrt() - 0.3166785508381478
    return torch.minimum(torch.maximum(p, m / 100), m / 2)


def optimal_edges(m: Tensor, breakpoints: int, shape: Shape) -> Tensor:
    """Return the edges (breakpoints + 2, ...) from 0 to m that minimize the expected error.

    One breakpoint solves equation 8, whose tail reaches beyond m; more follow the supplement's equation 2, which
    ends at m (`piecewise_error` puts all mass beyond m in its last piece). Each breakpoint is brought to its
    optimum between its neighbours until none moves; Lemma 1 shows the error convex for one below m / 2. For m
    below 1.35 (Gauss) or about 1 (Laplace), a channel of nearly equal magnitudes, the one is beyond m / 2.

    Args:
        m: float64, largest magnitude in standard deviations, above 0.
        breakpoints: 1 or more.
    """
    density = DENSITIES[shape]
    end = torch.ones_like(m) if breakpoints == 1 else density.cdf(m)
    edges = torch.stack([m * index / (breakpoints + 1) for index in range(breakpoints + 2)])
    halvings = FINE if breakpoints == 1 else COARSE
    for _ in range(SWEEPS):
        before = edges.clone()
        for index in range(1, breakpoints + 1):
            mass = end if index == breakpoints else None
            edges[index] = _between(edges[index - 1], edges[index + 1], density, mass, halvings)
        settled = bool(((edges - before).abs() <= 2.0**-COARSE * m).all())
        if breakpoints == 1 or (settled and halvings == FINE):
            break
        if settled:
            halvings = FINE
    return edges


def _between(low: Tensor, high: Tensor, density: Density, end: Tensor | None, halvings: int) -> Tensor:
    """Return where the error's slope turns positive between two edges; `end` is the mass up to `high`."""
    mass_low, mass_high = density.cdf(low), density.cdf(high) if end is None else end

    def slope(p: Tensor) -> Tensor:
        mass, height = density.cdf(p), density.pdf(p)
        below, above = p - low, high - p
        inner = 2 * below * (mass - mass_low) + below.square() * height
        return inner - (2 * above * (mass_high - mass) + above.square() * height)

    return _turn(slope, low, high, halvings)


def _turn(slope: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, halvings: int) -> Tensor:
    """Return where a slope that is negative at `low` and turns once comes to 0, by halving the interval."""
    for _ in range(halvings):
        middle = (low + high) / 2
        falling = slope(middle) < 0
        low, high = torch.where(falling, middle, low), torch.where(falling, high, middle)
    return (low + high) / 2


def overlapping_error(edge: Tensor, m: Tensor, bits: int, shape: Shape) -> Tensor:
    """Return the expected squared error where beyond `edge` a grid of all of [-m, m] rounds, `bits` bits each.

    4 C(bits) times p^2 P(|x| < p) + m^2 P(|x| > p), after the authors' code; all in standard deviations.
    """
    beyond = 2.0 * (1.0 - DENSITIES[shape].cdf(edge))
    return 4.0 * step_error(bits) * (edge.square() * (1.0 - beyond) + m.square() * beyond)


def overlapping_edges(m: Tensor, shape: Shape) -> Tensor:
    """Return the edges (3, ...) from 0 to m that minimize `overlapping_error`: its slope turns positive once.

    Args:
        m: float64, largest magnitude in standard deviations, above 0.
    """
    density = DENSITIES[shape]

    def slope(p: Tensor) -> Tensor:  # half of it
        return p * (2 * density.cdf(p) - 1) - density.pdf(p) * (m.square() - p.square())

    nothing = torch.zeros_like(m)
    return torch.stack([nothing, _turn(slope, nothing, m, FINE), m])


def search_ratio(error: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Return the share p / m, of each range its own, with the least `error`, from a coarse to a fine grid.

    Nine shares 0.1 apart, then steps of 0.01 around the best, then of 0.001 (supplement, algorithm 1; its start as
    in the authors' code). Nothing is assumed of the distribution.

    Args:
        error: of shares (shaped like `like`), each range's error in the same shape.
        like: gives shape and device.
    """
    best = torch.full_like(like, 0.5)
    least = torch.full_like(like, math.inf)
    for step, reach in ((0.1, 4), (0.01, 10), (0.001, 10)):
        centre = best.clone()
        for offset in range(-reach, reach + 1):
            share = (centre + step * offset).clamp(0.001, 0.999)
            found = error(share)
            better = found < least
            best, least = torch.where(better, share, best), torch.where(better, found, least)
    return best
