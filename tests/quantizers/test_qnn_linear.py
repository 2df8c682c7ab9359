from __future__ import annotations

import pytest
import torch

from qexp.errors import ConfigError
from qexp.quantizers.base import Site
from qexp.quantizers.qnn_linear import LinearActivation, LinearWeight, linear_quant


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_against_the_formula_in_float64(bits: int) -> None:
    x = torch.linspace(-1.7, 1.7, 4001)
    step = 2.0 ** -(bits - 1)
    expected = (torch.round(x.double() / step) * step).clamp(-1, 1 - step)
    assert torch.equal(linear_quant(x, bits).double(), expected)


def test_one_bit_is_the_sign() -> None:
    assert linear_quant(torch.tensor([-0.1, 0.0, 0.1]), 1).tolist() == [-1, 1, 1]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_where_the_gradient_passes(bits: int) -> None:
    values = torch.tensor([-1.2, -1.0, 0.1, 0.99, 1.0, 1.2])
    for quantizer, expected in (
        (LinearActivation(bits, Site("act", "activation", (6,))), [0, 1, 1, 1, 1, 0]),
        (LinearWeight(bits, Site("fc", "weight", (6, 1))), [1, 1, 1, 1, 1, 1]),
    ):
        x = values.clone().requires_grad_()
        quantizer(x).sum().backward()
        assert x.grad is not None and x.grad.tolist() == expected


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_reach_scales_the_grid_by_the_mean_weight(bits: int) -> None:
    weights = 0.01 * torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    quantizer = LinearWeight(bits, Site("fc", "weight", (40, 30)), reach=2.5)
    end = 2.5 * weights.abs().mean()
    half = 2 ** (bits - 1)
    expected = (weights.double() / end.double() * half).round().clamp(-half, half - 1) / half * end.double()
    x = weights.clone().requires_grad_()
    found = quantizer(x)
    assert torch.allclose(found.double(), expected, atol=1e-9)
    assert torch.equal(quantizer.codes(weights).decode(), found)
    found.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # the mean is no part of the graph
    assert not quantizer(torch.zeros(3, 3)).any()


@pytest.mark.parametrize(("bits", "reach"), [(4, 0.0), (4, -1.0), (4, True), (1, 2.5)])
def test_a_reach_without_meaning_is_refused(bits: int, reach: float) -> None:
    with pytest.raises(ConfigError, match="reach="):
        LinearWeight(bits, Site("fc", "weight", (3, 3)), reach=reach)


def test_weights_that_all_round_to_zero_are_noticed() -> None:
    small = torch.full((3, 4), 0.05)
    assert LinearWeight(4, Site("fc", "weight", (3, 4))).silent(small)
    assert not LinearWeight(4, Site("fc", "weight", (3, 4))).silent(small * 2)
    assert not LinearWeight(4, Site("fc", "weight", (3, 4)), reach=1.25).silent(small)
    assert not LinearWeight(1, Site("fc", "weight", (3, 4))).silent(small) and not LinearWeight(
        32, Site("fc", "weight", (3, 4))
    ).silent(small)
