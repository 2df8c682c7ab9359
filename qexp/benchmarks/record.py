"""What a benchmark leaves: a table for people and a record for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from qexp.benchmarks.measure import Measure
from qexp.report.tables import Column, Table

FORMAT_VERSION = 1
TRAINING = ("step", "data", "memory")
"""The topics about a training step, which depend on the network that was asked for."""

_NOTE = "A limit that is not held on a machine with other work is to be measured again when it is idle."


def as_record(settings: Mapping[str, Any], measures: Sequence[Measure]) -> dict[str, Any]:
    """Return everything as JSON's own types: machine, settings, and each measure with its spread and limit."""
    from qexp.lit.environment import describe

    rows = []
    for one in measures:
        row = {**asdict(one), **(asdict(one.spread) if one.spread else {}), "held": one.held}
        row["value"] = row.pop("median", None)
        del row["spread"], row["form"]
        rows.append(row)
    return {"format_version": FORMAT_VERSION, "machine": describe(), "settings": dict(settings), "measures": rows}


def table(report: dict[str, Any], measures: Sequence[Measure]) -> Table:
    """Return the table of the measures, the machine in its title."""
    machine, settings = report["machine"], report["settings"]
    place = [
        *filter(None, [machine["gpu"], machine["cpu"]]),
        f"{machine['cores']} cores",
        f"{machine['threads']} threads",
        f"torch {machine['packages']['torch']}",
    ]
    caption = []
    if set(settings["topics"]) & set(TRAINING):
        caption = [f"{settings['model']}, batch {settings['batch_size']}, {' and '.join(settings['precision'])};"]
    rows = [_row(one) for one in measures]
    return Table(
        title=", ".join(place),
        columns=[
            Column("topic", "topic"),
            Column("what", "what"),
            Column("value", "value", number=True),
            Column("range", "min to max", number=True),
            Column("limit", "limit", number=True),
            Column("held", "verdict"),
            Column("basis", "from"),
        ],
        rows=rows,
        records=rows,
        caption=" ".join([*caption, f"medians of {settings['rounds']} rounds."]),
        notes=[_NOTE],
    )


def text(one: Measure) -> str:
    """Return a measure as one line."""
    row = _row(one)
    limit = f"; limit {row['limit']}, {row['held']}" if row["limit"] else ""
    basis = f" ({row['basis']})" if row["basis"] else ""
    return f"  {row['what']}: {row['value']}{basis}{limit}"


def _row(one: Measure) -> dict[str, str]:
    value = one.spread
    several = value is not None and value.low < value.high
    limit = "" if one.limit is None else ("≥ " if one.at_least else "") + one.form.format(one.limit)
    verdict = {True: "held", False: "NOT HELD" if value else "NOT MEASURED", None: ""}[one.held]
    return {
        "topic": one.topic,
        "what": one.what,
        "value": "–" if value is None else one.form.format(value.median),
        "range": f"{one.form.format(value.low)} to {one.form.format(value.high)}" if value and several else "",
        "limit": limit,
        "held": verdict,
        "basis": one.basis,
    }
