"""Runs of `qexp ptq` in the tables: what they depend on, what they are compared with, and never a trained run."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qexp.config import parse
from qexp.errors import ConfigError
from qexp.identity import identity
from qexp.published import load_artefact
from qexp.report.facts import Facts, facts
from qexp.report.groups import baseline_difference, group_runs
from qexp.report.intervals import Summary
from qexp.report.measured import measured_table
from qexp.report.progress import progress_text
from qexp.report.verdicts import in_its_digits, published_table
from qexp.runs import Run, find_runs

from ..composing import compose

NETWORK = ("model=resnet50", "model.weights=r50.pth")
NAMED = {"model": "mlp", "dataset": "digits", "quantizer": "uniform", "observer": "top_k"}
NETWORKS_DATA = {"resnet50": "imagenet", "inception_v3": "imagenet", "mobilenet_v2": "imagenet"}


@functools.cache
def composed(*words: str) -> dict[str, Any]:
    """The configuration that a run keeps, with its choices' names as the command line gives them."""
    plain = compose(*words, command="ptq")
    given = dict(word.split("=", 1) for word in words)
    given.setdefault("dataset", NETWORKS_DATA.get(given.get("model", ""), "digits"))
    plain["names"] = {key: given.get(key, usual) for key, usual in NAMED.items()}
    del plain["experiment"]["command"], plain["experiment"]["grids"], plain["experiment"]["table"]
    return plain


Make = Callable[..., Path]


@pytest.fixture
def calibrated(tmp_path: Path) -> Make:
    """`calibrated("bits=w4a8", accuracy=0.7)` -> the folder of a run of ResNet50, below tmp_path/runs."""

    def make(
        *words: str,
        accuracy: float = 0.75,
        seed: int = 0,
        weights: str = "a" * 64,
        changes: dict[str, Any] | None = None,
        **metrics: float,
    ) -> Path:
        plain = copy.deepcopy(composed(*NETWORK, *words)) | {"seed": seed}
        plain |= changes or {}
        path = tmp_path / "runs" / f"run{len(list((tmp_path / 'runs').glob('*')))}"
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(yaml.safe_dump(plain))
        result = {"metrics": {"test_accuracy": accuracy, **metrics}, "test_accuracy": accuracy}
        (path / "result.json").write_text(json.dumps({**result, "data_digest": "d", "weights_digest": weights}))
        return path

    return make


def found(root: Path) -> list[Facts]:
    return [facts(run) for run in find_runs(root)]


def test_a_run_is_told_by_what_decides_it(calibrated: Make, tmp_path: Path) -> None:
    calibrated("quantizer=pwlq", "bits=w4a8")
    (one,) = found(tmp_path)
    assert (one.command, one.epochs, one.precision, dict(one.numerics)) == ("ptq", None, "–", {})
    assert one.shortened == ""
    of_training = ("epochs", "batch_size", "optimizer", "schedule", "task", "rounding", "trainer", "precision")
    assert not [key for key in one.recipe if key.startswith((*of_training, "alpha_regularization", "logger"))]
    expected = {
        "observer": "top_k",
        "observer.k": 10,
        "calibration.samples": 512,
        "calibration.batch_size": 4,
        "calibration.bias_correction": "none",
        "quantizer.weight.search": "gauss_fit",
        "first_last": "same",
        "weights": "aaaaaaaa",
    }
    assert {key: one.get(key) for key in expected} == expected
    assert "observer._target_" not in one.recipe


def asked(*words: str) -> tuple[Any, ...]:
    """What the tables tell of a run, places and seed aside."""
    one = facts(Run(Path("nowhere"), "done", composed(*NETWORK, *words), {}, None, {}))
    return one.subject, one.first_last, sorted((key, repr(value)) for key, value in one.recipe.items())


