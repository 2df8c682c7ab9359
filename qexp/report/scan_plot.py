"""The figure of a scan: the loss against each site's alpha, in three panels as in the paper's figure 3 (PACT)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from qexp.report.facts import Facts, facts
from qexp.report.plots import run_caption
from qexp.report.scans import MODES, Curve, read_scan
from qexp.report.style import INK, MOST_LABELS, caption, depth_bar, sequential, styled
from qexp.runs import read_run

_WIDTH, _HEIGHT = 10.4, 4.2  # inches
_SHOWN = 4.0


def scan_figure(run_path: Path) -> Figure:
    """Draw a run's `alpha_scan.csv`: a panel for each way to measure, a line for each site, a dot where it stands.

    Both axes are logarithmic, and the panels share them, so that heights can be compared across. A learned value
    that is not above 0 has no place on them; its dot is left out. Lines leave at the top, see `_limit`.

    Raises:
        ConfigError: the run has no scan.
    """
    curves = read_scan(run_path)
    colours = sequential(len(curves))
    with styled():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=150, layout="constrained")
        panels = figure.subplots(1, len(MODES), sharex=True, sharey=True)
        for axes, mode in zip(panels, MODES, strict=True):
            _draw(axes, curves, colours, mode)
        panels[0].set_ylabel("loss (nats)")
        _limit(panels[0], curves)
        _name_sites(figure, panels, curves, colours)
        run = facts(read_run(run_path))
        caption(figure, f"{run_caption(run)}\n{_measured(run, curves)}")
    return figure


def _draw(axes: Axes, curves: Sequence[Curve], colours: Sequence[Any], mode: str) -> None:
    title = MODES[mode]
    axes.set_title(title[0].upper() + title[1:])
    names = " or ".join(dict.fromkeys(curve.quantity for curve in curves))
    axes.set(xscale="log", yscale="log", xlabel=f"{names} of one site, in units of the activation")
    for curve, colour in zip(curves, colours, strict=True):
        axes.plot(curve.values, curve.losses[mode], color=colour, linewidth=1.1)
    for curve, colour in zip(curves, colours, strict=True):  # above all lines
        if curve.learned > 0:
            axes.plot(
                [curve.learned], [curve.at_learned(mode)], "o", color=colour, markersize=4.5, zorder=3,
                markeredgecolor="white", markeredgewidth=0.6,
            )  # fmt: skip
    for axis, digits in ((axes.xaxis, (1, 2, 5)), (axes.yaxis, (1, 2, 3, 5))):
        axis.set_major_locator(LogLocator(subs=digits))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def _limit(axes: Axes, curves: Sequence[Curve]) -> None:
    """Show losses up to a few times the learned network's: beyond, an alpha is merely far too small or large."""
    losses = [loss for curve in curves for mode in MODES for loss in curve.losses[mode] if 0 < loss < math.inf]
    learned = [curve.at_learned(mode) for curve in curves for mode in MODES]
    top = _SHOWN * max((loss for loss in learned if math.isfinite(loss)), default=math.inf)
    if losses and top > 0:
        axes.set_ylim(0.9 * min(losses), 1.1 * min(max(losses), top))


def _name_sites(figure: Figure, panels: Sequence[Axes], curves: Sequence[Curve], colours: Sequence[Any]) -> None:
    """Name each site with what it learned, or the first, the last and some between where they are many."""
    if len(curves) > MOST_LABELS:
        depth_bar(figure, list(panels), [curve.site for curve in curves])
        return
    lines = [Line2D([], [], color=colour, marker="o", markersize=4.5) for colour in colours]
    texts = [f"{curve.site}  {curve.learned:.3g}" for curve in curves]
    quantity = " or ".join(dict.fromkeys(curve.quantity for curve in curves))
    legend = figure.legend(
        lines,
        texts,
        loc="outside right center",
        title=f"site, learned {quantity}",
        alignment="left",
        fontsize=7,
        title_fontsize=8,
    )
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_color(INK)


def _measured(run: Facts, curves: Sequence[Curve]) -> str:
    """Say on what the loss was measured, and which penalty the last panel adds."""
    penalty = run.get("alpha_regularization.lambda_alpha")
    if penalty == "weight_decay":
        penalty = f"{run.get('optimizer.weight_decay')} (the weight decay)"
    return (
        f"mean cross entropy of {curves[0].samples} training samples, not augmented, in float32; the other sites"
        f" as learned (dots); penalty (λ/2) Σ alpha², λ = {penalty}"
    )
