from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from qexp.errors import ConfigError
from qexp.report.measured import measured_table
from qexp.report.tables import Column, Table, render
from qexp.runs import find_runs

MakeRun = Callable[..., Path]


@pytest.fixture
def table(make_run: MakeRun, tmp_path: Path) -> Table:
    for seed in range(3):
        make_run("none", 4, seed, 0.916 + seed / 1000)
        make_run("pact", 4, seed, 0.912 + seed / 1000)
    make_run("dorefa", 2, 0, 0.88, epochs=30)
    return measured_table(find_runs(tmp_path))


EXPECTED = [
    ["resnet20", "cifar10", "none", "32", "3", "91.70", "91.45 to 91.95", "200", "–"],
    ["resnet20", "cifar10", "pact", "w4a4", "3", "91.30", "91.05 to 91.55", "200", "-0.40 ± 0.00"],
    ["resnet20", "cifar10", "dorefa", "w2a2", "1", "88.00", "n = 1", "shortened: 30 of 200", "–"],
]


def test_markdown(table: Table) -> None:
    lines = [line for line in render(table, "markdown").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:4] == ["model", "data set", "quantizer", "bits"]
    assert all(re.fullmatch(r"-{3}:?", cell) for cell in cells[1])
    assert cells[2:] == EXPECTED


def test_terminal(table: Table) -> None:
    lines = render(table, "terminal").splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.strip().startswith("resnet20")]
    assert rows == EXPECTED


def test_latex(table: Table) -> None:
    text = render(table, "latex")
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    cells = [line.removesuffix(r" \\").split(" & ") for line in body]
    back = [[cell.replace(r"$\pm$", "±").replace("--", "–") for cell in row] for row in cells]
    assert back == EXPECTED
    assert text.count("{") == text.count("}")
    assert r"test\_accuracy in \%" in text


def test_csv_holds_numbers_in_full(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert float(rows[1]["mean"]) == pytest.approx(0.913)
    assert float(rows[1]["difference"]) == pytest.approx(-0.004)
    assert rows[1]["seeds"] == "0 1 2"
    assert (rows[2]["interval_low"], rows[2]["shortened"]) == ("", "30 of 200 epochs")


def test_signs_of_each_form_are_escaped() -> None:
    text = "a|b & 50% of $x_1 #{2}~^\\"
    made = Table("t", [Column("key", "h")], [{"key": text}], [{"key": text}])
    assert r"a\|b" in render(made, "markdown")
    assert r"a|b \& 50\% of \$x\_1 \#\{2\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in render(
        made, "latex"
    )
    assert next(csv.DictReader(io.StringIO(render(made, "csv")))) == {"key": text}


def test_a_narrow_terminal_loses_no_word(table: Table) -> None:
    drawn = render(table, "terminal", width=80)
    assert max(map(len, drawn.split("test_accuracy in")[0].splitlines())) <= 80
    assert all(word in drawn for row in EXPECTED for text in row for word in text.split())


def test_unfinished_and_damaged_runs_stand_below(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.91)
    failed = make_run("pact", 3, 0, None, metrics=[(3, 9, "train_loss", 1.0)])
    (failed / "failure.json").write_text('{"status": "failed", "message": "alpha is NaN", "exit_code": 1}')
    damaged = make_run("pact", 2, 0, 0.89)
    (damaged / "config.yaml").write_text("{ broken")
    table = measured_table(find_runs(tmp_path))
    assert [row["bits"] for row in table.rows] == ["w4a4"]
    assert any("failed (epoch 3 of 200): alpha is NaN" in note for note in table.notes)
    assert any(damaged.name in note and "damaged" in note for note in table.notes)


def test_first_last_is_a_column_where_it_differs(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0)
    assert "first/last" not in [column.header for column in measured_table(find_runs(tmp_path)).columns]
    make_run("pact", 2, 0, first_last=8)
    table = measured_table(find_runs(tmp_path))
    assert [row["first_last"] for row in table.rows] == ["32", "8"]
    assert "First and last layer: 32 or 8" in table.caption


def test_precision_is_a_column_where_it_differs(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, **{"trainer.precision": "bfloat16"})
    make_run("pact", 2, 0)
    table = measured_table(find_runs(tmp_path))
    assert [row["precision"] for row in table.rows] == ["bfloat16", "float32"]


def test_an_unknown_metric_names_the_nearest(make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    with pytest.raises(ConfigError, match=r"'test_acuracy'.*'test_accuracy'"):
        measured_table(find_runs(tmp_path), "test_acuracy")


def test_another_metric_is_no_percentage(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(accuracy=0.75)
    (row,) = measured_table(find_runs(tmp_path), "test_loss").rows
    assert row["mean"] == "0.25"


def test_a_part_of_the_training_data_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, **{"dataset.train_samples": 5000})
    make_run("pact", 2, 0, epochs=30, **{"dataset.train_samples": 5000})
    table = measured_table(find_runs(tmp_path))
    assert [row["epochs"] for row in table.rows] == [
        "shortened: 200 epochs, 5,000 training samples",
        "shortened: 30 of 200 epochs, 5,000 training samples",
    ]


def test_a_null_that_earlier_runs_do_not_have_is_no_difference(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0)
    make_run("pact", 4, 1, **{"dataset.train_samples": None, "dataset.val_list": None})
    (row,) = measured_table(find_runs(tmp_path)).rows
    assert (row["n"], row["epochs"]) == ("2", "200")


def test_a_method_that_is_a_reading_of_ours_is_called_so(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.9)
    assert "reading" not in measured_table(find_runs(tmp_path)).caption
    make_run("pact", 4, 0, 0.91, **{"names.quantizer": "lglsq"})
    assert "lglsq is this project's reading of LG-LSQ" in measured_table(find_runs(tmp_path)).caption


def test_layers_are_a_column_only_where_some_are_set_apart(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0)
    make_run("pact", 4, 0, layers={"fc": {"bits": 2}})
    keys = [column.key for column in measured_table(find_runs(tmp_path)).columns]
    assert "layers.fc.bits" in keys and "layers" not in keys


def test_asterisks_stay_in_markdown() -> None:
    text = "layers.a.*.bits=2; layers.b.*.bits=3"
    table = Table(text, [Column("a", "a")], [{"a": text}], [{"a": text}], text, ["* a misprint"])
    escaped = text.replace("*", r"\*")
    assert render(table, "markdown").splitlines() == [
        f"**{escaped}**", "", "| a |", "|---|", f"| {escaped} |", "", escaped, "", r"- \* a misprint"
    ]  # fmt: skip


def test_a_record_has_the_ends_of_the_interval_and_the_differences_half_width(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    for seed in range(3):
        make_run("none", 4, seed, 0.92)
        make_run("pact", 4, seed, 0.90 + seed / 100)
    (record,) = [one for one in measured_table(find_runs(tmp_path)).records if one["quantizer"] == "pact"]
    half = 0.0248414  # Student's t with two degrees of freedom: 4.3027 * 0.01 / sqrt(3)
    ends = (record["interval_low"], record["interval_high"])
    assert ends == pytest.approx((0.91 - half, 0.91 + half), abs=1e-6)
    assert record["difference_half_width"] == pytest.approx(half, abs=1e-6)
