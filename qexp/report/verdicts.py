"""A paper's table beside the runs that measure the same: published, measured, difference, verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qexp.published import Artefact, Cell
from qexp.report.facts import ABSENT, SUBJECT, Facts
from qexp.report.groups import Group, group_runs
from qexp.report.intervals import LEAST, Summary
from qexp.report.measured import caption, usable
from qexp.report.numbers import difference_text, interval_text, published_text, unit, value_text
from qexp.report.tables import Column, Table
from qexp.runs import Run

SEEDS = ",".join(str(seed) for seed in range(LEAST))
"""The seeds that a missing cell asks for: as many as a verdict needs."""


def verdict(published: float, measured: Summary, spread: float) -> str:
    """Judge measured runs against a printed number.

    Args:
        published: the paper's value, as a fraction.
        measured: of runs of one recipe.
        spread: the paper's own run-to-run spread, as a fraction; decides below three runs.

    Returns:
        From three runs on `agrees` (the 95% interval contains the published value), `below` or `above` (the whole
        interval lies there); with fewer runs only whether the mean is within the paper's spread, and n.

    >>> verdict(0.913, Summary(3, 0.912, 0.002), 0.005), verdict(0.913, Summary(1, 0.912, None), 0.005)
    ('agrees', "within the paper's own spread (0.5 points), n = 1")
    """
    if measured.low is None or measured.high is None:
        # Rounded: 0.908 against 0.913 is half a point apart, whatever binary fractions make of it.
        side = "within" if round(abs(measured.mean - published), 9) <= spread else "outside"
        return f"{side} the paper's own spread ({100 * spread:.1f} points), n = {measured.n}"
    if measured.high < published:
        return "below"
    return "above" if measured.low > published else "agrees"


def published_table(artefact: Artefact, runs: Sequence[Run], only: str = "") -> Table:
    """Put a paper's table beside the runs that fit its cells.

    Args:
        artefact: the published cells.
        runs: any runs; those that fit no cell are not shown.
        only: show the rows whose label contains this text, in any case; empty for all.

    Returns:
        One row per cell and recipe that was run, `not run` where there is none; the commands that would fill these
        stand below the table, and in each record.
    """
    finished, _ = usable_for(artefact, runs)
    cells = [cell for cell in artefact.cells if only.lower() in cell.row.lower()]
    entries: list[tuple[Cell, Group | None]] = []
    for cell in cells:
        entries += [(cell, group) for group in matching(cell, finished)] or [(cell, None)]
    groups = [group for _, group in entries if group is not None]
    missing = [cell for cell, group in entries if group is None]
    unfinished = [run for run in runs if run.status != "done" and _named_like(run, cells)]
    return Table(
        title=f"{artefact.paper}/{artefact.name}: {artefact.title} ({artefact.source})",
        columns=_columns(artefact.metric),
        rows=[_row(cell, group, artefact) for cell, group in entries],
        records=[_record(cell, group, artefact) for cell, group in entries],
        caption=f"Published: as printed, {artefact.source}. {caption(groups, artefact.metric)}",
        notes=[
            *artefact.notes,
            *_cell_notes(cells),
            *usable(unfinished, artefact.metric)[1],
            *(f"to fill {label}: {command}" for label, command in _commands(missing)),
        ],
    )


def usable_for(artefact: Artefact, runs: Sequence[Run]) -> tuple[list[Facts], list[str]]:
    """Return the finished runs that report the artefact's metric; a foreign metric is no mistake here."""
    holding = [run for run in runs if artefact.metric in ((run.result or {}).get("metrics") or run.result or {})]
    return usable(holding, artefact.metric)


def matching(cell: Cell, finished: Sequence[Facts]) -> list[Group]:
    """Return the groups of runs that measure what the cell holds, one per recipe."""
    fitting = [run for run in finished if all(str(run.get(key)) == value for key, value in cell.keys.items())]
    return group_runs(fitting, cell.metric)


def departures(cell: Cell, group: Group) -> list[str]:
    """Say in what the runs left the paper's recipe; a shortened budget first.

    Settings that a run does not have (a clip level's scope in a float network) are no departure.
    """
    one = group.first
    found = []
    for key, wanted in sorted(cell.recipe.items(), key=lambda item: item[0] != "epochs"):
        value = one.get(key)
        if value == ABSENT or _same(value, wanted):
            continue
        short = key == "epochs" and int(value) < int(wanted)
        budget = f"shortened budget: {value} of the paper's {wanted} epochs"
        found.append(budget if short else f"{key}={value}, paper {wanted}")
    if one.train_samples is not None and "dataset.train_samples" not in cell.recipe:
        found.insert(0, f"shortened budget: {one.train_samples:,} training samples")
    found += [f"{key}={value}" for key, value in one.recipe.items() if key.startswith("layers.")]
    found += [
        f"{key}={value}"
        for key, value in group.keys.items()
        if key not in (*SUBJECT, "dataset.train_samples", *cell.recipe)
    ]
    if one.precision not in ("float32", ABSENT):
        found.append(f"trained in {one.precision}")
    return list(dict.fromkeys(found))


