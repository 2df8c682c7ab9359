from __future__ import annotations

import pytest
import torch

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
