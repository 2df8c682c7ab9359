"""A paper's table beside the runs that measure the same: published, measured, difference, verdict."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from qexp.published import NO_JUDGES, TO_FRACTION, Artefact, Cell
from qexp.report.ends import ABSENT
from qexp.report.facts import SUBJECT, Facts, facts
from qexp.report.groups import Group, differences_from, group_runs, metrics_of
from qexp.report.intervals import LEAST, Summary, summarize
from qexp.report.measured import caption, told, usable
from qexp.report.networks import changed, same
from qexp.report.numbers import difference_text, interval_text, is_share, published_text, unit, value_text
from qexp.report.tables import Column, Table
from qexp.runs import Run

SEEDS = ",".join(str(seed) for seed in range(LEAST))
"""The seeds that a verdict needs."""

_STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {"median": statistics.median, "worst": min}
"""Of accuracies; without an interval, which is the mean's."""

Jobs = Callable[[Cell, Facts], Iterable[Mapping[str, Any]]]
"""Yields the configurations of the jobs by which a cell's experiment would make it."""

PUBLISHED_ONLY = "published only"
"""Said of a cell that no run of qexp can stand beside."""


@dataclass(frozen=True)
class Entry:
    """A published cell, and the runs of one recipe that measure the same; None where there are none.

    `measured` is in the cell's own quantity: of a degradation the loss against its baseline, seed by seed, None
    where that baseline was not run.
    """

    cell: Cell
    group: Group | None = None
    measured: Summary | None = None


def verdict(
    published: float,
    measured: Summary,
    spread: float,
    metric: str = "test_accuracy",
    *,
    ours: bool = False,
    known_to: float = 0.0,
    read_to: float = 0.0,
) -> str:
    """Judge measured runs against a printed number.

    Args:
        published: the paper's value, as runs report it: a share as a fraction.
        measured: of runs of one recipe.
        spread: the paper's own run-to-run spread, likewise; decides below three runs.
        metric: what is measured.
        ours: the paper gives no spread; this one was chosen here.
        known_to: half of the last printed digit, likewise.
        read_to: how well the value could be read off a figure, likewise; 0 where it was not.

    Returns:
        From three runs on `agrees` (the 95% interval reaches what the published value may be), `below` or `above`
        (the whole interval lies there); with fewer runs only whether the mean is within the spread of what was
        published, and n.

    >>> verdict(0.913, Summary(3, 0.912, 0.002), 0.005), verdict(0.913, Summary(1, 0.912, None), 0.005)
    ('agrees', "within the paper's own spread (0.5 points), n = 1")
    """
    if measured.low is None or measured.high is None:
        # Rounded: 0.908 against 0.913 is half a point apart, whatever binary fractions make of it.
        apart = round(abs(measured.mean - published), 9)
        side = "within" if apart <= round(spread + read_to, 9) else "outside"
        return f"{side} {_reach(spread, read_to, metric, ours=ours)}, n = {measured.n}"
    known_to = max(known_to, read_to)
    if round(measured.high - published + known_to, 9) < 0:
        return "below"
    return "above" if round(measured.low - published - known_to, 9) > 0 else "agrees"


def _reach(spread: float, read_to: float, metric: str, *, ours: bool) -> str:
    """Say how far a run may be from a published value, and why; what reading a figure adds stands by itself."""
    digits = "{:.2g} points" if is_share(metric) else "{:g}"
    spread, read_to = (100 * value if is_share(metric) else value for value in (spread, read_to))
    if read_to and not spread:
        return f"what could be read off ({digits.format(read_to)})"
    whose = "the tolerance taken here" if ours else "the paper's own spread"
    read = f", read off to {digits.format(read_to)}" if read_to else ""
    return f"{whose} ({digits.format(spread)}{read})"


def kept(bound: float, measured: Summary) -> str:
    """Judge runs against a claim to be at most `bound`; `undecided` where the 95% interval is on both sides of it.

    >>> (
    ...     kept(0.01, Summary(1, 0.003, None)),
    ...     kept(0.01, Summary(3, 0.02, 0.002)),
    ...     kept(0.01, Summary(3, 0.009, 0.002)),
    ... )
    ('holds, n = 1', 'does not hold', 'undecided')
    """
    if measured.low is None or measured.high is None:
        return f"{'holds' if round(measured.mean - bound, 9) <= 0 else 'does not hold'}, n = {measured.n}"
    if measured.high <= bound:
        return "holds"
    return "does not hold" if measured.low > bound else "undecided"


