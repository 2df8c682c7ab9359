"""PWLQ's activations: where the breakpoint goes behind a ReLU, whatever the share of zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qexp.calibration.fit import fit_activations
from qexp.calibration.observers import MinMax
from qexp.graph.plan import make_plan
from qexp.graph.scheme import Method, Scheme, Widths
from qexp.quantizers.base import Observed, Site
from qexp.quantizers.pwlq import PWLQActivation, analytic_edges
from qexp.quantizers.uniform import UniformWeight

RELU = Site("conv.input", "input", (1,))


def clipped_gauss(shift: float) -> Tensor:
    """Gauss values behind a ReLU; the further the shift is below zero, the more of them are zeros."""
    return (torch.randn(40_000, generator=torch.Generator().manual_seed(0)) + shift).relu()


def squared_error(x: Tensor, p: float, m: float, bits: int) -> float:
    """Of the nearest of 2^bits values from 0 to p and as many from p to m, looked up."""
    levels = torch.cat([torch.linspace(0, p, 2**bits), torch.linspace(p, m, 2**bits)[1:]])
    nearest = levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]
    return float((nearest - x).square().mean())


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("shift", [1.0, 0.0, -1.28, -1.88])  # 16, 50, 90 and 97 % zeros
def test_zeros_behind_a_relu_do_not_move_the_breakpoint(shift: float, bits: int) -> None:
    x = clipped_gauss(shift)
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)).eval()
    with torch.no_grad():  # the first layer hands on what it gets
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    widths = Widths(8, bits)
    method = Method("pwlq", UniformWeight, PWLQActivation, "input")
    plan = make_plan(model, Scheme(method, widths, widths, widths, input_range=((0.0,), (9.0,))), (1, 100, 100))
    ((_, p, m),) = (
        (each.layer, float(each.values["p1"]), float(each.values["m"]))
        for each in fit_activations(model, plan, [(x.reshape(4, 1, 100, 100), None)], MinMax)
    )
    assert m == float(x.max())
    best = min(squared_error(x, float(share) * m, m, bits) for share in torch.linspace(0.02, 0.98, 49))
    assert squared_error(x, p, m, bits) < 1.06 * best
    unfitted = PWLQActivation(bits, RELU)
    assert unfitted._edges(x).tolist() == pytest.approx([0.0, p, m], rel=1e-5)


def test_values_around_zero_count_all_of_them_as_before() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) + 0.5
    signed = PWLQActivation(4, Site("conv.input", "input", (1,), signed=True))
    expected = analytic_edges(x.abs().max(), x.square().mean().sqrt(), 1, "gauss_fit")
    assert torch.equal(signed._edges(x), expected)


@pytest.mark.parametrize("search", ["gauss_fit", "laplace"])
def test_a_range_of_nothing_with_a_spread_is_fitted_all_the_same(search: str) -> None:
    """Of few values above zero the median of the ten largest is 0; NaN would say that nothing was fitted."""
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    quantizer = PWLQActivation(4, RELU, search=search).eval()
    quantizer.fit_activations(Observed(zero, zero, zero, one))
    assert not quantizer.edges.any()
    assert not quantizer(torch.ones(3)).any()
    channels = analytic_edges(torch.tensor([0.0, 2.0]), torch.ones(2), 1, search)
    assert channels.isfinite().all() and channels[2].tolist() == [0.0, 2.0]
