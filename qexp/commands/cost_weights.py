"""`qexp cost --pwlq`: the hardware table of PWLQ's supplement, published beside modelled, for any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qexp.hardware.narrow_weights import RATE, REST, SCHEMES, Ratios, fit, left_out, ratios
from qexp.hardware.system import Layer
from qexp.published import load_artefact
from qexp.report.tables import Column, Table

CONSTANTS = (
    "The paper's (arXiv 2002.00104, supplement, section 3): one array for all three, 8-bit activations, a second"
    " accumulator for the tails of PWLQ, one stored bit more.",
    "Horowitz's (45 nm, 2014): 0.2 pJ an 8-bit product, 0.1 pJ an accumulation, 1.3 nJ for 64 bits of external"
    " memory, the lower end of 1.3 to 2.6.",
    f"Fitted, two constants: {RATE:.3g} MACs a second to the four speed-ups, {REST:g} pJ of all else in a MAC to"
    " the two energies.",
    "Ours: images one by one; weights come in while their layer computes, activations stay on the chip; the"
    " energy of a product falls with the weight's bits; 16% of the weights are tails. Technology, clock, array and"
    " buffers are not given in the paper: the numbers cannot be computed again exactly.",
)
"""Where each constant of the model comes from."""


def published_ratios() -> Ratios:
    """Return the table's energies and speed-ups, as `qexp/published` holds them."""
    energies, speeds = (load_artefact(f"pwlq/s_table6_{name}").cells for name in ("energy", "speedup"))
    found: dict[tuple[str, float | None], float] = {(cell.row, None): cell.value for cell in energies}
    return found | {(cell.row, float(cell.column.split()[0])): cell.value for cell in speeds}


def weights_table(model: str, layers: Sequence[Layer], bandwidths: Sequence[float], *, compared: bool) -> Table:
    """Return energy and speed-up of the three schemes against 8-bit uniform weights.

    Args:
        model: its name.
        layers: as `qexp cost` lists them.
        bandwidths: of the external memory, GB/s.
        compared: whether it is the paper's network, beside which its numbers stand.
    """
    published = published_ratios() if compared else {}
    cells = [(scheme.name, value) for value in (None, *bandwidths) for scheme in SCHEMES]
    modelled = ratios(layers, cells, RATE, REST)
    without = left_out(layers, published) if published else {}
    records = [_record(cell, published.get(cell), modelled[cell], without.get(cell)) for cell in cells]
    headers = {"what": "", "scheme": "weights", "published": "published", "modelled": "modelled", "error": "error"}
    headers |= {"without": "error without it"}
    shown = list(headers) if published else ["what", "scheme", "modelled"]
    rate, rest = fit(layers, published) if published else (RATE, REST)
    fitted = [f"Fitted now: {rate:.4g} MACs a second, {rest:.3f} pJ."] if published else []
    return Table(
        title=f"Energy and speed-up against 8-bit uniform weights: {model}",
        columns=[Column(key, headers[key], key not in ("what", "scheme")) for key in shown],
        rows=[_row(record) for record in records],
        records=records,
        caption="Modelled, not measured."
        + (
            " Published: PWLQ's supplement, table 6, simulated there. Error: modelled / published - 1; the last"
            " column fits the constants again without the cell."
            if published
            else ""
        ),
        notes=[*fitted, *CONSTANTS],
    )


def _record(
    cell: tuple[str, float | None], published: float | None, modelled: float, without: float | None
) -> dict[str, Any]:
    scheme, bandwidth = cell
    return {
        "what": "energy" if bandwidth is None else f"speed-up at {bandwidth:g} GB/s",
        "scheme": scheme,
        "published": published,
        "modelled": round(modelled, 4),
        "error": None if published is None else round(modelled / published - 1, 5),
        "without": None if published is None or without is None else round(without / published - 1, 5),
    }


def _row(record: dict[str, Any]) -> dict[str, str]:
    row = {"what": record["what"], "scheme": record["scheme"], "modelled": f"{record['modelled']:.2f}"}
    row["published"] = "–" if record["published"] is None else f"{record['published']:.2f}"
    for key in ("error", "without"):
        row[key] = "–" if record[key] is None else f"{100 * record[key]:+.1f}%"
    return row
