"""Published numbers, read from `qexp/published/*.yaml`: an artefact per table or figure, its paper in the head.

An artefact names its columns, each with the settings a run must have (`quantizer`, `bits`, or any dotted key of a
run's configuration), and its rows, each with settings of its own (`keys`), the paper's recipe and the printed
values by column. A row without `keys` is a method that qexp does not have: it is shown as printed. A value is a
number, or a mapping when there is more to say of it:

    DoReFa 2b: {printed: 46.4, reading: 53.6, note: "the table holds the error; Table 1 prints .536"}

`printed` is what the page says, `reading` what it must mean; a column that the paper leaves empty is left out.
The experiment of the same name makes the runs (`qexp train experiment=pact/table1`), or the one that `experiment`
names, whose runs show this, too (top-5 beside top-1); a row's `run` says which words pick its part. `command: ptq`
in a file's head says that `qexp ptq` makes them: one network's weights are one file, so there a row's words name
its network. `degradation` is a loss against float in points, or against the run that `baseline` describes. A row's
`statistic` says what a value is of its runs, when it is not their mean. The paper's recipe is said for all columns
(`recipe`) or for each (`recipes`), by the artefact and by a row; null takes away what is not known of a row.

`spread` is how far apart two runs of one recipe may be; how well a value could be read off a figure is `read_to`,
of the artefact, a row or a value: in units of the metric as the spread, or as a share of the value (`2%`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from qexp.errors import ConfigError, did_you_mean
from qexp.published.printed import characters, read

HOW = ("printed", "read_off", "derived", "second_hand", "unverified", "from_memory")
"""How a number was obtained: printed in a table or the text, read off a figure, computed from other numbers; or,
never seen on the page, quoted elsewhere, quoted where it may not be this number, or written down from memory.

