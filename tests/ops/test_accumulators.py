"""Integer accumulation equals the fake-quantized layer, in whole numbers and with as many accumulators as said."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qexp.layers.quantized import QuantConv2d
from qexp.ops.accumulators import accumulate
from qexp.ops.piecewise import PiecewiseGrid
from qexp.ops.uniform import make_grid
from qexp.quantizers.base import Observed, Site
from qexp.quantizers.corrected import CorrectedWeight
from qexp.quantizers.pwlq import PWLQWeight
from qexp.quantizers.uniform import UniformActivation, UniformWeight


def grid_of(weight: torch.Tensor, bits: int, breakpoints: int, **form) -> PiecewiseGrid:
    m = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True)
    shares = torch.linspace(0, 1, breakpoints + 2) ** 1.5
    return PiecewiseGrid(torch.stack([share * m for share in shares]), bits, **form)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("breakpoints", [0, 1, 2, 3])
def test_a_convolution_from_integers(breakpoints, signed):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 7, 7, generator=generator)
    x = x if signed else x.relu()
    weight = torch.randn(8, 3, 3, 3, generator=generator)
    inputs = make_grid("full" if signed else "asymmetric", 8, x.min().clamp(max=0), x.max())
    weights = grid_of(weight, 4, breakpoints)

    def product(a, b):
        return F.conv2d(a, b, stride=2, padding=1, groups=2)

    codes = inputs.codes(x)
    whole = codes.values + inputs.lowest
    offset = torch.zeros(()) if inputs.offset is None else inputs.offset
    found = accumulate(whole, inputs.step, offset, weight, weights, product)
    expected = product(inputs.round(x).double(), weights.round(weight).double())
    assert (found.output - expected).abs().max() < 1e-6 * expected.abs().max()
    assert len(found.accumulators) == 2 * breakpoints + 1
    for each in found.accumulators:
        assert torch.equal(each, each.round())
        assert each.abs().max() < 2**20, "27 products of 8 and 4 bits fit 20 bits"


def test_an_input_with_an_offset_and_a_linear_layer():
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.rand(5, 20, generator=generator) + 0.7, torch.randn(4, 20, generator=generator)
    inputs = make_grid("asymmetric", 6, x.min(), x.max())
    weights = grid_of(weight, 3, 1)
    found = accumulate(inputs.codes(x).values, inputs.step, x.min(), weight, weights, F.linear)
    expected = F.linear(inputs.round(x).double(), weights.round(weight).double())
    assert (found.output - expected).abs().max() < 1e-6 * expected.abs().max()


def test_overlapping_tails_need_one_accumulator_each():
    weight = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    x = torch.randint(0, 255, (3, 50), generator=torch.Generator().manual_seed(0))
    for variant in ("paper", "authors"):
        grid = grid_of(weight, 4, 1, variant=variant, overlap=True)
        found = accumulate(x, torch.tensor(0.1), torch.zeros(()), weight, grid, F.linear)
        assert len(found.accumulators) == 2
        expected = F.linear(0.1 * x.double(), grid.round(weight).double())
        assert (found.output - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize(
    ("kind", "count"),
    [("full", 1), ("restricted", 1), ("asymmetric", 2)],
    ids=["full", "restricted", "asymmetric"],
)
def test_uniform_weights_need_one_accumulator_and_with_an_offset_two(kind, count):
    weight = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    x = torch.randint(0, 255, (3, 50), generator=torch.Generator().manual_seed(0))
    grid = make_grid(kind, 4, weight.amin(1, keepdim=True), weight.amax(1, keepdim=True))
    found = accumulate(x, torch.tensor(0.1), torch.tensor(-3.0), weight, grid, F.linear)
    assert len(found.accumulators) == count
    expected = F.linear(0.1 * x.double() - 3, grid.round(weight).double())
    assert (found.output - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("method", [UniformWeight, PWLQWeight])
def test_it_is_what_a_fitted_layer_puts_out(method, signed, corrected):
    """A calibrated layer, from the integers that its quantizers keep; the correction scales a sum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 6, generator=generator)
    x = x if signed else x.relu()
    real = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    weight = real.weight.detach()
    inner = method(4, Site("conv", "weight", tuple(weight.shape)))
    outer = CorrectedWeight(inner) if corrected else inner
    outer.fit_weights(weight)
    reader = UniformActivation(8, Site("conv.input", "input", (3, 6, 6), signed=signed))
    reader.fit_activations(Observed(x.min(), x.max()))
    inputs = reader._grid(x)

    def product(a, b):
        return F.conv2d(a, b, padding=1)

    whole = inputs.codes(x).values + inputs.lowest
    found = accumulate(whole, inputs.step, torch.zeros(()), weight, inner._grid(weight), product).output
    if corrected:
        sums = product(whole.double(), torch.ones_like(weight).double()) * inputs.step.double()
        shift, factor = (tensor.double().reshape(-1, 1, 1) for tensor in (outer.shift, outer.factor))
        found = factor * (found + shift * sums)
    expected = QuantConv2d(real, outer, reader).eval()(x).detach().double()
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_step_for_each_input_channel_is_refused():
    """It stands inside the sum over the channels, and no product behind it can take its place."""
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    x = torch.randint(0, 255, (3, 6), generator=torch.Generator().manual_seed(0))
    grid = make_grid("full", 4, weight.amin(1, keepdim=True), weight.amax(1, keepdim=True))
    for steps in (torch.linspace(0.1, 0.6, 6), torch.full((4,), 0.1)):
        with pytest.raises(ValueError, match=r"step: \("):
            accumulate(x, steps, torch.zeros(()), weight, grid, F.linear)
    offsets = torch.linspace(-1, 1, 6)
    found = accumulate(x, torch.tensor([0.1]), offsets, weight, grid, F.linear)
    expected = F.linear(0.1 * x.double() + offsets, grid.round(weight).double())
    assert (found.output - expected).abs().max() < 1e-6 * expected.abs().max()
