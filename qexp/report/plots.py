"""Figures of runs: every alpha against the epoch, and learning curves of several runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from qexp.errors import ConfigError
from qexp.report.ends import ABSENT
from qexp.report.facts import Facts, facts
from qexp.report.groups import by_ends, by_origin, keys_apart
from qexp.report.networks import network_text
from qexp.report.progress import finished_epochs
from qexp.report.series import Series, learned, read_series
from qexp.report.style import INK, MOST_LABELS, caption, categorical, depth_bar, label_ends, sequential, styled
from qexp.runs import Run, read_run

_WIDTH, _HEIGHT = 7.2, 4.4  # inches
_CURVES = ("loss", "accuracy")
_SPLITS: dict[str, tuple[Any, str]] = {
    "train": ("-", "training"),
    "val": ("--", "validation"),
    "test": (":", "test"),
}


def alpha_figure(run_path: Path) -> Figure:
    """Draw every clip level of a run against the epoch, coloured by depth; of a method without, its step sizes.

    Args:
        run_path: the run's folder; its `metrics.csv` holds one `alpha/<site>` (or `step/<site>`) per epoch, the
            mean where a site has many.

    Returns:
        A figure of its own, which no window and no pyplot state refers to.

    Raises:
        ConfigError: the run logged no alpha.
    """
    series = read_series(run_path)
    kind = "alpha" if learned(series, "alpha") else "step"
    lines = learned(series, kind)
    if not lines:
        raise ConfigError(
            f"{run_path}: no alpha in its metrics.csv; alphas are logged by runs whose quantizer learns them,"
            " such as quantizer=pact, once their first epoch has ended"
        )
    with styled():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title("Clip levels during training" if kind == "alpha" else "Step sizes during training")
        unit = "activation" if kind == "alpha" else "quantized tensor"
        axes.set(xlabel="epoch", ylabel=f"{kind}, in units of the {unit}")
        _draw_by_depth(axes, lines)
        _limits(axes, lines)
        if len(lines) <= MOST_LABELS:
            label_ends(axes, [line.name for line in lines], height=0.76 * _HEIGHT)
        else:
            depth_bar(figure, axes, [line.name for line in lines])
        caption(figure, run_caption(facts(read_run(run_path))))
    return figure


def _draw_by_depth(axes: Axes, lines: Sequence[Series]) -> None:
    for line, colour in zip(lines, sequential(len(lines)), strict=True):
        # A single epoch is a point, and a line of one point would be invisible.
        marker = "o" if len(line.epochs) == 1 else None
        axes.plot(line.epochs, line.values, color=colour, marker=marker, markersize=3)


def _limits(axes: Axes, lines: Sequence[Series]) -> None:
    """Start at zero unless an alpha went below, so that heights can be compared."""
    values = [value for line in lines for value in line.values if math.isfinite(value)]
    if values:
        low, high = min(values), max(values)
        axes.set_ylim(min(0.0, 1.1 * low), 1.05 * high if high > 0 else 1.0)
    last = max(line.epochs[-1] for line in lines)
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def has_curves(run_path: Path) -> bool:
    """Return whether a run has logged a loss or an accuracy."""
    series = read_series(run_path)
    return any(_has(series, kind) for kind in _CURVES)


def curves_figure(runs: Sequence[Run]) -> Figure:
    """Draw loss and accuracy of several runs against the epoch: colour tells the run, line style the data.

    Seeds of one recipe share a colour, unless seeds are all that differs.

    Raises:
        ConfigError: none of the runs logged a loss or an accuracy.
    """
    described = by_ends(by_origin([facts(run) for run in runs]))
    data = [read_series(run.path) for run in runs]
    quantities = [kind for kind in _CURVES if any(_has(series, kind) for series in data)]
    if not quantities:
        raise ConfigError(
            f"{runs[0].path}: no loss and no accuracy in its metrics.csv; its first epoch has not ended"
        )
    with styled():
        names = labels(described)
        colour_of = dict(zip(dict.fromkeys(names), categorical(len(set(names))), strict=True))
        figure = Figure(figsize=(_WIDTH, 3.4 + 0.16 * len(colour_of)), dpi=150, layout="constrained")
        panels = figure.subplots(1, len(quantities), squeeze=False)[0]
        for axes, kind in zip(panels, quantities, strict=True):
            axes.set_title(kind.capitalize())
            axes.set(xlabel="epoch", ylabel=_loss_label(described) if kind == "loss" else "top-1 accuracy (%)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for series, name in zip(data, names, strict=True):
                _draw_splits(axes, series, kind, colour_of[name])
        shown = [f"{name} ({count} runs)" if count > 1 else name for name, count in Counter(names).items()]
        _legends(figure, shown, list(colour_of.values()), data)
        caption(figure, _curves_caption(described))
    return figure


def _loss_label(described: Sequence[Facts]) -> str:
    """Name the loss of validation and test, and what is minimized in training where that is another."""
    others = {str(one.get("task.loss")).replace("_", " ") for one in described} - {ABSENT}
    return "; ".join(["cross-entropy (nats)", *(f"in training {name}" for name in sorted(others))])


def _draw_splits(axes: Axes, series: dict[str, Series], kind: str, colour: Any) -> None:
    factor = 100.0 if kind == "accuracy" else 1.0
    for split, (style, _) in _SPLITS.items():
        if one := series.get(f"{split}_{kind}"):
            values = [factor * value for value in one.values]
            marker = "o" if len(values) == 1 else None
            axes.plot(one.epochs, values, linestyle=style, color=colour, marker=marker, markersize=4)


def _has(series: dict[str, Series], kind: str) -> bool:
    return any(f"{split}_{kind}" in series for split in _SPLITS)


def _legends(
    figure: Figure, names: Sequence[str], colours: Sequence[Any], data: Sequence[dict[str, Series]]
) -> None:
    """Name runs by colour above the panels, and the data by line style in the first one."""
    lines = [Line2D([], [], color=colour) for colour in colours]
    columns = max(1, min(len(names), 110 // (max(map(len, names)) + 8)))
    figure.legend(lines, names, loc="outside upper left", ncols=columns)
    handles, texts = [], []
    for split, (style, text) in _SPLITS.items():
        drawn = [
            one
            for series in data
            for name, one in series.items()
            if name in (f"{split}_loss", f"{split}_accuracy")
        ]
        if drawn:
            once = all(len(one.values) == 1 for one in drawn)
            look: dict[str, Any] = {"marker": "o", "linestyle": ""} if once else {"linestyle": style}
            handles.append(Line2D([], [], color=INK, markersize=4, **look))
            texts.append(text)
    figure.axes[0].legend(handles, texts, loc="best")


def labels(runs: Sequence[Facts]) -> list[str]:
    """Name each run by what sets it apart, by its seed if nothing else does; a single one by its subject."""
    keys = [key for key in keys_apart(runs) if len({str(run.get(key)) for run in runs}) > 1]
    if not keys:
        keys = ["seed"] if len({run.seed for run in runs}) > 1 else ["quantizer", "bits"]
    short = {key: key.rpartition(".")[2] for key in keys}
    last = Counter(short.values())
    names = {key: word if last[word] == 1 else key for key, word in short.items()}
    names |= dict.fromkeys(("model", "dataset", "quantizer", "bits"), "")
    without = f"without {' and '.join(names[key] for key in keys)}"
    parts = [[f"{names[key]} {run.get(key)}".strip() for key in keys if run.get(key) != ABSENT] for run in runs]
    return [" ".join(part) or without for part in parts]


def run_caption(run: Facts) -> str:
    """Say what was run: model, data, method, bits, ends, budget, seed, n."""
    ends = "" if run.is_float else f", first/last {run.first_last}"
    budget = _budget(run)
    made = f"{network_text(run)} on {run.dataset}, {run.quantizer} {run.bits}{ends}"
    return f"{made}; {budget}, seed {run.seed}, n = 1"


def _curves_caption(runs: Sequence[Facts]) -> str:
    models = sorted({f"{network_text(run)} on {run.dataset}" for run in runs})
    epochs = sorted({_budget(run) for run in runs})
    return f"{', '.join(models)}; {' and '.join(epochs)}; one line per run (n = 1 each)"


def _budget(run: Facts) -> str:
    """Return the epochs, naming a shortened budget and a run that is not at its end."""
    # A run draws its own figure before it is recorded as done.
    if run.run.status != "done" and finished_epochs(run.run) < (run.epochs or 0):
        return f"unfinished, {finished_epochs(run.run)} of {run.epochs} epochs"
    return run.shortened or f"{run.epochs} epochs"