No run is judged by the last two."""

NO_JUDGES = {"unverified": "an unverified number", "from_memory": "a number from memory"}
"""What of `HOW` judges no run, in words."""

FIGURES = ("cells", "curves", "alpha", "scan", "system")
"""How `qexp plot` shows an artefact: every cell beside what was measured, the runs' learning curves or clip
levels, the loss against one clip level, the system model."""

STATISTICS = ("mean", "median", "worst")
"""What a published value can be of the values of several runs."""

TO_FRACTION = {"fraction": 1.0, "percent": 0.01, "points": 0.01}
"""Units of shares; every other unit is a quantity of its own and keeps its value."""

COMMANDS = ("train", "ptq")
"""What makes the runs of a paper."""

SPREADS = ("paper", "ours")
"""Where an artefact's spread is from: the paper's own numbers, or a choice of this project."""

BOUNDS = ("", "at_most")
"""What a value claims of the runs: to be it, or to be no more."""

_CELL_KEYS = {"printed", "reading", "how", "note", "read_to"}


@dataclass(frozen=True)
class Cell:
    """One published number.

    Attributes:
        row, column: the labels of the printed table.
        keys: what a run must be to stand beside it (`model`, `quantizer`, `bits`, dotted config keys); empty for a
            method that qexp does not have.
        value: as printed, in `unit`.
        printed: the characters of `reading`, else of `value`, with their zeros.
        reading: the corrected value where the page has a misprint, else None.
        quantity: `accuracy`, `error`, `degradation`, or what else is counted.
        metric: the name in a run's result that measures the same; an error is compared as one minus it.
        source: reference and table or figure.
        how: one of `HOW`; of a value, a row or the whole artefact.
        recipe: the paper's settings by dotted config key (`epochs`, `optimizer.lr`), unless `keys` say otherwise.
        experiment: `<paper>/<name>` of the experiment that makes its runs.
        run: the words that pick its row's part of the experiment.
        command: of `COMMANDS`, which makes the runs.
        statistic: of `STATISTICS`, what the value is of its runs.
        baseline: of a degradation: what the run that it is taken against must be; empty for the float network.
        bound: of `BOUNDS`; a row's.
        read_to: how well the value could be read off a figure, in units of the metric; 0 where that is not known,
            and for numbers in print.
        spread_from: of `SPREADS`, whether the artefact's spread is the paper's own run-to-run spread in this row.
    """

    paper: str
    artefact: str
    row: str
    column: str
    keys: Mapping[str, str]
    value: float
    unit: str
    quantity: str
    metric: str
    source: str
    how: str
    reading: float | None = None
    note: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    experiment: str = ""
    run: str = ""
    baseline: Mapping[str, str] = field(default_factory=dict)
    command: str = "train"
    printed: str = ""
    statistic: str = "mean"
    bound: str = ""
    read_to: float = 0.0
    spread_from: str = SPREADS[0]

    @property
    def comparable(self) -> float:
        """The value as a run reports `metric`: a share as fraction, an error as accuracy, a misprint corrected."""
        value = self.value if self.reading is None else self.reading
        value *= TO_FRACTION.get(self.unit, 1.0)
        # Ten digits: 91.6 * 0.01 must be the 0.916 that another table prints.
        return round(1.0 - value if self.quantity == "error" else value, 10)


@dataclass(frozen=True)
class Artefact:
    """One table or figure: its cells, and `spread`, how far runs may be from them, in units of the metric.

    `figure` is one of `FIGURES`, `command` of `COMMANDS`; `experiment` makes its runs.
    """

    paper: str
    name: str
    title: str
    source: str
    metric: str
    spread: float
    notes: tuple[str, ...]
    cells: tuple[Cell, ...]
    experiment: str
    figure: str = "cells"
    command: str = "train"

    @property
    def full_name(self) -> str:
        """`<paper>/<artefact>`."""
        return f"{self.paper}/{self.name}"

    def cells_of(self, only: str) -> list[Cell]:
        """Return the cells whose row contains this text, in any case; empty for all."""
        return [cell for cell in self.cells if only.lower() in cell.row.lower()]


def parse_paper(plain: Mapping[str, Any]) -> dict[str, Artefact]:
    """Build the artefacts of one data file.

    Args:
        plain: the file's content; the module's docstring describes it.

    Returns:
        Artefacts by name.

    Raises:
        ConfigError: a value without a column, an unknown field, or a `how` that is none of `HOW`.
    """
    artefacts = {}
    for name, body in plain["artefacts"].items():
        cells = tuple(_cells(plain, name, body))
        artefacts[name] = Artefact(
            paper=plain["paper"],
            name=name,
            title=body["title"],
            source=_source(plain, body),
            metric=body["metric"],
            spread=float(body["spread"]),
            notes=tuple(" ".join(note.split()) for note in body.get("notes", ())),
            cells=cells,
            experiment=_experiment(plain, name, body),
            figure=_one_of(body.get("figure", "cells"), FIGURES, f"{plain['paper']}/{name}: figure"),
            command=_command(plain),
        )
    return artefacts


def _cells(plain: Mapping[str, Any], name: str, body: Mapping[str, Any]) -> Iterator[Cell]:
    """Yield the cells of one artefact, in the printed order."""
    for row, entry in body["rows"].items():
        for column, value in entry["values"].items():
            where = f"{plain['paper']}/{name}, row '{row}', column '{column}'"
            if column not in body["columns"]:
                raise ConfigError(f"{where}: no such column.{did_you_mean(column, body['columns'])}")
            detail = dict(value) if isinstance(value, Mapping) else {"printed": value}
            if unknown := sorted(set(detail) - _CELL_KEYS):
                raise ConfigError(f"{where}: unknown field '{unknown[0]}'.{did_you_mean(unknown[0], _CELL_KEYS)}")
            keys = {**entry["keys"], **body["columns"][column]} if "keys" in entry else {}
            how = _one_of(detail.get("how", entry.get("how", body["how"])), HOW, f"{where}: how")
            read_to = detail.get("read_to", entry.get("read_to", body.get("read_to", 0.0)))
            yield Cell(
                paper=plain["paper"],
                artefact=name,
                row=row,
                column=column,
                keys={key: str(wanted) for key, wanted in keys.items()},
                value=float(detail["printed"]),
                unit=body["unit"],
                quantity=body["quantity"],
                metric=body["metric"],
                source=_source(plain, body),
                how=how,
                reading=None if detail.get("reading") is None else float(detail["reading"]),
                note="; ".join(filter(None, [detail.get("note", ""), entry.get("note", "")])),
                recipe={key: keys.get(key, value) for key, value in _recipe(body, entry, column).items()},
                experiment=_experiment(plain, name, body),
                run=entry.get("run", "") or _network(plain, keys),
                baseline={key: str(wanted) for key, wanted in entry.get("baseline", {}).items()},
                command=_command(plain),
                statistic=_one_of(entry.get("statistic", STATISTICS[0]), STATISTICS, f"{where}: statistic"),
                bound=_one_of(entry.get("bound", ""), BOUNDS, f"{where}: bound"),
                printed=characters(detail["printed"] if detail.get("reading") is None else detail["reading"]),
                read_to=_read_to(read_to, float(detail["printed"]), body["unit"], where)
                if how == "read_off"
                else 0.0,
                spread_from=_one_of(
                    entry.get("spread_from", body.get("spread_from", SPREADS[0])), SPREADS, f"{where}: spread_from"
                ),
            )


def _recipe(body: Mapping[str, Any], entry: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return what is known of the paper's recipe for one cell, the row's word before the artefact's."""
    found: dict[str, Any] = {}
    for part in (body, entry):
        by_column = part.get("recipes", {})
        if unknown := sorted(by_column.keys() - body["columns"].keys()):
            raise ConfigError(f"recipes: no column '{unknown[0]}'.{did_you_mean(unknown[0], body['columns'])}")
        found |= part.get("recipe", {}) | by_column.get(column, {})
    return {key: value for key, value in found.items() if value is not None}


