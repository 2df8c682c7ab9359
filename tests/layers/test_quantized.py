from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.layers.quantized import QuantConv2d, QuantLinear
from qexp.quantizers.base import Site
from qexp.quantizers.dorefa import DoReFaWeight
from qexp.quantizers.pact import PACT

WEIGHT = DoReFaWeight(2, Site("layer", "weight"))
INPUT = PACT(3, Site("layer.input", "input", signed=True), alpha=2.0)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
        nn.Conv2d(4, 6, (3, 1), padding="same", bias=False),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_a_convolution_is_that_of_quantized_tensors(layer: nn.Conv2d) -> None:
    x = torch.randn(2, 4, 9, 9)
    expected = copy.deepcopy(layer)
    with torch.no_grad():
        expected.weight.copy_(WEIGHT(layer.weight))
    assert torch.equal(QuantConv2d(layer, WEIGHT, INPUT)(x), expected(INPUT(x)))
    assert torch.equal(QuantConv2d(layer, None, None)(x), layer(x))


def test_a_linear_layer_is_that_of_quantized_tensors() -> None:
    layer, x = nn.Linear(5, 3), torch.randn(2, 7, 5)
    expected = F.linear(INPUT(x), WEIGHT(layer.weight), layer.bias)
    assert torch.equal(QuantLinear(layer, WEIGHT, INPUT)(x), expected)
    assert torch.equal(QuantLinear(layer, None, None)(x), layer(x))


@pytest.mark.parametrize(
    ("layer", "quantized"), [(nn.Conv2d(3, 2, 1), QuantConv2d), (nn.Linear(3, 2), QuantLinear)]
)
def test_parameters_are_taken_over_with_name_and_mode(layer: nn.Module, quantized: type) -> None:
    for training in (True, False):
        made = quantized(layer.train(training), WEIGHT, None)
        assert made.weight is layer.weight and made.bias is layer.bias
        assert list(made.state_dict()) == ["weight", "bias"]
        assert {module.training for module in made.modules()} == {training}


def test_gradients_reach_the_float_weight_and_the_input() -> None:
    layer, x = nn.Conv2d(3, 2, 3), torch.randn(1, 3, 8, 8, requires_grad=True)
    QuantConv2d(layer, WEIGHT, INPUT)(x).square().sum().backward()
    assert layer.weight.grad.any() and x.grad.any()
