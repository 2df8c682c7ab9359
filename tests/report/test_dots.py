"""Published beside measured: every value has its marker, and nothing lies on anything else."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from qexp.report.dots import Dots, dots_figure

METHODS = ("DoReFa", "PACT")


def made_up(groups: int, bits: int, measured: bool = True) -> list[Dots]:
    """Cells of made-up numbers: a float one and `bits` of each method in each group; every third was not run."""
    found = []
    for group in range(groups):
        names = ["float", *(f"{method} {width} bit" for method in METHODS for width in range(2, 2 + bits))]
        for place, name in enumerate(names):
            ran = measured and place % 3 != 2
            found.append(
                Dots(
                    group=f"network {group}",
                    label=name,
                    colour=name.split()[0],
                    published=50 + 10 * group + place,
                    measured=49.6 + 10 * group + place if ran else None,
                    half_width=0.4 if place % 2 else None,
                    n=(3 if place % 2 else 1) if ran else 0,
                    budget=("", "30 of 200 epochs", "12 of 200 epochs")[place % 3],
                )
            )
    return found


def draw(rows: list[Dots]) -> Figure:
    figure = dots_figure("Made up", rows, "top-1 accuracy (%)", "made-up numbers")
    FigureCanvasAgg(figure).draw()
    return figure


def positions(figure: Figure, kind: str) -> list[tuple[float, float]]:
    lines = [line for axes in figure.axes for line in axes.lines if line.get_gid() == kind]
    return [point for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def bars(figure: Figure) -> list[Any]:
    found = [part for axes in figure.axes for part in axes.collections if part.get_gid() == "interval"]
    return [segment for part in found for segment in part.get_segments()]


@pytest.mark.parametrize(("groups", "bits"), [(1, 2), (1, 4), (5, 4), (6, 4), (12, 2)])
def test_every_value_has_its_marker_and_no_text_lies_on_another(groups: int, bits: int) -> None:
    rows = made_up(groups, bits)
    figure = draw(rows)
    ran = [row for row in rows if row.measured is not None]
    assert sorted(x for x, _ in positions(figure, "published")) == sorted(row.published for row in rows)
    assert sorted(x for x, _ in positions(figure, "measured")) == sorted(row.measured for row in ran)
    intervals = sorted((row.measured - 0.4, row.measured + 0.4) for row in ran if row.n >= 3)
    assert sorted((low[0], high[0]) for low, high in bars(figure)) == pytest.approx(np.array(intervals))
    assert sum(len(axes.get_yticks()) for axes in figure.axes) == len(rows)
    assert_apart(figure)


def _shown(axes: Axes) -> list[Text]:
    """Labels of the ticks that lie inside the axis; matplotlib keeps some beyond its ends."""
    low, high = axes.get_xlim()
    return [
        label for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True) if low <= tick <= high
    ]


def assert_apart(figure: Figure) -> None:
    renderer = figure.canvas.get_renderer()
    texts = [text for legend in figure.legends for text in (*legend.get_texts(), legend.get_title())]
    texts += [figure._supxlabel]
    for axes in figure.axes:
        notes = [text for text in axes.texts if isinstance(text, Annotation)]
        titles = [title for title in (axes._left_title, axes.xaxis.label) if title.get_text()]
        texts += [*axes.get_yticklabels(), *_shown(axes), *notes, *titles]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for (one, box), (other, another) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        shared = (
            min(box.x1, another.x1) - max(box.x0, another.x0),
            min(box.y1, another.y1) - max(box.y0, another.y0),
        )
        assert min(shared) < 1, f"{one.get_text()!r} lies on {other.get_text()!r}"
    for text, box in zip(texts, boxes, strict=True):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width, text.get_text()
        assert box.y0 >= 0 and box.y1 <= figure.bbox.height, text.get_text()


def test_published_is_hollow_measured_is_filled_and_no_line_joins_them() -> None:
    figure = draw(made_up(2, 3))
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_gid() in ("published", "measured"):
                assert line.get_linestyle() == "None"
                assert (line.get_markerfacecolor() == "none") == (line.get_gid() == "published")
            else:
                assert list(line.get_xdata()) == [0, 1], "a row's own line, from end to end of the panel"
        assert {part.get_gid() for part in axes.collections} == {"interval"}
        assert not axes.patches


def test_budgets_are_named_once_and_marked_where_they_count() -> None:
    figure = draw([*made_up(1, 3), Dots("network 0", "not run", "PACT", 60.0, budget="1 of 200 epochs")])
    notes = [text.get_text() for text in figure.axes[0].texts]
    assert notes == ["n = 1", "n = 3†", "not run", "n = 3", "n = 1†", "not run", "n = 1", "not run"]
    assert figure.get_supxlabel() == "made-up numbers\n† shortened: 30 of 200 epochs"


def test_nothing_measured_still_shows_what_was_published() -> None:
    rows = made_up(2, 4, measured=False)
    figure = draw(rows)
    assert len(positions(figure, "published")) == len(rows)
    assert positions(figure, "measured") == []
    assert bars(figure) == []
    assert {text.get_text() for axes in figure.axes for text in axes.texts} == {"not run"}
    assert "95%" not in "".join(text.get_text() for text in figure.legends[0].get_texts())


def test_an_interval_needs_three_runs_and_a_marker_a_number() -> None:
    rows = [
        Dots("a", "two", "PACT", None, 90.0, 5.0, 2),
        Dots("a", "failed", "PACT", 91.0, math.nan, math.nan, 3),
        Dots("b", "empty", "PACT", None),
    ]
    figure = draw(rows)
    assert bars(figure) == []
    assert (len(positions(figure, "published")), len(positions(figure, "measured"))) == (1, 1)
    assert list(figure.axes[1].get_xticks()) == []


def test_one_method_needs_no_key_of_colours_and_many_fit() -> None:
    assert len(draw([Dots("a", "x", "PACT", 1.0)]).legends[0].get_texts()) == 2
    many = [
        Dots("a", f"method number {place} 4 bit", f"method number {place}", float(place)) for place in range(12)
    ]
    figure = draw(many)
    assert len(figure.legends[0].get_texts()) == 14
    assert_apart(figure)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="no rows"):
        dots_figure("title", [], "unit", "text")


def test_each_dot_stands_on_its_rows_line():
    rows = [
        Dots("g", f"l{place}", ("a", "b")[place % 2], 50.0 + place, 60.0 + place, None, 1) for place in range(4)
    ]
    (axes,) = dots_figure("t", rows, "u", "c").axes
    for kind, start in (("published", 50.0), ("measured", 60.0)):
        lines = [line for line in axes.lines if line.get_gid() == kind]
        points = [point for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]
        assert sorted(points) == [(start + place, place) for place in range(4)]
