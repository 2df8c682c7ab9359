"""SAWB against a regression of our own, in float64, over the six distributions that the paper names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from qexp.quantizers.base import Site
from qexp.quantizers.sawb import COEFFICIENTS, SAWB, sawb, sawb_level

WEIGHT = Site("conv", "weight", (8, 4, 3, 3))
NODES, SHARES = np.polynomial.legendre.leggauss(40)

Density = Callable[[np.ndarray], np.ndarray]
# Symmetric densities and where they end (for the unbounded: where nothing is left).
DISTRIBUTIONS: dict[str, tuple[Density, float]] = {
    "uniform": (stats.uniform(-1, 2).pdf, 1.0),
    "triangle": (stats.triang(0.5, -2, 4).pdf, 2.0),
    "Gauss": (stats.norm.pdf, 10.0),
    "von Mises": (stats.vonmises(4).pdf, np.pi),
    "logistic": (stats.logistic.pdf, 45.0),
    "Laplace": (stats.laplace.pdf, 45.0),
}


def integral(function: Density, edges: np.ndarray) -> np.ndarray:
    """Gauss-Legendre over each piece between neighbouring edges."""
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return (function(middle + half * NODES) * SHARES * half).sum(axis=1)


@cache
def moments(name: str) -> tuple[float, float]:
    """E|w| and sqrt(E w^2)."""
    density, end = DISTRIBUTIONS[name]
    edges = np.linspace(0, end, 200)
    mean = 2 * integral(lambda w: w * density(w), edges).sum()
    return mean, (2 * integral(lambda w: w**2 * density(w), edges).sum()) ** 0.5


def squared_error(level: float, levels: int, name: str) -> float:
    """E (w - w_q)^2 where each w goes to the nearest of `levels` (even) values spaced from -level to level."""
    density, end = DISTRIBUTIONS[name]
    step = 2 * level / (levels - 1)
    thresholds = np.minimum(step * np.arange(levels // 2), end)
    edges = np.unique(np.concatenate([thresholds, np.linspace(thresholds[-1], end, 30)]))

    def error(w: np.ndarray) -> np.ndarray:
        nearest = np.minimum((np.floor(w / step) + 0.5) * step, level)
        return (w - nearest) ** 2 * density(w)

    return 2 * float(integral(error, edges).sum())


@cache
def optima(levels: int) -> tuple[float, ...]:
    """The level of least squared error over E|w|, distribution by distribution."""
    found = []
    for name in DISTRIBUTIONS:
        mean, _ = moments(name)
        best = optimize.minimize_scalar(
            lambda ratio, name=name, mean=mean: squared_error(ratio * mean, levels, name),
            bounds=(1, 16),
            method="bounded",
            options={"xatol": 1e-5},
        )
        found.append(float(best.x))
    return tuple(found)


def regression(levels: int) -> tuple[float, float]:
    """(c1, c2) by the line of the paper's figure, moment ratio over optimal level, solved for the level."""
    ratios = [root / mean for mean, root in map(moments, DISTRIBUTIONS)]
    slope, intercept = np.polyfit(optima(levels), ratios, 1)
    return 1 / slope, -intercept / slope


# The steps that J. Max printed for N(0, 1): "Quantizing for minimum distortion", 1960, table II.
@pytest.mark.parametrize(("levels", "step"), [(4, 0.9957), (8, 0.5860), (16, 0.3352)])
def test_the_optimal_levels_of_uniform_and_gaussian_weights(levels: int, step: float) -> None:
    found = dict(zip(DISTRIBUTIONS, optima(levels), strict=True))
    assert found["uniform"] == pytest.approx(2 * (1 - 1 / levels), abs=1e-4)
    assert found["Gauss"] * moments("Gauss")[0] == pytest.approx(step * (levels - 1) / 2, rel=2e-4)


# The moment ratios are the heights of the points in the paper's figure.
def test_the_distributions_are_the_papers() -> None:
    ratios = [root / mean for mean, root in map(moments, DISTRIBUTIONS)]
    assert ratios == pytest.approx([1.155, 1.225, 1.25, 1.277, 1.31, 1.414], abs=0.004)


@pytest.mark.parametrize(("bits", "expected"), [(2, (3.19, -2.14)), (3, (7.52, -6.90)), (4, (12.50, -12.56))])
def test_the_fitted_coefficients(bits: int, expected: tuple[float, float]) -> None:
    assert regression(2**bits) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("bits", [6, 7])
def test_coefficients_that_nobody_published_are_those_of_the_regression(bits: int) -> None:
    assert COEFFICIENTS[bits] == pytest.approx(regression(2**bits), abs=0.01)


