"""`qexp plot`: figures of runs, as PNG, SVG or PDF."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexp.commands.options import Parser
from qexp.commands.table import check_only, jobs_of, runs_of
from qexp.errors import ConfigError
from qexp.files import write_output
from qexp.published import Artefact, artefact_names, is_artefact, load_artefact
from qexp.report.collect import DEFAULT_ROOT, collect, one_run
from qexp.report.facts import facts
from qexp.report.verdicts import measuring
from qexp.runs import Run, RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

_EXAMPLES = """\
examples:
  qexp plot alpha outputs/train/resnet20-cifar10-pact-w4a4-s0-1a2b3c4d
  qexp plot alpha RUN --output alpha.pdf
  qexp plot curves RUN1 RUN2 --output curves.svg     several runs, named by what differs
  qexp plot curves outputs/train                     every run of a folder
  qexp plot pact/table1 --only resnet20              a paper's table or figure: published beside measured
  qexp plot pact/fig8                                with its runs' learning curves, from outputs/pact/fig8
"""


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    options = Parser(
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
    for name in artefact_names():
        _artefact_options(kinds.add_parser(name, help=load_artefact(name).title))
    for figure in (alpha, curves):
        figure.add_argument(
            "--output", type=Path, metavar="FILE", help="*.png, *.svg or *.pdf (RUN/figures/<figure>.png)"
        )
    return options


def _artefact_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--runs", type=Path, action="append", metavar="FOLDER", help="where its runs are")
    options.add_argument("--only", default="", metavar="TEXT", help="rows that contain this")
    options.add_argument("--output", type=Path, metavar="FOLDER", help="(outputs/<paper>/<artefact>/figures)")


def main(argv: Sequence[str]) -> int:
    """Draw one figure and print where it is.

    Raises:
        QexpError: no such run, nothing to draw in it, or a file that cannot be written.
    """
    if argv and argv[0].count("/") == 1 and not argv[0].startswith("-"):
        load_artefact(argv[0])  # a mistyped table: the message names the nearest
    arguments = parser().parse_args(list(argv))
    if is_artefact(arguments.kind):
        return _artefact(load_artefact(arguments.kind), arguments)
    if arguments.output is not None and arguments.output.suffix not in SUFFIXES:
        raise ConfigError(f"--output {arguments.output}: the suffix has to be one of {', '.join(SUFFIXES)}")
    # matplotlib takes longer to import than the other mistakes take to be found.
    from qexp.report import plots

    if arguments.kind == "alpha":
        run = one_run(arguments.runs[0])
        figure, home = plots.alpha_figure(run.path), run.path
    else:
        found = collect(arguments.runs)
        _tell_damage(found)
        runs = [run for run in found if run.config]
        if not runs:
            raise ConfigError(f"{arguments.runs[0]}: the run's config.yaml cannot be read")
        runs = [run for run in runs if plots.has_curves(run.path)] or runs
        figure, home = plots.curves_figure(runs), runs[0].path
    target = arguments.output or RunDirectory(home).figures / f"{arguments.kind}.png"
    save(figure, target)
    print(f"wrote {target}")
    return 0


def _tell_damage(runs: Sequence[Run]) -> None:
    """Say on standard error what of the runs cannot be read, and is left out."""
    for run in runs:
        problems = [run.problem] if run.problem else []
        if lines := RunDirectory(run.path).metrics.damaged():
            problems.append(f"metrics.csv: {lines} line{'s' * (lines > 1)} cannot be read")
        if problems:
            print(f"{run.path.name}: damaged: {'; '.join(problems)}", file=sys.stderr)


def _artefact(artefact: Artefact, arguments: argparse.Namespace) -> int:
    """Draw a paper's table or figure into a folder: all cells, and what else it shows of its runs."""
    folder = arguments.output or Path(DEFAULT_ROOT, artefact.full_name, "figures")
    if folder.suffix in SUFFIXES:
        raise ConfigError(f"--output {folder}: a folder, for {artefact.full_name} has more than one figure")
    runs = runs_of(artefact, arguments.runs)
    _tell_damage(runs)
    for name, figure in _figures(artefact, runs, arguments.only, whole=arguments.runs is None):
        save(figure, folder / f"{name}.png")
        print(f"wrote {folder / f'{name}.png'}")
    return 0


def _figures(
    artefact: Artefact, runs: Sequence[Run], only: str, *, whole: bool = False
) -> Iterator[tuple[str, Figure]]:
    """Yield the name and the figure of each; what runs show of themselves only where there are runs.

    Args:
        whole: the runs are all those of the artefact's experiment: curves are shown also where no cell is, unless
            `only` picks cells.
    """
    from qexp.report import artefact_plots, plots

    if artefact.figure == "system":
        yield "system", _system_figure(artefact, only)
        return
    check_only(only, [cell.row for cell in artefact.cells])
    yield "cells", artefact_plots.cells_figure(artefact, runs, only, jobs_of)
    every = whole and not only and artefact.figure == "curves"
    wanted = runs if every else measuring(artefact.cells_of(only), runs)
    begun = [run for run in wanted if RunDirectory(run.path).metrics.rows()]
    if artefact.figure == "curves":
        drawn = [run for run in begun if plots.has_curves(run.path)]
        for name, of_network in _by_network(artefact, drawn).items():
            yield name, plots.curves_figure(of_network)
    if artefact.figure in ("alpha", "scan"):
        for run in begun:
            yield f"alpha-{run.path.name}", plots.alpha_figure(run.path)
    if artefact.figure == "scan":
        yield from _scans(begun)


def _by_network(artefact: Artefact, runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of the artefact's command by the name of their figure, one for each network."""
    named: dict[str, list[Run]] = {}
    for one in (facts(run) for run in runs if run.config):
        if one.command == artefact.command:
            named.setdefault(f"curves-{one.model}", []).append(one.run)
    return {"curves": next(iter(named.values()))} if len(named) == 1 else named


def _system_figure(artefact: Artefact, only: str) -> Figure:
    """Draw what a system model computes beside what was published."""
    from qexp.commands.cost import is_figure6, system_label, system_table
    from qexp.report.artefact_plots import ratios_figure, system_figure

    records: Sequence[Any] = system_table(artefact, only).records
    text = f"Published: {artefact.source}. `qexp cost {'--fit' if is_figure6(artefact) else '--pwlq'}` has it all."
    if is_figure6(artefact):
        keys = ("bits", "bandwidth_gb_s", "published", "modelled")
        points = [tuple(one[key] for key in keys) for one in records]
        return system_figure(points, text)
    rows = [(system_label(one), one["published"], one["modelled"]) for one in records]
    return ratios_figure("ResNet50 on PWLQ's accelerator", rows, text)


def _scans(runs: Sequence[Run]) -> Iterator[tuple[str, Figure]]:
    """Yield the scan of each run that has one; for the others, say what makes it."""
    from qexp.report.scan_plot import scan_figure
    from qexp.report.scans import FILE

    for run in runs:
        if (run.path / FILE).exists():
            yield f"scan-{run.path.name}", scan_figure(run.path)
        else:
            print(f"no scan yet, make it with: qexp scan {run.path}")


def save(figure: Figure, target: Path, option: str = "--output ") -> None:
    """Write a figure in the form that the file's name asks for, whole or not at all; `option` named the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    from qexp.report.style import styled

    content = io.BytesIO()
    with styled():  # fonts of SVG and PDF are chosen when the file is written
        figure.savefig(content, format=target.suffix.removeprefix("."), dpi=200)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_output(target, content.getvalue())
    except OSError as error:
        raise ConfigError(f"{option}{target}: cannot be written ({error.strerror})") from error
