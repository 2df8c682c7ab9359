"""Rows compared with one method's, seed by seed: who is compared, by what test, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from scipy.stats import ttest_rel

from qexp.commands.table import main
from qexp.errors import ConfigError
from qexp.paths import config_dir
from qexp.report.against import parse_against
from qexp.report.measured import measured_table
from qexp.runs import find_runs

Make = Callable[..., Path]
PACT, DOREFA = (0.902, 0.911, 0.905, 0.9), (0.88, 0.893, 0.879, 0.886)


def test_the_difference_and_its_p_are_those_of_a_paired_t_test(make_run: Make, tmp_path: Path) -> None:
    for seed, (one, other) in enumerate(zip(PACT, DOREFA, strict=True)):
        make_run("pact", 4, seed, one)
        make_run("dorefa", 4, seed, other)
    make_run("none", 32, 0, 0.92)
    table = measured_table(find_runs(tmp_path), against={"quantizer": "pact"})
    by_name = {record["quantizer"]: record for record in table.records}
    expected = ttest_rel(DOREFA, PACT)
    interval = expected.confidence_interval()
    assert by_name["dorefa"]["against"] == pytest.approx(sum(DOREFA) / 4 - sum(PACT) / 4)
    assert by_name["dorefa"]["against_p"] == pytest.approx(expected.pvalue)
    assert by_name["dorefa"]["against_half_width"] == pytest.approx((interval.high - interval.low) / 2)
    assert by_name["pact"]["against"] is None and by_name["none"]["against"] is None
    rows = {row["quantizer"]: row["against"] for row in table.rows}
    assert rows["dorefa"].startswith("-2.00") or rows["dorefa"].startswith("−2.00")
    assert "p = 0.0" in rows["dorefa"] and rows["pact"] == "–"


def test_only_the_same_width_recipe_and_seeds_are_paired(make_run: Make, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.9)
    make_run("dorefa", 4, 0, 0.88)
    make_run("dorefa", 2, 0, 0.7)
    make_run("dorefa", 4, 0, 0.86, **{"epochs": 30})
    make_run("dorefa", 3, 5, 0.8)
    make_run("pact", 3, 6, 0.81)
    table = measured_table(find_runs(tmp_path), against={"quantizer": "pact"})
    found = sorted(record["against"] for record in table.records if record["against"] is not None)
    assert found == [pytest.approx(-0.02)]


def test_further_metrics_stand_beside(make_run: Make, tmp_path: Path) -> None:
    for seed, loss in enumerate((0.3, 0.5)):
        make_run("pact", 4, seed, 1 - loss)
    table = measured_table(find_runs(tmp_path), also=["test_loss"])
    assert table.records[0]["test_loss"] == pytest.approx(0.4)
    assert table.columns[-1].header == "test loss"


def test_what_cannot_be_compared_is_refused(make_run: Make, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.9)
    make_run("pact", 4, 0, 0.91, **{"quantizer.activation.scope": "channel"})
    make_run("dorefa", 4, 0, 0.88)
    runs = find_runs(tmp_path)
    with pytest.raises(ConfigError, match="are both; add KEY=VALUE"):
        measured_table(runs, against={"quantizer": "pact"})
    table = measured_table(runs, against=parse_against("quantizer=pact,quantizer.activation.scope=layer"))
    assert sum(record["against"] is not None for record in table.records) == 2
    with pytest.raises(ConfigError, match="no finished run has quantizer=lsq"):
        measured_table(runs, against={"quantizer": "lsq"})
    with pytest.raises(ConfigError, match="--also: no finished run reports 'speed'"):
        measured_table(runs, also=["speed"])
    for text in ("quantizer=", "=lsq", "a=b,c"):
        with pytest.raises(ConfigError, match="--against"):
            parse_against(text)
    with pytest.raises(ConfigError, match="--across shows one number"):
        main([str(tmp_path), "--across", "bits", "--against", "pact"])


def test_an_experiment_is_shown_as_its_file_says(
    make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"nothing has been run; qexp train experiment=compare/cifar10_resnet20"):
        main(["compare/cifar10_resnet20"])
    folder = tmp_path / "outputs" / "compare"
    folder.mkdir(parents=True)
    for seed in range(3):
        for name in ("pact", "dorefa"):
            make_run(name, 4, seed, 0.9 + seed / 100, **{"names.quantizer": "lsq" if name == "pact" else name})
    (tmp_path / "runs").rename(folder / "cifar10_resnet20")
    assert main(["compare/cifar10_resnet20"]) == 0
    whole = capsys.readouterr().out
    assert "as its file has it: --also: no finished run reports 'epoch_seconds'" in whole
    assert "91.00" in whole
    with pytest.raises(ConfigError, match="--also: no finished run reports 'epoch_seconds'"):
        main(["outputs/compare/cifar10_resnet20", "--also", "epoch_seconds"])
    assert main(["compare/cifar10_resnet20", "--against", "lsq"]) == 0
    here = capsys.readouterr().out
    assert "vs lsq" in here
    (folder / "cifar10_resnet20").rename(tmp_path / "kept")
    assert main(["compare/cifar10_resnet20", "--against", "lsq", "--runs", "kept"]) == 0
    assert capsys.readouterr().out == here
    assert main(["compare/cifar10_resnet20", "--runs", "kept"]) == 0
    assert capsys.readouterr().out == whole, "its file's own options are taken then, too"
    with pytest.raises(ConfigError, match="--runs belongs to a published table or an experiment"):
        main(["kept", "--runs", "kept"])


def test_the_ablation_is_shown_as_its_file_says(make_run: Make, tmp_path: Path) -> None:
    file = config_dir() / "experiment" / "lglsq" / "ablation.yaml"
    shown = yaml.safe_load(file.read_text())["experiment"]["table"].removeprefix("--against ")
    plain = {"_target_": "qexp.ops.discretisation.none"}
    for gain, rounding in ((0.0, "ste"), (0.01, "ASR")):
        made = {"rounding": {"_target_": f"qexp.ops.rounding.{rounding}"}, "discretisation": plain}
        made |= {"names.quantizer": "lglsq", "quantizer.scale_gradient": "lsq"}
        for seed in range(3):
            make_run("dorefa", 3, seed, 0.9 + gain, **made)
    records = measured_table(find_runs(tmp_path), against=parse_against(shown)).records
    assert sorted(record["against"] for record in records if record["against"] is not None) == [
        pytest.approx(0.01)
    ]


def test_the_number_of_processes_is_part_of_a_recipe(make_run: Make, tmp_path: Path) -> None:
    """Batch norm sees the samples of its own process alone."""
    for devices, accuracy in ((1, 0.9), (8, 0.8)):
        make_run("pact", 4, devices, accuracy, **{"trainer.devices": devices})
    assert len(measured_table(find_runs(tmp_path)).rows) == 2


def test_equal_differences_have_no_p(make_run: Make, tmp_path: Path) -> None:
    for seed, one in enumerate((0.95, 0.90, 0.85)):
        make_run("pact", 4, seed, one)
        make_run("dorefa", 4, seed, one - 0.05)
    table = measured_table(find_runs(tmp_path), against={"quantizer": "dorefa"})
    (record,) = (record for record in table.records if record["quantizer"] == "pact")
    assert record["against"] == pytest.approx(0.05) and record["against_p"] is None


def test_a_difference_over_fewer_seeds_says_so(make_run: Make, tmp_path: Path) -> None:
    for seed in range(5):
        make_run("pact", 4, seed, 0.9 + seed / 1000)
    for seed in range(3):
        make_run("dorefa", 4, seed, 0.89 + seed**2 / 1000)
        make_run("none", 32, seed, 0.92 + seed**2 / 1000)
    table = measured_table(find_runs(tmp_path), against={"quantizer": "dorefa"})
    (row,) = (row for row in table.rows if row["quantizer"] == "pact")
    assert row["difference"].endswith(" (n = 3)") and row["against"].endswith(", n = 3)")
    (record,) = (record for record in table.records if record["quantizer"] == "pact")
    assert (record["n"], record["difference_n"], record["against_n"]) == (5, 3, 3)


def test_the_float_network_is_no_partner(make_run: Make, tmp_path: Path) -> None:
    make_run("none", 32, 0, 0.92)
    make_run("pact", 4, 0, 0.9)
    with pytest.raises(ConfigError, match="is the float network, which every table compares with"):
        measured_table(find_runs(tmp_path), against={"quantizer": "none"})