def in_its_digits(printed: str, measured: Summary) -> str:
    """Judge runs that can only come out one way by the digits that were printed.

    >>> in_its_digits("7.56e-8", Summary(1, 7.5612e-8, None)), in_its_digits("2.30e-5", Summary(3, 2.31e-5, 0.0))
    ('agrees in every printed digit, n = 1', 'differs in a printed digit, n = 3')
    """
    number = Decimal(printed)
    last = Decimal(1).scaleb(int(number.as_tuple().exponent))
    alike = round(Decimal(measured.mean) / last) == round(number / last)
    return f"{'agrees in every' if alike else 'differs in a'} printed digit, n = {measured.n}"


def published_table(
    artefact: Artefact,
    runs: Sequence[Run],
    only: str = "",
    jobs: Jobs | None = None,
) -> Table:
    """Put a paper's table beside the runs that fit its cells.

    Args:
        artefact: the published cells.
        runs: any runs; those that fit no cell are not shown.
        only: show the rows whose label contains this text, in any case; empty for all.
        jobs: of the artefact's experiment: what a run has otherwise is said. None: only what the cell itself says
            of the recipe is looked at.

    Returns:
        One row per cell and recipe that was run, `not run` where there is none; the commands that would fill these
        stand below the table, and in each record.
    """
    shown = entries(artefact, runs, only)
    groups = [entry.group for entry in shown if entry.group is not None]
    remarks = [_remarks(entry, jobs) for entry in shown]
    cells = artefact.cells_of(only)
    missing = [entry.cell for entry in shown if entry.cell.keys and entry.measured is None]
    return Table(
        title=f"{artefact.full_name}: {artefact.title} ({artefact.source})",
        columns=_columns(artefact),
        rows=[_row(entry, artefact, said) for entry, said in zip(shown, remarks, strict=True)],
        records=[_record(entry, artefact, said) for entry, said in zip(shown, remarks, strict=True)],
        caption=f"Published: {artefact.source}{_all_obtained(cells)}. {caption(groups, artefact.metric)}",
        notes=[
            *artefact.notes,
            *_cell_notes(cells),
            *told(runs),
            *(f"to fill {label}: {command}" for label, command in _commands(missing)),
        ],
    )


def entries(artefact: Artefact, runs: Sequence[Run], only: str = "") -> list[Entry]:
    """Return the artefact's cells in their order, each with every group of runs that measures it.

    Args:
        artefact: the published cells.
        runs: any runs.
        only: the cells whose row contains this text, in any case; empty for all.
    """
    finished = usable_for(artefact, runs)
    found = []
    for cell in artefact.cells_of(only):
        groups = matching(cell.keys, cell.metric, finished) if cell.keys else []
        found += [Entry(cell, group, _measured(cell, group, finished)) for group in groups] or [Entry(cell)]
    return found


def _measured(cell: Cell, group: Group, finished: Sequence[Facts]) -> Summary | None:
    if cell.statistic != "mean":
        return Summary(len(group.values), _STATISTICS[cell.statistic](group.values), None)
    if cell.quantity != "degradation":
        return group.summary
    alike = [run for run in finished if run.baseline_key() == group.first.baseline_key()]
    wanted = cell.baseline or {"quantizer": "none"}
    lost = [-gained for gained in differences_from(matching(wanted, cell.metric, alike), group)]
    return summarize(lost) if lost else None


def usable_for(artefact: Artefact, runs: Sequence[Run]) -> list[Facts]:
    """Return the finished runs of the artefact's command that report its metric; others are no mistake here."""
    done = [facts(run) for run in runs if run.status == "done"]
    fitting = [one for one in done if one.command == artefact.command and artefact.metric in metrics_of(one)]
    return usable([one.run for one in fitting], artefact.metric)[0]


def matching(keys: Mapping[str, str], metric: str, finished: Sequence[Facts]) -> list[Group]:
    """Return the groups of runs that are what `keys` say, one per recipe."""
    return group_runs([run for run in finished if _is(run, keys)], metric)


def measuring(cells: Sequence[Cell], runs: Sequence[Run]) -> list[Run]:
    """Return the runs that are what one of the cells asks for, finished or not."""
    wanted = [cell for cell in cells if cell.keys]
    made = [facts(run) for run in runs if run.config]
    return [one.run for one in made if any(one.command == cell.command and _is(one, cell.keys) for cell in wanted)]


def _is(run: Facts, keys: Mapping[str, str]) -> bool:
    if keys.get("quantizer") == "none" and not run.is_float:  # a layer of it may be set apart
        return False
    return all(_agrees(run, key, run.get(key), value) for key, value in keys.items())


def _agrees(run: Facts, key: str, value: Any, wanted: Any) -> bool:
    """Say whether a run's value of a setting is what is wanted; of the rule for both ends, its widths count."""
    return run.has_ends(str(wanted)) if key == "first_last" else same(value, wanted)


