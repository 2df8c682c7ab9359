"""The table of measured runs: one row per group, with interval, budget and distance to the float baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qexp.errors import ConfigError, did_you_mean
from qexp.report.against import paired, paired_text, partner
from qexp.report.ends import ABSENT
from qexp.report.facts import SUBJECT, Facts, facts, flatten
from qexp.report.groups import Group, baseline_difference, by_ends, by_origin, group_runs, metric_of, metrics_of
from qexp.report.intervals import Summary
from qexp.report.networks import changed_in_any
from qexp.report.numbers import change_text, interval_text, unit, value_text
from qexp.report.progress import progress_text
from qexp.report.tables import Column, Table
from qexp.runs import Run

CORRECTION = "calibration.bias_correction"

HEADERS = {
    "dataset": "data set",
    "first_last": "first/last",
    "data_digest": "data",
    CORRECTION: "bias correction",
}
"""Headers that differ from the key."""

READINGS = {"lglsq": "lglsq is this project's reading of LG-LSQ, whose formulas are not public."}
"""Methods that are no transcription of a paper: every table that has one says so."""

# Shown only where the rows differ in them, by request of a reader who must be able to trust equal-looking rows.
_SHOWN_WHEN_DIFFERENT = ("first_last", "precision")


def measured_table(
    runs: Sequence[Run],
    metric: str = "test_accuracy",
    by: Sequence[str] | None = None,
    *,
    against: Mapping[str, str] | None = None,
    also: Sequence[str] = (),
    apart: Sequence[str] = (),
) -> Table:
    """Build the table of any runs.

    Args:
        runs: as `find_runs` gives them; unfinished and damaged ones are listed below the table.
        metric: the number to compare, by its name in `result.json`.
        by: keys to group by; None: model, data set, quantizer, bits, and whatever else differs.
        against: what the runs are that every other row is compared with, seed by seed.
        also: further metrics, whose means stand beside.
        apart: settings in which a row's float network may differ from it.

    Returns:
        The table; accuracies in percent, differences in points.

    Raises:
        ConfigError: no run has the metric, `by` would mix recipes, or no run has a setting of `apart`.
    """
    finished, notes = usable(runs, metric)
    _refuse_unknown(apart, finished)
    groups = group_runs(finished, metric, by)
    floats = group_runs([run for run in finished if run.is_float], metric)
    keys = list(groups[0].keys) if groups else list(SUBJECT)
    keys += [key for key in _SHOWN_WHEN_DIFFERENT if key not in keys and _differ(groups, key)]
    keys += [key for key in changed_in_any(group.first for group in groups) if key not in keys]
    if by is None and CORRECTION not in keys and _made_by("ptq", groups):
        keys.append(CORRECTION)
    columns = _columns(keys, metric, epochs=bool(_made_by("train", groups)) or not groups)
    differences = [baseline_difference(group, floats, apart) for group in groups]
    rows = [_row(*each, keys, metric) for each in zip(groups, differences, strict=True)]
    records = [_record(*each, keys, metric) for each in zip(groups, differences, strict=True)]
    if against is not None:
        columns.append(Column("against", f"vs {', '.join(against.values())}", number=True))
        _compare(groups, against, metric, rows, records)
    for name in also:
        columns.append(Column(f"also {name}", f"{name.replace('_', ' ')}{unit(name)}", number=True))
        _add_metric(groups, name, rows, records)
    return Table(
        title=f"{metric.replace('_', ' ')} of {len(finished)} finished run{'s' * (len(finished) != 1)}",
        columns=columns,
        rows=rows,
        records=records,
        caption=f"{caption(groups, metric)} {_baselines(groups, apart)}",
        notes=notes,
    )


def usable(runs: Sequence[Run], metric: str) -> tuple[list[Facts], list[str]]:
    """Part runs that can stand in a table from those that cannot.

    Returns:
        Finished runs that report `metric`, and one line for each other run.

    Raises:
        ConfigError: runs are finished, and none reports `metric`.
    """
    finished = [facts(run) for run in runs if run.status == "done" and run.config]
    notes = told(runs)
    known = {name for run in finished for name in metrics_of(run)}
    if finished and metric not in known:
        raise ConfigError(f"--metric: no finished run reports '{metric}'.{did_you_mean(metric, known)}")
    holding = [run for run in finished if not math.isnan(metric_of(run, metric))]
    notes += [f"{run.run.path.name}: finished without {metric}" for run in finished if run not in holding]
    return by_ends(by_origin(holding)), notes


def told(runs: Sequence[Run]) -> list[str]:
    """Return a line for each run that is damaged or not done: which, how far it came, and why."""
    notes = []
    for run in runs:
        name = run.path.name
        if run.status == "done" and run.config:
            notes += [f"{name}: damaged: {run.problem}"] if run.problem else []
        elif run.problem:
            notes.append(f"{name}: damaged, left out: {run.problem}")
        else:
            why = f": {' '.join(run.failure.split())}" if run.failure else ""
            notes.append(f"{name}: {run.status} ({progress_text(run)}){why}")
    return notes


def caption(groups: Sequence[Group], metric: str) -> str:
    """Say what the numbers are: metric, interval, the rule for both ends, precision, and whose method it is."""
    quantized = [group for group in groups if not group.first.is_float]
    parts = [f"{metric}{' in %, differences in points' if unit(metric) else ''}; 95% t-interval from n = 3 on."]
    if quantized:
        parts.append(f"First and last layer: {_all_values(quantized, 'first_last')} (bits; same = as the others).")
    if trained := _made_by("train", groups):
        parts.append(f"Training precision: {_all_values(trained, 'precision')}.")
    parts += [text for name, text in READINGS.items() if any(group.first.quantizer == name for group in groups)]
    return " ".join(parts)


def _refuse_unknown(apart: Sequence[str], runs: Sequence[Facts]) -> None:
    known = {key for run in runs for key in (*run.recipe, *flatten(run.run.config, whole=True))}
    for key in apart if runs else ():
        if key not in known:
            raise ConfigError(f"--float-apart: '{key}' is no setting of these runs.{did_you_mean(key, known)}")


def _baselines(groups: Sequence[Group], apart: Sequence[str]) -> str:
    """Say which float network a difference is taken against."""
    shared = {"train": "model, data set, recipe and seeds", "ptq": "model, weights, data set and seeds"}
    made = [command for command in shared if _made_by(command, groups)] or ["train"]
    texts = [f"same {shared[command]}{f' (qexp {command})' if len(made) > 1 else ''}" for command in made]
    own = f"; {', '.join(apart)} may be its own" if apart else ""
    return f"Float: {', or '.join(texts)}, without quantizer{own}."


def _made_by(command: str, groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if group.first.command == command]


def header(key: str) -> str:
    """Return a key as a column's header."""
    return HEADERS.get(key, key)


