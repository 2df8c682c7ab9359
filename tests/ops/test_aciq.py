"""ACIQ's clip levels against the authors' tables, against scipy, and its errors against samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from qexp.errors import ConfigError
from qexp.ops.aciq import gauss_clip, gauss_error, laplace_clip, laplace_error

# 1 to 8 bits in the authors' code: two digits, most of them cut off and not rounded.
LAPLACE = [1.86, 2.83, 3.89, 5.03, 6.2, 7.41, 8.64, 9.89]
GAUSS = [1.24, 1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92]


@pytest.mark.parametrize(("clip", "printed"), [(laplace_clip, LAPLACE), (gauss_clip, GAUSS)])
def test_the_authors_tables(clip: Callable[[int], float], printed: list[float]) -> None:
    assert [clip(bits) for bits in range(1, 9)] == pytest.approx(printed, abs=0.01)


# The authors' table for a fused ReLU goes one further.
@pytest.mark.parametrize(("clip", "printed"), [(laplace_clip, 11.16), (gauss_clip, 4.2)])
def test_the_entry_for_eight_bits_behind_a_relu(clip: Callable[[int], float], printed: float) -> None:
    assert 0 <= clip(9) - printed < 0.05


@pytest.mark.parametrize("bits", [1, 4, 8, 33])
def test_the_laplace_optimum_is_lamberts_function(bits: int) -> None:
    assert laplace_clip(bits) == pytest.approx(special.lambertw(3 * 4.0**bits).real, rel=1e-12)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_gauss_optimum_is_where_scipy_finds_the_least_error(bits: int) -> None:
    def error(alpha: float) -> float:
        tails = 2 * (alpha**2 + 1) * stats.norm.sf(alpha) - 2 * alpha * stats.norm.pdf(alpha)
        return tails + alpha**2 / (3 * 4**bits)

    best = optimize.minimize_scalar(error, bounds=(0, 10), method="bounded", options={"xatol": 1e-9})
    assert gauss_clip(bits) == pytest.approx(best.x, rel=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(("clip", "error"), [(laplace_clip, laplace_error), (gauss_clip, gauss_error)])
def test_the_clip_level_is_where_the_error_is_least(
    clip: Callable[[int], float], error: Callable[[float, int], float], bits: int
) -> None:
    best = clip(bits)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert error(best, bits) < error(best * factor, bits)


@pytest.mark.parametrize(("error", "density"), [(laplace_error, stats.laplace), (gauss_error, stats.norm)])
@pytest.mark.parametrize("alpha", [0.5, 2.0, 5.0])
def test_the_clipping_part_is_the_integral_over_the_tails(
    error: Callable[[float, int], float], density: stats.rv_continuous, alpha: float
) -> None:
    tail, _ = integrate.quad(lambda x: 2 * (x - alpha) ** 2 * density.pdf(x), alpha, 60)
    assert error(alpha, 4) == pytest.approx(tail + alpha**2 / (3 * 4**4), rel=1e-6)


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize(
    ("clip", "error", "sample"),
    [
        (laplace_clip, laplace_error, np.random.Generator.laplace),
        (gauss_clip, gauss_error, np.random.Generator.normal),
    ],
)
def test_the_error_of_samples_is_the_analytic_one(
    clip: Callable[[int], float],
    error: Callable[[float, int], float],
    sample: Callable[..., np.ndarray],
    bits: int,
) -> None:
    x = sample(np.random.default_rng(0), size=400_000)
    alpha = clip(bits)
    step = 2 * alpha / 2**bits
    # What is clipped lands on alpha, the rest in the middle of its step: the two cases of the paper's model.
    middle = (np.floor(x / step) + 0.5) * step
    measured = np.where(np.abs(x) < alpha, x - middle, np.abs(x) - alpha)
    assert np.square(measured).mean() == pytest.approx(error(alpha, bits), rel=0.04)


def test_no_bits_have_no_level() -> None:
    for clip in (laplace_clip, gauss_clip):
        with pytest.raises(ConfigError, match="bits=0"):
            clip(0)
    assert math.isfinite(gauss_clip(33))