@pytest.mark.parametrize("quantizer", ["pwlq", "none"])
@pytest.mark.parametrize(
    "override",
    [
        "epochs=7",
        "batch_size=9",
        "optimizer.lr=0.3",
        "schedule=cosine",
        "trainer.compile=true",
        "trainer.precision=bfloat16",
        "task.label_smoothing=0.1",
        "alpha_regularization.lambda_alpha=1",
        "dataset.workers=1",
        "observer=minmax",
        "observer.k=5",
        "calibration.samples=64",
        "calibration.batch_size=8",
        "calibration.bias_correction=channel",
        "calibration.fold=none",
        "quantizer.first_last=8",
        "dataset.crop=192",
        "bits=3",
        "bits.first=32",
    ],
)
def test_the_tables_tell_runs_apart_where_their_names_do(quantizer: str, override: str) -> None:
    if quantizer == "none" and override.startswith("quantizer."):
        pytest.skip("a float network has no such setting")
    words = (f"quantizer={quantizer}", "bits=w4a8") if override != "bits=3" else (f"quantizer={quantizer}",)
    plain, other = (parse(composed(*NETWORK, *each)) for each in (words, (*words, override)))
    same = identity(plain, {}) == identity(other, {})
    assert (asked(*words) == asked(*words, override)) == same


def test_weights_are_told_apart_by_what_they_hold(calibrated: Make, tmp_path: Path) -> None:
    for seed, place in enumerate(("r50.pth", "elsewhere/r50.pth", "again.pth")):
        plain = composed(*NETWORK)
        calibrated(seed=seed, changes={"model": {**plain["model"], "weights": place}})
    (group,) = group_runs(found(tmp_path), "test_accuracy")
    assert group.summary.n == 3
    calibrated(seed=0, weights="b" * 64)
    groups = group_runs(found(tmp_path), "test_accuracy")
    assert sorted(group.keys["weights"] for group in groups) == ["aaaaaaaa", "bbbbbbbb"]


def test_the_table_of_runs(calibrated: Make, tmp_path: Path) -> None:
    calibrated("quantizer=none", accuracy=0.7613)
    calibrated("quantizer=uniform", "bits=w4a8", accuracy=0.6548)
    calibrated("quantizer=pwlq", "bits=w4a8", accuracy=0.7428)
    calibrated("quantizer=pwlq", "bits=w4a8", "calibration.bias_correction=channel", accuracy=0.7562)
    table = measured_table(find_runs(tmp_path))
    settings = ["model", "data set", "quantizer", "bits", "bias correction"]
    numbers = ["n", "mean (%)", "95% interval", "vs float"]
    assert [column.header for column in table.columns] == [*settings, *numbers]
    rows = [[row[column.key] for column in table.columns] for row in table.rows]
    start = ["resnet50", "imagenet"]
    assert rows == [
        [*start, "none", "32", "–", "1", "76.13", "n = 1", "–"],
        [*start, "pwlq", "w4a8", "channel", "1", "75.62", "n = 1", "-0.51"],
        [*start, "pwlq", "w4a8", "none", "1", "74.28", "n = 1", "-1.85"],
        [*start, "uniform", "w4a8", "none", "1", "65.48", "n = 1", "-10.65"],
    ]
    assert "Float: same model, weights, data set and seeds, without quantizer." in table.caption
    assert "precision" not in table.caption


def test_the_column_of_the_correction_is_there_where_all_are_the_same(calibrated: Make, tmp_path: Path) -> None:
    calibrated("bits=w4a8")
    assert "bias correction" in [column.header for column in measured_table(find_runs(tmp_path)).columns]


@pytest.mark.parametrize("change", [{"weights": "b" * 64}, {"seed": 1}])
def test_other_weights_or_another_seed_are_no_baseline(
    calibrated: Make, tmp_path: Path, change: dict[str, Any]
) -> None:
    calibrated("quantizer=none", **change)
    calibrated("bits=w4a8")
    groups = group_runs(found(tmp_path), "test_accuracy")
    (quantized,) = [group for group in groups if not group.first.is_float]
    assert baseline_difference(quantized, groups) is None


def test_observers_and_their_arguments_make_groups(calibrated: Make, tmp_path: Path) -> None:
    for words in (["observer.k=5"], ["observer.k=10"], ["observer=percentile"]):
        calibrated("quantizer=pwlq", "bits=w4a8", *words)
    groups = group_runs(found(tmp_path), "test_accuracy")
    asked = {(group.first.get("observer"), group.first.get("observer.k")) for group in groups}
    assert asked == {("percentile", "–"), ("top_k", 10), ("top_k", 5)}
    assert {"observer", "observer.k"} <= set(groups[0].keys)


