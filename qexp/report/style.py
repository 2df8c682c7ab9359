"""One look for every figure: sizes, colours that colour-blind readers tell apart, labels at the ends of lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito 2008, without the yellow that vanishes on white.
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

INK = "#444444"

MOST_LABELS = 24
"""Lines that are named each; more of them share a colour bar."""

_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "savefig.dpi": "figure",
    "svg.fonttype": "none",  # text stays text, searchable and editable
    "pdf.fonttype": 42,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw inside with the common style; the caller's own matplotlib settings come back afterwards."""
    with mpl.rc_context({**mpl.rcParamsDefault, "backend": mpl.rcParams["backend"], **_STYLE}):
        yield


def sequential(count: int) -> list[tuple[float, float, float, float]]:
    """Return `count` colours from dark to light by depth, without viridis's pale end."""
    palette = mpl.colormaps["viridis"]
    return [palette(0.9 * index / max(count - 1, 1)) for index in range(count)]


def categorical(count: int) -> list[str] | list[tuple[float, float, float, float]]:
    """Return `count` colours for things without an order; beyond the palette they become a sequence."""
    return list(CATEGORIES[:count]) if count <= len(CATEGORIES) else sequential(count)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbours are `gap` apart, as little as possible, inside [low, high].

    Neighbours that are too near form a block around the mean of what they wanted (pooled as in isotonic
    regression). Where all together do not fit, they are evenly spaced over the whole range.

    >>> spread([1.0, 1.0, 5.0], gap=1.0, low=0.0, high=10.0)
    [0.5, 1.5, 5.0]
    """
    count = len(positions)
    if count > 1 and gap * (count - 1) >= high - low:
        gap = (high - low) / (count - 1)
    order = sorted(range(count), key=lambda index: positions[index])
    # Without their gaps the positions only have to be in order: equal neighbours are then `gap` apart.
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([positions[index] - gap * rank, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, weight = blocks.pop()
            before = blocks[-1]
            total = before[1] + weight
            blocks[-1] = [(before[0] * before[1] + value * weight) / total, total]
    flat = [value for value, weight in blocks for _ in range(int(weight))]
    top = high - gap * (count - 1)
    placed = [0.0] * count
    for rank, index in enumerate(order):
        placed[index] = min(max(flat[rank], low), top) + gap * rank
    return placed


def label_ends(axes: Axes, names: Sequence[str], height: float) -> None:
    """Write each line's name at its right end, in its colour, moved apart where lines end close together.

    Args:
        axes: with one drawn line per name, in the same order; its limits are final.
        height: of the axes, in inches.
    """
    low, high = axes.get_ylim()
    lines = axes.get_lines()
    size = 7.0
    gap = 1.25 * size / 72 * (high - low) / height
    ends = [_end(line) for line in lines]
    heights = [height if math.isfinite(height) else low for _, height in ends]
    left, right = axes.get_xlim()
    for line, name, (last, end), place in zip(lines, names, ends, spread(heights, gap, low, high), strict=True):
        colour = line.get_color()
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            name if math.isfinite(end) else f"{name} (not a number)",
            xy=(last, end) if math.isfinite(end) else (right, low),
            xytext=(right + 0.04 * (right - left), place),
            fontsize=size,
            color=colour,
            va="center",
            annotation_clip=False,
            # The leader meets the label at the middle of its left edge.
            arrowprops={**leader, "relpos": (0.0, 0.5)},
        )


def _end(line: Line2D) -> tuple[float, float]:
    """Return the last point of a line; its height is NaN where the line ends in one."""
    return float(np.asarray(line.get_xdata())[-1]), float(np.asarray(line.get_ydata())[-1])


def depth_bar(figure: Figure, axes: Axes | Sequence[Axes], names: Sequence[str]) -> None:
    """Name the first, the last and a few sites between on a colour bar, in the colours of `sequential`."""
    count = len(names)
    colours = ScalarMappable(Normalize(-0.5, count - 0.5), ListedColormap(sequential(count)))
    bar = figure.colorbar(colours, ax=axes, pad=0.02, aspect=40)
    ticks = [round(index * (count - 1) / 11) for index in range(12)]
    bar.set_ticks(ticks, labels=[names[tick] for tick in ticks])
    bar.ax.tick_params(labelsize=7)
    bar.ax.invert_yaxis()  # read from the input down
    bar.outline.set_visible(False)


def caption(figure: Figure, text: str) -> None:
    """Write what was run below the figure, in as many lines as its width needs."""
    width = int(16 * figure.get_figwidth())  # characters of this size to an inch
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""]]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7.5, color=INK)
