"""Breakpoints of piecewise-linear grids: the optimality conditions solved apart, the lemmas, the formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor

from qexp.ops.breakpoints import (
    DENSITIES,
    gain_bound,
    one_shot,
    optimal_edges,
    overlapping_edges,
    overlapping_error,
    piecewise_error,
    search_ratio,
    step_error,
    uniform_error,
)

SHAPES = {"gauss": stats.norm(), "laplace": stats.laplace(scale=math.sqrt(0.5))}
FORMULAS = {  # section 5.1 with its four digits; the authors' code has more
    "gauss": lambda m: math.log(0.8614 * m + 0.6079),
    "laplace": lambda m: 0.8030 * math.sqrt(m) - 0.3167,
}


def single(p: float, m: float) -> Tensor:
    return torch.tensor([0.0, p, m], dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [3, 4, 5, 6, 8, 10, 15, 20])
def test_one_breakpoint_is_where_scipy_finds_the_least_error(shape, m):
    """Of equation 4 without its constant, whose density is not cut off at m."""
    density = SHAPES[shape]

    def error(p: float) -> float:
        return (m - p) ** 2 * density.sf(p) + p**2 * (density.cdf(p) - 0.5)

    best = optimize.minimize_scalar(error, bounds=(0, m / 2), method="bounded", options={"xatol": 1e-9})
    edges = optimal_edges(torch.tensor(m, dtype=torch.float64), 1, shape)
    assert edges[0] == 0 and edges[2] == m
    assert float(edges[1]) == pytest.approx(best.x, abs=1e-6)
    assert float(piecewise_error(edges, 4, shape)) == pytest.approx(2 * step_error(3) * best.fun, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [3, 4, 5, 6, 8, 10, 15, 20])
def test_the_papers_formulas(shape, m):
    found = float(one_shot(torch.tensor(m, dtype=torch.float64), shape))
    assert found == pytest.approx(FORMULAS[shape](m), abs=2.5e-4)


@pytest.mark.parametrize("breakpoints", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [3.0, 6.0, 10.0])
def test_several_breakpoints_minimize_the_error_up_to_m(shape, breakpoints, m):
    density = SHAPES[shape]

    def error(inner: list[float]) -> float:
        edges = [0.0, *sorted(abs(p) for p in inner), m]
        pieces = pairwise(edges)
        return sum((high - low) ** 2 * (density.cdf(high) - density.cdf(low)) for low, high in pieces)

    start = [m * (index + 1) / (breakpoints + 2) for index in range(breakpoints)]
    options = {"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000}
    best = optimize.minimize(error, start, method="Nelder-Mead", options=options)
    found = optimal_edges(torch.tensor(m, dtype=torch.float64), breakpoints, shape)[1:-1].tolist()
    assert found == pytest.approx(sorted(best.x), abs=1e-4)
    assert error(found) <= best.fun * (1 + 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_densities_are_those_of_scipy(shape):
    points = torch.linspace(-8, 8, 33, dtype=torch.float64)
    density, known = DENSITIES[shape], SHAPES[shape]
    torch.testing.assert_close(density.pdf(points), torch.from_numpy(known.pdf(points.numpy())))
    torch.testing.assert_close(density.cdf(points), torch.from_numpy(known.cdf(points.numpy())))
    assert known.var() == pytest.approx(1.0)


def test_equation_4_is_the_integral_of_both_regions_errors():
    m, p, bits = 4.0, 1.3, 4
    tail, centre = (integrate.quad(stats.norm.pdf, low, high)[0] for low, high in ((p, math.inf), (0, p)))
    expected = 2 * (step_error(bits - 1) * (m - p) ** 2 * tail + step_error(bits - 1) * p**2 * centre)
    assert float(piecewise_error(single(p, m), bits, "gauss")) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("bits", "factor"), [(2, 0.5625), (3, 0.3403), (4, 0.2870), (5, 0.2669), (6, 0.2581), (8, 0.2520)]
)
def test_lemma_2(bits, factor):
    assert gain_bound(bits) == pytest.approx(factor, abs=5e-5)
    sizes = torch.linspace(1.0, 20.0, 40, dtype=torch.float64)
    for shape in SHAPES:
        error = piecewise_error(optimal_edges(sizes, 1, shape), bits, shape)
        assert (error < gain_bound(bits) * uniform_error(sizes, bits)).all()
    even = piecewise_error(torch.stack([0 * sizes, sizes / 2, sizes]), bits, "gauss")
    torch.testing.assert_close(even, gain_bound(bits) * uniform_error(sizes, bits))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [2.0, 4.0, 9.0])
def test_lemma_1_the_error_is_convex_below_half_the_range(shape, m):
    p = torch.linspace(0.01, m / 2 - 0.01, 400, dtype=torch.float64)
    error = piecewise_error(torch.stack([0 * p, p, torch.full_like(p, m)]), 4, shape)
    assert (error.diff().diff() > 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_formulas_stay_between_the_ends(shape):
    sizes = torch.logspace(-3, 4, 200, dtype=torch.float64)
    p = one_shot(sizes, shape)
    assert (p > 0).all() and (p <= sizes / 2).all()


def test_the_formulas_are_within_a_percent_where_they_were_fitted():
    sizes = torch.linspace(3, 10, 50, dtype=torch.float64)
    for shape in SHAPES:
        assert ((one_shot(sizes, shape) / optimal_edges(sizes, 1, shape)[1] - 1).abs() < 0.01).all()


def test_the_search_finds_each_ranges_own_minimum():
    best = torch.tensor([0.123, 0.5, 0.317, 0.874])
    found = search_ratio(lambda share: (share - best).square(), best)
    assert (found - best).abs().max() < 6e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [1.5, 3.0, 4.0, 6.0, 10.0, 20.0])
def test_overlapping_regions_have_an_optimum_of_their_own(shape, m):
    """Against scipy's minimum of the error written out: p^2 inside, m^2 outside."""
    distribution = SHAPES[shape]

    def error(p: float) -> float:
        inside = distribution.cdf(p) - distribution.cdf(-p)
        return p**2 * inside + m**2 * (1 - inside)

    found = float(overlapping_edges(torch.tensor(m).double(), shape)[1])
    best = optimize.minimize_scalar(error, bounds=(0, m), method="bounded", options={"xatol": 1e-10})
    assert error(found) == pytest.approx(best.fun, rel=1e-12)
    assert found == pytest.approx(best.x, rel=1e-4)
    assert min(error(m * share / 500) for share in range(1, 501)) >= error(found) * (1 - 1e-12)
    whole = overlapping_error(torch.tensor(found).double(), torch.tensor(m).double(), 4, shape)
    assert float(whole) == pytest.approx(4 * step_error(4) * error(found))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_expected_error_falls_with_every_breakpoint_and_bit(shape):
    for m in torch.tensor([3.0, 4.0, 6.0, 10.0, 20.0]).double():
        edges = [optimal_edges(m, breakpoints, shape) for breakpoints in (1, 2, 3)]
        for bits in (2, 3, 4, 6, 8):
            errors = [float(piecewise_error(one, bits, shape)) for one in edges]
            assert float(uniform_error(m, bits)) > errors[0] > errors[1] > errors[2]
            assert errors[0] > float(piecewise_error(edges[0], bits + 1, shape))