@pytest.mark.parametrize(("bits", "share"), [(2, 0.02), (3, 0.005), (4, 0.02), (5, 0.02), (8, 0.12)])
def test_published_coefficients_are_near_the_regression(bits: int, share: float) -> None:
    assert COEFFICIENTS[bits] == pytest.approx(regression(2**bits), rel=share)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_level_of_gaussian_weights_is_close_to_the_optimum(bits: int) -> None:
    mean, root = moments("Gauss")
    c1, c2 = COEFFICIENTS[bits]
    assert (c1 * root + c2 * mean) / mean == pytest.approx(optima(2**bits)[2], rel=0.035)


@pytest.mark.parametrize("bits", range(2, 5))
def test_up_to_four_bits_the_line_costs_little_whatever_the_distribution(bits: int) -> None:
    c1, c2 = COEFFICIENTS[bits]
    for name, best in zip(DISTRIBUTIONS, optima(2**bits), strict=True):
        mean, root = moments(name)
        least = squared_error(best * mean, 2**bits, name)
        assert squared_error(c1 * root + c2 * mean, 2**bits, name) <= least * 1.1, name


weights = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40).filter(lambda w: max(map(abs, w)) > 1e-3)


def transcribed(weight: np.ndarray, bits: int) -> tuple[np.ndarray, float]:
    """The level, and clamp -> half -> round -> back, all in float64."""
    weight = weight.astype(np.float64)
    c1, c2 = COEFFICIENTS[bits]
    mean = np.abs(weight).mean()
    level, steps = max(c1 * np.sqrt((weight**2).mean()) + c2 * mean, mean), 2.0**bits - 1
    halved = np.clip(weight / level, -1, 1) * 0.5 + 0.5
    return (2 * np.round(halved * steps) / steps - 1) * level, level


@given(weights, st.sampled_from(range(2, 9)))
def test_weights_follow_the_formula(values: list[float], bits: int) -> None:
    weight = np.array(values, dtype=np.float32)
    expected, level = transcribed(weight, bits)
    leaf = torch.from_numpy(weight).requires_grad_()
    quantized = sawb(leaf, bits)
    quantized.sum().backward()
    steps = 2.0**bits - 1
    at_tie = np.abs((np.clip(weight / level, -1, 1) + 1) / 2 * steps % 1 - 0.5) < 1e-3
    difference = np.abs(quantized.detach().numpy() - expected)
    assert np.all(difference <= level * np.where(at_tie, 2.01 / steps, 2e-5))
    clear = np.abs(np.abs(weight) / level - 1) > 1e-4
    np.testing.assert_allclose(leaf.grad.numpy()[clear], (np.abs(weight) < level)[clear], rtol=1e-6)


def test_two_bits_have_the_papers_four_levels() -> None:
    weight = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    level = sawb_level(weight, 2)
    expected = torch.stack([-level, -level / 3, level / 3, level])
    torch.testing.assert_close(sawb(weight, 2).unique(), expected)
    # 3.2 - 2.1 sqrt(2 / pi) for N(0, 1); with the misprinted sign it would be 4.88.
    assert level.item() == pytest.approx(1.524, abs=0.03)


@pytest.mark.parametrize("bits", range(2, 9))
def test_all_levels_are_used_and_none_is_zero(bits: int) -> None:
    weight = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    levels = sawb(weight, bits).unique()
    assert levels.numel() == 2**bits
    assert torch.all(levels != 0) and torch.equal(levels, -levels.flip(0))


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_level_scales_with_the_weights_and_has_no_gradient(bits: int) -> None:
    weight = torch.randn(500, requires_grad=True)
    level = sawb_level(weight, bits)
    assert not level.requires_grad and level.shape == ()
    torch.testing.assert_close(sawb_level(4 * weight, bits), 4 * level)
    torch.testing.assert_close(sawb(4 * weight, bits), 4 * sawb(weight, bits))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_of_one_magnitude_are_kept_and_learn(bits: int) -> None:
    # c1 + c2 is below 1 from 4 bits on, and negative from there: the formula alone would clip everything away.
    leaf = torch.tensor([0.25, -0.25, 0.25, 0.25], requires_grad=True)
    quantized = sawb(leaf, bits)
    quantized.sum().backward()
    torch.testing.assert_close(leaf.grad, torch.ones(4))
    assert torch.equal(quantized.sign(), leaf.sign())
    if bits > 2:
        torch.testing.assert_close(quantized, leaf)


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_weights_stay_finite_and_learn(bits: int) -> None:
    leaf = torch.zeros(4, 3, requires_grad=True)
    quantized = sawb(leaf, bits)
    quantized.sum().backward()
    assert quantized.isfinite().all() and leaf.grad.isfinite().all() and leaf.grad.all()


def test_thirty_two_bits_leave_weights_alone_and_one_bit_is_not_offered() -> None:
    weight = torch.randn(10)
    assert sawb(weight, 32) is weight
    assert SAWB.supported_bits == (2, 3, 4, 5, 6, 7, 8, 32)
    assert SAWB(2, WEIGHT).learned() == {}
    assert sawb(weight.bfloat16(), 2).dtype == torch.bfloat16
