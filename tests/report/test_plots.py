from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from qexp.errors import ConfigError
from qexp.report.artefact_plots import system_figure
from qexp.report.plots import alpha_figure, curves_figure
from qexp.report.style import caption, spread, styled
from qexp.runs import find_runs

MakeRun = Callable[..., Path]
Rows = Callable[[int, int], list[tuple[int, int, str, float]]]


def test_every_alpha_has_a_line_and_a_name(make_run: MakeRun, alpha_rows: Rows) -> None:
    figure = alpha_figure(make_run(metrics=alpha_rows(19, 40)))
    (axes,) = figure.axes
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    assert len(axes.lines) == len(labels) == 19
    assert axes.lines[0].get_xdata()[0] == 1
    assert axes.lines[0].get_xdata()[-1] == 40
    heights = sorted(label.xyann[1] for label in labels)
    # A label is 7 points high; the axes are about 0.76 * 4.4 inches.
    points = (axes.get_ylim()[1] - axes.get_ylim()[0]) / (0.76 * 4.4 * 72)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 7 * points
    assert "resnet20 on cifar10, pact w4a4" in figure.get_supxlabel()


def test_many_alphas_share_a_colour_bar(make_run: MakeRun, alpha_rows: Rows) -> None:
    figure = alpha_figure(make_run(metrics=alpha_rows(49, 5)))
    assert len(figure.axes[0].lines) == 49
    assert figure.axes[1].get_yticklabels()[0].get_text() == "act0"


def test_a_method_with_steps_is_drawn_too(make_run: MakeRun) -> None:
    figure = alpha_figure(make_run(metrics=[(0, 0, "step/conv1", 0.1), (1, 9, "step/conv1", 0.2)]))
    assert figure.axes[0].get_ylabel().startswith("step")


def test_a_nan_and_a_negative_alpha_are_drawn(make_run: MakeRun) -> None:
    rows = [(1, 1, "alpha/a", -0.5), (2, 2, "alpha/a", float("nan")), (1, 1, "alpha/b", 1.0)]
    axes = alpha_figure(make_run(metrics=rows)).axes[0]
    assert axes.get_ylim()[0] < -0.5
    alpha_figure(make_run(metrics=[(1, 1, "alpha/a", float("nan"))])).savefig("/dev/null", format="png")


def test_a_run_without_alphas_says_so(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"no alpha in its metrics.csv"):
        alpha_figure(make_run("none", metrics=[(1, 9, "train_loss", 1.0)]))


def test_curves_are_named_by_what_differs(make_run: MakeRun, alpha_rows: Rows, tmp_path: Path) -> None:
    make_run("pact", 4, 0, metrics=alpha_rows(2, 5))
    make_run("dorefa", 2, 0, metrics=alpha_rows(2, 5))
    figure = curves_figure(find_runs(tmp_path))
    loss, accuracy = figure.axes
    assert (len(loss.lines), len(accuracy.lines)) == (4, 6)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dorefa w2a2", "pact w4a4"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation", "test"]
    assert max(accuracy.lines[0].get_ydata()) > 1  # percent


