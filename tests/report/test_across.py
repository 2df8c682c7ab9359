"""A setting across: which runs share a row, what stands in a cell, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qexp.commands.table import main
from qexp.errors import ConfigError
from qexp.report.across import across_table
from qexp.report.tables import render
from qexp.runs import find_runs

Make = Callable[..., Path]


def test_a_row_holds_one_method_at_every_width(make_run: Make, tmp_path: Path) -> None:
    for bits, accuracy in ((2, 0.71), (3, 0.72), (4, 0.73)):
        make_run("pact", bits, 0, accuracy)
        make_run("dorefa", bits, 0, accuracy - 0.1)
    table = across_table(find_runs(tmp_path), "test_accuracy", "bits")
    assert [column.header for column in table.columns] == ["quantizer", "n", "w2a2", "w3a3", "w4a4"]
    assert [[row["quantizer"], *(row[f"=w{b}a{b}"] for b in (2, 3, 4))] for row in table.rows] == [
        ["dorefa", "61.00", "62.00", "63.00"],
        ["pact", "71.00", "72.00", "73.00"],
    ]
    assert "In every row: model" in table.notes[0]


def test_the_interval_stands_from_three_seeds_on(make_run: Make, tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.70, 0.71, 0.72)):
        make_run("pact", 4, seed, accuracy)
    make_run("pact", 2, 0, 0.5)
    table = across_table(find_runs(tmp_path), "test_accuracy", "bits")
    # Student's t with two degrees of freedom: 4.303 * 1 / sqrt(3).
    assert table.rows[0]["=w4a4"] == "71.00 ± 2.48"
    assert table.rows[0]["=w2a2"] == "50.00 (n = 1)"
    assert table.rows[0]["n"] == "1 to 3"


def test_the_float_network_stands_first_and_in_every_column(make_run: Make, tmp_path: Path) -> None:
    make_run("none", 32, 0, 0.9)
    make_run("pact", 4, 0, 0.7)
    make_run("pact", 2, 0, 0.6)
    table = across_table(find_runs(tmp_path), "test_accuracy", "bits")
    assert [row["quantizer"] for row in table.rows] == ["none", "pact"]
    assert [table.rows[0][f"=w{bits}a{bits}"] for bits in (2, 4)] == ["90.00", "90.00"]


def test_other_settings_stay_in_the_rows(make_run: Make, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.7)
    make_run("pact", 4, 0, 0.6, **{"optimizer.lr": 0.5})
    table = across_table(find_runs(tmp_path), "test_accuracy", "bits")
    assert sorted(row["optimizer.lr"] for row in table.rows)[-1] == "0.5"
    assert len(table.rows) == 2


def test_the_columns_come_by_their_size(make_run: Make, tmp_path: Path) -> None:
    key = "alpha_regularization.lambda_alpha"
    for value in (0.01, 1e-5, 0.0001, 0.001):
        make_run("pact", 4, 0, 0.7, **{key: value})
    table = across_table(find_runs(tmp_path), "test_accuracy", key)
    assert [column.header for column in table.columns[2:]] == ["1e-05", "0.0001", "0.001", "0.01"]


def test_a_setting_that_no_run_has_is_refused(make_run: Make, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.7)
    with pytest.raises(ConfigError, match="--across bitz"):
        across_table(find_runs(tmp_path), "test_accuracy", "bitz")


def test_two_groups_never_share_a_cell(make_run: Make, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.7)
    make_run("pact", 2, 0, 0.6)
    with pytest.raises(ConfigError, match=r"share the cell|do not mix"):
        across_table(find_runs(tmp_path), "test_accuracy", "first_last", by=["model", "quantizer"])


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "latex"])
def test_every_form_shows_the_columns(make_run: Make, tmp_path: Path, form: str) -> None:
    make_run("pact", 4, 0, 0.7)
    make_run("pact", 2, 0, 0.6)
    text = render(across_table(find_runs(tmp_path), "test_accuracy", "bits"), form)
    assert text.index("w2a2") < text.index("w4a4")


def test_the_command_takes_it_and_a_published_table_refuses_it(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("pact", 4, 0, 0.7)
    assert main([str(tmp_path), "--across", "bits"]) == 0
    assert "w4a4" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--across is set by the published table"):
        main(["pact/table1", "--across", "bits"])


@pytest.mark.parametrize("how", [["--across", "bits"], ["--against", "dorefa"]])
def test_another_metric_is_shown_in_every_kind_of_table(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    make_run("pact", 4, 0, 0.625)
    make_run("dorefa", 4, 0, 0.75)
    assert main([str(tmp_path), *how, "--metric", "test_loss", "--format", "markdown"]) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.split("|")]
    assert "0.375" in cells and "0.25" in cells and "62.50" not in cells


def test_a_setting_that_is_none_of_quantization_is_the_float_networks_own(make_run: Make, tmp_path: Path) -> None:
    make_run("none", 32, 0, 0.95)
    make_run("pact", 4, 0, 0.9)
    make_run("dorefa", 4, 0, 0.8)
    make_run("dorefa", 4, 0, 0.7, **{"dataset.train_samples": 100})
    table = across_table(find_runs(tmp_path), "test_accuracy", "dataset.train_samples")
    shown = {row["quantizer"]: (row["=–"], row["=100"]) for row in table.rows}
    assert shown == {"none": ("95.00", "–"), "pact": ("90.00", "–"), "dorefa": ("80.00", "70.00")}


def test_arithmetic_gets_columns_and_the_seed_none(make_run: Make, tmp_path: Path) -> None:
    for compiled in (True, False):
        make_run("pact", 4, int(compiled), 0.9 - compiled / 10, result={"compiled": compiled})
    table = across_table(find_runs(tmp_path), "test_accuracy", "trainer.compile")
    assert [(row["=False"], row["=True"]) for row in table.rows] == [("90.00", "80.00")]
    with pytest.raises(ConfigError, match="--across seed: a cell is the mean over the seeds"):
        across_table(find_runs(tmp_path), "test_accuracy", "seed")


def test_a_shortened_budget_is_said(make_run: Make, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.9)
    make_run("pact", 2, 0, 0.8)
    assert "epochs" not in [c.key for c in across_table(find_runs(tmp_path), "test_accuracy", "bits").columns]
    make_run("dorefa", 4, 0, 0.7, epochs=30)
    table = across_table(find_runs(tmp_path), "test_accuracy", "bits")
    assert "epochs" in [column.key for column in table.columns]
    assert [row["epochs"] for row in table.rows if row["quantizer"] == "dorefa"] == ["shortened: 30 of 200"]


def test_a_float_run_stands_under_its_own_value_of_a_setting_that_it_has(make_run: Make, tmp_path: Path) -> None:
    make_run("none", 32, 0, 0.95, **{"optimizer.lr": 0.1})
    for rate, accuracy in ((0.1, 0.9), (0.01, 0.8)):
        make_run("pact", 4, 0, accuracy, **{"optimizer.lr": rate})
    table = across_table(find_runs(tmp_path), "test_accuracy", "optimizer.lr")
    assert [(row["=0.01"], row["=0.1"]) for row in table.rows] == [("–", "95.00"), ("80.00", "90.00")]
    make_run("none", 32, 0, 0.85, **{"optimizer.lr": 0.01})
    table = across_table(find_runs(tmp_path), "test_accuracy", "optimizer.lr")
    assert [(row["=0.01"], row["=0.1"]) for row in table.rows] == [("85.00", "95.00"), ("80.00", "90.00")]


def test_each_network_has_its_own_float_run(make_run: Make, tmp_path: Path) -> None:
    for place, model in enumerate(("mlp", "resnet20")):
        make_run("none", 32, 0, 0.9 + place / 100, **{"names.model": model})
        make_run("pact", 4, 0, 0.8 + place / 100, **{"names.model": model})
    table = across_table(find_runs(tmp_path), "test_accuracy", "model")
    assert [(row["=mlp"], row["=resnet20"]) for row in table.rows] == [("90.00", "91.00"), ("80.00", "81.00")]


def test_records_say_what_is_measured_and_what_was_shortened(make_run: Make, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.9)
    make_run("pact", 2, 0, 0.8, epochs=30)
    records = across_table(find_runs(tmp_path), "test_accuracy", "bits", ["quantizer", "epochs"]).records
    assert {record["metric"] for record in records} == {"test_accuracy"}
    told = {(one[f"{bits} epochs"], one[f"{bits} shortened"]) for one in records for bits in ("w2a2", "w4a4")}
    assert told == {(None, None), (200, ""), (30, "30 of 200 epochs")}


def test_across_quantizer_float_has_a_column_of_its_own(make_run: Make, tmp_path: Path) -> None:
    make_run("none", 32, 0, 0.9)
    make_run("pact", 4, 0, 0.7)
    table = across_table(find_runs(tmp_path), "test_accuracy", "quantizer")
    assert [column.header for column in table.columns if column.key.startswith("=")] == ["none", "pact"]
    cells = {(row["=none"], row["=pact"]) for row in table.rows}
    assert cells == {("90.00", "–"), ("–", "70.00")}


def test_a_record_has_mean_half_width_and_n_of_a_cell(make_run: Make, tmp_path: Path) -> None:
    for seed in range(3):
        make_run("pact", 4, seed, 0.70 + seed / 100)
    make_run("pact", 2, 0, 0.5)
    (record,) = across_table(find_runs(tmp_path), "test_accuracy", "bits").records
    found = [record[f"w4a4 {name}"] for name in ("mean", "half_width", "n")]
    assert found == pytest.approx([0.71, 0.0248414, 3], abs=1e-6)


def test_groups_that_differ_in_another_width_alone_share_no_cell(make_run: Make, tmp_path: Path) -> None:
    result = {"metrics": {"test_accuracy": 0.7, "weight_bits": 4.0}}
    for activation in (4, 8):
        make_run("pact", 4, 0, 0.7, result=result, **{"bits.activation": activation})
    with pytest.raises(ConfigError, match="would share the cell 4"):
        across_table(find_runs(tmp_path), "test_accuracy", "stored_bits")
