"""The numbers of every quantizer, kept by the version of its maths: they move only with a new `version`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from qexp.build import build, locate
from qexp.errors import ConfigError
from qexp.ops.rounding import ste
from qexp.paths import config_dir
from qexp.quantizers.base import Site

from ..golden import REWRITE, asked, recorded, seven_digits, write

FILE = Path(__file__).with_name("golden.json")
SITES = {
    "weight": Site("conv", "weight", (3, 7)),
    "activation": Site("act", "activation", (7,)),
    "input": Site("conv.input", "input", (7,), signed=True),
}
# No two alike, none next to a tie of any grid, on both sides of alpha = 1.5.
INPUT = [-2.93, -1.71, -1.23, -0.82, -0.55, -0.31, -0.12, -0.043, 0.021, 0.087, 0.16, 0.28, 0.39, 0.47]
INPUT += [0.68, 0.91, 1.13, 1.37, 1.62, 2.04, 3.19]
SWITCHES = {"qexp.quantizers.qnn_linear.LinearWeight": {"reach": 1.25}}
"""What a class has maths for beside its own file's settings."""


def quantizers() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (class and version, node, role) of everything in configs/quantizer, each once."""
    seen = set()
    found = {
        path: OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        for path in sorted((config_dir() / "quantizer").glob("*.yaml"))
    }
    # A method's own file speaks for its classes, before those of other methods that use them with other settings.
    for _, method in sorted(found.items(), key=lambda item: not _is_own(*item)):
        for part, roles in (("weight", ["weight"]), ("activation", ["activation", "input"])):
            node = method.get(part)
            for role in roles if node is not None else ():
                kind: Any = locate(node["_target_"])
                key = f"{node['_target_']}@{kind.version}"
                if role == "activation" and (special := kind.special_versions.get("relu", 1)) > 1:
                    key += f" relu@{special}"
                if (key, role) not in seen:
                    seen.add((key, role))
                    yield key, node, role
                    for switch, value in SWITCHES.get(node["_target_"], {}).items():
                        yield f"{key}, {switch}={value}", {**node, switch: value}, role


def _is_own(path: Path, method: dict[str, Any]) -> bool:
    targets = [str(method[part]["_target_"]) for part in ("weight", "activation") if method.get(part)]
    return any(target.split(".")[-2] == path.stem for target in targets)


def numbers(node: dict[str, Any], role: str) -> dict[str, dict[str, list[float]]]:
    """Values and gradients at several widths, for a fixed input and a fixed upstream gradient."""
    found = {}
    for bits in (1, 2, 4, 8, 32):
        try:
            quantizer = build(
                {**node, **({"alpha": 1.5} if "alpha" in node else {})}, bits=bits, site=SITES[role], rounding=ste
            )
        except ConfigError:
            continue
        x = torch.tensor(INPUT).reshape(3, 7).requires_grad_()
        quantizer.calibrate(x.detach())
        y = quantizer(x)
        (y * torch.linspace(0.5, 1.5, 21).reshape(3, 7)).sum().backward()
        learned = {name: value.grad for name, value in quantizer.learned().items()}
        tensors = {"value": y.detach(), "gradient": x.grad, **learned}
        found[f"{role}, {bits} bits"] = {name: value.flatten().tolist() for name, value in tensors.items()}
    return found


CASES = [pytest.param(key, node, role, id=f"{key}-{role}") for key, node, role in quantizers()]


@pytest.mark.parametrize(("key", "node", "role"), CASES)
def test_the_numbers_are_those_of_this_version(key: str, node: dict[str, Any], role: str) -> None:
    now, known = numbers(node, role), recorded(FILE)
    if asked() and not now.keys() <= known.get(key, {}).keys():
        rounded = {
            case: {name: seven_digits(values) for name, values in lists.items()} for case, lists in now.items()
        }
        known[key] = {**rounded, **known.get(key, {})}  # what is there is never written again
        write(FILE, known)
    assert now.keys() <= known.get(key, {}).keys(), (
        f"{FILE.name} holds no numbers of {key}. Is its maths new, or its version? Check them against the "
        f"paper's formulas by a test, then add them: {REWRITE}=1 python -m pytest tests/quantizers/test_golden.py"
    )
    lost = {case for case in known.get(key, {}) if case.startswith(f"{role}, ")} - now.keys()
    assert not lost, f"{key} no longer takes what finished runs of this version have: {', '.join(sorted(lost))}"
    for case, lists in now.items():
        assert lists.keys() == known[key][case].keys(), f"{key}, {case}: other parameters are learned"
        for name, values in lists.items():
            assert values == pytest.approx(known[key][case][name], rel=2e-6, abs=2e-6), (
                f"{key}, {case}: {name} moved. Finished runs carry this version in their identity: raise "
                "`version` of the class, or find what changed its numbers."
            )
