"""A training step with learned steps is one graph, waits for nothing, and gives what the eager one gives."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from qexp.layers.quantized import QuantConv2d, QuantLinear
from qexp.lit import compiling
from qexp.lit.step import classification_step
from qexp.ops.discretisation import EWGS, Blend, MSEPull
from qexp.ops.rounding import ASR, DSQ, SoftRound, ste
from qexp.quantizers.base import Site
from qexp.quantizers.lglsq import LGLSQ
from qexp.quantizers.llsq import LLSQ
from qexp.quantizers.lsq import LSQ
from qexp.quantizers.lsq_plus import LSQPlusActivation, LSQPlusWeight

METHODS = {
    "lsq": (LSQ, LSQ, {}),
    "lsq per channel": (LSQ, LSQ, {"scope": "channel"}),
    "lsq_plus": (LSQPlusWeight, LSQPlusActivation, {}),
    "llsq": (LLSQ, LLSQ, {}),
    "ssg": (LGLSQ, LGLSQ, {"scale_gradient": "ssg"}),
    "hybrid": (LGLSQ, LGLSQ, {"scale_gradient": "hybrid"}),
}
ROUNDINGS = {
    "ste": lambda: ste,
    "asr learned": lambda: ASR(mode="learned"),
    "asr annealed, ewgs": lambda: EWGS(ASR(mode="annealed")),
    "dsq, pull": lambda: MSEPull(DSQ()),
    "soft, blend": lambda: Blend(SoftRound()),
}
CASES = [(method, "ste") for method in METHODS] + [("hybrid", rounding) for rounding in ROUNDINGS]


def network(method: str, rounding: str) -> nn.Module:
    torch.manual_seed(0)
    weight, activation, arguments = METHODS[method]
    make = ROUNDINGS[rounding]
    sites = [Site("c", "weight", (6, 3, 3, 3)), Site("c.input", "input", (3, 8, 8), signed=True)]
    conv = QuantConv2d(
        nn.Conv2d(3, 6, 3), weight(3, sites[0], make(), **arguments), activation(3, sites[1], make(), **arguments)
    )
    sites = [Site("f", "weight", (4, 6)), Site("f.input", "input", (6,))]
    linear = QuantLinear(
        nn.Linear(6, 4), weight(3, sites[0], make(), **arguments), activation(3, sites[1], make(), **arguments)
    )
    net = nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    x = torch.randn(8, 3, 8, 8)
    conv.weight_quantizer.calibrate(conv.weight)
    conv.input_quantizer.calibrate(x)
    linear.weight_quantizer.calibrate(linear.weight)
    linear.input_quantizer.calibrate(torch.rand(8, 6))
    return net


@pytest.mark.parametrize(("method", "rounding"), CASES)
def test_one_graph_with_the_same_numbers(method, rounding, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    images, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))
    found = []
    try:
        for step in (
            classification_step,
            compiling.compile_step(classification_step, torch.device("cpu")),
        ):  # fullgraph: no break
            net = network(method, rounding)
            loss, _ = step(net, images, labels, [], [], 0.0, 0.0)
            loss.backward()
            found.append({"loss": loss.detach(), **{name: p.grad for name, p in net.named_parameters()}})
    finally:
        compiling.reset()
    assert all(value is not None for value in found[0].values())
    for name, value in found[0].items():
        torch.testing.assert_close(
            found[1][name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
