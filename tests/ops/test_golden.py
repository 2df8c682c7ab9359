"""The numbers of every rounding and of what is around it, kept by the version of its maths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qexp.build import build, locate
from qexp.ops.rounding import TrainedRounding, ste
from qexp.paths import config_dir

from ..golden import REWRITE, asked, recorded, seven_digits, write

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
    known, now = recorded(FILE), numbers(node)
    if asked() and key not in known:
        known[key] = {name: seven_digits(values) for name, values in now.items()}
        write(FILE, known)
    assert key in known, (
        f"{FILE.name} holds no numbers of {key}: {REWRITE}=1 python -m pytest tests/ops/test_golden.py"
    )
    assert now.keys() == known[key].keys()
    for name, values in now.items():
        assert values == pytest.approx(known[key][name], rel=2e-5, abs=2e-6), (
            f"{key} moved. Finished runs carry this version in their identity: raise it, or find what changed."
        )
