"""Which part may import which: read from the sources, imports inside functions counted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import qexp
from qexp.paths import config_dir
from qexp.published import artefact_names, load_artefact

from .composing import parsed

PACKAGE = Path(qexp.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "configs" not in path.parts)

LINE = ["errors", "ops", "quantizers", "layers", "convert", "lit", "commands", "hydra_app", "cli"]
"""The main line: a part imports from those before it only. Parts beside the line take the place of a neighbour."""

BESIDE = {
    # what every part may use: no torch, nothing of qexp but itself and errors
    "__init__": 0,
    "paths": 0,
    "bits": 0,
    "files": 0,
    "later": 0,
    "forkserver": 0,
    "published": 0,
    "graph": 3,
    "calibration": 4,
    "xnor": 4,
    "benchmarks": 5,
    # beside the line, before lit
    "models": 4,
    "data": 4,
    "hardware": 4,
    "arguments": 1,
    "schema": 4,
    "settings": 4,
    "config": 4,
    "build": 4,
    "identity": 4,
    "runs": 4,
    "saved": 4,
    "report": 4,
    # around hydra_app
    "interrupts": 1,
    "locks": 1,
    "jobs": 7,
    "streams": 0,
    "command_help": 8,
    "__main__": 9,
}
RANK = {**{name: float(place) for place, name in enumerate(LINE)}, **BESIDE}

COMPOSITION = ("jobs.security", "jobs.messages", "jobs.composition", "jobs.grids", "jobs.experiments")
"""Of jobs, what composes configurations and runs none: it takes `bits` and `published`; commands may ask it."""

WITHOUT_TORCH = (
    "report",
    "runs",
    "config",
    "schema",
    "bits",
    "arguments",
    "build",
    "identity",
    "saved",
    "published",
    "hydra_app",
    "jobs",
    "locks",
)


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (dotted name, line) of every import; `from a import b` counts as a.b."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def top(name: str) -> str:
    return name.partition(".")[0]


def rank(names: list[str]) -> float:
    assert names[0] in RANK, f"{names[0]} is new: give it a place in this test"
    return RANK["bits"] + 0.5 if ".".join(names[:2]) in COMPOSITION else RANK[names[0]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = list(path.relative_to(PACKAGE).with_suffix("").parts)
    for name, line in imports(path):
        below = PACKAGE / name.partition(".")[2]
        if top(name) == "qexp" and (name.count(".") > 1 or below.exists() or below.with_suffix(".py").exists()):
            there = [*name.split("."), "__init__"][1:]
            assert rank(there) <= rank(here), f"{path}:{line}: {here} must not import {there}"


def test_report_reads_runs_and_published_only() -> None:
    allowed = {"report", "runs", "published", "errors", "paths", "bits", "files", "later"}
    for path in FILES:
        if part(path) == "report":
            used = {name.split(".")[1] for name, _ in imports(path) if name.startswith("qexp.")}
            assert used <= allowed, f"{path}: {used - allowed}"


@pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])
def test_only_lit_imports_lightning(name: str) -> None:
    found = [
        str(path) for path in FILES if part(path) != "lit" and any(top(used) == name for used, _ in imports(path))
    ]
    assert found == []


def test_no_torch_where_it_would_cost_the_start() -> None:
    for path in FILES:
        if part(path) in (*WITHOUT_TORCH, "cli", "command_help", "errors", "paths"):
            for name, line in imports(path):
                assert top(name) not in ("torch", "torchvision", "torchmetrics"), f"{path}:{line}"


def test_the_start_needs_the_standard_library_only() -> None:
    import sys

    for name in ("cli", "command_help", "streams", "paths", "errors", "__init__"):
        for used, line in imports(PACKAGE / f"{name}.py"):
            assert top(used) in {*sys.stdlib_module_names, "qexp"}, f"{name}.py:{line}: {used}"


def test_only_cli_and_build_import_by_name() -> None:
    for path in FILES:
        if part(path) not in ("cli", "build"):
            for node in nodes(path):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                assert called not in ("__import__", "importlib.import_module", "import_module"), f"{path}:{node}"


@pytest.mark.parametrize("call", ["instantiate", "eval", "exec"])
def test_nothing_else_runs_text(call: str) -> None:
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name != call and not name.endswith("utils.instantiate"), f"{path}:{node.lineno}: {name}"


def test_torch_load_reads_weights_only() -> None:
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("weights_only") == "True", f"{path}:{node.lineno}"


OPTIONS = sorted(
    path.relative_to(config_dir()).with_suffix("") for path in config_dir().glob("*/**/*.yaml") if path.is_file()
)


OF_PAPERS = {Path("experiment", load_artefact(name).experiment) for name in artefact_names()}
"""Experiments whose every job is composed beside the published cells, in tests/published."""


ELSEWHERE = {option for option in OPTIONS if option in OF_PAPERS or option.parts[0] == "model"}
"""Composed in tests/published, and in tests/models."""


@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in ELSEWHERE], ids=str)
def test_every_option_composes(option: Path) -> None:
    group = "hydra/launcher" if option.parts[0] == "hydra" else option.parts[0]
    command = "ptq" if group == "observer" or option.parts[:2] == ("experiment", "pwlq") else "train"
    command = "eval" if group == "engine" else command
    config = parsed(f"{group}={option.relative_to(group).as_posix()}", command=command)
    assert config.epochs >= 1


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_says_what_it_is(option: Path) -> None:
    first = (config_dir() / option).with_suffix(".yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")


@pytest.mark.parametrize("command", ["train", "eval", "explain"])
def test_every_command_composes(command: str) -> None:
    assert parsed(command=command).quantized
