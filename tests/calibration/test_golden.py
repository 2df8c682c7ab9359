"""The numbers of every stage after training, kept by the version of its maths: they move only with a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from qexp.build import build, locate
from qexp.calibration import VERSIONS
from qexp.calibration.absorption import absorb_biases
from qexp.calibration.bias import correct_biases, expected_inputs
from qexp.calibration.equalization import equalize
from qexp.calibration.fit import fit_weights
from qexp.calibration.folding import fold_batch_norm
from qexp.calibration.reconstruction import search
from qexp.graph.plan import make_plan
from qexp.graph.scheme import Method, Scheme, Widths
from qexp.paths import config_dir
from qexp.quantizers.adaround import AdaRoundWeight
from qexp.quantizers.base import Site
from qexp.quantizers.corrected import CorrectedWeight
from qexp.quantizers.uniform import UniformWeight

from ..golden import REWRITE, asked, recorded, seven_digits, write

FILE = Path(__file__).with_name("golden.json")

Numbers = list[float]


def values(*shape: int) -> torch.Tensor:
    """Numbers of both signs without any pattern that a grid has, with a heavy tail; no generator's."""
    index = torch.arange(1.0, 1.0 + torch.Size(shape).numel(), dtype=torch.float64)
    return (torch.sin(index * 12.9898) * torch.exp(1.5 * torch.cos(index * 78.233))).float().reshape(shape)


def observed(node: dict[str, Any]) -> Numbers:
    found: Numbers = []
    for site in (Site("relu", "activation"), Site("conv.input", "input", signed=True)):
        observer = build(node, bits=4, site=site)
        for batch in values(2, 3, 8, 5, 5):
            observer.observe(batch if site.signed else batch.relu())
        found += [float(end) for end in observer.range()]
    return found


def fitted(node: dict[str, Any]) -> Numbers:
    weight = values(3, 4, 3, 3)
    quantizer = build(node, bits=3, site=Site("conv", "weight", tuple(weight.shape)))
    quantizer.eval()
    quantizer.fit_weights(weight)
    return quantizer(weight)[:, 0].flatten().tolist()


def small() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    norm: Any = model[1]
    with torch.no_grad():
        for index, tensor in enumerate((model[0].weight, norm.weight, model[3].weight, norm.running_mean)):
            tensor.copy_(values(index + 1, *tensor.shape)[-1])
        norm.bias.copy_(torch.tensor([9.0, 4.0, -1.0]))
        norm.running_var.copy_(values(3).abs() + 0.5)
        model[0].bias.zero_()
        model[3].bias.zero_()
    return model


def parameters(model: nn.Module) -> Numbers:
    return [float(value) for tensor in model.parameters() for value in tensor.detach().flatten()]


def corrected() -> Numbers:
    weight = values(3, 8)
    quantizer = CorrectedWeight(UniformWeight(3, Site("fc", "weight", (3, 8))))
    quantizer.fit_weights(weight)
    return quantizer(weight).flatten().tolist()


def corrected_biases() -> Numbers:
    folding = fold_batch_norm(small())
    scheme = Scheme(Method("uniform", UniformWeight, None, "input"), *[Widths(3, 32)] * 3)
    plan = make_plan(folding.model, scheme, (2, 4, 4))
    fit_weights(folding.model, plan)
    correct_biases(folding.model, plan, expected_inputs(folding.model, folding.statistics))
    return folding.model.get_submodule("3").bias.tolist()


def searched() -> Numbers:
    layer, inputs = nn.Linear(6, 2, bias=False), values(32, 6) + 0.5
    with torch.no_grad():
        layer.weight.copy_(values(2, 6))
    quantizer = AdaRoundWeight(3, Site("fc", "weight", (2, 6)), iterations=200, samples=32)
    quantizer.fit_weights(layer.weight.detach())
    search(quantizer, layer, inputs, layer(inputs).detach(), lambda x: x, torch.Generator().manual_seed(0))
    return quantizer(layer.weight.detach()).flatten().tolist()


def cases() -> dict[str, Callable[[], Numbers]]:
    """Stage or class, and version -> what computes its numbers."""
    found: dict[str, Callable[[], Numbers]] = {
        f"folding@{VERSIONS['folding']}": lambda: parameters(fold_batch_norm(small()).model),
        f"equalization@{VERSIONS['equalization']}": lambda: parameters(
            equalize(fold_batch_norm(small())).folding.model
        ),
        f"absorption@{VERSIONS['absorption']}": lambda: parameters(
            absorb_biases(equalize(fold_batch_norm(small()))).folding.model
        ),
        f"bias_correction@{VERSIONS['bias_correction']}": corrected,
        f"bias_correction@{VERSIONS['bias_correction']}, analytic": corrected_biases,
        f"{AdaRoundWeight.__module__}.{AdaRoundWeight.__name__}@{AdaRoundWeight.version}, search": searched,
    }
    for path in sorted((config_dir() / "observer").glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        found[_key(node)] = lambda node=node: observed(node)  # type: ignore[misc]
    for name in ("uniform", "aciq", "omse", "pwlq", "adaround"):
        node = yaml.safe_load((config_dir() / "quantizer" / f"{name}.yaml").read_text())["weight"]
        found[f"{_key(node)}, fitted"] = lambda node=node: fitted(node)  # type: ignore[misc]
    return found


def _key(node: dict[str, Any]) -> str:
    return f"{node['_target_']}@{locate(node['_target_']).version}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("key", "compute"), cases().items(), ids=cases())
def test_the_numbers_are_those_of_this_version(key: str, compute: Callable[[], Numbers]) -> None:
    known = recorded(FILE)
    now = compute()
    if asked() and key not in known:
        known[key] = seven_digits(now)
        write(FILE, known)
    assert key in known, (
        f"{FILE.name} holds no numbers of {key}. Check its maths by a test, then add them: {REWRITE}=1 python -m"
        " pytest tests/calibration/test_golden.py"
    )
    assert now == pytest.approx(known[key], rel=2e-5, abs=2e-6), (
        f"{key} moved. Finished runs carry this version in their identity: raise it, or find what changed."
    )
