"""A table of runs with one setting across: a row per method, a column per value of the setting."""

from __future__ import annotations

from collections.abc import Sequence

from qexp.errors import ConfigError
from qexp.report.ends import ABSENT
from qexp.report.facts import SUBJECT, of_quantization
from qexp.report.groups import Group, group_runs
from qexp.report.measured import caption, epochs_text, header, usable
from qexp.report.networks import changed, changed_in_any, network_text
from qexp.report.numbers import by_size, value_text
from qexp.report.tables import Column, Table
from qexp.runs import Run

_IMPLIED = {"stored_bits": "bits"}
"""What a setting across decides: PWLQ at 3 bits stores 4, uniform needs 4 for it, and one row holds both."""


def across_table(runs: Sequence[Run], metric: str, key: str, by: Sequence[str] | None = None) -> Table:
    """Build the table of any runs with the values of `key` as its columns.

    Args:
        runs: as `find_runs` gives them; unfinished and damaged ones are listed below the table.
        metric: the number in the cells, by its name in `result.json`: the mean, with half the 95% interval from
            three seeds on.
        key: a setting in which the runs differ; `stored_bits` is what a weight takes in memory.
        by: the settings of a row; None: model, data set, quantizer, bits, and whatever else differs.

    Raises:
        ConfigError: no run has the metric, no run has the setting, or two groups of runs claim one cell.
    """
    if key == "seed":
        raise ConfigError("--across seed: a cell is the mean over the seeds; `--by seed` has a row for each.")
    finished, notes = usable(runs, metric)
    networks = changed_in_any(finished)
    if key == "model":  # each column is a network of its own: what is changed in it is said below
        said = dict.fromkeys(f"{run.model} is {network_text(run)}." for run in finished if changed(run))
        notes, networks = [*said, *notes], []
    groups = group_runs(finished, metric, by, also=[key, *networks])
    values = sorted({_value(group, key) for group in groups} - {FLOAT}, key=by_size)
    if groups and not set(values) - {ABSENT}:
        raise ConfigError(f"--across {key}: no quantized run has this setting.")
    rows = _rows(groups, key)
    keys = [name for name in (rows[0][0] if rows else SUBJECT) if _tells(name, rows)]
    columns = [*(Column(name, header(name)) for name in keys), Column("n", "n", number=True)]
    if any(group.first.shortened for group in groups):
        columns.append(Column("epochs", "epochs"))
    columns += [Column(f"={value}", value, number=True) for value in values]
    return Table(
        title=f"{metric.replace('_', ' ')} of {len(finished)} finished run{'s' * (len(finished) != 1)} by {key}",
        columns=columns,
        rows=[_row(names, cells, keys, values, metric) for names, cells in rows],
        records=[_record(names, cells, keys, values, metric) for names, cells in rows],
        caption=f"{caption(groups, metric)} Across: {header(key)}.",
        notes=[*_same_everywhere(rows, keys), *notes],
    )


_Row = tuple[dict[str, str], dict[str, Group]]


def _rows(groups: Sequence[Group], key: str) -> list[_Row]:
    """Return each row's settings and its groups by the value of `key`.

    Raises:
        ConfigError: two groups in one cell.
    """
    found: dict[tuple[str, ...], _Row] = {}
    for group in groups:
        names = {name: value for name, value in group.keys.items() if name not in (key, _IMPLIED.get(key))}
        value = _value(group, key)
        _, cells = found.setdefault(tuple(names.values()), (names, {}))
        if value in cells:
            one, other = (each.first.run.path.name for each in (cells[value], group))
            raise ConfigError(f"--across {key}: {one} and {other} would share the cell {value}.")
        cells[value] = group
    return sorted(found.values(), key=lambda row: not next(iter(row[1].values())).first.is_float)


FLOAT = "float"
"""Where the float network stands among a row's cells with a setting of quantization across: in every column."""


def _value(group: Group, key: str) -> str:
    """Return the column of a group; `FLOAT` for a float network that cannot have it, `ABSENT` for no value."""
    one = group.first
    if one.is_float and key != "quantizer" and of_quantization(key) and key not in one.recipe:
        return FLOAT
    value = one.setting(key)
    return ABSENT if value is None else str(value)


def _tells(name: str, rows: Sequence[_Row]) -> bool:
    return name == "quantizer" or len({names[name] for names, _ in rows}) > 1


def _same_everywhere(rows: Sequence[_Row], keys: Sequence[str]) -> list[str]:
    """Say the settings that all rows share, which are no columns."""
    shared = {name: value for name, value in rows[0][0].items() if name not in keys} if rows else {}
    return [f"In every row: {', '.join(f'{header(k)} {v}' for k, v in shared.items())}."] if shared else []


def _row(
    names: dict[str, str], cells: dict[str, Group], keys: Sequence[str], values: Sequence[str], metric: str
) -> dict[str, str]:
    counts = sorted({group.summary.n for group in cells.values()})
    text = {key: names[key] for key in keys} | {"n": " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))}
    text["epochs"] = " and ".join(dict.fromkeys(map(epochs_text, cells.values())))
    for value in values:
        group = cells.get(value, cells.get(FLOAT))
        text[f"={value}"] = ABSENT if group is None else _cell(group, metric, counts[-1])
    return text


def _cell(group: Group, metric: str, most: int) -> str:
    """Return mean and interval, and of how many runs, where another cell of the row has more."""
    summary = group.summary
    text = value_text(summary.mean, metric)
    text += "" if summary.half_width is None else f" ± {value_text(summary.half_width, metric)}"
    return text if summary.n == most else f"{text} (n = {summary.n})"


def _record(
    names: dict[str, str], cells: dict[str, Group], keys: Sequence[str], values: Sequence[str], metric: str
) -> dict[str, object]:
    record: dict[str, object] = {**{key: names[key] for key in keys}, "metric": metric}
    for value in values:
        group = cells.get(value, cells.get(FLOAT))
        record |= {
            f"{value} mean": None if group is None else group.summary.mean,
            f"{value} half_width": None if group is None else group.summary.half_width,
            f"{value} n": None if group is None else group.summary.n,
            f"{value} epochs": None if group is None else group.first.epochs,
            f"{value} shortened": None if group is None else group.first.shortened,
        }
    return record