def _read_to(known: float | str, value: float, unit: str, where: str) -> float:
    """Return a reading accuracy in units of the metric; `2%` is a share of the value.

    Raises:
        ConfigError: neither a number nor a share.
    """
    text = str(known)
    try:
        share = float(text.removesuffix("%"))
    except ValueError:
        raise ConfigError(f"{where}: read_to={known!r}: a number, or a share of the value as 2%") from None
    return share / 100.0 * abs(value) * TO_FRACTION.get(unit, 1.0) if text.endswith("%") else share


def _source(plain: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    return f"{body.get('reference', plain['reference'])}, {body['source']}"


def _experiment(plain: Mapping[str, Any], name: str, body: Mapping[str, Any]) -> str:
    return f"{plain['paper']}/{body.get('experiment', name)}"


def _command(plain: Mapping[str, Any]) -> str:
    return _one_of(plain.get("command", COMMANDS[0]), COMMANDS, f"{plain['paper']}: command")


def _network(plain: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
    """Return the words for a row's network, whose weights only the user has; nothing where it is trained."""
    return f"model={keys['model']} model.weights=FILE" if keys and _command(plain) == "ptq" else ""


def _one_of(value: str, options: tuple[str, ...], where: str) -> str:
    if value not in options:
        raise ConfigError(f"{where}={value!r} is none of {', '.join(options)}")
    return value


@cache
def _papers() -> dict[str, dict[str, Artefact]]:
    """Read every data file of the package: paper -> artefact name -> artefact."""
    papers: dict[str, dict[str, Artefact]] = {}
    for file in sorted(resources.files("qexp.published").iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            plain = read(file.read_text(encoding="utf-8"))
            papers.setdefault(plain["paper"], {}).update(parse_paper(plain))
    return papers


def artefact_names() -> list[str]:
    """Return every `<paper>/<artefact>` there is, sorted."""
    return sorted(f"{paper}/{name}" for paper, artefacts in _papers().items() for name in artefacts)


def is_artefact(name: str) -> bool:
    """Tell whether `name` is a known `<paper>/<artefact>`.

    >>> is_artefact("pact/table1"), is_artefact("outputs/train")
    (True, False)
    """
    return name in artefact_names()


def load_artefact(name: str) -> Artefact:
    """Return the artefact `<paper>/<artefact>`.

    Raises:
        ConfigError: there is no such table or figure in the data files.

    >>> load_artefact("pact/table1").cells[0].value
    0.916
    """
    if not is_artefact(name):
        raise ConfigError(f"'{name}' is not a published table or figure.{did_you_mean(name, artefact_names())}")
    paper, _, artefact = name.partition("/")
    return _papers()[paper][artefact]
