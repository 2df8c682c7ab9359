"""What `qexp scan` measured: a run's `alpha_scan.csv`, and how far the learned alphas are from the least loss."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qexp.errors import ConfigError
from qexp.report.tables import Column, Table

FILE = "alpha_scan.csv"
"""In the run's folder."""

FIELDS = ("site", "quantity", "learned", "mode", "value", "loss", "samples")
"""Columns: a site, what it learned (`alpha` or `step`) and to which value; the loss in one mode with that value
replaced by `value`, in nats, over so many training samples."""

MODES = {
    "float": "float forward pass",
    "quantized": "quantized forward pass",
    "penalized": "quantized, with the penalty",
}
"""How the loss was measured, and how that is called."""


@dataclass(frozen=True)
class Curve:
    """The loss against one site's alpha (or step), by rising value; one of the values is the learned one.

    Attributes:
        losses: mode -> the loss at each of `values`.
    """

    site: str
    quantity: str
    learned: float
    samples: int
    values: tuple[float, ...]
    losses: Mapping[str, tuple[float, ...]]

    def at_learned(self, mode: str) -> float:
        """Return the loss with the learned value."""
        return self.losses[mode][self.values.index(self.learned)]

    def least(self, mode: str) -> tuple[float, float]:
        """Return (value, loss) where the loss is least; of several such values that nearest to the learned one."""
        pairs = [pair for pair in zip(self.values, self.losses[mode], strict=True) if math.isfinite(pair[1])]
        return min(pairs, key=lambda pair: (pair[1], abs(pair[0] - self.learned)), default=(math.nan, math.nan))


def scan_text(rows: Iterable[Mapping[str, object]]) -> str:
    """Return the content of `alpha_scan.csv`; every row has `FIELDS`, and its floats read back exactly."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_scan(run: Path) -> list[Curve]:
    """Return a run's scan, a curve for each site, in the order in which they were written (by depth).

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    path = run / FILE
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        return _curves(rows)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no scan of this run; `qexp scan {run}` makes one.") from error
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as a scan; `qexp scan {run}` makes it anew.") from error


def _curves(rows: Iterable[Mapping[str, str]]) -> list[Curve]:
    """Return the curves of a file's rows. Raises ValueError or KeyError where they do not fit together."""
    found: dict[tuple[str, str, float, int], dict[str, dict[float, float]]] = {}
    for row in rows:
        key = (row["site"], row["quantity"], float(row["learned"]), int(row["samples"]))
        modes = found.setdefault(key, {mode: {} for mode in MODES})
        modes[row["mode"]][float(row["value"])] = float(row["loss"])
    if not found:
        raise ValueError("no rows")
    curves = []
    for (site, quantity, learned, samples), modes in found.items():
        values = tuple(sorted(modes["quantized"]))
        if learned not in values:
            raise ValueError("the learned value was not measured")
        losses = {mode: tuple(points[value] for value in values) for mode, points in modes.items()}
        curves.append(Curve(site, quantity, learned, samples, values, losses))
    return curves


def scan_table(curves: Iterable[Curve], title: str) -> Table:
    """Build the table: per site what was learned, and where the loss is least, quantized and with the penalty."""
    curves = list(curves)
    quantity = curves[0].quantity
    columns = [Column("site", "site"), Column("learned", f"learned {quantity}", number=True)]
    for mode, name in (("quantized", "quantized"), ("penalized", "with penalty")):
        columns += [
            Column(f"{mode}_value", f"{name}: least at", number=True),
            Column(f"{mode}_ratio", "learned / that", number=True),
            Column(f"{mode}_excess", "loss above it", number=True),
        ]
    records = [_record(curve) for curve in curves]
    rows = [
        {key: value if isinstance(value, str) else f"{value:.3g}" for key, value in record.items()}
        for record in records
    ]
    return Table(
        title=title,
        columns=columns,
        rows=rows,
        records=records,
        caption="Least at: of the values tried, where the mean cross entropy is least; loss above it: in nats.",
    )


def _record(curve: Curve) -> dict[str, str | float]:
    record: dict[str, str | float] = {"site": curve.site, "learned": curve.learned}
    for mode in ("quantized", "penalized"):
        value, loss = curve.least(mode)
        record[f"{mode}_value"] = value
        record[f"{mode}_ratio"] = curve.learned / value
        record[f"{mode}_excess"] = curve.at_learned(mode) - loss
    return record
