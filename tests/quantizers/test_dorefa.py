"""DoReFa against an independent transcription of its formulas and finite differences of its smooth part."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.errors import ConfigError
from qexp.quantizers.base import Site
from qexp.quantizers.dorefa import DoReFaActivation, DoReFaWeight, dorefa_weight

WEIGHT = Site("conv", "weight", (8, 4, 3, 3))
ACTIVATION = Site("act", "activation", (4, 8, 8))


def squash(weight: np.ndarray) -> np.ndarray:
    tanh = np.tanh(weight.astype(np.float64))
    return tanh / (2 * np.abs(tanh).max()) + 0.5


def transcribed(weight: np.ndarray, bits: int) -> np.ndarray:
    """2 quantize_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1 with quantize_k(r) = round((2^k - 1) r) / (2^k - 1)."""
    steps = 2.0**bits - 1
    return 2 * (np.round(steps * squash(weight)) / steps) - 1


weights = st.lists(st.floats(-8, 8, width=32).filter(lambda w: w == 0 or abs(w) > 1e-6), min_size=2, max_size=40)


@given(weights.filter(any), st.sampled_from(range(2, 9)))
def test_weights_follow_the_formula(values: list[float], bits: int) -> None:
    weight = np.array(values, dtype=np.float32)
    difference = np.abs(dorefa_weight(torch.from_numpy(weight), bits).numpy() - transcribed(weight, bits))
    steps = 2.0**bits - 1
    at_tie = np.abs(squash(weight) * steps % 1 - 0.5) < 1e-4  # float32 may round a tie the other way
    assert np.all(difference <= np.where(at_tie, 2.001 / steps, 1e-6))


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_are_equally_spaced_from_minus_one_to_one_without_zero(bits: int) -> None:
    weight = torch.atanh(torch.linspace(-0.999, 0.999, 20_001, dtype=torch.float64)).float()
    levels = dorefa_weight(weight, bits).unique()
    assert levels.numel() == 2**bits
    assert (levels[0].item(), levels[-1].item()) == (-1.0, 1.0)
    torch.testing.assert_close(levels.diff(), torch.full((2**bits - 1,), 2 / (2**bits - 1)), rtol=1e-4, atol=1e-7)
    assert torch.all(levels != 0)
    assert torch.equal(levels, -levels.flip(0))


def test_thirty_two_bits_leave_weights_alone() -> None:
    weight = torch.randn(10)
    assert dorefa_weight(weight, 32) is weight


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_is_that_of_the_formula_without_its_rounding(bits: int) -> None:
    weight = torch.randn(6, 5, dtype=torch.float64)
    upstream = torch.randn(6, 5, dtype=torch.float64)

    def smooth(weight: torch.Tensor) -> torch.Tensor:
        return torch.tanh(weight) / torch.tanh(weight).abs().max()

    # Central differences, through tanh and through the maximum.
    differences = torch.zeros_like(weight)
    for index in range(weight.numel()):
        nudge = torch.zeros_like(weight).view(-1)
        nudge[index] = 1e-6
        nudge = nudge.view_as(weight)
        change = smooth(weight + nudge) - smooth(weight - nudge)
        differences.view(-1)[index] = (change * upstream).sum() / 2e-6
    leaf = weight.float().requires_grad_()
    (dorefa_weight(leaf, bits) * upstream.float()).sum().backward()
    torch.testing.assert_close(leaf.grad.double(), differences, rtol=1e-4, atol=1e-5)


def test_the_largest_weight_gets_the_gradient_of_the_maximum() -> None:
    # With two weights w_q = (u, 1) for u = tanh(a) / tanh(b): the gradient of b is -tanh(a) tanh'(b) / tanh(b)^2.
    a, b = 0.3, 0.9
    leaf = torch.tensor([a, b], requires_grad=True)
    dorefa_weight(leaf, 4)[0].backward()
    expected = [
        (1 - math.tanh(a) ** 2) / math.tanh(b),
        -math.tanh(a) * (1 - math.tanh(b) ** 2) / math.tanh(b) ** 2,
    ]
    assert leaf.grad.tolist() == pytest.approx(expected, rel=1e-5)


@given(weights)
def test_one_bit_is_sign_times_mean_magnitude(values: list[float]) -> None:
    weight = np.array([*values, 0.0], dtype=np.float32)
    leaf = torch.from_numpy(weight).requires_grad_()
    quantized = dorefa_weight(leaf, 1)
    quantized.sum().backward()
    expected = np.where(weight >= 0, 1.0, -1.0) * np.abs(weight.astype(np.float64)).mean()
    np.testing.assert_allclose(quantized.detach().numpy(), expected, rtol=1e-6)
    assert torch.equal(leaf.grad, torch.ones_like(leaf)), "the mean is held constant"


@pytest.mark.parametrize("bits", range(1, 9))
def test_zero_weights_stay_finite_and_learn(bits: int) -> None:
    leaf = torch.zeros(4, 3, requires_grad=True)
    quantized = dorefa_weight(leaf, bits)
    quantized.sum().backward()
    assert quantized.isfinite().all()
    # Zero has no scale to divide by; a huge gradient here would end the run at its first step.
    assert torch.equal(leaf.grad, torch.ones(4, 3))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("value", [0.5, -0.5, 1e-30, -40.0])
def test_one_element_goes_to_an_end_of_the_range(bits: int, value: float) -> None:
    assert dorefa_weight(torch.tensor([value]), bits).item() == math.copysign(1.0, value)


@pytest.mark.parametrize("bits", [1, 2, 8, 32])
def test_the_dtype_is_kept(bits: int) -> None:
    assert dorefa_weight(torch.randn(5, dtype=torch.bfloat16), bits).dtype == torch.bfloat16


def test_there_is_one_scale_for_the_whole_layer() -> None:
    weight = torch.randn(8, 4, 3, 3)
    assert torch.equal(DoReFaWeight(3, WEIGHT)(weight).reshape(-1), dorefa_weight(weight.reshape(-1), 3))
    assert DoReFaWeight(3, WEIGHT).learned() == {}


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40), st.sampled_from([1, 2, 3, 4, 8, 32]))
def test_activations_are_clipped_to_one_then_rounded(values: list[float], bits: int) -> None:
    x = torch.tensor(values, requires_grad=True)
    y = DoReFaActivation(bits, ACTIVATION)(x)
    y.sum().backward()
    numbers = x.detach().numpy().astype(np.float64)
    clipped, steps = np.clip(numbers, 0, 1), 2.0**bits - 1
    expected = clipped if bits == 32 else np.round(clipped * steps) / steps
    at_tie = np.abs(clipped * steps % 1 - 0.5) < 1e-4
    assert np.all(np.abs(y.detach().numpy() - expected) <= np.where(at_tie & (bits != 32), 1.001 / steps, 1e-6))
    assert x.grad.tolist() == ((numbers >= 0) & (numbers < 1)).astype(float).tolist()


def test_activations_learn_nothing_and_count_what_they_clip() -> None:
    quantizer = DoReFaActivation(2, ACTIVATION)
    assert not list(quantizer.parameters()) and not quantizer.state_dict()
    description = quantizer.describe(torch.tensor([-1.0, 0.3, 1.0, 2.0]))
    assert description.shares["clipped"].item() == 0.5
    assert description.levels == 3


def test_one_bit_at_a_signed_site_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 bit leaves no level beside zero"):
        DoReFaActivation(1, Site("conv.input", "input", signed=True))
