"""What is not the recipe's whole length says so in every table and figure, whatever its schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure

from qexp.config import parse
from qexp.errors import ConfigError
from qexp.jobs.composition import compose
from qexp.paths import config_dir
from qexp.published import load_artefact
from qexp.report.across import across_table
from qexp.report.artefact_plots import cells_figure
from qexp.report.facts import Facts, facts
from qexp.report.measured import measured_table
from qexp.report.plots import curves_figure
from qexp.report.verdicts import published_table
from qexp.runs import Run, find_runs

RECIPES = sorted(
    path.relative_to(config_dir() / "recipe").with_suffix("").as_posix()
    for path in (config_dir() / "recipe").rglob("*.yaml")
)


def described(*words: str) -> Facts:
    """What a run of these words would be."""
    return facts(Run(Path("x"), "done", dict(compose("train", words)), {}, None, {}))


def finished(root: Path, *words: str) -> None:
    """Put the folder of a finished run of these words below `root`."""
    folder = root / "-".join(word.replace("/", "_") for word in words)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(compose("train", words))))
    metrics = {"test_accuracy": 0.9, "test_loss": 0.1}
    (folder / "result.json").write_text(json.dumps({"status": "done", "metrics": metrics}))
    (folder / "metrics.csv").write_text("epoch,step,name,value\n1,1,train_loss,1.0\n1,1,val_accuracy,0.9\n")


def text_of(figure: Figure) -> str:
    return str(figure.get_supxlabel())


@pytest.mark.parametrize(
    ("recipe", "bits", "said"),
    [
        ("lsq/cifar10_resnet20", ("w4a4", "w2a2"), "15 of 90"),  # a cosine
        ("qnn/mnist", ("w1a1", "w1a32"), "50 of 1000"),  # exponential
    ],
)
def test_a_shortened_budget_is_said_under_every_schedule(
    recipe: str, bits: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    quantizer = "lsq" if recipe.startswith("lsq") else "qnn_binary"
    for width in bits:
        finished(tmp_path, f"recipe={recipe}", f"quantizer={quantizer}", f"bits={width}", "budget=short")
    runs = find_runs(tmp_path)
    assert {row["epochs"] for row in measured_table(runs).rows} == {f"shortened: {said}"}
    (row,) = across_table(runs, "test_accuracy", "bits").rows
    assert row["epochs"] == f"shortened: {said}"
    assert f"{said} epochs" in text_of(curves_figure(runs))


def test_a_papers_table_and_figure_say_it_too(tmp_path: Path) -> None:
    finished(tmp_path, "recipe=qnn/mnist", "quantizer=qnn_binary", "bits=1", "budget=short")
    artefact, runs = load_artefact("qnn/table1"), find_runs(tmp_path)
    (row,) = [row for row in published_table(artefact, runs).rows if row["n"] == "1"]
    assert row["remarks"].startswith("shortened budget: 50 of 1000 epochs")
    assert "† shortened: 50 of 1000 epochs" in text_of(cells_figure(artefact, runs))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_whole_run_is_not_called_shortened(recipe: str) -> None:
    one = described(f"recipe={recipe}")
    assert one.shortened == ""
    if recipe != "none":
        assert one.run.config["budget"]["full_epochs"] == one.epochs


def test_typed_epochs_are_measured_by_the_recipe_too() -> None:
    assert described("recipe=lsq/cifar10_resnet20", "epochs=3").shortened == "3 of 90 epochs"
    # No recipe, no length of it: what is typed is all there is to say, but a budget's name.
    assert described("epochs=3").shortened == ""
    assert described("budget=short").shortened == "20 epochs of a short budget"


def test_8_bits_are_trained_for_one_epoch_by_lsq_alone() -> None:
    words = ("quantizer=lsq", "bits=8", "epochs=1")
    assert described("recipe=lsq/imagenet", *words).shortened == ""
    assert described("recipe=lglsq/resnet", *words).shortened == "1 of 90 epochs"
    # A float network has no bits, whatever is typed beside it.
    for bits in ("bits=8", "bits=4"):
        assert described("recipe=lsq/imagenet", "quantizer=none", bits, "epochs=30").shortened == "30 of 90 epochs"


def test_an_earlier_runs_length_is_its_milestones() -> None:
    plain = dict(compose("train", ["recipe=pact/svhn", "budget=short"]))
    del plain["budget"]["full_epochs"]
    assert facts(Run(Path("x"), "done", plain, {}, None, {})).shortened == "20 of 200 epochs"


def test_a_length_that_is_none_is_refused() -> None:
    plain = dict(compose("train", []))
    plain["budget"] = {**plain["budget"], "full_epochs": 0}
    with pytest.raises(ConfigError, match=r"budget.full_epochs=0: null, or a whole number, at least 1"):
        parse(plain)
