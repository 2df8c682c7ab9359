"""`qexp table`: any runs as a table, or a paper's table beside the runs that measure the same."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qexp.commands.options import Parser
from qexp.errors import ConfigError
from qexp.files import is_there, write_output
from qexp.paths import config_dir
from qexp.published import Artefact, Cell, artefact_names, is_artefact, load_artefact
from qexp.report.across import across_table
from qexp.report.against import parse_against
from qexp.report.collect import DEFAULT_ROOT, collect
from qexp.report.facts import Facts
from qexp.report.measured import measured_table
from qexp.report.tables import FORMATS, SUFFIXES, Table, render, screen_width
from qexp.report.verdicts import published_table
from qexp.runs import Run, find_runs

_EXAMPLES = """\
examples:
  qexp table                                   every run below outputs/
  qexp table outputs/train --by model,bits     group by these keys only; runs of other recipes are refused
  qexp table --metric test_loss --format markdown
  qexp table outputs/ptq --across bits         a column for each width; any setting in which the runs differ
  qexp table outputs/ptq --across stored_bits  methods that take the same memory below each other
  qexp table compare/cifar10_resnet20          an experiment's runs, as its file says they are best compared
  qexp table outputs/train --against lsq       every row against one method's, seed by seed, with a paired t-test
  qexp table outputs/train --also epoch_seconds,step_highest
  qexp table outputs/train --float-apart model.start    "vs float" although float networks start otherwise
  qexp table outputs/train --output runs.tex   the form follows the name: .md .csv .tex .txt
  qexp table pact/table1                       the paper's table: published | measured | difference | verdict
  qexp table pact/table1 --only resnet20       rows that contain this; its runs are in outputs/pact/table1
  qexp table pact/table1 --runs FOLDER         its runs are elsewhere