def as_trained(plain: dict[str, Any]) -> dict[str, Any]:
    """The same network as `qexp train` would note it."""
    return {key: value for key, value in plain.items() if key not in ("calibration", "observer")}


@pytest.mark.parametrize("quantizer", ["none", "uniform"])
def test_a_trained_run_never_shares_a_group_with_a_calibrated_one(
    calibrated: Make, tmp_path: Path, quantizer: str
) -> None:
    path = calibrated(f"quantizer={quantizer}", "bits=w4a8", accuracy=0.5)
    calibrated(f"quantizer={quantizer}", "bits=w4a8", accuracy=0.7)
    plain = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(as_trained(plain)))
    groups = group_runs(found(tmp_path), "test_accuracy")
    assert sorted((group.keys["command"], group.values) for group in groups) == [
        ("ptq", (0.7,)),
        ("train", (0.5,)),
    ]
    assert set(groups[0].keys) == {"model", "dataset", "quantizer", "bits", "command"}
    with pytest.raises(ConfigError, match=r"has command=\w+.*--by model,command$"):
        group_runs(found(tmp_path), "test_accuracy", ["model"])
    caption = measured_table(find_runs(tmp_path)).caption
    assert "recipe and seeds (qexp train), or same model, weights, data set and seeds (qexp ptq)" in caption


def test_a_trained_float_run_is_no_baseline_of_a_calibrated_one(calibrated: Make, tmp_path: Path) -> None:
    path = calibrated("quantizer=none")
    calibrated("bits=w4a8")
    assert measured_table(find_runs(tmp_path)).records[1]["difference"] is not None
    plain = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(as_trained(plain)))
    assert measured_table(find_runs(tmp_path)).records[1]["difference"] is None


def row_of(name: str, root: Path, row: str, column: str) -> dict[str, str]:
    (one,) = [
        dict(each)
        for each in published_table(load_artefact(name), find_runs(root)).rows
        if (each["network"], each["method"]) == (row, column)
    ]
    return one


def test_a_published_cell_beside_its_run(calibrated: Make, tmp_path: Path) -> None:
    calibrated("quantizer=uniform", "bits=w8a8", accuracy=0.7605)
    one = row_of("pwlq/table2", tmp_path, "ResNet-50 uniform", "8 bit")
    assert (one["published"], one["measured"], one["difference"]) == ("76.10", "76.05", "-0.05")
    assert one["verdict"] == "within the paper's own spread (0.13 points), n = 1"
    assert one["remarks"] == ""
    assert row_of("pwlq/table2", tmp_path, "ResNet-50 uniform", "8 bit + BC")["verdict"] == "not run"


def test_a_trained_run_stands_beside_no_cell_of_calibrated_ones(calibrated: Make, tmp_path: Path) -> None:
    path = calibrated("quantizer=none", accuracy=0.7613)
    assert row_of("pwlq/table2", tmp_path, "ResNet-50 float", "FP")["measured"] == "76.13"
    plain = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(as_trained(plain)))
    assert row_of("pwlq/table2", tmp_path, "ResNet-50 float", "FP")["verdict"] == "not run"


def test_departures_from_the_papers_calibration_are_said(calibrated: Make, tmp_path: Path) -> None:
    words = ("calibration.samples=64", "observer=minmax", "dataset.train_samples=5000")
    calibrated("quantizer=pwlq", "bits=w4a8", *words)
    one = row_of("pwlq/table2", tmp_path, "ResNet-50 PWLQ", "4 bit")
    assert one["remarks"] == (
        "shortened budget: 5,000 training samples; calibration.samples=64, paper 512; observer=minmax, paper top_k"
    )


def test_a_run_on_other_data_gets_no_verdict(calibrated: Make, tmp_path: Path) -> None:
    calibrated("quantizer=pwlq", "bits=w4a8", "dataset=digits")
    one = row_of("pwlq/table2", tmp_path, "ResNet-50 PWLQ", "4 bit")
    assert one["verdict"] == "none: another data set"
    assert "dataset=digits, paper imagenet" in one["remarks"]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(7.5649e-8, "agrees in every printed digit, n = 1"), (7.5651e-8, "differs in a printed digit, n = 1")],
)
def test_an_error_of_the_weights_is_compared_in_its_digits(
    calibrated: Make, tmp_path: Path, error: float, verdict: str
) -> None:
    words = ("quantizer=pwlq", "quantizer.weight.search=gauss", "bits=w8a8", "model=inception_v3")
    calibrated(*words, accuracy=0.7751, weight_mse=error)
    one = row_of("pwlq/s_table1_mse", tmp_path, "gradient descent", "8 bit")
    assert (one["published"], one["verdict"]) == ("7.56e-8", verdict)
    assert one["measured"] == f"{error:.4g}"
    assert row_of("pwlq/s_table1", tmp_path, "gradient descent", "8 bit")["measured"] == "77.51"