def departures(cell: Cell, group: Group) -> list[str]:
    """Say in what the runs left the paper's recipe; a shortened budget first.

    Settings that a run does not have (a clip level's scope in a float network) are no departure.
    """
    one = group.first
    found = [f"shortened budget: {one.shortened}"] if one.shortened else []
    for key, wanted in cell.recipe.items():
        value = one.asked(key)
        if value == ABSENT or (one.smoke and key == "dataset"):
            continue
        short = key == "epochs" and one.shortened and float(value) < float(wanted)
        if not short and not _agrees(one, key, value, wanted):
            found.append(f"{key}={value}, paper {wanted}")
    found += [f"{key}={value}" for key, value in one.recipe.items() if key.startswith("layers.")]
    told = (*SUBJECT, *cell.recipe, *cell.keys, "dataset.train_samples")
    found += [f"{key}={value}" for key, value in group.keys.items() if key not in told]
    if one.precision not in ("float32", ABSENT):
        found.append(f"trained in {one.precision}")
    return list(dict.fromkeys(found))


_PLACES_AND_DATA = ("weights", "teacher", "data_digest", "dataset.train_samples")
"""Of a recipe: where something lies, and what a budget takes of the data."""


def left(cell: Cell, one: Facts, job: Facts) -> list[str]:
    """Say in what a run differs from the job by which the experiment would make it, but for what the cell says."""
    judged = {*cell.recipe, *cell.keys, *_PLACES_AND_DATA}
    judged |= {"epochs"} if one.shortened else set()
    judged |= {"precision"} if one.precision != "float32" else set()  # `departures` says both
    found = []
    for key in dict.fromkeys([*job.recipe, *one.recipe]):
        value, wanted = one.setting(key), job.setting(key)
        apart = ["layers"] + ["schedule."] * bool(one.shortened) + ["dataset."] * (one.dataset != job.dataset)
        if ABSENT in (value, wanted) or key in judged or key.startswith(tuple(apart)):
            continue
        if not _agrees(one, key, value, wanted):
            found.append(f"{key}={value}, experiment {wanted}")
    return found


def _remarks(entry: Entry, jobs: Jobs | None) -> str:
    if entry.group is None:
        return ""
    one, said = entry.group.first, departures(entry.cell, entry.group)
    if not one.smoke and (job := _job(entry, jobs)) is not None:
        said += left(entry.cell, one, job)
    return "; ".join(dict.fromkeys(said))


def _job(entry: Entry, jobs: Jobs | None) -> Facts | None:
    """Return the job by which a cell's experiment would make its runs."""
    if entry.group is None or jobs is None:
        return None
    one = entry.group.first
    made = (facts(Run(one.run.path, "done", dict(plain), {}, None, {})) for plain in jobs(entry.cell, one))
    return next((job for job in made if _is(job, entry.cell.keys)), None)


def other_network(entry: Entry, jobs: Jobs | None) -> str:
    """Say in what the runs' network is not the paper's, as far as the cell or its experiment say what that is.

    Without either, what differs from the network's own option is said.
    """
    if entry.group is None:
        return ""
    cell, one = entry.cell, entry.group.first
    settings = changed(one)
    said = [text for text in departures(cell, entry.group) if text.startswith("model.")]
    unsaid = settings.keys() - {*cell.keys, *cell.recipe}
    if unsaid and (job := _job(entry, jobs)) is not None:
        said += [text for text in left(cell, one, job) if text.startswith("model.")]
    else:
        said += [f"{key}={settings[key]}" for key in settings if key in unsaid]
    return ", ".join(dict.fromkeys(said))


def command(cells: Sequence[Cell]) -> str:
    """Return the command that fills cells of one artefact: its experiment, and what picks the first one's part."""
    parts = list(dict.fromkeys(cell.run for cell in cells if cell.run))
    return " ".join([f"qexp {cells[0].command}", f"experiment={cells[0].experiment}", *parts[:1]])