def epochs_text(group: Group) -> str:
    """Return the budget, naming a shortened one."""
    one = group.first
    if one.shortened:
        return f"shortened: {one.shortened.removesuffix(' epochs')}"
    return ABSENT if one.epochs is None else str(one.epochs)


def _columns(keys: Sequence[str], metric: str, *, epochs: bool) -> list[Column]:
    columns = [Column(key, header(key)) for key in keys if key != "epochs"]
    return [
        *columns,
        Column("n", "n", number=True),
        Column("mean", f"mean{unit(metric)}", number=True),
        Column("interval", "95% interval"),
        *([Column("epochs", "epochs", number=True)] if epochs else []),
        Column("difference", "vs float", number=True),
    ]


def _row(group: Group, difference: Summary | None, keys: Sequence[str], metric: str) -> dict[str, str]:
    summary = group.summary
    text = ABSENT if difference is None else change_text(difference, metric)
    if difference is not None and difference.n < summary.n:
        text += f" (n = {difference.n})"
    return {key: str(group.first.get(key)) for key in keys} | {
        "n": str(summary.n),
        "mean": value_text(summary.mean, metric),
        "interval": interval_text(summary, metric),
        "epochs": epochs_text(group),
        "difference": text,
    }


def _record(group: Group, difference: Summary | None, keys: Sequence[str], metric: str) -> dict[str, object]:
    summary = group.summary
    return {key: group.first.get(key) for key in keys} | {
        "metric": metric,
        "n": summary.n,
        "mean": summary.mean,
        "interval_low": summary.low,
        "interval_high": summary.high,
        "epochs": group.first.epochs,
        "shortened": group.first.shortened,
        "difference": None if difference is None else difference.mean,
        "difference_n": None if difference is None else difference.n,
        "difference_half_width": None if difference is None else difference.half_width,
        "seeds": " ".join(str(member.seed) for member in group.members),
        "first_last": group.first.first_last,
        "precision": group.first.precision,
    }


def _compare(
    groups: Sequence[Group],
    against: Mapping[str, str],
    metric: str,
    rows: Sequence[dict[str, str]],
    records: Sequence[dict[str, object]],
) -> None:
    """Add each group's paired comparison to its row and record."""
    fitting, wanted = [g for g in groups if g.is_as(against)], ", ".join(f"{k}={v}" for k, v in against.items())
    if groups and not fitting:
        raise ConfigError(f"--against: no finished run has {wanted}.")
    if groups and all(group.first.is_float for group in fitting):
        raise ConfigError(
            f"--against: {wanted} is the float network, which every table compares with: 'vs float'."
        )
    for group, row, record in zip(groups, rows, records, strict=True):
        other = partner(group, groups, against)
        found = None if other is None else paired(group, other)
        row["against"] = ABSENT if found is None else paired_text(found, metric, group.summary.n)
        record |= {
            "against": None if found is None else found.summary.mean,
            "against_n": None if found is None else found.summary.n,
            "against_half_width": None if found is None else found.summary.half_width,
            "against_p": None if found is None else found.p,
        }


def _add_metric(
    groups: Sequence[Group], name: str, rows: Sequence[dict[str, str]], records: Sequence[dict[str, object]]
) -> None:
    """Add the mean of a further metric to each row and record."""
    known = {found for group in groups for member in group.members for found in metrics_of(member)}
    if groups and name not in known:
        raise ConfigError(f"--also: no finished run reports '{name}'.{did_you_mean(name, known)}")
    for group, row, record in zip(groups, rows, records, strict=True):
        values = [v for v in (metric_of(member, name) for member in group.members) if not math.isnan(v)]
        mean = sum(values) / len(values) if values else None
        row[f"also {name}"] = ABSENT if mean is None else value_text(mean, name)
        record[name] = mean


def _differ(groups: Sequence[Group], key: str) -> bool:
    return len({group.first.get(key) for group in groups} - {ABSENT}) > 1


def _all_values(groups: Sequence[Group], key: str) -> str:
    return " or ".join(sorted({str(group.first.get(key)) for group in groups}))
