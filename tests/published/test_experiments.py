"""Every published cell that qexp can measure is made by a job of the experiment of the same name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from qexp.bits import parse_bits
from qexp.build import build
from qexp.jobs.experiments import configuration, words_of
from qexp.jobs.grids import expand
from qexp.paths import config_dir
from qexp.published import artefact_names, load_artefact
from qexp.quantizers.base import Site
from qexp.report.facts import Facts, facts
from qexp.report.networks import same
from qexp.runs import Run


def file_of(name: str) -> Path:
    return config_dir() / "experiment" / f"{load_artefact(name).experiment}.yaml"


EXPERIMENTS = [name for name in artefact_names() if file_of(name).exists()]
"""Tables and figures whose runs an experiment makes; some share one."""

AFTER_TRAINING = [
    name
    for name in EXPERIMENTS
    if load_artefact(name).command == "ptq" and any(cell.keys for cell in load_artefact(name).cells)
]
TRAINED_AT = {"inception_v3": ([342, 299], [0.5] * 3), "resnet50": ([256, 224], [0.485, 0.456, 0.406])}
TRAINED_AT["mobilenet_v2"] = TRAINED_AT["resnet50"]
"""Resizing, crop and mean with which torchvision's published weights see images."""

WITHOUT_JOB = {
    "pact/fig1": {"quantizer.activation.scope"},  # networks before PACT
    "pwlq/s_table4": {"quantizer.weight.search", "quantizer.weight.breakpoints"},  # uniform weights
}
"""Settings of a paper's one recipe that a table or figure has no use for."""

SITES = {"weight": Site("x", "weight", (4, 3, 3, 3)), "activation": Site("x", "input", (4,))}


def node_of(name: str) -> Any:
    return OmegaConf.load(file_of(name))


def composed(name: str, typed: str, every: bool) -> Iterator[Mapping[str, Any]]:
    """Yield the configurations of an experiment's jobs.

    Composing one takes a quarter of a second. Unless `every` one is, jobs that differ in their widths alone are
    composed once and get their widths here; not learned steps, whose recipe looks at them.
    """
    experiment, command = load_artefact(name).experiment, load_artefact(name).command
    like: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for words in words_of(experiment, typed):
        rest = tuple(word for word in words if not word.startswith("bits="))
        if every or rest == words or name.startswith(("lsq/", "lglsq/")):
            yield configuration(experiment, command, words)
            continue
        if rest not in like:
            like[rest] = configuration(experiment, command, words)
        (bits,) = set(words).difference(rest)
        weight, activation = parse_bits(bits.removeprefix("bits="))
        yield {**like[rest], "bits": {**like[rest]["bits"], "weight": weight, "activation": activation}}


def jobs_of(name: str, typed: str, every: bool) -> list[Facts]:
    """Return what the jobs of an experiment would be, described as their runs will be."""
    made = composed(name, typed, every)
    return [facts(Run(config_dir() / "x", "done", dict(plain), {}, None, {})) for plain in made]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_cell_is_one_job_of_its_experiment(name: str, every: bool) -> None:
    artefact = load_artefact(name)
    jobs: dict[str, list[Facts]] = {}
    compared = set()
    for cell in artefact.cells:
        if not cell.keys:
            continue
        if cell.run not in jobs:
            jobs[cell.run] = jobs_of(name, cell.run, every)
        fitting = [
            job for job in jobs[cell.run] if all(same(job.get(key), wanted) for key, wanted in cell.keys.items())
        ]
        assert len(fitting) == 1, f"{cell.row}, {cell.column}: {cell.keys}"
        (job,) = fitting
        for key, wanted in cell.recipe.items():
            if job.get(key) != "–":
                compared.add(key)
                assert same(job.asked(key), wanted), f"{cell.row}: {key}={job.asked(key)}, the paper's {wanted}"
        assert job.shortened == "", "a job of the full budget"
        if cell.quantity == "degradation":
            baseline = cell.baseline or {"quantizer": "none"}
            alike = [one for one in jobs[cell.run] if one.baseline_key() == job.baseline_key()]
            assert any(all(same(one.get(key), wanted) for key, wanted in baseline.items()) for one in alike)
    known = {key for cell in artefact.cells if cell.keys for key in cell.recipe}
    assert known - compared == WITHOUT_JOB.get(name, set()), "keys that no job has: misspelt?"


@pytest.mark.parametrize("name", AFTER_TRAINING)
def test_an_experiment_of_trained_networks(name: str) -> None:
    node, artefact = node_of(name), load_artefact(name)
    assert node.experiment.command == "ptq"
    own = set(node) - ({"quantizer"} if name == "pwlq/fig2_right" else set())  # its breakpoints move with the seed
    assert own == {"defaults", "experiment", "hydra"}, "the paper's recipe is the command's own"
    typed = list(dict.fromkeys(cell.run for cell in artefact.cells if cell.run))
    jobs = [plain for words in typed for plain in composed(name, words, every=False)]
    assert len(jobs) == len(expand(list(node.experiment.grids), {}, []))
    for plain in jobs:
        seen = [plain["dataset"]["resize"], plain["dataset"]["crop"]]
        assert (seen, plain["dataset"]["mean"]) == TRAINED_AT[plain["names"]["model"]]
        assert plain["names"]["dataset"] == "imagenet"
        for part, site in SITES.items():
            if plain["quantizer"][part] is not None:  # a setting that the method refuses ends here
                build(plain["quantizer"][part], bits=plain["bits"][part], site=site)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_header_says_the_command(name: str) -> None:
    first, second, *_ = file_of(name).read_text().splitlines()
    assert first == "# @package _global_"
    assert second.startswith(f"# qexp {load_artefact(name).command} experiment={load_artefact(name).experiment}")


def test_every_table_and_figure_with_runs_is_an_experiment() -> None:
    # A paper's numbers may come before its first experiment; from that on each of them needs its own.
    begun = {name for name in artefact_names() if (config_dir() / "experiment" / name.partition("/")[0]).is_dir()}
    runnable = {name for name in begun if any(cell.keys for cell in load_artefact(name).cells)}
    assert runnable <= set(EXPERIMENTS)
    wanted = {f"pact/table{number}" for number in range(1, 9)} | {
        f"pact/fig{number}" for number in (1, 2, 3, 4, 5, 7, 8, 9)
    }
    wanted |= {f"pwlq/table{number}" for number in range(1, 5)} | {"pwlq/fig2_left", "pwlq/fig2_right"}
    wanted |= {f"pwlq/s_table{number}" for number in range(1, 7)} | {"pwlq/table4_loss", "pwlq/s_table1_mse"}
    assert wanted <= set(EXPERIMENTS)


def test_the_float_network_of_the_gradients_is_that_of_all_its_rows() -> None:
    """Apart from the settings that the experiment's file names for its table."""
    node = OmegaConf.load(config_dir() / "experiment" / "qnn" / "gradients.yaml").experiment
    apart = node.table.removeprefix("--float-apart ").split(",")
    made = [configuration(node.name, "train", words) for words in words_of(node.name, "")]
    jobs = [facts(Run(config_dir() / "x", "done", dict(plain), {}, None, {})) for plain in made]
    assert len(jobs) == 7
    assert len({job.baseline_key() for job in jobs}) == 2, "else nothing needs to be said"
    assert len({job.baseline_key(apart) for job in jobs}) == 1
