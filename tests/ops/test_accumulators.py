"""Integer accumulation equals the fake-quantized layer, in whole numbers and with as many accumulators as said."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qexp.ops.accumulators import accumulate
from qexp.ops.piecewise import PiecewiseGrid
from qexp.ops.uniform import make_grid


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
