"""`qexp plot`: figures of runs, as PNG, SVG or PDF."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qexp.errors import ConfigError
from qexp.report.collect import collect, one_run
from qexp.runs import RunDirectory, atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

_EXAMPLES = """\
examples:
  qexp plot alpha outputs/train/resnet20-cifar10-pact-w4a4-s0-1a2b3c4d
  qexp plot alpha RUN --output alpha.pdf
  qexp plot curves RUN1 RUN2 --output curves.svg     several runs, named by what differs
  qexp plot curves outputs/train                     every run of a folder
"""


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    options = argparse.ArgumentParser(
        prog="qexp plot",
        description="Draw figures of runs; they are kept in the run's folder, under figures/.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = options.add_subparsers(dest="kind", required=True, metavar="FIGURE")
    alpha = kinds.add_parser("alpha", help="every clip level of one run against the epoch")
    alpha.add_argument("runs", nargs=1, type=Path, metavar="RUN", help="the run's folder")
    curves = kinds.add_parser("curves", help="loss and accuracy of one or more runs against the epoch")
    curves.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs, or folders of runs")
    for figure in (alpha, curves):
        figure.add_argument(
            "--output", type=Path, metavar="FILE", help="*.png, *.svg or *.pdf (RUN/figures/<figure>.png)"
        )
    return options


def main(argv: Sequence[str]) -> int:
    """Draw one figure and print where it is.

    Raises:
        QexpError: no such run, nothing to draw in it, or a file that cannot be written.
    """
    arguments = parser().parse_args(list(argv))
    if arguments.output is not None and arguments.output.suffix not in SUFFIXES:
        raise ConfigError(f"--output {arguments.output}: the suffix has to be one of {', '.join(SUFFIXES)}")
    # matplotlib takes longer to import than the other mistakes take to be found.
    from qexp.report import plots

    if arguments.kind == "alpha":
        run = one_run(arguments.runs[0])
        figure, home = plots.alpha_figure(run.path), run.path
    else:
        runs = [run for run in collect(arguments.runs) if run.config]
        if not runs:
            raise ConfigError(f"{arguments.runs[0]}: the run's config.yaml cannot be read")
        figure, home = plots.curves_figure(runs), runs[0].path
    target = arguments.output or RunDirectory(home).figures / f"{arguments.kind}.png"
    save(figure, target)
    print(f"wrote {target}")
    return 0


def save(figure: Figure, target: Path) -> None:
    """Write a figure in the form that the file's name asks for, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    from qexp.report.style import styled

    content = io.BytesIO()
    with styled():  # fonts of SVG and PDF are chosen when the file is written
        figure.savefig(content, format=target.suffix.removeprefix("."), dpi=200)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, content.getvalue())
    except OSError as error:
        raise ConfigError(f"--output {target}: cannot be written ({error.strerror})") from error