def command(cell: Cell, bits: str | None = None) -> str:
    """Return the command that fills a cell: the paper's recipe, and as many seeds as a verdict needs."""
    keys = cell.keys
    words = [f"{key}={keys[key]}" for key in ("model", "dataset", "quantizer") if key in keys]
    if bits or "bits" in keys:
        words.append(f"bits={bits or _short(keys['bits'])}")
    words += [f"{key}={value}" for key, value in keys.items() if key not in SUBJECT]
    words += [f"{key}={cell.recipe[key]}" for key in ("epochs", "batch_size") if key in cell.recipe]
    overrides = [f"'{word}'" if "[" in word else word for word in cell.overrides]
    return " ".join(["qexp train -m", *words, *overrides, f"seed={SEEDS}"])


def _commands(missing: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """Yield one command for the missing cells of one row and quantizer: a sweep over their bits."""
    sweeps: dict[tuple[str, ...], list[Cell]] = {}
    for cell in missing:
        rest = tuple(value for key, value in cell.keys.items() if key != "bits")
        sweeps.setdefault((cell.row, *rest), []).append(cell)
    for cells in sweeps.values():
        bits = ",".join(_short(cell.keys["bits"]) for cell in cells if "bits" in cell.keys)
        yield f"{cells[0].row}, {', '.join(cell.column for cell in cells)}", command(cells[0], bits)


def _short(bits: str) -> str:
    """Return `4` for `w4a4`, the form that people type; other pairs as they are."""
    weight, _, activation = bits.removeprefix("w").partition("a")
    return weight if weight == activation else bits


def _same(value: Any, wanted: Any) -> bool:
    """Compare a setting with the paper's; 1e-4 and "0.0001" are one number."""
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return str(value) == str(wanted)


def _named_like(run: Run, cells: Sequence[Cell]) -> bool:
    """Tell whether an unfinished run would fill one of the cells, by its name."""
    starts = ("-".join(cell.keys[key] for key in SUBJECT if key in cell.keys) + "-" for cell in cells)
    return run.path.name.startswith(tuple(starts))


def _cell_notes(cells: Sequence[Cell]) -> list[str]:
    """Return the notes of cells and rows, and each misprint with the value that is used instead."""
    notes = [f"{cell.row}, {cell.column}: {cell.note}" for cell in cells if cell.note and cell.column == "FP"]
    notes += [
        f"* {cell.row}, {cell.column}: a misprint, printed {cell.value:g}, read as {cell.reading:g}"
        for cell in cells
        if cell.reading is not None
    ]
    return notes


def _columns(metric: str) -> list[Column]:
    return [
        Column("network", "network"),
        Column("method", "method"),
        Column("published", f"published{unit(metric)}", number=True),
        Column("measured", f"measured{unit(metric)}", number=True),
        Column("n", "n", number=True),
        Column("interval", "95% interval"),
        Column("difference", "measured − published", number=True),
        Column("verdict", "verdict"),
        Column("remarks", "remarks"),
    ]


def _row(cell: Cell, group: Group | None, artefact: Artefact) -> dict[str, str]:
    metric = artefact.metric
    mark = "" if cell.how == "printed" else f" ({cell.how.replace('_', ' ')})"
    mark += "*" if cell.reading is not None else ""
    row = {
        "network": cell.row,
        "method": cell.column,
        "published": published_text(cell.comparable, metric) + mark,
        **dict.fromkeys(("measured", "interval", "difference"), ABSENT),
        "n": "0",
        "verdict": "not run",
        "remarks": "",
    }
    if group is None:
        return row
    summary = group.summary
    return row | {
        "measured": value_text(summary.mean, metric),
        "n": str(summary.n),
        "interval": interval_text(summary, metric),
        "difference": difference_text(summary.mean - cell.comparable, metric),
        "verdict": verdict(cell.comparable, summary, artefact.spread),
        "remarks": "; ".join(departures(cell, group)),
    }


def _record(cell: Cell, group: Group | None, artefact: Artefact) -> dict[str, object]:
    summary = None if group is None else group.summary
    return {
        "network": cell.row,
        "column": cell.column,
        "published": cell.comparable,
        "source": cell.source,
        "how": cell.how,
        "measured": None if summary is None else summary.mean,
        "n": 0 if summary is None else summary.n,
        "interval_low": None if summary is None else summary.low,
        "interval_high": None if summary is None else summary.high,
        "difference": None if summary is None else summary.mean - cell.comparable,
        "verdict": "not run" if summary is None else verdict(cell.comparable, summary, artefact.spread),
        "remarks": "" if group is None else "; ".join(departures(cell, group)),
        "command": command(cell) if group is None else "",
    }
