"""Figures of a paper's table or figure: every cell beside what was measured, and the system model of figure 6."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, ScalarFormatter

from qexp.published import Artefact
from qexp.report.dots import MEASURED, PUBLISHED, Dots, dots_figure
from qexp.report.intervals import LEAST
from qexp.report.numbers import is_share
from qexp.report.style import INK, caption, categorical, styled
from qexp.report.verdicts import Entry, Jobs, departures, entries, obtained, other_network
from qexp.runs import Run


def cells_figure(artefact: Artefact, runs: Sequence[Run], only: str = "", jobs: Jobs | None = None) -> Figure:
    """Draw each published cell and the runs that measure it, one line a cell.

    Args:
        artefact: the published cells.
        runs: any; those that fit no cell are not drawn.
        only: draw the rows whose label contains this text, in any case; empty for all.
        jobs: of the artefact's experiment: they say which network is meant where the cell does not.
    """
    shown = entries(artefact, runs, only)
    columns = {entry.cell.column for entry in shown}
    panels = len({entry.cell.row for entry in shown}) if len(columns) > 1 else 1
    several = 1 < panels <= MOST_PANELS
    text = f"Published: {artefact.source}. Measured: {_measured(shown)}."
    factor = _factor(artefact)
    dots = [
        _dots(entry, _apart(entry, shown), other_network(entry, jobs), several=several, factor=factor)
        for entry in shown
    ]
    return dots_figure(f"{artefact.full_name}: {artefact.title}", dots, _unit(artefact), text)


MOST_PANELS = 8
"""Rows of a table that get a panel each; those of a longer one stand in one panel, with their names."""


def _apart(entry: Entry, shown: Sequence[Entry]) -> str:
    """Return what tells an entry's runs from the other runs of its cell; nothing where there are no others."""
    of_cell = [
        departures(one.cell, one.group) for one in shown if one.cell is entry.cell and one.group is not None
    ]
    if len(of_cell) < 2 or entry.group is None:
        return ""
    own = [said for said in departures(entry.cell, entry.group) if not all(said in said_of for said_of in of_cell)]
    return "; ".join(own)


def _dots(entry: Entry, apart: str, network: str, *, several: bool, factor: float) -> Dots:
    cell, summary, group = entry.cell, entry.measured, entry.group
    label = (cell.column if several else " ".join(filter(None, [cell.row, cell.column]))) + obtained(cell)
    label += f": {apart}" if apart else ""
    return Dots(
        group=cell.row if several else "",
        label=label,
        colour=cell.keys.get("quantizer", "published only"),
        published=factor * cell.comparable,
        measured=None if summary is None else factor * summary.mean,
        half_width=None if summary is None or summary.half_width is None else factor * summary.half_width,
        n=0 if summary is None else summary.n,
        budget="" if group is None else group.first.shortened,
        network=network,
        without=_why_nothing(entry),
    )


def _measured(shown: Sequence[Entry]) -> str:
    """Say what the measured values are of their runs."""
    kinds = dict.fromkeys(entry.cell.statistic for entry in shown)
    return " or ".join(f"{kind}, 95% interval from n = {LEAST} on" if kind == "mean" else kind for kind in kinds)


def _why_nothing(entry: Entry) -> str:
    if entry.group is not None:
        return "no baseline"
    return "not run" if entry.cell.keys else ""


SHARES = {
    "test_accuracy_top5": "top-5 accuracy",
    "train_accuracy": "accuracy in training",
    "val_accuracy": "accuracy on validation images",
    "test_miou": "mean intersection over union",
    "test_map": "mean average precision",
}
"""What a share is called beside an axis, where it is no top-1 accuracy of the test images."""


def _factor(artefact: Artefact) -> float:
    return 100.0 if is_share(artefact.metric) else 1.0


def _unit(artefact: Artefact) -> str:
    if any(cell.quantity == "degradation" for cell in artefact.cells):
        return "lost against float (points)"
    if is_share(artefact.metric):
        return f"{SHARES.get(artefact.metric, 'top-1 accuracy')} (%)"
    return artefact.metric.replace("_", " ")


def ratios_figure(title: str, rows: Sequence[tuple[str, float, float]], text: str) -> Figure:
    """Draw ratios, published hollow and modelled filled, a line for each.

    Args:
        title: of the figure.
        rows: (label, published, modelled), from the top down.
        text: the caption.
    """
    with styled():
        figure = Figure(figsize=(6.4, 1.4 + 0.32 * len(rows)), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        places = range(len(rows))
        (colour,) = categorical(1)
        axes.plot([seen for _, seen, _ in rows], places, color=colour, **{**PUBLISHED, "linestyle": ""})
        axes.plot([made for _, _, made in rows], places, color=colour, **{**MEASURED, "linestyle": ""})
        axes.set_yticks(places, [label for label, _, _ in rows])
        axes.invert_yaxis()
        axes.set_xlabel("against 8-bit uniform weights")
        axes.legend(["published", "modelled"])
        caption(figure, text)
    return figure


def system_figure(points: Sequence[tuple[int, float, float, float]], text: str) -> Figure:
    """Draw throughput against the bits, published hollow and modelled filled, a colour for each bandwidth.

    Args:
        points: (bits, bandwidth in GB/s, published images/s, modelled images/s).
        text: the caption.
    """
    bandwidths = sorted({bandwidth for _, bandwidth, _, _ in points})
    widths = sorted({bits for bits, _, _, _ in points}, reverse=True)
    colours = categorical(len(bandwidths))
    with styled():
        figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title("ResNet50 on PACT's accelerator (figure 6c) and in the system model")
        for bandwidth, colour in zip(bandwidths, colours, strict=True):
            line = sorted((widths.index(bits), seen, made) for bits, of, seen, made in points if of == bandwidth)
            places = [place for place, _, _ in line]
            axes.plot(places, [seen for _, seen, _ in line], color=colour, **PUBLISHED)
            axes.plot(places, [made for _, _, made in line], color=colour, **MEASURED)
        axes.set_yscale("log")
        axes.set_yticks([500, 1000, 2000, 4000, 8000])
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(range(len(widths)), [str(bits) for bits in widths])
        axes.set(xlabel="bits of weights and activations", ylabel="images/s")
        kinds = [Line2D([], [], color=INK, **look) for look in (PUBLISHED, MEASURED)]
        lines = [Line2D([], [], color=colour) for colour in colours]
        names = ["unlimited" if math.isinf(bandwidth) else f"{bandwidth:g} GB/s" for bandwidth in bandwidths]
        axes.legend([*kinds, *lines], ["published (read off)", "modelled", *names])
        caption(figure, text)
    return figure
