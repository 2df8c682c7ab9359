"""What a sweep prints at its end: one row per job, and below the rows why some of them did not end well."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qexp.errors import Interrupted
from qexp.jobs.job import Record, by_reason, record_of
from qexp.report.tables import WIDE
from qexp.runs import RunDirectory

COLOURS = {"failed": "red", "interrupted": "yellow", "missing": "yellow", "running": "yellow", "done": "green"}
MOST_NAMED = 3
"""Jobs that one reason names; the table above shows them all."""


def print_summary(records: Sequence[Record]) -> None:
    """Print one row per job: what was set apart from the others, how it ended, its metric, its run's name."""
    if not records:
        return
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
    if running := sum(record.status == "running" for record in records):
        text = f"running: another process has {running} of these; type the command again when it has ended"
        console.print(text, style=COLOURS["running"], soft_wrap=True, highlight=False)
    stopped = next((record.message for record in records if record.status == "interrupted"), None)
    if stopped:
        console.print(escape(stopped), style=COLOURS["interrupted"], soft_wrap=True, highlight=False)


def _table(records: Sequence[Record], shared: Sequence[str]) -> Table:
    names = {record.metric_name for record in records if record.metric is not None}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # A run's name is one word, to be copied: the columns beside it fold, never this one.
    table.add_column("job", overflow="fold")
    table.add_column("status", no_wrap=True)
    if names:
        table.add_column(_spaced(*names) if len(names) == 1 else "result", justify="right")
    table.add_column("run", no_wrap=True)
    for record in records:
        metric = [_metric(record, named=len(names) > 1)] if names else []
        row = (escape(_own(record, shared)), record.status, *metric, escape(record.run_id))
        table.add_row(*row, style=COLOURS.get(record.status))
    return table


def _metric(record: Record, *, named: bool) -> str:
    """Return a job's metric; `named`: with its name, where the jobs have different ones."""
    if record.metric is None:
        return ""
    return f"{_spaced(record.metric_name)} {record.metric:.4f}" if named else f"{record.metric:.4f}"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _shared(records: Sequence[Record]) -> list[str]:
    """Return the settings that all jobs have, of more than one."""
    words = [record.overrides.split() for record in records]
    return [word for word in words[0] if all(word in other for other in words)] if len(words) > 1 else []


def _own(record: Record, shared: Sequence[str]) -> str:
    return " ".join(word for word in record.overrides.split() if word not in shared)


def _counts(records: Sequence[Record]) -> dict[str, int]:
    statuses = [record.status for record in records]
    return {status: statuses.count(status) for status in dict.fromkeys(statuses)}


def lost(record: Record, stop: Interrupted | None = None) -> Record:
    """Return the last word of a job after its launcher has ended; `stop`: because the user wanted to leave."""
    if record.status != "started":
        return settled(record)
    if stop is not None:
        return dataclasses.replace(record, status="interrupted", exit_code=stop.exit_code, message=str(stop))
    text = "its process ended without a word: out of memory, or killed?"
    return dataclasses.replace(record, status="failed", exit_code=1, message=text)


def settled(record: Record) -> Record:
    """Return the record of a run that another process had, as it stands when the sweep has ended."""
    if record.status != "running":
        return record
    run = RunDirectory(record.path)
    status, result = run.status(), run.read_result()  # in this order: a result may come between the two
    if result is not None:
        return record_of(record.overrides, {**result, "path": record.path, "status": "skipped"})
    if status == "running":
        return record
    why = str((run.read_failure() or {}).get("message") or "")
    text = "another process had this run and did not finish it; type the command again"
    return dataclasses.replace(record, status="failed", exit_code=1, message=why if status == "failed" else text)
