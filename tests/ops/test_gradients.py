"""Quantized gradients: the formulas in float64, unbiased, seeded, and where they act."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qexp.errors import ConfigError
from qexp.layers.quantized import QuantLinear
from qexp.ops.gradients import QuantizedGradient, dorefa_gradient, log_gradient
from qexp.quantizers.base import Site
from qexp.quantizers.gradient import GradientQuantizer
from qexp.quantizers.qnn_binary import BinaryWeight


def upstream(rows: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 40, generator=generator) * 10.0 ** torch.arange(-rows, 0.0)[:, None]


@pytest.mark.parametrize("bits", [2, 6, 8])
def test_dorefas_form_against_its_formula(bits: int) -> None:
    gradient = upstream()
    noise = torch.rand(gradient.shape, generator=torch.Generator().manual_seed(4)) - 0.5
    n, g = 2**bits - 1, gradient.double()
    largest = g.abs().amax(1, keepdim=True)
    unit = (g / (2 * largest) + 0.5 + noise.double() / n).clamp(0, 1)
    expected = 2 * largest * (torch.round(n * unit) / n - 0.5)
    torch.testing.assert_close(dorefa_gradient(gradient, bits, noise).double(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_the_logarithmic_form_uses_its_codes(bits: int) -> None:
    gradient = upstream()
    found = log_gradient(gradient, bits, torch.rand(gradient.shape) - 0.5)
    for row, real in zip(found, gradient, strict=True):
        powers = row[row != 0].abs().log2()
        assert torch.equal(powers, powers.round())
        assert powers.max() - powers.min() <= 2 ** (bits - 1) - 2
        assert real.abs().max() <= 2.0 ** powers.max() * 2
        assert ((row == 0) | (row.sign() == real.sign())).all()


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_the_logarithmic_form_has_all_its_powers(bits: int) -> None:
    powers = 2.0 ** -torch.arange(2 ** (bits - 1) - 1)  # as many as codes are left beside sign and zero
    below = powers[-1:] / 2
    gradient = torch.cat([powers, below]).unsqueeze(0)
    for noise, last in ((0.5, 0.0), (-0.5, float(powers[-1]))):  # half of the smallest goes down or up
        found = log_gradient(gradient, bits, torch.full_like(gradient, noise))[0]
        assert torch.equal(found[:-1], powers) and found[-1] == last


@pytest.mark.parametrize("quantize", [dorefa_gradient, log_gradient])
def test_the_mean_is_the_gradient(quantize) -> None:
    """Within 5 standard errors for every element, by a fixed seed; DoReFa's form clips the largest."""
    torch.manual_seed(11)
    gradient, draws = upstream(2), 20_000
    repeated = gradient.repeat(draws, 1)
    found = quantize(repeated, 4, torch.rand(repeated.shape) - 0.5).reshape(draws, *gradient.shape)
    error = (found.mean(0) - gradient).abs()
    inside = gradient.abs() < 0.9 * gradient.abs().amax(1, keepdim=True)
    bound = 5 * found.std(0) / draws**0.5 + 1e-6 * gradient.abs().amax(1, keepdim=True)
    assert (error <= bound)[inside].all()


@pytest.mark.parametrize("quantize", [dorefa_gradient, log_gradient])
def test_a_sample_of_zeros_stays_one(quantize) -> None:
    assert not quantize(torch.zeros(2, 5), 6, torch.rand(2, 5) - 0.5).any()


@pytest.mark.parametrize("form", ["dorefa", "log"])
def test_one_quantized_gradient_feeds_both_products(form: str) -> None:
    layer = QuantLinear(nn.Linear(5, 4, bias=False), BinaryWeight(1, Site("fc", "weight", (4, 5))), None)
    layer.gradient_quantizer = GradientQuantizer(6, form)  # type: ignore[arg-type]
    x, gradient = torch.randn(3, 5, requires_grad=True), torch.randn(3, 4)
    torch.manual_seed(9)
    y = layer(x)
    y.backward(gradient)
    torch.manual_seed(9)
    quantize = dorefa_gradient if form == "dorefa" else log_gradient
    quantized = quantize(gradient, 6, torch.rand_like(gradient) - 0.5)
    assert torch.equal(y, nn.functional.linear(x, layer.weight_quantizer(layer.weight)))
    torch.testing.assert_close(x.grad, quantized @ layer.weight_quantizer(layer.weight))
    torch.testing.assert_close(layer.weight.grad, quantized.T @ x)
    assert not torch.equal(quantized, gradient)


def test_it_compiles_and_only_training_draws() -> None:
    torch._dynamo.reset()
    module = GradientQuantizer(4)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 7, requires_grad=True)
    compiled(x).backward(torch.linspace(-1, 1, 21).reshape(3, 7))
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()
    state = torch.get_rng_state()
    assert module.eval()(x) is x and torch.equal(state, torch.get_rng_state())


def test_refused() -> None:
    with pytest.raises(ConfigError, match="gradient_bits=1"):
        GradientQuantizer(1)
    with pytest.raises(ConfigError, match="gradient_form=linear"):
        GradientQuantizer(6, "linear")  # type: ignore[arg-type]


def test_what_follows_may_write_in_place() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    y = QuantizedGradient.apply(2 * x, 6, False)
    y += 1
    y.relu_()
    y.sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
