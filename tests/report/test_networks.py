"""A network that is not what its option or its paper says is named with what it has otherwise, in every form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qexp.commands.table import jobs_of
from qexp.published import load_artefact
from qexp.report.across import across_table
from qexp.report.artefact_plots import cells_figure
from qexp.report.facts import facts
from qexp.report.measured import measured_table
from qexp.report.networks import changed
from qexp.report.plots import alpha_figure, curves_figure
from qexp.runs import find_runs, read_run

Make = Callable[..., Path]

CONVNET = {"_target_": "qexp.models.qnn.QNNConvNet", "channels": 128, "hidden": 1024, "width": 1.0}


@pytest.fixture
def narrow(make_run: Make) -> Callable[..., Path]:
    """A run of the ConvNet at a quarter of the width: `narrow("pact", 4, **{"model": {...}})`."""

    def make(quantizer: str = "pact", bits: int = 4, seed: int = 0, **changes: object) -> Path:
        names = {"model": "qnn_convnet", "dataset": "cifar10", "quantizer": "qnn_binary"}
        rows = [(1, 1, "train_loss", 1.0), (1, 1, "alpha/a", 1.0)]
        usual = {"names": names, "model": {**CONVNET, "width": 0.25}, "metrics": rows}
        return make_run(quantizer, bits, seed, 0.9, **usual | changes)

    return make


def test_it_is_a_column_of_a_table_of_runs(narrow: Make, tmp_path: Path) -> None:
    narrow("pact", 4)
    narrow("pact", 2)
    table = measured_table(find_runs(tmp_path))
    assert "model.width" in [column.header for column in table.columns]
    assert [row["model.width"] for row in table.rows] == ["0.25", "0.25"]
    assert [record["model.width"] for record in table.records] == [0.25, 0.25]


def test_an_option_as_it_is_gets_no_column(narrow: Make, tmp_path: Path) -> None:
    narrow(model={**CONVNET, "width": 1})
    assert not any(column.key.startswith("model.") for column in measured_table(find_runs(tmp_path)).columns)


def test_a_table_across_names_it(narrow: Make, tmp_path: Path) -> None:
    narrow("pact", 4)
    narrow("pact", 2)
    table = across_table(find_runs(tmp_path), "test_accuracy", "bits")
    assert any("model.width 0.25" in note for note in table.notes)


def test_a_table_across_networks_says_it_below(narrow: Make, make_run: Make, tmp_path: Path) -> None:
    narrow("pact", 4)
    names = {"model": "resnet20", "dataset": "cifar10", "quantizer": "qnn_binary"}
    make_run("pact", 4, 0, 0.8, names=names)
    table = across_table(find_runs(tmp_path), "test_accuracy", "model")
    assert len(table.rows) == 1
    assert "qnn_convnet is qnn_convnet (model.width=0.25)." in table.notes


def test_a_network_of_ones_own_under_a_shipped_name_has_its_own_settings(narrow: Make) -> None:
    one = facts(read_run(narrow(model={"_target_": "mine.Net", "width": 3})))
    assert changed(one) == {}


def test_figures_of_runs_name_it(narrow: Make, tmp_path: Path) -> None:
    path = narrow()
    for figure in (alpha_figure(path), curves_figure(find_runs(tmp_path))):
        assert "qnn_convnet (model.width=0.25) on cifar10" in figure.get_supxlabel()


@pytest.mark.parametrize("jobs", [None, jobs_of])
def test_a_papers_figure_marks_it(narrow: Make, tmp_path: Path, jobs: object) -> None:
    narrow(bits=1, **{"optimizer": {"update_scale": "fan"}})
    figure = cells_figure(load_artefact("qnn/table1"), find_runs(tmp_path), "Theano", jobs)  # type: ignore[arg-type]
    (text,) = [line for line in figure.get_supxlabel().split("\n") if line.startswith("†")]
    assert "another network: model.width=0.25" in text


def test_what_a_paper_or_its_experiment_asks_for_is_no_other_network(narrow: Make, tmp_path: Path) -> None:
    names = {"model": "qnn_convnet", "dataset": "svhn_full", "quantizer": "qnn_binary"}
    half = {**CONVNET, "channels": 64}
    narrow(bits=1, names=names, model=half, **{"optimizer": {"update_scale": "fan"}})
    figure = cells_figure(load_artefact("qnn/table1"), find_runs(tmp_path), "Theano", jobs_of)
    assert "another network" not in figure.get_supxlabel()


def test_an_option_stands_on_another(make_run: Make) -> None:
    names = {"model": "rnn", "dataset": "ptb", "quantizer": "pact"}
    model = {
        "_target_": "qexp.models.recurrent.LanguageModel",
        "cell": "rnn",
        "units": 256,
        "layers": 1,
        "embedding": 128,
    }
    assert changed(facts(read_run(make_run(names=names, model=model)))) == {"model.units": 256}
    unknown = {**names, "model": "of_a_user"}
    assert changed(facts(read_run(make_run(names=unknown, model=model)))) == {}