A row is a group of runs that differ in nothing but the seed. From three seeds on it has a 95% t-interval.
"""

_OWN = ("by", "across", "against", "also", "float_apart")
"""Options that an experiment's file may set for its runs (`experiment.table`), none of them where one is typed."""


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    options = Parser(
        prog="qexp table",
        description="Put finished runs into a table, or beside the numbers that a paper printed.",
        epilog=_EXAMPLES + f"\npublished tables: {', '.join(artefact_names())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "what", nargs="*", metavar="RUN", help="runs or folders of runs (outputs), or one published table"
    )
    options.add_argument(
        "--by", metavar="KEYS", help="keys to group by, with commas: model,dataset,quantizer,bits"
    )
    options.add_argument("--across", metavar="KEY", help="the key whose values are the columns")
    options.add_argument("--against", metavar="NAME", help="a quantizer, or KEY=VALUE,...: what to compare with")
    options.add_argument("--also", metavar="NAMES", help="further metrics beside it, with commas")
    options.add_argument(
        "--float-apart", metavar="KEYS", help="settings that a row's float network may have otherwise, with commas"
    )
    options.add_argument("--metric", default=None, help="the number to show (what the runs are known by)")
    options.add_argument("--format", choices=FORMATS, help="terminal, or what --output's name asks for")
    options.add_argument("--output", type=Path, metavar="FILE", help="write the table to this file")
    options.add_argument(
        "--runs",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="for a published table or an experiment: where its runs are",
    )
    options.add_argument(
        "--only", default="", metavar="TEXT", help="for a published table: rows that contain this"
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Print or write the table.

    Raises:
        QexpError: a folder that is not there, an unknown key or metric, recipes that do not mix.
    """
    arguments = _with_experiments(parser().parse_args(list(argv)))
    table = _published(arguments) if any(map(is_artefact, arguments.what)) else _measured(arguments)
    write_or_print(table, arguments.format, arguments.output)
    return 0


def write_or_print(table: Table, form: str | None, output: Path | None) -> None:
    """Write the table to `output`, else print it.

    Args:
        table: what to show.
        form: one of `FORMATS`; None for what the file's name asks for, or the terminal's.
        output: the file; folders that are missing are made.

    Raises:
        ConfigError: a name that tells no form, a file that cannot be written.
    """
    form = form or _form_of(output)
    if output is None:
        print(render(table, form, screen_width()), end="")
    else:
        _write(render(table, form), output)
    if form == "csv":  # which has no place for notes
        print(*table.notes, sep="\n", end="\n" if table.notes else "", file=sys.stderr)


def _write(text: str, output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_output(output, text)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror})") from error
    print(f"wrote {output}")


def _measured(arguments: argparse.Namespace) -> Table:
    owners = {"runs": "a published table or an experiment", "only": "a published table"}
    for option, owner in owners.items():
        if getattr(arguments, option):
            raise ConfigError(
                f"--{option} belongs to {owner}, such as {artefact_names()[0]}; name runs as they are"
            )
    papers = {name.partition("/")[0] for name in artefact_names()}
    for name in arguments.what:
        if name.partition("/")[0] in papers and not is_there(name):
            load_artefact(name)  # a mistyped table, not a folder: the message names the nearest
    roots = [Path(name) for name in arguments.what] or [Path(DEFAULT_ROOT)]
    by = _names(arguments.by) or None
    runs = collect(roots)
    metric = arguments.metric or primary_metric(runs)
    against = parse_against(arguments.against) if arguments.against else None
    also, apart = _names(arguments.also), _names(arguments.float_apart)
    if arguments.across:
        if against or also or apart:
            raise ConfigError("--across shows one number a cell: leave --against, --also and --float-apart out.")
        return across_table(runs, metric, arguments.across, by)
    try:
        return measured_table(runs, metric, by, against=against, also=also, apart=apart)
    except ConfigError as error:
        if not arguments.of_file:
            raise
        # Nobody typed these options: an experiment that is not done yet has a table of what is there.
        table = measured_table(runs, metric)
        return dataclasses.replace(table, notes=[*table.notes, f"as its file has it: {error}"])


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def primary_metric(runs: Sequence[Run]) -> str:
    """Return the number that all finished runs are known by; where they differ, the accuracy."""
    found = {str((run.result or {}).get("primary_metric") or "test_accuracy") for run in runs if run.result}
    return found.pop() if len(found) == 1 else "test_accuracy"


def _with_experiments(arguments: argparse.Namespace) -> argparse.Namespace:
    """Put the runs of an experiment for its name, and its file's own options where none are typed (`of_file`)."""
    arguments.of_file = False
    for place, name in enumerate(arguments.what):
        file = config_dir() / "experiment" / f"{name}.yaml"
        if is_artefact(name) or is_there(name) or "/" not in name or not file.is_file():
            continue
        alone = len(arguments.what) == 1
        folders = arguments.runs if alone and arguments.runs else [Path(DEFAULT_ROOT) / name]
        if not arguments.runs and not folders[0].is_dir():
            command = _first_command(file)
            raise ConfigError(f"{name}: nothing has been run; {command} makes its runs, in {folders[0]}.")
        words = (yaml.safe_load(file.read_text(encoding="utf-8")).get("experiment") or {}).get("table") or ""
        if alone and not any(getattr(arguments, key) for key in _OWN):
            own = parser().parse_args([*words.split(), name])
            for key in _OWN:
                setattr(arguments, key, getattr(own, key))
            arguments.of_file = True
        if alone:
            arguments.runs = None
        arguments.what[place : place + 1] = map(str, folders)
    return arguments


def _first_command(file: Path) -> str:
    """Return the command that an experiment's file begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# qexp ")), "qexp train")


def _published(arguments: argparse.Namespace) -> Table:
    if len(arguments.what) > 1:
        raise ConfigError(
            f"{' '.join(arguments.what)}: one published table at a time; name its runs with --runs FOLDER"
        )
    for option in (*_OWN, "metric"):
        if getattr(arguments, option):
            raise ConfigError(f"--{option.replace('_', '-')} is set by the published table itself: leave it out")
    artefact = load_artefact(arguments.what[0])
    runs = runs_of(artefact, arguments.runs)
    if artefact.figure == "system":
        from qexp.commands.cost import system_table

        return system_table(artefact, arguments.only)
    check_only(arguments.only, [cell.row for cell in artefact.cells])
    return published_table(artefact, runs, arguments.only, jobs_of)


def check_only(only: str, rows: Sequence[str]) -> None:
    """Refuse a text that none of the rows contains, in any case; empty: all are wanted.

    Raises:
        ConfigError: there is no such row.
    """
    if only and not any(only.lower() in row.lower() for row in rows):
        known = "; ".join(dict.fromkeys(rows))
        raise ConfigError(f"--only {only}: no row contains this; the rows are {known}")


def jobs_of(cell: Cell, one: Facts) -> Iterator[Mapping[str, Any]]:
    """Yield the jobs of a cell's experiment that have a run's quantizer and widths."""
    if not (config_dir() / "experiment" / f"{cell.experiment}.yaml").is_file():
        return
    from qexp.jobs.experiments import configurations  # with Hydra, which other tables do without

    yield from configurations(
        cell.experiment, one.command, cell.run, one.quantizer, None if one.is_float else one.bits
    )


def runs_of(artefact: Artefact, roots: Sequence[Path] | None) -> list[Run]:
    """Return the runs in `roots`, else those that the artefact's experiment made.

    Without any, the table still tells what to run: an empty default folder is no mistake.

    Raises:
        ConfigError: a folder that is not there, or one for what a system model computes.
    """
    if roots and artefact.figure == "system":
        folders = " ".join(map(str, roots))
        raise ConfigError(
            f"--runs {folders}: {artefact.full_name} is computed, nothing is run for it; leave it out"
        )
    return collect(roots) if roots else find_runs(Path(DEFAULT_ROOT, artefact.experiment))


def _form_of(output: Path | None) -> str:
    """Return the form that a file's name asks for; the terminal's without a file."""
    if output is None:
        return "terminal"
    if output.suffix not in SUFFIXES:
        raise ConfigError(
            f"--output {output}: '{output.suffix}' tells no form; use {', '.join(SUFFIXES)},"
            " or name one with --format"
        )
    return SUFFIXES[output.suffix]
