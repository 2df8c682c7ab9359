"""`qexp status`: which runs are done, running, failed or interrupted, how far, and why they failed."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from qexp.commands.options import Parser
from qexp.errors import ConfigError
from qexp.files import is_there
from qexp.paths import config_dir
from qexp.report.collect import DEFAULT_ROOT, collect
from qexp.report.ends import ABSENT
from qexp.report.facts import facts
from qexp.report.groups import metrics_of
from qexp.report.numbers import unit, value_text
from qexp.report.progress import progress_text
from qexp.report.tables import Column, Table, screen_width, to_terminal
from qexp.runs import Run

STATES = ("running", "failed", "interrupted", "done")
"""In the order of the table: what wants attention stands first."""

_EXAMPLES = """\
examples:
  qexp status                            every run below outputs/
  qexp status outputs/pact/fig8          the runs of one folder
  qexp status experiment=pact/fig8       the jobs of a sweep, those without a folder too
  qexp status quantizer=pact,dorefa bits=2,4 seed=0,1,2

What failed or was interrupted goes on where it stopped when its command is typed again.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    options = Parser(
        prog="qexp status",
        description="Show which runs are done, running, failed or interrupted; of a sweep, what would start.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "what", nargs="*", metavar="FOLDER", help="folders of runs (outputs), or a sweep's key=value words"
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Print the counts and the table.

    Raises:
        QexpError: a folder that is not there, no runs, or folders and a sweep's words together.
    """
    what = parser().parse_args(list(argv)).what
    words = [text for text in what if "=" in text and not is_there(text)]
    if words and len(words) < len(what):
        folder = next(text for text in what if text not in words)
        raise ConfigError(f"'{folder}' is a folder, '{words[0]}' a sweep's setting: ask for one of the two")
    if words:
        return planned(words)
    runs = collect([Path(name) for name in what] or [Path(DEFAULT_ROOT)])
    print(to_terminal(status_table(runs), screen_width()), end="")
    return 0


def planned(words: Sequence[str]) -> int:
    """List the jobs of a sweep with their state, and return the exit code.

    Only the command that makes the runs can expand a sweep; its `--dry-run` does, in a process of its own, and
    changes nothing.
    """
    command = [sys.executable, "-m", "qexp", maker(words), "--multirun", "--dry-run", *words]
    return subprocess.run(command, check=False).returncode


def maker(words: Sequence[str]) -> str:
    """Return the command that makes a sweep's runs: what its experiment says, else train.

    >>> maker(["experiment=pwlq/table2", "seed=0,1"]), maker(["experiment=pact/fig8"]), maker(["bits=2,4"])
    ('ptq', 'train', 'train')
    """
    names = [text.removeprefix("experiment=") for text in words if text.startswith("experiment=")]
    file = config_dir() / "experiment" / f"{names[-1] if names else 'none'}.yaml"
    node = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return str((node.get("experiment") or {}).get("command") or "train")


def status_table(runs: Sequence[Run]) -> Table:
    """Build the table: one row per run, what wants attention first, the counts in the title."""
    counts = Counter(state_of(run) for run in runs)
    ordered = sorted(runs, key=lambda run: (STATES.index(state_of(run)), run.path))
    shown = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    rows = [_row(run) for run in ordered]
    return Table(
        title=f"{len(runs)} run{'s' * (len(runs) != 1)}: {', '.join(shown)}",
        columns=[
            Column("status", "status"),
            Column("run", "run"),
            Column("progress", "progress"),
            Column("result", "result", number=True),
            Column("why", "why"),
        ],
        rows=rows,
        records=rows,
    )


def state_of(run: Run) -> str:
    """Return the run's status; one whose record cannot be read has failed, whatever it says."""
    return "failed" if run.problem and run.status != "running" else run.status


def _row(run: Run) -> dict[str, str]:
    """Return the texts of one run."""
    why = "; ".join(filter(None, [run.problem, run.failure if run.status != "done" else None]))
    return {
        "status": state_of(run),
        "run": str(run.path),
        "progress": progress_text(run),
        "result": _result(run),
        "why": " ".join(why.split()),
    }


def _result(run: Run) -> str:
    """Return the primary metric of a finished run with its unit."""
    metric = str((run.result or {}).get("primary_metric") or "test_accuracy")
    value = metrics_of(facts(run)).get(metric)
    return ABSENT if value is None else f"{value_text(value, metric)}{unit(metric).strip(' ()')}"
