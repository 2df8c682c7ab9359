from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qexp.commands.table import jobs_of
from qexp.published import Artefact, load_artefact, parse_paper
from qexp.report.artefact_plots import cells_figure
from qexp.report.intervals import Summary, summarize
from qexp.report.tables import Table
from qexp.report.verdicts import measuring, published_table, verdict
from qexp.runs import find_runs

MakeRun = Callable[..., Path]


@pytest.mark.parametrize(
    ("mean", "half_width", "n", "expected"),
    [
        (0.913, 0.002, 3, "agrees"),
        (0.911, 0.002, 3, "agrees"),
        (0.9109, 0.002, 3, "below"),
        (0.9151, 0.002, 3, "above"),
        (0.913, 0.5, 5, "agrees"),
        (0.908, None, 1, "within the paper's own spread (0.5 points), n = 1"),
        (0.918, None, 2, "within the paper's own spread (0.5 points), n = 2"),
        (0.9079, None, 1, "outside the paper's own spread (0.5 points), n = 1"),
        (0.9181, None, 2, "outside the paper's own spread (0.5 points), n = 2"),
    ],
)
def test_verdict(mean: float, half_width: float | None, n: int, expected: str) -> None:
    assert verdict(0.913, Summary(n, mean, half_width), 0.005) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9133] * 3, "agrees"),  # printed as 91.3: 91.25 to 91.35
        ([0.9136] * 3, "above"),
        ([0.9124] * 3, "below"),
    ],
)
def test_a_published_number_is_known_to_its_last_digit(values: list[float], expected: str) -> None:
    assert verdict(0.913, summarize(values), 0.005, known_to=0.0005) == expected


def test_a_tolerance_of_ours_is_not_called_the_papers() -> None:
    one = Summary(1, 0.912, None)
    assert verdict(0.913, one, 0.005, ours=True) == "within the tolerance taken here (0.5 points), n = 1"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9140] * 3, "agrees"),  # read off as 91.3 to two tenths
        ([0.9151] * 3, "above"),
        ([0.9109] * 3, "below"),
        ([0.9192], "within the paper's own spread (0.5 points, read off to 0.2 points), n = 1"),
        ([0.9202], "outside the paper's own spread (0.5 points, read off to 0.2 points), n = 1"),
    ],
)
def test_a_value_is_known_as_well_as_it_could_be_read(values: list[float], expected: str) -> None:
    assert verdict(0.913, summarize(values), 0.005, known_to=0.0005, read_to=0.002) == expected


def test_a_reading_without_a_spread_stands_alone() -> None:
    assert verdict(2.05, Summary(1, 2.08, None), 0.0, "alpha_highest", read_to=0.041) == (
        "within what could be read off (0.041), n = 1"
    )


def test_a_figures_cells_are_judged_by_how_they_were_read(make_run: MakeRun, tmp_path: Path) -> None:
    """Figure 8's best error, 10.0 %, is read to two hundredths of itself: 90.0 % to 0.2 points."""
    changes = {"alpha_regularization.lambda_alpha": 1e-3}
    for seed in range(3):
        make_run("pact", 2, seed, 0.9015 + seed / 1e5, **changes)
    rows = published_table(load_artefact("pact/fig8"), find_runs(tmp_path)).rows
    assert [row["verdict"] for row in rows if row["n"] == "3"] == ["agrees"]


def test_a_tolerance_of_ours_is_a_rows_own(make_run: MakeRun, tmp_path: Path) -> None:
    names = {"model": "preact_resnet18", "dataset": "imagenet", "quantizer": "pact"}
    make_run("pact", 4, 0, 0.69, names=names)
    make_run("pact", 4, 0, 0.912)
    rows = {
        row["network"]: row
        for row in published_table(load_artefact("pact/table1"), find_runs(tmp_path)).rows
        if row["n"] == "1"
    }
    assert rows["ResNet18"]["verdict"] == "within the tolerance taken here (0.5 points), n = 1"
    assert rows["CIFAR10 ResNet20"]["verdict"] == "within the paper's own spread (0.5 points), n = 1"


