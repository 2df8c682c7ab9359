"""What a sweep prints at its end: one row per job, and below the rows why some of them did not end well."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qexp.jobs import Record, by_reason

COLOURS = {"failed": "red", "interrupted": "yellow", "missing": "yellow", "done": "green"}
MOST_NAMED = 3
"""Jobs that one reason names; the table above shows them all."""
WIDE = 10_000
"""Columns where no terminal sets a limit: a file's or a pipe's lines are never folded."""


def print_summary(records: Sequence[Record]) -> None:
    """Print one row per job: what was set apart from the others, how it ended, its metric, its run's name."""
    shared = _shared(records)
    counts = ", ".join(f"{count} {status}" for status, count in _counts(records).items())
    title = f"{len(records)} job{'s' * (len(records) != 1)}{' of ' * bool(shared)}{' '.join(shared)}: {counts}"
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(escape(title), soft_wrap=True, highlight=False)
    console.print(_table(records, shared))
    for reason, failed in by_reason(records).items():
        names = "; ".join(_own(record, shared) for record in failed[:MOST_NAMED])
        more = f"; {len(failed) - MOST_NAMED} more" if len(failed) > MOST_NAMED else ""
        text = f"failed {names}{more}: {reason}"
        console.print(escape(text), style=COLOURS["failed"], soft_wrap=True, highlight=False)
    stopped = next((record.message for record in records if record.status == "interrupted"), None)
    if stopped:
        console.print(escape(stopped), style=COLOURS["interrupted"], soft_wrap=True, highlight=False)


def _table(records: Sequence[Record], shared: Sequence[str]) -> Table:
    name = next((record.metric_name for record in records if record.metric is not None), None)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # A run's name is one word, to be copied: the columns beside it fold, never this one.
    table.add_column("job", overflow="fold")
    table.add_column("status", no_wrap=True)
    if name:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("run", no_wrap=True)
    for record in records:
        metric = [] if not name else ["" if record.metric is None else f"{record.metric:.4f}"]
        row = (escape(_own(record, shared)), record.status, *metric, escape(record.run_id))
        table.add_row(*row, style=COLOURS.get(record.status))
    return table


def _shared(records: Sequence[Record]) -> list[str]:
    """Return the settings that all jobs have, of more than one."""
    words = [record.overrides.split() for record in records]
    return [word for word in words[0] if all(word in other for other in words)] if len(words) > 1 else []


def _own(record: Record, shared: Sequence[str]) -> str:
    return " ".join(word for word in record.overrides.split() if word not in shared)


def _counts(records: Sequence[Record]) -> dict[str, int]:
    statuses = [record.status for record in records]
    return {status: statuses.count(status) for status in dict.fromkeys(statuses)}
