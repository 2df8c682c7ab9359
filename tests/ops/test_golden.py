"""The numbers of every rounding, of what is around it and of quantized gradients, by their maths' version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qexp.build import build, locate
from qexp.ops import VERSIONS
from qexp.ops.gradients import dorefa_gradient, log_gradient
from qexp.ops.rounding import TrainedRounding, ste
from qexp.paths import config_dir

from ..golden import check

FILE = Path(__file__).with_name("golden.json")
# No two alike, none next to a tie.
X = [-2.93, -1.71, -1.23, -0.82, -0.55, -0.31, -0.12, 0.021, 0.16, 0.28, 0.39, 0.68, 0.91, 1.37, 2.04]
SWITCHES: dict[str, list[dict[str, Any]]] = {
    "asr": [{}, {"mode": "annealed"}, {"mode": "learned"}, {"forward": "soft"}],
}


def nodes() -> dict[str, dict[str, Any]]:
    """Class, version and switches -> its node."""
    found = {}
    for group in ("rounding", "discretisation"):
        for path in sorted((config_dir() / group).glob("*.yaml")):
            node = yaml.safe_load(path.read_text())
            for switches in SWITCHES.get(path.stem, [{}]):
                said = "".join(f", {key}={value}" for key, value in switches.items())
                version = getattr(locate(node["_target_"]), "version", 1)
                found[f"{node['_target_']}@{version}{said}"] = {**node, **switches}
    return found


def numbers(node: dict[str, Any]) -> dict[str, list[float]]:
    """Value and gradients halfway through the training, for a fixed input and a fixed upstream gradient."""
    inner = {"inner": ste} if ".discretisation." in node["_target_"] else {}
    rounding = build(node, **inner)
    learned = {}
    if isinstance(rounding, TrainedRounding):
        rounding.train()
        rounding.progress(0.5)
        learned = rounding.learned()
    x = torch.tensor(X).requires_grad_()
    y = rounding(x)
    (y * torch.linspace(-0.5, 1.5, len(X))).sum().backward()
    gradients = {name: value.grad for name, value in learned.items()}
    return {
        name: value.flatten().tolist() for name, value in {"value": y.detach(), "x": x.grad, **gradients}.items()
    }


@pytest.mark.parametrize(("key", "node"), nodes().items(), ids=nodes())
def test_the_numbers_are_those_of_this_version(key: str, node: dict[str, Any]) -> None:
    check(FILE, key, numbers(node))


@pytest.mark.parametrize("form", ["dorefa", "log"])
def test_the_gradients_numbers_are_those_of_this_version(form: str) -> None:
    quantize = {"dorefa": dorefa_gradient, "log": log_gradient}[form]
    gradient = torch.tensor(X).reshape(3, 5) * torch.tensor([[1.0], [0.0123], [0.0]])
    noise = torch.linspace(-0.47, 0.49, 15).reshape(5, 3).T
    now = {f"{bits} bits": quantize(gradient, bits, noise).flatten().tolist() for bits in (2, 4, 6, 8)}
    check(FILE, f"{form}_gradient@{VERSIONS[f'{form}_gradient']}", now)
