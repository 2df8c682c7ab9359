"""Soft roundings: the staircases, their slopes, and what each of them trains."""

from __future__ import annotations

import math

import pytest
import torch

from qexp.errors import ConfigError
from qexp.ops.rounding import ASR, DSQ, SoftRound, arctan_round, tanh_round

# LG-LSQ's fact sheet, section 4.2: the largest and the smallest slope of the arctangent staircase, by k.
SLOPES = {
    1: (1.078, 0.863),
    2: (1.273, 0.637),
    4: (1.806, 0.361),
    6: (2.402, 0.240),
    10: (3.641, 0.140),
    20: (6.798, 0.067),
}
EVERY = [ASR(k=4.0), ASR(k=10.0), ASR(mode="learned"), ASR(mode="annealed"), SoftRound(alpha=5.0), DSQ(a=0.2)]


def slope(rounding, values):
    x = values.clone().requires_grad_()
    rounding(x).sum().backward()
    return x.grad


@pytest.mark.parametrize("k", SLOPES)
def test_slopes_of_the_arctangent(k):
    largest, smallest = SLOPES[k]
    asr = ASR(k=float(k)).double()
    middle, end = slope(asr, torch.tensor([2.5, 2.0 + 1e-12], dtype=torch.float64)).tolist()
    assert middle == pytest.approx(largest, abs=6e-4) and end == pytest.approx(smallest, abs=6e-4)
    cell = slope(asr, (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 - 3)
    assert cell.mean().item() == pytest.approx(1.0, abs=1e-9)
    assert cell.min().item() > 0


def test_the_tangents_slope_nearly_vanishes_where_the_arctangents_does_not():
    end = torch.tensor([1e-9], dtype=torch.float64)
    assert slope(SoftRound(alpha=10.0), end).item() == pytest.approx(9e-4, rel=0.05)
    assert slope(SoftRound(alpha=20.0), end).item() == pytest.approx(8e-8, rel=0.05)
    assert slope(ASR(k=20.0), end).item() > 0.06


def test_limits_of_sharpness():
    x = torch.linspace(-3, 3, 1001, dtype=torch.float64)
    torch.testing.assert_close(arctan_round(x, 1e-4), x, rtol=0, atol=1e-8)
    away = x[(x - x.floor() - 0.5).abs() > 0.05]
    torch.testing.assert_close(arctan_round(away, 1e7), torch.round(away), rtol=0, atol=1e-5)


@pytest.mark.parametrize("staircase", [arctan_round, tanh_round])
def test_a_staircase_meets_the_integers_and_the_middles(staircase):
    whole = torch.arange(-5.0, 6.0, dtype=torch.float64)
    torch.testing.assert_close(staircase(whole, 4.0), whole)
    torch.testing.assert_close(staircase(whole + 0.5, 4.0), whole + 0.5)
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    y = staircase(x, 4.0)
    assert (y[1:] > y[:-1]).all(), "rising everywhere, without a jump"
    assert (y[1:] - y[:-1]).max() < 0.006


@pytest.mark.parametrize("rounding", EVERY, ids=lambda r: f"{type(r).__name__}-{getattr(r, 'mode', '')}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_value_is_the_nearest_integer_and_the_gradient_the_staircases(rounding, dtype):
    x = (torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 20).to(dtype).requires_grad_()
    y = rounding(x)
    assert torch.equal(y, torch.round(x)) and y.dtype == dtype
    with torch.no_grad():
        assert torch.equal(rounding(x), torch.round(x))
    x = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 6 - 3
    numeric = (rounding.soft(x + 1e-6) - rounding.soft(x - 1e-6)).detach() / 2e-6
    near = (x - torch.round(x)).abs() > 1e-5  # not across two cells
    torch.testing.assert_close(slope(rounding, x)[near], numeric[near], rtol=1e-4, atol=1e-6)


def test_dsq_is_the_published_form():
    """phi = tanh(k (x - m)) / (1 - a) with k = ln(2 / a - 1), at cells of width 1: its ends are -1 and 1."""
    a, x = 0.2, torch.tensor([0.0, 0.3, 0.999999], dtype=torch.float64)
    phi = torch.tanh(math.log(2 / a - 1) * (x - 0.5)) / (1 - a)
    torch.testing.assert_close(DSQ(a=a).soft(x), (0.5 + phi / 2).to(torch.float64), rtol=1e-6, atol=1e-6)


def test_what_is_learned_gets_a_gradient_and_stays_in_range():
    for rounding in (ASR(mode="learned"), DSQ()):
        ((parameter),) = rounding.learned().values()
        (rounding(torch.rand(100)) * torch.rand(100)).sum().backward()
        assert parameter.grad.isfinite() and parameter.grad != 0
        with torch.no_grad():
            parameter.fill_(-5.0)
            rounding.after_step()
        assert rounding(torch.rand(5)).isfinite().all()
        assert not isinstance(rounding, DSQ) or 0 < parameter < 1
    assert float(ASR(mode="learned", k=4.0).sharpness().detach()) == pytest.approx(4.0)


def test_the_gradients_are_the_staircases_to_the_last_places():
    """In x and in a learned k, against automatic differentiation of the staircase."""
    x = torch.linspace(-3, 3, 999, dtype=torch.float64)
    wanted = torch.linspace(-1, 2, 999, dtype=torch.float64)
    for k in (0.01, 1.0, 4.0, 25.0):
        asr, found = ASR(mode="learned", k=k).double(), []
        for form in (asr, asr.soft):
            leaf = x.clone().requires_grad_()
            found.append(torch.autograd.grad((form(leaf) * wanted).sum(), (leaf, asr.raw_k)))
        for ours, automatic in zip(*found, strict=True):
            torch.testing.assert_close(ours, automatic, rtol=1e-9, atol=1e-12)


def test_an_annealed_sharpness_follows_the_training():
    asr = ASR(k=1.0, mode="annealed", k_end=9.0)
    for share, k in ((0.0, 1.0), (0.5, 5.0), (1.0, 9.0)):
        asr.progress(share)
        assert float(asr.sharpness()) == k


def test_the_soft_form_is_for_training_alone():
    asr, x = ASR(forward="soft"), torch.tensor([0.3], requires_grad=True)
    assert 0 < asr(x).item() < 0.3
    assert asr.eval()(x).item() == 0


@pytest.mark.parametrize(
    "make", [lambda: ASR(k=0.0), lambda: ASR(k=-1.0), lambda: ASR(k_end=0.0), lambda: SoftRound(alpha=0.0)]
)
def test_a_sharpness_is_above_zero(make):
    with pytest.raises(ConfigError, match="above 0"):
        make()


def test_dsq_has_a_range():
    for a in (0.0, 1.0, 2.0):
        with pytest.raises(ConfigError, match=r"rounding\.a="):
            DSQ(a=a)
