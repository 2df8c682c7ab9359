from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp.ops.rounding import ASR, SoftRound, ste
from qexp.ops.steps import limits, round_to_step, scoped_mean, step_codes, step_gradient


def printed(x: float, step: float, lowest: int, highest: int) -> tuple[float, float, float]:
    """LSQ's value and gradients of data and step as the paper prints them, one number at a time."""
    u = x / step
    if u <= lowest:
        return lowest * step, 0.0, lowest
    if u >= highest:
        return highest * step, 0.0, highest
    return round(u) * step, 1.0, round(u) - u


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rounding", [ste, lambda u: u + (torch.round(u) - u).detach()], ids=["fused", "composed"])
@pytest.mark.parametrize(
    ("dtype", "off"), [(torch.float32, 2e-5), (torch.float64, 1e-13)], ids=["float32", "float64"]
)
def test_gradients_are_the_printed_ones(bits, signed, rounding, dtype, off):
    lowest, highest = limits(bits, signed)
    step = 0.25  # a power of two: the ends of the range are met exactly
    inside = torch.linspace(lowest + 0.1, highest - 0.1, 41, dtype=torch.float64) * step
    ends = torch.tensor([lowest, highest, lowest - 3, highest + 3, lowest - 0.4, highest + 0.4]) * step
    for value in torch.cat([inside, ends.double()]).tolist():
        x = torch.tensor(value, dtype=dtype, requires_grad=True)
        s = torch.tensor(step, dtype=dtype, requires_grad=True)
        y = round_to_step(x, s, lowest, highest, rounding)
        y.backward()
        expected = printed(value, step, lowest, highest)
        assert y.dtype == x.grad.dtype == s.grad.dtype == dtype
        assert (y.item(), x.grad.item()) == (expected[0], expected[1])
        assert s.grad.item() == pytest.approx(expected[2], rel=off, abs=off)


@pytest.mark.parametrize("of_x", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_fused_gradient_is_the_composed_one_for_whole_tensors(of_x, of_gradient):
    x, upstream = torch.randn(2, 64, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    x, upstream = x.contiguous(memory_format=of_x), upstream.contiguous(memory_format=of_gradient)
    for shape in ((), (8, 1, 1), (8, 5, 5)):
        found = []
        for rounding in (ste, lambda u: u + (torch.round(u) - u).detach()):
            a, s = x.clone().requires_grad_(), torch.full(shape, 0.37).requires_grad_()
            y = round_to_step(a, s, -4, 3, rounding)
            (y * upstream).sum().backward()
            found.append((y.detach(), a.grad, s.grad))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("soft", [ASR(k=4.0), SoftRound(alpha=3.0)], ids=["asr", "tanh"])
def test_with_a_soft_rounding_the_step_follows_the_chain_rule(soft):
    """Inside, d/ds = round(u) - u soft'(u); the derivative of the soft staircase by finite differences."""
    x, s = torch.tensor(0.83, dtype=torch.float64), torch.tensor(0.3, requires_grad=True)
    y = round_to_step(x, s, -4, 3, soft)
    y.backward()
    u = x / s.detach().double()
    slope = (soft.soft(u + 1e-6) - soft.soft(u - 1e-6)) / 2e-6
    assert s.grad.item() == pytest.approx(float(torch.round(u) - u * slope), rel=1e-5)


def test_unmasked_values_keep_their_gradient_beyond_the_range():
    for rounding in (ste, ASR()):
        x = torch.tensor([-9.0, -2.0, 0.2, 1.0, 9.0], requires_grad=True)
        round_to_step(x, torch.tensor(1.0), -2, 1, rounding, masked=False).sum().backward()
        assert x.grad[[0, 1, 3, 4]].tolist() == [1.0] * 4, "at the ends, too, where a step may start"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_scaled_gradient_leaves_the_value_bit_exact(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    step = (torch.rand(1000, generator=generator) * 10 ** (4 * torch.rand(1, generator=generator) - 3)).to(dtype)
    step.requires_grad_()
    scale = 1 / math.sqrt(3 * 123457)
    y = step_gradient(step, scale)
    assert torch.equal(y, step)
    y.sum().backward()
    assert torch.equal(step.grad, torch.ones_like(step) * scale)


def test_a_simulated_gradient_replaces_or_joins_the_losses():
    for mixed_in, expected in ((None, 5.0), (0.1, 2.0 * 0.5 + 0.1 * 5.0)):
        step = torch.tensor(1.0, requires_grad=True)
        (2 * step_gradient(step, 0.5, simulated=torch.tensor(5.0), mixed_in=mixed_in)).backward()
        assert step.grad.item() == pytest.approx(expected)
    step = torch.tensor(1.0, requires_grad=True)
    (torch.tensor(float("inf")) * step_gradient(step, 0.5, simulated=torch.tensor(5.0))).backward()
    assert step.grad.item() == 5.0


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(2, 8), st.booleans())
def test_rounding_again_changes_nothing(step, bits, signed):
    lowest, highest = limits(bits, signed)
    s = torch.tensor(step)
    once = round_to_step(
        torch.randn(500, generator=torch.Generator().manual_seed(bits)) * step * 5, s, lowest, highest
    )
    assert torch.equal(round_to_step(once, s, lowest, highest), once)
    assert torch.equal(step_codes(once, s, lowest, highest).decode(), once)


def test_means_over_scopes():
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert scoped_mean(x, torch.ones(())).item() == x.mean().item()
    assert torch.equal(scoped_mean(x, torch.ones(3, 1)), x.mean((0, 2)).reshape(3, 1))
    assert torch.equal(scoped_mean(x, torch.ones(3, 4)), x.mean(0))
    weight = torch.arange(24.0).reshape(4, 6)
    assert torch.equal(scoped_mean(weight, torch.ones(4, 1)), weight.mean(1, keepdim=True))
