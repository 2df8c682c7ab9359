"""A paper's figure from its command to its table and picture, at the budget that takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from qexp import hydra_app
from qexp.commands import plot, table
from qexp.published import artefact_names, load_artefact
from qexp.report.artefact_plots import cells_figure, ratios_figure, system_figure
from qexp.runs import find_runs


@pytest.mark.slow
def test_a_figure_from_its_command_to_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment=pact/fig8", "budget=smoke", "alpha_regularization.lambda_alpha=1e-3,1e-2", "epochs=1"]
    quick = ["model.depth=8", "model.width=4", "trainer.progress=false", "trainer.threads=1", "logger=none"]
    assert hydra_app.main("train", [*words, *quick]) == 0
    assert len(find_runs(tmp_path / "outputs" / "pact" / "fig8")) == 3  # the float network and two penalties
    assert table.main(["pact/fig8"]) == 0
    out = capfd.readouterr().out
    assert out.count("none: a smoke test") == 3
    assert out.count("not run") == 3
    assert "shortened budget: 1 of 200 epochs, 256 training samples, smoke test on digits" in out
    assert plot.main(["pact/fig8"]) == 0
    figures = tmp_path / "outputs" / "pact" / "fig8" / "figures"
    assert sorted(path.name for path in figures.iterdir()) == ["cells.png", "curves.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.iterdir())


def test_records_count_where_they_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "records" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("epochs: 1\n")
    assert find_runs(tmp_path) == []
    assert [run.path for run in find_runs(tmp_path / "results" / "records")] == [folder]


@pytest.mark.parametrize("name", [name for name in artefact_names() if load_artefact(name).cells])
def test_every_table_is_drawn_before_anything_is_run(name: str) -> None:
    figure = cells_figure(load_artefact(name), [])
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("not run") >= sum(bool(cell.keys) for cell in load_artefact(name).cells)


def test_the_system_model_is_drawn_beside_the_published_points() -> None:
    points = [(bits, bandwidth, 100.0, 110.0) for bits in (2, 16) for bandwidth in (32.0, float("inf"))]
    figure: Figure = system_figure(points, "a caption")
    (axes,) = figure.axes
    drawn = [list(line.get_ydata()) for line in axes.get_lines()]
    assert drawn == [[100.0, 100.0], [110.0, 110.0]] * 2
    assert "unlimited" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_ratios_are_drawn_beside_the_published_ones() -> None:
    (axes,) = ratios_figure("a title", [("energy, 4 bits", 0.73, 0.72), ("speed, 4 bits", 1.7, 1.8)], "x").axes
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[0.73, 1.7], [0.72, 1.8]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["energy, 4 bits", "speed, 4 bits"]
