"""Schemes and small networks for the tests of the plan and of the conversion."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qexp.convert import quantize_model
from qexp.graph.plan import Plan, make_plan
from qexp.graph.scheme import LayerRule, Method, Scheme, Widths
from qexp.models.torchvision_models import classifier
from qexp.quantizers.dorefa import DoReFaActivation, DoReFaWeight
from qexp.quantizers.pact import PACT

PACT_METHOD = Method("pact", DoReFaWeight, PACT)
DOREFA = Method("dorefa", DoReFaWeight, DoReFaActivation)
NONE = Method("none", None, None)
INPUTS = Method("inputs", DoReFaWeight, PACT, "input")
"""PACT's quantizer in front of layers, where the LSQ family stands."""

RANGE = ((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))


def scheme(bits: tuple[int, int] = (4, 4), ends: tuple[int, int] = (32, 32), **changes: Any) -> Scheme:
    """Return a PACT scheme of `bits` with both ends at `ends`; `changes` replace fields by name."""
    fields = {"method": PACT_METHOD, "bits": Widths(*bits), "first": Widths(*ends), "last": Widths(*ends)}
    return Scheme(**{**fields, "input_range": RANGE, **changes})


def rule(pattern: str, **changes: Any) -> LayerRule:
    return LayerRule(pattern, **changes)


def plan_of(model: nn.Module, how: Scheme | None = None, shape: tuple[int, ...] = (3, 8, 8)) -> Plan:
    return make_plan(model, how or scheme(), shape)


def quantized(model: nn.Module, how: Scheme | None = None, shape: tuple[int, ...] = (3, 8, 8)) -> nn.Module:
    return quantize_model(plan_of(model, how, shape))


def shapes_only(architecture: str, side: int = 224) -> nn.Module:
    """Return torchvision's network without data in its parameters."""
    with torch.device("meta"):
        return classifier(input_shape=(3, side, side), num_classes=1000, architecture=architecture)


class Small(nn.Module):
    """Two convolutions behind one shared ReLU, a functional one, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x))
        x = self.relu(self.conv3(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class TwoGraphs(nn.Module):
    """An auxiliary head in training, a scale in evaluation alone, and a parameter of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict(
            {"conv": nn.Conv2d(3, 4, 3), "aux": nn.Conv2d(4, 4, 3), "scale": nn.Conv2d(4, 4, 1)}
        )
        self.relu = nn.ReLU()
        self.fc, self.aux_fc = nn.Linear(4, 5), nn.Linear(4, 5)
        self.shift = nn.Parameter(torch.full((4, 1, 1), 0.3))
        self.register_buffer("offset", torch.full((4, 1, 1), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.body["conv"](x) + self.shift + self.offset)
        if self.training:
            return self.fc(x.mean((2, 3))) + self.aux_fc(self.relu(self.body["aux"](x)).mean((2, 3)))
        return self.fc(self.relu(self.body["scale"](x)).mean((2, 3)))
