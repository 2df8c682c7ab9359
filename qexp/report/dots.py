"""Published beside measured, one line a cell: a hollow marker and a filled one, never connected nor mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from qexp.report.intervals import LEAST
from qexp.report.style import INK, caption, categorical, styled

PUBLISHED: dict[str, Any] = {
    "marker": "D", "markersize": 6.5, "markerfacecolor": "none", "markeredgewidth": 1.2, "linestyle": ""
}  # fmt: skip
MEASURED: dict[str, Any] = {"marker": "o", "markersize": 4.8, "markeredgewidth": 0, "linestyle": ""}

_WIDTH, _LINE, _PANEL, _REST = 7.2, 0.19, 0.55, 1.2  # inches: the figure; a line; around a panel, and around all
_GUIDE = "#E6E6E6"
_MARKS = "†‡§¶"


@dataclass(frozen=True)
class Dots:
    """One cell.

    Attributes:
        group: the cells of one group share a panel with an axis of its own (a network): a dozen groups at most.
        label: the line's name (method and bits).
        colour: cells of the same key have the same colour (a method).
        published: what was printed, in the figure's unit; None where nothing was.
        measured: the mean of the runs; None where there are none.
        half_width: of the 95% interval around `measured`; drawn from `intervals.LEAST` runs on.
        n: runs behind `measured`.
        budget: how the runs were shortened (`30 of 200 epochs`), empty for the full budget.
        network: in what their network is not the paper's (`model.width=0.25`), empty where it is.
        without: what stands in the place of `n` where nothing was measured.
    """

    group: str
    label: str
    colour: str
    published: float | None
    measured: float | None = None
    half_width: float | None = None
    n: int = 0
    budget: str = ""
    network: str = ""
    without: str = "not run"

    @property
    def remark(self) -> str:
        """What a reader of the measured value has to know: a shortened budget, another network."""
        shortened = f"shortened: {self.budget}" if self.budget else ""
        network = f"another network: {self.network}" if self.network else ""
        return "; ".join(filter(None, [shortened, network]))


def dots_figure(title: str, rows: Sequence[Dots], unit: str, text: str) -> Figure:
    """Draw every cell on a line of its own, in the given order, groups together.

    Args:
        title: of the figure.
        rows: at least one.
        unit: the x-axis's label, with the unit in it (`top-1 accuracy (%)`).
        text: the caption; shortened budgets and other networks stand below it, by the marks that lines carry.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("nothing to draw: no rows")
    groups = {group: [row for row in rows if row.group == group] for group in dict.fromkeys(r.group for r in rows)}
    keys = list(dict.fromkeys(row.colour for row in rows))
    colours: dict[str, Any] = dict(zip(keys, categorical(len(keys)), strict=True))
    marks = _marks(rows)
    with styled():
        height = _REST + _PANEL * len(groups) + _LINE * len(rows)
        figure = Figure(figsize=(_WIDTH, height), dpi=150, layout="constrained")
        sizes = [len(cells) for cells in groups.values()]
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=sizes)[:, 0]
        for axes, (group, cells) in zip(panels, groups.items(), strict=True):
            axes.set_title(group, fontsize=9, fontweight="bold")
            _lines(axes, cells, marks)
            for key, colour in colours.items():
                _markers(axes, [(row, place) for place, row in enumerate(cells) if row.colour == key], colour)
        panels[-1].set_xlabel(unit)
        _legend(figure, title, rows, colours)
        notes = [f"{mark} {remark}" for remark, mark in marks.items()]
        caption(figure, "\n".join([text, *notes]))
    return figure


def _marks(rows: Sequence[Dots]) -> dict[str, str]:
    """Return a mark for each remark on a measured cell; beyond the signs they are doubled."""
    remarks = dict.fromkeys(row.remark for row in rows if row.remark and _drawn(row.measured))
    signs = {remark: divmod(place, len(_MARKS)) for place, remark in enumerate(remarks)}
    return {remark: _MARKS[sign] * (times + 1) for remark, (times, sign) in signs.items()}


def _lines(axes: Axes, rows: Sequence[Dots], marks: dict[str, str]) -> None:
    """Name the lines at the left, and say at the right how many runs are behind each."""
    for place, row in enumerate(rows):
        text = f"n = {row.n}{marks.get(row.remark, '')}" if _drawn(row.measured) else row.without
        axes.axhline(place, color=_GUIDE, linewidth=0.6, zorder=0)
        axes.annotate(
            text, xy=(1.0, place), xytext=(4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            fontsize=7, va="center", color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # read from the top down
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.margins(x=0.06)
    if not any(_drawn(value) for row in rows for value in (row.published, row.measured)):
        axes.set_xticks([])  # an axis of no values would show matplotlib's own 0 to 1


def _markers(axes: Axes, cells: Sequence[tuple[Dots, int]], colour: Any) -> None:
    """Draw the markers of one colour; the hollow one is the larger, so that a filled one inside it stays seen."""
    published = [(row.published, place) for row, place in cells if _drawn(row.published)]
    measured = [(row.measured, place) for row, place in cells if _drawn(row.measured)]
    bars = [
        (row.measured - row.half_width, row.measured + row.half_width, place)
        for row, place in cells
        if _drawn(row.measured) and _drawn(row.half_width) and row.n >= LEAST
    ]
    if bars:
        low, high, places = zip(*bars, strict=True)
        axes.hlines(places, low, high, color=colour, linewidth=1.6, gid="interval")
    if published:
        axes.plot(*zip(*published, strict=True), color=colour, gid="published", **PUBLISHED)
    if measured:
        axes.plot(*zip(*measured, strict=True), color=colour, gid="measured", **MEASURED)


def _drawn(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _legend(figure: Figure, title: str, rows: Sequence[Dots], colours: dict[str, Any]) -> None:
    """Put the title on top, then what the markers mean, then what the colours do where there are several."""
    bar = f" (bar: 95% interval, n ≥ {LEAST})" if any(row.n >= LEAST for row in rows) else ""
    handles = [Line2D([], [], color=INK, **PUBLISHED), Line2D([], [], color=INK, **MEASURED)]
    texts = ["published", f"measured{bar}"]
    if len(colours) > 1:
        handles += [Line2D([], [], color=colour, linewidth=4) for colour in colours.values()]
        texts += list(colours)
    columns = len(texts) if sum(map(len, texts)) + 5 * len(texts) < 100 else 4
    figure.legend(
        handles, texts, title=title, alignment="left", title_fontsize=10, loc="outside upper left", ncols=columns,
        handlelength=1.2, columnspacing=1.4, borderpad=0.3,
    )  # fmt: skip