def test_seeds_of_a_recipe_share_a_colour(make_run: MakeRun, alpha_rows: Rows, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        make_run("pact", 4, seed, metrics=alpha_rows(2, 5))
    names = [text.get_text() for text in curves_figure(find_runs(tmp_path)).legends[0].get_texts()]
    assert names == ["seed 0", "seed 1", "seed 2"]
    make_run("dorefa", 2, 0, metrics=alpha_rows(2, 5))
    figure = curves_figure(find_runs(tmp_path))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dorefa w2a2", "pact w4a4 (3 runs)"]
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert len(colours) == 8 and len(set(colours)) == 2


def test_settings_of_one_last_word_are_told_apart(make_run: MakeRun, alpha_rows: Rows, tmp_path: Path) -> None:
    for kind in ("weight", "activation"):
        make_run("pact", 4, 0, metrics=alpha_rows(2, 5), **{f"quantizer.{kind}.scope": "channel"})
    names = [text.get_text() for text in curves_figure(find_runs(tmp_path)).legends[0].get_texts()]
    assert len(set(names)) == 2
    assert any("quantizer.weight.scope channel" in name for name in names)


def test_seeds_from_float_runs_of_their_own_are_one_recipe(
    make_run: MakeRun, alpha_rows: Rows, tmp_path: Path
) -> None:
    for seed in (0, 1):
        path = make_run("pact", 4, seed, metrics=alpha_rows(2, 5), **{"model.weights": f"float{seed}"})
        result = json.loads((path / "result.json").read_text())
        result |= {"weights_digest": f"{seed}abc", "weights_recipe": "made alike"}
        (path / "result.json").write_text(json.dumps(result))
    make_run("dorefa", 2, 0, metrics=alpha_rows(2, 5), **{"model.weights": "float0"})
    names = [text.get_text() for text in curves_figure(find_runs(tmp_path)).legends[0].get_texts()]
    assert any("(2 runs)" in name for name in names), names


def test_another_training_loss_is_named(make_run: MakeRun, alpha_rows: Rows, tmp_path: Path) -> None:
    for seed, loss in enumerate(("cross_entropy", "squared_hinge")):
        make_run("pact", 4, seed, metrics=alpha_rows(2, 5), **{"task.loss": loss})
        label = curves_figure(find_runs(tmp_path)).axes[0].get_ylabel()
        assert label == "cross-entropy (nats)" + seed * "; in training squared hinge"


def test_a_setting_of_the_method_is_named_beside_a_float_run(
    make_run: MakeRun, alpha_rows: Rows, tmp_path: Path
) -> None:
    make_run("none", 32, 0, metrics=alpha_rows(2, 5))
    for scope in ("layer", "element"):
        make_run("pact", 32, 0, metrics=alpha_rows(2, 5), **{"quantizer.activation.scope": scope})
    names = [text.get_text() for text in curves_figure(find_runs(tmp_path)).legends[0].get_texts()]
    assert sorted(names) == ["none 32", "pact w32a32 scope element", "pact w32a32 scope layer"]


def test_drawing_leaves_the_callers_style_alone(make_run: MakeRun, alpha_rows: Rows) -> None:
    before = dict(mpl.rcParams)
    alpha_figure(make_run(metrics=alpha_rows(3, 3)))
    assert dict(mpl.rcParams) == before


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_labels_never_overlap_nor_leave_the_axes(wanted: list[float]) -> None:
    placed = spread(wanted, gap=0.2, low=0.0, high=10.0)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    ranked = [placed[index] for index in order]
    assert all(b - a >= 0.2 - 1e-9 for a, b in itertools.pairwise(ranked))
    assert min(placed) >= -1e-9
    assert max(placed) <= 10 + 1e-9


def test_a_long_caption_stays_within_its_figure() -> None:
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    figure.subplots()
    with styled():
        caption(figure, "what was run, and by which recipe, " * 12 + "\nseed 0")
    FigureCanvasAgg(figure).draw()
    (text,) = (one for one in figure.findobj(Text) if "seed 0" in one.get_text())
    assert text.get_window_extent().x1 <= figure.bbox.x1
    assert text.get_text().count("\n") >= 4 and text.get_text().endswith("\nseed 0")


def test_a_run_without_the_setting_that_differs_is_named(
    make_run: MakeRun, alpha_rows: Rows, tmp_path: Path
) -> None:
    make_run("pact", 4, 0, metrics=alpha_rows(2, 5))
    make_run("pact", 4, 0, metrics=alpha_rows(2, 5), **{"optimizer.momentum": 0.9})
    names = [text.get_text() for text in curves_figure(find_runs(tmp_path)).legends[0].get_texts()]
    assert sorted(names) == ["momentum 0.9", "without momentum"]


def test_an_alpha_is_drawn_at_its_value_at_the_epochs_end(make_run: MakeRun) -> None:
    rows = [(1, 1, "alpha/a", 1.0), (2, 2, "alpha/a", 3.0), (2, 3, "alpha/a", 4.0)]
    (line,) = alpha_figure(make_run(metrics=rows)).axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [1.0, 4.0])


def test_accuracies_are_drawn_in_percent(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(metrics=[(1, 1, "train_accuracy", 0.5), (2, 2, "train_accuracy", 0.7)])
    (line,) = curves_figure(find_runs(tmp_path)).axes[0].lines
    assert list(line.get_ydata()) == pytest.approx([50.0, 70.0])


def test_throughputs_are_drawn_from_the_most_bits_on_published_before_modelled() -> None:
    points = [(bits, limit, limit + bits, 2 * limit + bits) for bits in (2, 16) for limit in (32.0, 64.0)]
    lines = system_figure(points, "c").axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[48.0, 34.0], [80.0, 66.0], [80.0, 66.0], [144.0, 130.0]]
