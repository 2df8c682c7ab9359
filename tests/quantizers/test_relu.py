"""The quantized ReLU: nothing clipped in training, one range in evaluation, the plain ReLU at 32 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qexp.errors import ConfigError
from qexp.graph.plan import make_plan
from qexp.graph.scheme import Method
from qexp.ops.rounding import ASR, SoftRound
from qexp.quantizers.base import Site
from qexp.quantizers.relu import QuantizedReLU

from ..conversions import Small, scheme

ACTIVATION = Site("act", "activation", (3, 4, 4))
SIGNED = Site("conv.input", "input", (3, 4, 4), signed=True)

numbers = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40, unique=True)


@given(numbers, st.sampled_from([1, 2, 4, 8]))
def test_training_rounds_on_a_grid_up_to_the_batchs_maximum_and_passes_every_gradient(
    values: list[float], bits: int
) -> None:
    x = torch.tensor([*values, 31.0], requires_grad=True)
    y = QuantizedReLU(bits, ACTIVATION)(x)
    y.sum().backward()
    real = np.maximum(x.detach().numpy().astype(np.float64), 0)
    step = 31.0 / (2.0**bits - 1)
    at_tie = np.abs(real / step % 1 - 0.5) < 1e-4  # float32 may round a tie the other way
    difference = np.abs(y.detach().numpy() - np.round(real / step) * step)
    assert np.all(difference <= np.where(at_tie, 1.001 * step, 1e-4))
    assert x.grad.tolist() == (x >= 0).float().tolist(), "that of a ReLU, its maximum included"


def test_a_signed_site_reaches_to_the_largest_magnitude_on_both_sides() -> None:
    x = torch.tensor([-6.0, -1.9, 0.1, 4.2], requires_grad=True)
    y = QuantizedReLU(3, SIGNED)(x)
    y.sum().backward()
    assert y.tolist() == [-6.0, -2.0, 0.0, 4.0]
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("rounding", [ASR(), SoftRound()])
@pytest.mark.parametrize("site", [ACTIVATION, SIGNED], ids=["relu", "signed"])
def test_the_maximums_gradient_is_whole_under_a_soft_rounding_too(site: Site, rounding: nn.Module) -> None:
    x = torch.tensor([-1.9, 0.1, 4.2, 6.0], requires_grad=True)
    QuantizedReLU(3, site, rounding)(x).sum().backward()
    assert x.grad[3].item() == 1.0


def test_the_running_maximum_moves_as_batch_norms_mean_does() -> None:
    quantizer, expected = QuantizedReLU(4, ACTIVATION, momentum=0.25), None
    for _ in range(5):
        x = torch.randn(2, 3, 4, 4) * 3
        quantizer(x)
        largest = x.max().item()
        expected = largest if expected is None else 0.75 * expected + 0.25 * largest
        assert quantizer.running_maximum.item() == pytest.approx(expected, rel=1e-6)
    assert not quantizer.running_maximum.requires_grad
    fresh = QuantizedReLU(4, ACTIVATION)
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh.running_maximum, quantizer.running_maximum)


def test_evaluation_does_not_depend_on_how_samples_are_batched() -> None:
    torch.manual_seed(0)
    quantizer = QuantizedReLU(3, ACTIVATION)
    quantizer(torch.randn(64, 3, 4, 4))
    quantizer.eval()
    x = 2 * torch.randn(6, 3, 4, 4)
    kept = quantizer.running_maximum.clone()
    together = quantizer(x)
    assert torch.equal(together, torch.cat([quantizer(one) for one in x.split(1)]))
    assert torch.equal(quantizer.codes(x).decode(), together)
    assert torch.equal(quantizer.running_maximum, kept), "evaluation moves nothing"
    torch.testing.assert_close(together.max(), kept)
    clipped = quantizer.describe(x).shares["clipped"]
    assert clipped.item() == pytest.approx((x >= kept).float().mean().item()) and clipped > 0


def test_before_any_training_evaluation_takes_its_own_batchs_maximum() -> None:
    x = torch.randn(2, 3, 4, 4)
    quantizer = QuantizedReLU(4, ACTIVATION)
    before = quantizer.eval()(x)
    assert torch.equal(before, quantizer.train()(x))


@pytest.mark.parametrize("value", [-1.0, 0.0, 1e-38, 1e-30])
def test_activations_without_a_range_stay_finite(value: float) -> None:
    x = torch.full((4,), value, requires_grad=True)
    y = QuantizedReLU(8, ACTIVATION)(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


def test_at_thirty_two_bits_it_is_the_plain_relu() -> None:
    x = torch.randn(50)
    assert torch.equal(QuantizedReLU(32, ACTIVATION)(x), x.relu())
    assert torch.equal(QuantizedReLU(32, SIGNED)(x), x)
    method = Method("relu", None, QuantizedReLU)
    for bits, expected in ((32, {nn.ReLU}), (4, {QuantizedReLU})):
        plan = make_plan(Small(), scheme((32, bits), (32, bits), method=method), (3, 8, 8))
        assert {nn.ReLU if site.quantizer is None else type(site.quantizer) for site in plan.sites} == expected
        assert {site.bits for site in plan.sites} == {bits}


def test_compiled_training_gives_the_same_values_gradients_and_running_maximum() -> None:
    torch._dynamo.reset()
    eager, compiled = QuantizedReLU(4, ACTIVATION), QuantizedReLU(4, ACTIVATION)
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = (3 * torch.randn(2, 3, 4, 4)).requires_grad_()
        other = x.detach().clone().requires_grad_()
        upstream = torch.randn_like(x)
        y, z = eager(x), step(other)
        torch.autograd.backward([y, z], [upstream, upstream])
        torch.testing.assert_close(z, y)
        torch.testing.assert_close(other.grad, x.grad)
        assert torch.equal(compiled.running_maximum, eager.running_maximum)


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.1, float("nan"), "slow", True])
def test_momentum_is_a_share(momentum: object) -> None:
    with pytest.raises(ConfigError, match=f"momentum={momentum} does not fit"):
        QuantizedReLU(4, ACTIVATION, momentum=momentum)


def test_a_batch_without_anything_above_zero_moves_no_running_maximum() -> None:
    quantizer = QuantizedReLU(4, ACTIVATION)
    quantizer(torch.full((2, 3, 4, 4), -1.0))
    assert quantizer.running_maximum.item() == 0, "no batch was seen yet"
    small = torch.rand(2, 3, 4, 4) * 0.01
    quantizer(small)
    for dead in (torch.full((2, 3, 4, 4), -1.0), torch.zeros(2, 3, 4, 4)):
        assert not quantizer(dead).any()
        assert quantizer.running_maximum.item() == small.max().item()


def test_a_relu6_keeps_its_end() -> None:
    six, plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6()), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    method = Method("relu", None, QuantizedReLU)
    x = torch.tensor([-3.0, 0.4, 5.0, 6.5, 88.7], requires_grad=True)
    for model, end in ((six, 6.0), (plain, 88.7)):
        (site,) = make_plan(model, scheme((32, 8), (32, 8), method=method), (3, 8, 8)).sites
        quantizer = site.quantizer
        assert isinstance(quantizer, QuantizedReLU)
        y = quantizer(x)
        step = end / 255
        expected = torch.round(x.detach().clamp(0, end) / step) * step
        torch.testing.assert_close(y.detach(), expected)
        assert quantizer.running_maximum.item() == pytest.approx(end)
        torch.testing.assert_close(quantizer.eval()(x).detach(), expected)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.tolist() == [0.0, 1.0, 1.0, float(end > 6.5), float(end > 6.5)], "the activation's own"