def test_a_papers_recipe_is_told_apart_from_the_experiments(make_run: MakeRun, tmp_path: Path) -> None:
    """A weight decay by bits is compared as the number that the bits get."""
    names = {"model": "preact_resnet18", "dataset": "imagenet", "quantizer": "lsq"}
    cosine = {"_target_": "qexp.lit.schedules.cosine", "warmup_epochs": 0, "final": 0.0}
    optimizer = {"_target_": "qexp.lit.optimizers.sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 2.5e-5}
    usual = {"names": names, "first_last": 8, "schedule": cosine, "decay_by_bits": {"w2": 2.5e-5}, "epochs": 90}
    usual["quantizer.weight"] = {"_target_": "q.LSQ", "gradient_scale": "features_and_levels"}
    make_run("pact", 2, 0, 0.67, optimizer=optimizer, **usual)
    make_run("pact", 2, 1, 0.66, optimizer={**optimizer, "weight_decay": 1e-4, "lr": 0.1}, **usual)
    rows = published_table(load_artefact("lsq/table1"), find_runs(tmp_path), only="resnet18").rows
    said = sorted(row["remarks"] for row in rows if row["n"] == "1")
    assert said == ["", "optimizer.lr=0.1, paper 0.01; optimizer.weight_decay=0.0001, paper 2.5e-05"]


def test_a_bound_is_held_or_not_and_never_a_distance(make_run: MakeRun, tmp_path: Path) -> None:
    settings = {"names.model": "mobilenet_v2", "names.dataset": "imagenet"}
    for seed in range(3):
        make_run("none", 32, seed, 0.70, **settings)
        ours = {"names.quantizer": "lglsq", "rounding": {"_target_": "qexp.ops.rounding.ASR"}}
        ours["discretisation"] = {"_target_": "qexp.ops.discretisation.EWGS"}
        make_run("dorefa", 4, seed, 0.698 + seed / 1000, **settings, **ours)
    table = published_table(load_artefact("lglsq/claims"), find_runs(tmp_path), only="MobileNetV2")
    (row,) = table.rows
    assert (row["published"], row["measured"], row["verdict"]) == ("≤ 1.0 (derived)", "0.10", "holds")


def compared(root: Path) -> Table:
    return published_table(load_artefact("pact/table1"), find_runs(root), only="resnet20")


def row_of(table: Table, method: str) -> dict[str, str]:
    (row,) = [row for row in table.rows if row["method"] == method]
    return dict(row)


def test_three_seeds_get_a_verdict_and_one_does_not(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        make_run("pact", 4, seed, 0.912 + seed / 1000)
    make_run("pact", 2, 0, 0.89)
    table = compared(tmp_path)
    four, two = row_of(table, "PACT 4b"), row_of(table, "PACT 2b")
    assert (four["published"], four["measured"], four["n"], four["verdict"]) == ("91.3", "91.30", "3", "agrees")
    assert (two["difference"], two["interval"]) == ("-0.70", "n = 1")
    assert two["verdict"] == "outside the paper's own spread (0.5 points), n = 1"
    assert four["remarks"] == ""


def test_what_the_experiment_has_otherwise_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    """Also of settings that the paper's cell says nothing of: another network is no measurement of it."""
    usual = {"model.width": 16, "optimizer.nesterov": False, "alpha_regularization.lambda_alpha": 1e-3}
    make_run("pact", 4, 0, 0.9, **usual)
    changes = {
        "model.width": 4,
        "normalization": "shift",
        "optimizer.nesterov": True,
        "task.loss": "squared_hinge",
    }
    make_run("pact", 3, 0, 0.9, **usual | changes)
    artefact = load_artefact("pact/table1")
    table = published_table(artefact, find_runs(tmp_path), only="resnet20", jobs=jobs_of)
    assert row_of(table, "PACT 4b")["remarks"] == ""
    assert set(row_of(table, "PACT 3b")["remarks"].split("; ")) == {
        "model.width=4, experiment 16",
        "normalization=shift, experiment None",
        "optimizer.nesterov=True, experiment False",
        "task.loss=squared_hinge, experiment cross_entropy",
    }
    assert {record["remarks"] for record in table.records} == {row["remarks"] for row in table.rows}


def test_a_shortened_run_in_bfloat16_is_told_so_once(make_run: MakeRun, tmp_path: Path) -> None:
    """The paper's recipe in the sheets says nothing of either."""
    names = {"model": "qnn_alexnet", "dataset": "imagenet", "quantizer": "none"}
    words = {"epochs": 2, "schedule.of": 45, "trainer.precision": "bfloat16"}
    make_run("none", 32, 0, 0.3, names=names, **words)
    rows = published_table(load_artefact("qnn/imagenet"), find_runs(tmp_path), jobs=jobs_of).rows
    (remarks,) = [row["remarks"] for row in rows if row["n"] == "1"]
    assert (remarks.count("epochs"), remarks.count("bfloat16")) == (1, 1)


def test_a_default_that_the_papers_recipe_is_not_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    names = {"model": "preact_resnet18", "dataset": "imagenet", "quantizer": "lsq"}
    (tmp_path / "runs").mkdir()
    for seed, share in enumerate((0.0, 1.0)):
        make_run("pact", 2, seed, 0.67, names=names, first_last=8, **{"task.distillation": share})
    rows = published_table(load_artefact("lsq/distillation"), find_runs(tmp_path), only="resnet18").rows
    remarks = [row["remarks"].split("; ") for row in rows if row["method"] == "2 bits"]
    assert sorted("task.distillation=0.0, paper 1.0" in said for said in remarks) == [False, True]


def test_a_number_from_memory_judges_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    names = {"model": "googlenet", "dataset": "imagenet", "quantizer": "none"}
    for seed in range(3):
        make_run("none", 32, seed, 0.7 + seed / 1000, names=names)
    table = published_table(load_artefact("qnn/imagenet"), find_runs(tmp_path))
    (row,) = [row for row in table.rows if (row["network"], row["method"]) == ("Float", "GoogLeNet")]
    assert (row["published"], row["measured"]) == ("71.6 (from memory)", "70.10")
    assert row["verdict"] == "none: a number from memory"
    assert "arXiv:1609.07061" in table.caption and ", as printed" not in table.caption


def test_an_unverified_number_judges_nothing_and_says_why(make_run: MakeRun, tmp_path: Path) -> None:
    names = {"model": "lstm", "dataset": "ptb", "quantizer": "none"}
    for seed in range(3):
        make_run("none", 32, seed, 0.7, names=names, result={"metrics": {"test_perplexity": 97.0 + seed / 10}})
    table = published_table(load_artefact("qnn/ptb"), find_runs(tmp_path), only="float")
    (row,) = table.rows
    assert (row["published"], row["verdict"]) == ("97 (unverified)", "none: an unverified number")
    assert any("from memory" in note for note in table.notes)


def test_departures_from_the_papers_recipe_are_said(make_run: MakeRun, tmp_path: Path) -> None:
    changes = {"epochs": 30, "first_last": 8, "trainer.precision": "bfloat16", "layers": {"*": {"bits": 2}}}
    make_run("pact", 4, 0, 0.9, **changes)
    make_run("none", 4, 0, 0.9, epochs=30)
    remarks = row_of(compared(tmp_path), "PACT 4b")["remarks"]
    assert remarks.startswith("shortened budget: 30 of 200 epochs")
    assert "first_last=8, paper 32" in remarks
    assert "trained in bfloat16" in remarks
    assert "layers.*.bits=2" in remarks
    # The float network has no ends to set apart and no clip level.
    assert row_of(compared(tmp_path), "FP")["remarks"] == "shortened budget: 30 of 200 epochs"


def test_each_recipe_has_a_row_of_its_own(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.91)
    make_run("pact", 4, 1, 0.90, **{"alpha_regularization.lambda_alpha": 0.1})
    rows = [row for row in compared(tmp_path).rows if row["method"] == "PACT 4b"]
    assert [row["n"] for row in rows] == ["1", "1"]
    assert "alpha_regularization.lambda_alpha=0.1" in rows[1]["remarks"]


def test_a_cell_without_a_run_says_how_to_fill_it(tmp_path: Path) -> None:
    table = compared(tmp_path)
    assert all(row["verdict"] == "not run" and row["measured"] == "–" for row in table.rows)
    command = "qexp train experiment=pact/table1 recipe=pact/cifar10_resnet20"
    assert f"to fill 9 cells of CIFAR10 ResNet20: {command} seed=0,1,2" in table.notes
    assert {record["command"] for record in table.records} == {command}


def test_a_smoke_test_gets_no_verdict(make_run: MakeRun, tmp_path: Path) -> None:
    changes = {"epochs": 2, "budget": {"name": "smoke"}, "names.dataset": "digits", "dataset.train_samples": 128}
    for seed in range(3):
        make_run("pact", 4, seed, 0.2, **changes)
    row = row_of(compared(tmp_path), "PACT 4b")
    assert row["verdict"] == "none: a smoke test"
    assert row["remarks"] == "shortened budget: 2 of 200 epochs, 128 training samples, smoke test on digits"


def figure5() -> Artefact:
    """ResNet20 in the form of figure 5, a made-up method beside it."""
    columns = {"4": {"bits": "w4a4"}, "2": {"bits": "w2a2"}}
    rows = {
        "PACT": {"keys": {"model": "resnet20", "quantizer": "pact"}, "values": {"4": 0.3, "2": 1.9}},
        "against 4 bits": {
            "keys": {"model": "resnet20", "quantizer": "pact"},
            "baseline": {"quantizer": "pact", "bits": "w4a4"},
            "values": {"2": 1.0},
        },
        "a rival": {"values": {"2": 7.0}},
    }
    body = {"title": "t", "source": "Figure 5", "quantity": "degradation", "unit": "points", "how": "read_off"}
    body |= {"metric": "test_accuracy", "spread": 0.005, "columns": columns, "rows": rows}
    return parse_paper({"paper": "p", "reference": "arXiv:0", "artefacts": {"fig5": body}})["fig5"]


def degraded(root: Path) -> dict[str, dict[str, str]]:
    table = published_table(figure5(), find_runs(root))
    assert table.columns[2].header == "published (points)"
    return {f"{row['network']} {row['method']}": dict(row) for row in table.rows}


def test_a_degradation_is_taken_against_float_runs_of_the_same_seeds(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.912)
    make_run("pact", 2, 0, 0.900)
    assert degraded(tmp_path)["PACT 4"]["verdict"] == "its baseline is not run"
    make_run("none", 4, 1, 0.990)
    assert degraded(tmp_path)["PACT 4"]["verdict"] == "its baseline is not run"  # another seed is no baseline
    make_run("none", 4, 0, 0.915)
    rows = degraded(tmp_path)
    assert (rows["PACT 4"]["measured"], rows["PACT 4"]["difference"]) == ("0.30", "+0.00")
    assert (rows["PACT 2"]["measured"], rows["against 4 bits 2"]["measured"]) == ("1.50", "1.20")
    assert rows["a rival 2"]["verdict"] == "published only"


def test_the_range_of_the_alphas_stands_beside_figure_2(make_run: MakeRun, tmp_path: Path) -> None:
    metrics = {"test_accuracy": 0.9, "test_loss": 0.1, "alpha/a": 1.5, "alpha/b": 0.9, "alpha/c": 2.0}
    make_run("pact", 32, 0, 0.9, result={"metrics": metrics})
    (row,) = published_table(load_artefact("pact/fig2"), find_runs(tmp_path)).rows
    assert (row["published"], row["measured"]) == ("2.05 (read off)", "2")


def test_a_published_and_a_measured_number_never_share_a_column(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.91)
    headers = [column.header for column in compared(tmp_path).columns]
    assert headers[2:4] == ["published (%)", "measured (%)"]


def test_unfinished_runs_stand_below(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, None)
    unfinished = [note for note in compared(tmp_path).notes if "interrupted" in note]
    assert len(unfinished) == 1
    assert "w4a4" in unfinished[0]


def test_runs_that_fit_no_cell_do_not_belong_to_a_figure(make_run: MakeRun, tmp_path: Path) -> None:
    unfinished = make_run("pact", 32, 0, None)
    make_run("pact", 2)
    make_run("dorefa", 32)
    figure = load_artefact("pact/fig7")
    assert [run.path for run in measuring(figure.cells, find_runs(tmp_path))] == [unfinished]


def test_a_part_of_the_data_is_a_shortened_budget(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.8, epochs=30, **{"dataset.train_samples": 5000})
    remarks = row_of(compared(tmp_path), "PACT 4b")["remarks"]
    assert remarks == "shortened budget: 30 of 200 epochs, 5,000 training samples"


def test_a_degradation_prefers_the_float_run_of_its_own_arithmetic(make_run: MakeRun, tmp_path: Path) -> None:
    for quantizer, bits, accuracy, compiled in (
        ("none", 4, 0.95, False), ("none", 4, 0.94, True), ("pact", 4, 0.9, True), ("pact", 2, 0.8, False)
    ):  # fmt: skip
        make_run(quantizer, bits, 0, accuracy, **{"trainer.compile": compiled})
    rows = degraded(tmp_path)
    assert (rows["PACT 4"]["measured"], rows["PACT 2"]["measured"]) == ("4.00", "15.00")


def test_a_missing_baseline_is_called_so_and_has_a_command(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.9)
    record = next(one for one in published_table(figure5(), find_runs(tmp_path)).records if one["column"] == "4")
    assert (record["verdict"], record["command"]) == ("its baseline is not run", "qexp train experiment=p/fig5")
    texts = [text.get_text() for axes in cells_figure(figure5(), find_runs(tmp_path)).axes for text in axes.texts]
    assert texts == ["no baseline", "not run", "not run", ""]


def test_a_figure_says_what_its_values_are_of_their_runs() -> None:
    assert "Measured: mean, 95% interval" in cells_figure(figure5(), []).get_supxlabel()
    moved = cells_figure(load_artefact("pwlq/fig2_right"), []).get_supxlabel()
    assert "Measured: median or worst." in " ".join(moved.split())


def test_a_cell_of_the_float_network_takes_no_run_with_a_quantized_layer(
    make_run: MakeRun, tmp_path: Path
) -> None:
    layer = {"bits": 2, "quantizer": {"weight": {"_target_": "q.Weight"}, "activation": None}}
    make_run("none", 4, 0, 0.9, layers={"fc2*": layer})
    assert row_of(compared(tmp_path), "FP")["verdict"] == "not run"


def test_a_cells_rule_for_both_ends_is_met_by_its_widths(make_run: MakeRun, tmp_path: Path) -> None:
    """A run is one by its identity, whichever of two words for the same widths it was made with."""
    make_run("pact", 2, 0, 0.8, first_last="same", quantization={"bits": [[2, 2], [2, 2], [2, 2]]})
    make_run("pact", 2, 1, 0.9, first_last=8, quantization={"bits": [[2, 2], [8, 8], [8, 8]]})
    rows = published_table(load_artefact("pact/fig9"), find_runs(tmp_path)).rows
    assert {row["network"]: row["measured"] for row in rows if row["n"] == "1"} == {"both quantized": "80.00"}


def test_a_rule_in_other_words_is_no_departure(make_run: MakeRun, tmp_path: Path) -> None:
    names = {"model": "preact_resnet18", "dataset": "imagenet", "quantizer": "lsq"}
    same = {"bits": [[8, 8], [8, 8], [8, 8]]}
    weight = {"_target_": "q.LSQ", "gradient_scale": "features_and_levels"}
    changes = {"first_last": "same", "quantizer.weight": weight}
    make_run("pact", 8, 0, 0.67, names=names, quantization=same, **changes)
    rows = published_table(load_artefact("lsq/table1"), find_runs(tmp_path), only="resnet18").rows
    (remarks,) = [row["remarks"] for row in rows if row["n"] == "1"]
    assert remarks and "first_last" not in remarks


def test_the_runs_of_some_cells_are_those_of_their_rows(make_run: MakeRun, tmp_path: Path) -> None:
    scopes = {
        scope: make_run("pact", 32, 0, **{"quantizer.activation.scope": scope}) for scope in ("layer", "channel")
    }
    figure = load_artefact("pact/fig7")
    assert [run.path for run in measuring(figure.cells_of("PER LAYER"), find_runs(tmp_path))] == [scopes["layer"]]


@pytest.mark.parametrize(("value", "said"), [(0.9133, "agrees"), (0.9136, "above"), (0.9124, "below")])
def test_a_percents_verdict_is_that_of_its_last_digit(
    make_run: MakeRun, tmp_path: Path, value: float, said: str
) -> None:
    for seed in range(3):
        make_run("pact", 4, seed, value)
    assert row_of(compared(tmp_path), "PACT 4b")["verdict"] == said


@pytest.mark.parametrize(("value", "said"), [(0.6764, "agrees"), (0.66, "below"), (0.69, "above")])
def test_a_table_in_percent_of_another_paper(make_run: MakeRun, tmp_path: Path, value: float, said: str) -> None:
    names = {"model": "preact_resnet18", "dataset": "imagenet", "quantizer": "lsq"}
    weight = {"_target_": "q.LSQ", "gradient_scale": "features_and_levels"}
    for seed in range(3):
        make_run("pact", 2, seed, value, names=names, first_last=8, **{"quantizer.weight": weight})
    rows = published_table(load_artefact("lsq/table1"), find_runs(tmp_path), only="resnet18").rows
    assert [row["verdict"] for row in rows if row["n"] == "3"] == [said]


def test_a_record_has_the_difference_and_the_ends_of_the_interval(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        make_run("pact", 4, seed, 0.90 + seed / 100)
    (record,) = [record for record in compared(tmp_path).records if record["column"] == "PACT 4b"]
    assert record["difference"] == pytest.approx(-0.003)
    # Student's t with two degrees of freedom: 4.3027 * 0.01 / sqrt(3).
    half = 0.0248414
    ends = (record["interval_low"], record["interval_high"])
    assert ends == pytest.approx((0.91 - half, 0.91 + half), abs=1e-6)


def test_a_figure_shows_its_cells_in_percent_with_their_intervals(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        make_run("pact", 4, seed, 0.90 + seed / 100)
    axes = cells_figure(load_artefact("pact/table1"), find_runs(tmp_path), "resnet20").axes
    lines = [line for one in axes for line in one.lines if line.get_gid() == "measured"]
    assert [x for line in lines for x in line.get_xdata()] == pytest.approx([91.0])
    bars = [part for one in axes for part in one.collections if part.get_gid() == "interval"]
    (bar,) = [segment for part in bars for segment in part.get_segments()]
    assert bar[:, 0].tolist() == pytest.approx([91.0 - 2.48414, 91.0 + 2.48414], abs=1e-3)


def test_runs_of_one_cell_are_told_apart_by_what_they_did_otherwise(make_run: MakeRun, tmp_path: Path) -> None:
    for changes in ({}, {"alpha_regularization.lambda_alpha": 0.1}, {"optimizer.lr": 0.05}):
        make_run("pact", 2, 0, 0.9, **changes)
    (axes,) = cells_figure(load_artefact("pact/fig9"), find_runs(tmp_path)).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    of_cell = [label for label in labels if label.startswith("neither quantized")]
    assert len(of_cell) == len(set(of_cell)) == 3
    assert any("lambda_alpha=0.1" in label for label in of_cell)
