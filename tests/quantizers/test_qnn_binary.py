"""Signs against the paper's equations, and what training does to the real weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from qexp.errors import ConfigError
from qexp.layers.quantized import QuantConv2d
from qexp.ops.binary import sign, stochastic_sign, windowed
from qexp.quantizers.base import Site
from qexp.quantizers.qnn_binary import BinaryActivation, BinaryWeight

EDGES = [-1.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5, math.inf]
WEIGHT, ACTIVATION = Site("conv", "weight", (4, 2, 3, 3)), Site("act", "activation", (9,))


def gradient_at(quantizer: nn.Module, values: list[float]) -> list[float]:
    x = torch.tensor(values, requires_grad=True)
    quantizer(x).backward(torch.arange(1.0, len(values) + 1))
    assert x.grad is not None
    return x.grad.tolist()


def test_the_sign_and_its_mask_at_the_edges() -> None:
    quantizer = BinaryActivation(1, ACTIVATION)
    assert quantizer(torch.tensor(EDGES)).tolist() == [-1, -1, -1, 1, 1, 1, 1, 1, 1]
    assert gradient_at(quantizer, EDGES) == [0, 2, 3, 4, 5, 6, 7, 0, 0]  # |x| <= 1, ends included


@pytest.mark.parametrize("window", [1.0, 0.3, 1.2, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_window_ends_where_it_says(window: float, dtype: torch.dtype) -> None:
    end = torch.tensor(window, dtype=dtype)
    x = torch.stack([-end, end, -torch.nextafter(end, 2 * end), torch.nextafter(end, 2 * end)])
    x = x.repeat(65)  # what is computed in registers, and the rest behind it
    x.requires_grad_()
    windowed(sign(x), x, window).backward(torch.full_like(x, 3))
    inside = float(end) <= window + (1e-7 if dtype == torch.float32 else 0)  # bfloat16's own 0.3 may lie beyond it
    assert x.grad.tolist() == 65 * [3.0 * inside, 3.0 * inside, 0, 0]


def test_an_infinite_window_lets_all_pass() -> None:
    assert gradient_at(BinaryActivation(1, ACTIVATION, window=math.inf), EDGES[:-1]) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("window", [1.0, None])
def test_values_stay_as_they_are(window: float | None) -> None:
    x = torch.tensor([*EDGES, -math.inf, math.nan])
    found = windowed(sign(x), x, window)
    assert found[:-1].tolist() == [-1, -1, -1, 1, 1, 1, 1, 1, 1, -1]
    assert found[-1].isnan(), "what is no number stays none"


def test_the_mask_is_the_same_when_compiled() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(BinaryActivation(1, ACTIVATION), fullgraph=True, backend="aot_eager")
    assert gradient_at(compiled, EDGES) == [0, 2, 3, 4, 5, 6, 7, 0, 0]


def test_a_relaxed_window_lets_more_pass() -> None:
    assert gradient_at(BinaryActivation(1, ACTIVATION, window=2.0), EDGES) == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    with pytest.raises(ConfigError, match="window=0"):
        BinaryActivation(1, ACTIVATION, window=0.0)


def test_a_weights_gradient_passes_whole() -> None:
    assert gradient_at(BinaryWeight(1, WEIGHT), EDGES[:-1]) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_real_weights_are_clipped_after_a_step() -> None:
    layer = QuantConv2d(nn.Conv2d(2, 4, 3), BinaryWeight(1, WEIGHT), None)
    for network in (layer, copy.deepcopy(layer), layer.to(memory_format=torch.channels_last)):
        nn.init.uniform_(network.weight, -3, 3)
        expected = network.weight.detach().clamp(-1, 1)
        with torch.no_grad():
            network.weight_quantizer.after_step()
        assert torch.equal(network.weight, expected)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"], "the layer owns them, once"


@pytest.mark.parametrize("x", [-1.5, -1.0, -0.4, 0.0, 0.3, 1.0, 2.0])
def test_the_stochastic_signs_mean_is_the_clipped_value(x: float) -> None:
    """4 standard errors of n draws of +-1: one failure in 16,000 seeds, were the seed not fixed."""
    torch.manual_seed(5)
    n = 200_000
    drawn = stochastic_sign(torch.full((n,), x))
    assert set(drawn.unique().tolist()) <= {-1.0, 1.0}
    mean = min(max(x, -1.0), 1.0)
    assert abs(drawn.mean().item() - mean) <= 4 * math.sqrt((1 - mean**2) / n)


@pytest.mark.parametrize(
    "quantizer", [BinaryWeight(1, WEIGHT, stochastic=True), BinaryActivation(1, ACTIVATION, stochastic=True)]
)
def test_stochastic_in_training_alone(quantizer: nn.Module) -> None:
    torch.manual_seed(0)
    x = 0.1 * torch.randn(4, 2, 3, 3)
    drawn = quantizer.train()(x)
    assert not torch.equal(drawn, quantizer(x)), "every step draws anew"
    torch.manual_seed(7)
    first = quantizer(x)
    torch.manual_seed(7)
    assert torch.equal(quantizer(x), first), "and the run's generator decides what"
    assert torch.equal(quantizer.eval()(x), sign(x))
    assert torch.equal(quantizer.codes(x).decode(), sign(x))


def test_what_lies_beyond_the_window_is_counted() -> None:
    quantizer = BinaryActivation(1, ACTIVATION, window=2.0)
    assert quantizer.clipped(torch.tensor([-3.0, -1.5, 0.5, 2.0])).item() == 0.25
