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

# m: exact breakpoint, formula, error over that of p = m/2; solved apart from this code for the density that is not
# cut off at m, to the digits given.
GAUSS = {
    3: (1.1583, 1.1607, 0.8211),
    4: (1.3920, 1.3996, 0.6837),
    5: (1.5889, 1.5923, 0.5673),
    6: (1.7547, 1.7538, 0.4738),
    8: (2.0150, 2.0148, 0.3409),
    10: (2.2096, 2.2216, 0.2559),
    15: (2.5380, 2.6049, 0.1440),
    20: (2.7507, 2.8812, 0.0929),
}
LAPLACE = {
    3: (1.0678, 1.0742, 0.7613),
    4: (1.2909, 1.2894, 0.6451),
    5: (1.4865, 1.4790, 0.5517),
    6: (1.6601, 1.6504, 0.4770),
    8: (1.9564, 1.9547, 0.3677),
    10: (2.2020, 2.2228, 0.2934),
    15: (2.6741, 2.7935, 0.1858),
    20: (3.0230, 3.2746, 0.1302),
}
SEVERAL = {  # m: two breakpoints, three breakpoints
    3: ((0.7169, 1.5764), (0.5221, 1.0956, 1.8158)),
    4: ((0.8238, 1.8730), (0.5878, 1.2506, 2.1502)),
    5: ((0.9018, 2.1077), (0.6318, 1.3582, 2.4063)),
    6: ((0.9608, 2.2966), (0.6630, 1.4366, 2.6076)),
    8: ((1.0438, 2.5797), (0.7042, 1.5429, 2.9018)),
    10: ((1.0999, 2.7830), (0.7303, 1.6122, 3.1082)),
}
SHAPES = {"gauss": (GAUSS, stats.norm()), "laplace": (LAPLACE, stats.laplace(scale=math.sqrt(0.5)))}


def single(p: float, m: float) -> Tensor:
    return torch.tensor([0.0, p, m], dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_table_of_breakpoints(shape):
    for m, (exact, formula, ratio) in SHAPES[shape][0].items():
        size = torch.tensor(float(m), dtype=torch.float64)
        edges = optimal_edges(size, 1, shape)
        assert edges[0] == 0 and edges[2] == m
        assert float(edges[1]) == pytest.approx(exact, abs=5e-5)
        assert float(one_shot(size, shape)) == pytest.approx(formula, abs=5e-5)
        whole = step_error(3) * m**2 / 4
        assert float(piecewise_error(edges, 4, shape)) / whole == pytest.approx(ratio, abs=5e-5)


@pytest.mark.parametrize("breakpoints", [2, 3])
def test_the_table_of_several_breakpoints(breakpoints):
    sizes = torch.tensor([float(m) for m in SEVERAL], dtype=torch.float64)
    edges = optimal_edges(sizes, breakpoints, "gauss")
    expected = torch.tensor([each[breakpoints - 2] for each in SEVERAL.values()], dtype=torch.float64)
    assert (edges[1:-1].T - expected).abs().max() <= 5.1e-5


@pytest.mark.parametrize("breakpoints", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_several_breakpoints_minimize_the_error_up_to_m(shape, breakpoints):
    m, density = 6.0, SHAPES[shape][1]

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
    density, known = DENSITIES[shape], SHAPES[shape][1]
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
    distribution = SHAPES[shape][1]

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


def test_overlapping_optima_of_the_gaussian():
    found = overlapping_edges(torch.tensor([3.0, 4.0, 6.0]).double(), "gauss")[1]
    assert found.tolist() == pytest.approx([1.362, 1.617, 1.963], abs=5e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_expected_error_falls_with_every_breakpoint_and_bit(shape):
    for m in torch.tensor([3.0, 4.0, 6.0, 10.0, 20.0]).double():
        edges = [optimal_edges(m, breakpoints, shape) for breakpoints in (1, 2, 3)]
        for bits in (2, 3, 4, 6, 8):
            errors = [float(piecewise_error(one, bits, shape)) for one in edges]
            assert float(uniform_error(m, bits)) > errors[0] > errors[1] > errors[2]
            assert errors[0] > float(piecewise_error(edges[0], bits + 1, shape))