def _commands(missing: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """Yield a command for the missing cells of each recipe; the same runs serve all of its rows."""
    parts: dict[str, list[Cell]] = {}
    for cell in missing:
        parts.setdefault(cell.run, []).append(cell)
    for cells in parts.values():
        rows = dict.fromkeys(cell.row for cell in cells)
        label = f"{len(cells)} cells of {', '.join(rows)}" if len(cells) > 1 else cells[0].row
        yield label, f"{command(cells)} seed={SEEDS}"


def obtained(cell: Cell) -> str:
    """Return how a number was obtained as it is written behind it, ` (read off)`; nothing where it was printed."""
    return "" if cell.how == "printed" else f" ({cell.how.replace('_', ' ')})"


def _all_obtained(cells: Sequence[Cell]) -> str:
    """Say how the numbers were obtained, where that is the same for all; others are marked one by one."""
    kinds = {cell.how for cell in cells}
    if kinds == {"printed"}:
        return ", as printed"
    return ", never seen on the page" if kinds and kinds <= {"second_hand", *NO_JUDGES} else ""


def _cell_notes(cells: Sequence[Cell]) -> list[str]:
    """Return the notes of cells and rows, each once, and each misprint with the value that is used instead."""
    notes: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.note:
            notes.setdefault(cell.note, []).append(cell)
    lines = []
    for note, cells_of_it in notes.items():
        rows = ", ".join(dict.fromkeys(cell.row for cell in cells_of_it))
        where = f"{rows}, {cells_of_it[0].column}" if len(cells_of_it) == 1 else rows
        lines.append(f"{where}: {note}")
    lines += [
        f"* {cell.row}, {cell.column}: a misprint, printed {cell.value:g}, read as {cell.reading:g}"
        for cell in cells
        if cell.reading is not None
    ]
    return lines


def _columns(artefact: Artefact) -> list[Column]:
    share = " (points)" if _is_degradation(artefact) else unit(artefact.metric)
    return [
        Column("network", "row"),
        Column("method", "column"),
        Column("published", f"published{share}", number=True),
        Column("measured", f"measured{share}", number=True),
        Column("n", "n", number=True),
        Column("interval", "95% interval"),
        Column("difference", "measured − published", number=True),
        Column("verdict", "verdict"),
        Column("remarks", "remarks"),
    ]


def _is_degradation(artefact: Artefact) -> bool:
    return any(cell.quantity == "degradation" for cell in artefact.cells)


def _row(entry: Entry, artefact: Artefact, remarks: str) -> dict[str, str]:
    cell, summary, metric = entry.cell, entry.measured, artefact.metric
    mark = obtained(cell) + ("*" if cell.reading is not None else "")
    row = {
        "network": cell.row,
        "method": cell.column,
        "published": ("≤ " if cell.bound else "")
        + published_text(cell.comparable, metric, cell.printed, cell.unit)
        + mark,
        **dict.fromkeys(("measured", "interval", "difference"), ABSENT),
        "n": "0" if cell.keys else ABSENT,
        "verdict": judged(entry, artefact),
        "remarks": remarks,
    }
    if summary is None:
        return row
    return row | {
        "measured": value_text(summary.mean, metric),
        "n": str(summary.n),
        "interval": interval_text(summary, metric),
        "difference": difference_text(summary.mean - cell.comparable, metric),
    }


def judged(entry: Entry, artefact: Artefact) -> str:
    """Return the verdict on an entry, or why there is none."""
    if not entry.cell.keys:
        return PUBLISHED_ONLY
    if entry.group is None:
        return "not run"
    if entry.measured is None:
        return "its baseline is not run"
    if entry.group.first.smoke:
        return "none: a smoke test"
    if str(entry.cell.recipe.get("dataset", entry.group.first.dataset)) != entry.group.first.dataset:
        return "none: another data set"
    if why := NO_JUDGES.get(entry.cell.how):
        return f"none: {why}"
    if entry.cell.how == "printed" and artefact.spread == 0.0:
        return in_its_digits(entry.cell.printed, entry.measured)
    if entry.cell.bound:
        return kept(entry.cell.comparable, entry.measured)
    return verdict(
        entry.cell.comparable,
        entry.measured,
        artefact.spread,
        artefact.metric,
        ours=entry.cell.spread_from == "ours",
        known_to=_half_a_digit(entry.cell),
        read_to=entry.cell.read_to,
    )


def _half_a_digit(cell: Cell) -> float:
    """Return half of the last digit that was printed, as runs report the metric."""
    exponent = int(Decimal(cell.printed).as_tuple().exponent)
    return 0.5 * 10.0**exponent * TO_FRACTION.get(cell.unit, 1.0)


def _record(entry: Entry, artefact: Artefact, remarks: str) -> dict[str, object]:
    cell, summary = entry.cell, entry.measured
    return {
        "row": cell.row,
        "column": cell.column,
        "published": cell.comparable,
        "source": cell.source,
        "how": cell.how,
        "read_to": cell.read_to,
        "measured": None if summary is None else summary.mean,
        "n": 0 if summary is None else summary.n,
        "interval_low": None if summary is None else summary.low,
        "interval_high": None if summary is None else summary.high,
        "difference": None if summary is None else summary.mean - cell.comparable,
        "verdict": judged(entry, artefact),
        "remarks": remarks,
        "command": command([cell]) if cell.keys and summary is None else "",
    }
