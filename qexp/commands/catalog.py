"""`qexp list`: what there is to choose from, each with its one line and its source."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from qexp.commands.options import Parser
from qexp.errors import ConfigError, did_you_mean
from qexp.paths import config_dir
from qexp.published import artefact_names, load_artefact
from qexp.report.headers import Header, read_group
from qexp.report.tables import Column, Table, screen_width, to_terminal

GROUPS = {"methods": "quantizer", "models": "model", "datasets": "dataset", "experiments": "experiment"}
"""What people ask for -> the folder of configs/ that holds it; other folders go by their own name."""

PUBLISHED = "published"
"""The papers' tables and figures, which are data files and no configurations."""

_EXAMPLES = """\
examples:
  qexp list                 methods, models, data sets and experiments
  qexp list methods         what quantizer=... can be
  qexp list optimizer       any group of configs/
  qexp list published       the tables and figures that `qexp table` knows
  qexp list models --config-dir mine    with the configurations of your own folder
"""


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    options = Parser(
        prog="qexp list",
        description="List what there is to choose from, each with its one line and its source.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "what", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}, {PUBLISHED}, or a config group"
    )
    options.add_argument("--config-dir", "-cd", type=Path, metavar="FOLDER", help="your own configurations")
    return options


def main(argv: Sequence[str]) -> int:
    """Print one table per group.

    Raises:
        ConfigError: a group or a folder that is not there.
    """
    arguments = parser().parse_args(list(argv))
    roots = [config_dir()]
    if arguments.config_dir is not None:
        if not arguments.config_dir.is_dir():
            raise ConfigError(f"--config-dir {arguments.config_dir}: there is no such folder.")
        roots.append(arguments.config_dir)
    for name in arguments.what or list(GROUPS):
        print(to_terminal(catalog(name, roots), screen_width()))
    return 0


def catalog(name: str, roots: Sequence[Path]) -> Table:
    """Build the table of one group.

    Args:
        name: `methods`, `models`, ... , `published`, or a folder's own name.
        roots: configuration folders; a file in a later one stands in for the same file in an earlier one.

    Raises:
        ConfigError: none of the folders has such a group.
    """
    if name == PUBLISHED:
        artefacts = [load_artefact(known) for known in artefact_names()]
        return _table("qexp table ...", [Header(a.full_name, a.title, a.source) for a in artefacts])
    group = GROUPS.get(name, name)
    folders = [root / group for root in roots if (root / group).is_dir()]
    if not folders:
        known = {*GROUPS, PUBLISHED, *(entry.name for root in roots for entry in root.iterdir() if entry.is_dir())}
        raise ConfigError(f"no group '{name}'.{did_you_mean(name, known)}")
    headers = {header.name: header for folder in folders for header in read_group(folder)}
    chosen = [headers[key] for key in sorted(headers)]
    return _table(
        f"{name}: {group}=...", [header for header in chosen if group != "experiment" or header.name != "none"]
    )


def _table(title: str, headers: Sequence[Header]) -> Table:
    rows = [{"name": header.name, "idea": header.idea, "source": header.source} for header in headers]
    columns = [Column("name", "name"), Column("idea", "idea"), Column("source", "source")]
    return Table(title=title, columns=columns, rows=rows, records=rows)
