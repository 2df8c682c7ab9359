"""Every published cell that qexp can measure is made by a job of the experiment of the same name."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from qexp.composition import encode_override
from qexp.grids import expand
from qexp.paths import config_dir
from qexp.published import artefact_names, load_artefact
from qexp.report.facts import Facts, facts
from qexp.report.verdicts import _same
from qexp.runs import Run

from ..composing import compose

EXPERIMENTS = [name for name in artefact_names() if (config_dir() / "experiment" / f"{name}.yaml").exists()]


def jobs_of(name: str, typed: list[str]) -> list[Facts]:
    """Return what the jobs of an experiment would be, described as their runs will be."""
    node: Any = OmegaConf.load(config_dir() / "experiment" / f"{name}.yaml")
    found = []
    for words in expand(list(node.experiment.grids), {}, typed):
        overrides = [encode_override(word) for word in words]
        plain = compose(f"experiment={name}", *overrides)
        chosen = dict(word.split("=", 1) for word in words)
        recipe = chosen.get("recipe") or node.defaults[0]["override /recipe"]
        recipe_node: Any = OmegaConf.load(config_dir() / "recipe" / f"{recipe}.yaml")
        picked = {key: value for item in recipe_node.defaults for key, value in item.items()}
        plain["names"] = {key: picked[f"override /{key}"] for key in ("model", "dataset")}
        plain["names"]["quantizer"] = chosen["quantizer"]
        found.append(facts(Run(config_dir() / "x", "done", plain, {}, None, {})))
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_cell_is_one_job_of_its_experiment(name: str) -> None:
    artefact = load_artefact(name)
    jobs: dict[str, list[Facts]] = {}
    for cell in artefact.cells:
        if not cell.keys:
            continue
        if cell.run not in jobs:
            jobs[cell.run] = jobs_of(name, cell.run.split())
        fitting = [
            job for job in jobs[cell.run] if all(_same(job.get(key), wanted) for key, wanted in cell.keys.items())
        ]
        assert len(fitting) == 1, f"{cell.row}, {cell.column}: {cell.keys}"
        (job,) = fitting
        for key, wanted in cell.recipe.items():
            if job.get(key) != "–":
                assert _same(job.get(key), wanted), f"{cell.row}: {key}={job.get(key)}, the paper's {wanted}"
        if cell.quantity == "degradation":
            baseline = cell.baseline or {"quantizer": "none"}
            same = [one for one in jobs[cell.run] if one.baseline_key() == job.baseline_key()]
            assert any(all(_same(one.get(key), wanted) for key, wanted in baseline.items()) for one in same)


def test_every_table_and_figure_with_runs_is_an_experiment() -> None:
    # A paper's numbers may come before its first experiment; from that on each of them needs its own.
    begun = {name for name in artefact_names() if (config_dir() / "experiment" / name.partition("/")[0]).is_dir()}
    runnable = {name for name in begun if any(cell.keys for cell in load_artefact(name).cells)}
    assert runnable <= set(EXPERIMENTS)
    wanted = {f"pact/table{number}" for number in range(1, 9)} | {
        f"pact/fig{number}" for number in (1, 2, 3, 4, 5, 7, 8, 9)
    }
    assert wanted <= set(EXPERIMENTS)