def test_printed_zeros_count() -> None:
    assert in_its_digits("2.30e-5", Summary(1, 2.304e-5, None)).startswith("agrees")
    assert in_its_digits("2.30e-5", Summary(1, 2.306e-5, None)).startswith("differs")


def test_a_table_of_trained_networks_says_a_command_for_each(tmp_path: Path) -> None:
    notes = published_table(load_artefact("pwlq/table2"), []).notes
    commands = [note.partition(": qexp ")[2] for note in notes if note.startswith("to fill")]
    assert commands == [
        f"ptq experiment=pwlq/table2 model={model} model.weights=FILE seed=0,1,2"
        for model in ("inception_v3", "resnet50", "mobilenet_v2")
    ]


def test_no_epochs_are_told_of_a_run_that_has_none(calibrated: Make, tmp_path: Path) -> None:
    path = calibrated()
    (run,) = find_runs(tmp_path)
    assert progress_text(run) == "calibrated"
    (path / "result.json").unlink()
    (run,) = find_runs(tmp_path)
    assert progress_text(run) == "calibration"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("quantizer=uniform",), (False, "none")),
        (("quantizer=dfq",), (True, "analytic")),
        (
            ("quantizer=dfq", "calibration.equalize=false", "calibration.bias_correction=empirical"),
            (False, "empirical"),
        ),
    ],
)
def test_preparations_are_those_of_the_method_unless_typed(calibrated, words, expected):
    (run,) = find_runs(calibrated(*words))
    told = facts(run)
    assert (told.get("calibration.equalize"), told.get("calibration.bias_correction")) == expected


def test_median_and_worst_of_runs_whose_breakpoints_follow_their_seed(calibrated: Make, tmp_path: Path) -> None:
    words = (
        "quantizer=pwlq",
        "bits=w4a8",
        "quantizer.weight.seed=${seed}",
        "quantizer.weight.perturbation=0.05",
        "calibration.bias_correction=none",
    )
    for seed, accuracy in enumerate((0.75, 0.74, 0.7)):
        plain = composed("model=inception_v3", "model.weights=i.pth", *words, f"seed={seed}")
        assert plain["quantizer"]["weight"]["seed"] == seed
        calibrated(
            *words, seed=seed, accuracy=accuracy, changes={key: plain[key] for key in ("model", "quantizer")}
        )
    (group,) = group_runs(found(tmp_path), "test_accuracy")
    assert group.summary.n == 3
    for run in find_runs(tmp_path):
        run.config["names"]["model"] = "inception_v3"
        (run.path / "config.yaml").write_text(yaml.safe_dump(run.config))
    table = published_table(load_artefact("pwlq/fig2_right"), find_runs(tmp_path))
    shown = {(row["network"], row["method"]): row for row in table.rows if row["measured"] != "–"}
    assert {key: row["measured"] for key, row in shown.items()} == {
        ("median of 100 runs", "5%"): "74.00",
        ("worst of 100 runs", "5%"): "70.00",
    }
    assert {row["interval"] for row in shown.values()} == {"n = 3"}


def test_a_seed_of_breakpoints_that_moves_none_divides_no_group(calibrated: Make, tmp_path: Path) -> None:
    for seed in range(3):
        calibrated("quantizer=pwlq", "bits=w4a8", seed=seed, accuracy=0.7 + seed / 100)
    (group,) = group_runs(found(tmp_path), "test_accuracy")
    assert group.summary.n == 3


def test_a_seed_of_breakpoints_that_does_not_follow_the_runs_is_a_setting(calibrated: Make) -> None:
    words = ("quantizer=pwlq", "bits=w4a8", "quantizer.weight.perturbation=0.05")
    assert asked(*words) != asked(*words, "quantizer.weight.seed=7")
