"""What `qexp cost` shows: the estimates, the MACs by bit-width, and the fit beside the paper's figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qexp.hardware.figure6 import LeftOut
from qexp.hardware.mac import mac_area, mac_density
from qexp.hardware.system import USABLE_MEMORY, Bits, Estimate
from qexp.report.tables import Column, Table

CONSTANTS = (
    "The paper's constants (PACT, arXiv 1805.06085, section 6): cores of 8 x 64 MACs at 2 GHz, 16 MB on the "
    "chip, 4, 8, 16, 32 cores at 16, 8, 4, 2 bits, both ends at 8 bits where the others have fewer, MAC areas "
    "(figure 6b).",
    "Fitted to the 12 throughputs of figure 6c, one constant: the share of the memory on the chip that holds "
    f"weights and activations, {USABLE_MEMORY}.",
    "Ours, chosen with the figure in view: images one by one (batch=1); a core's rows take input channels, "
    "its columns output channels; 64 / bits cores and log-log areas at other widths; a layer runs at its own "
    "width's rate; weights that do not fit are loaded for each batch, and those stay that would be waited "
    "for; loading hides behind the layer's own computing, the image's arrival does not; all but convolutions "
    "and linear layers is free; MB and GB are powers of ten.",
)
"""Which of the model's constants are the paper's, which is fitted, and which are ours."""


@dataclass(frozen=True)
class Case:
    """One line of the table: what was asked, and the answer; `bandwidth` in GB/s, `memory` in MB.

    `baseline` is the same network and machine at 16 bits.
    """

    model: str
    bits: Bits
    ends: Bits
    bandwidth: float
    batch: int
    memory: float
    cores_by: str
    answer: Estimate
    baseline: Estimate

    def record(self) -> dict[str, object]:
        """Return the line as plain values, with the quantities' units in their names."""
        width = max(self.bits)
        return {
            "model": self.model,
            "bits": label(self.bits),
            "first_last": label(self.ends),
            "bandwidth_gb_s": self.bandwidth,
            "batch": self.batch,
            "memory_mb": self.memory,
            "cores_by": self.cores_by,
            "images_per_s": round(self.answer.throughput, 2),
            "speed_up": round(self.answer.throughput / self.baseline.throughput, 4),
            "peak_tops": round(2 * self.answer.peak / 1e12, 3),
            "cores": self.answer.cores,
            "mac_area": round(mac_area(width), 3),
            "mac_density": round(mac_density(width), 3),
            "bound_by": self.answer.bound,
            "waiting_share": round(self.answer.wait_share, 4),
            "weights_mb": round(self.answer.weight_bytes / 1e6, 6),
            "traffic_mb": round(self.answer.traffic / 1e6, 6),
        }

    def row(self) -> dict[str, str]:
        """Return the line as text."""
        record = self.record()
        digits = {"speed_up": 2, "peak_tops": 1, "mac_area": 2, "mac_density": 2}
        return {
            **{key: str(value) for key, value in record.items()},
            **{key: f"{record[key]:.{places}f}" for key, places in digits.items()},
            **{key: f"{record[key]:g}" for key in ("bandwidth_gb_s", "memory_mb")},
            **{key: f"{record[key]:.3g}" for key in ("weights_mb", "traffic_mb")},
            "images_per_s": f"{self.answer.throughput:,.0f}"
            if self.answer.throughput >= 100
            else f"{self.answer.throughput:.3g}",
            "waiting_share": f"{100 * self.answer.wait_share:.1f}%",
        }


_HEADERS = {
    "model": "model",
    "bits": "bits",
    "first_last": "ends",
    "bandwidth_gb_s": "GB/s",
    "batch": "batch",
    "memory_mb": "MB on chip",
    "cores_by": "cores by",
    "images_per_s": "images/s",
    "speed_up": "against 16 bits",
    "peak_tops": "peak TOPS",
    "cores": "cores",
    "mac_area": "MAC area",
    "mac_density": "MAC density",
    "bound_by": "bound by",
    "waiting_share": "waiting",
    "weights_mb": "weights MB",
    "traffic_mb": "traffic MB/image",
}
_TEXT = ("model", "bits", "first_last", "cores_by", "bound_by")
_SHOWN_WHERE_ASKED = {
    "model": "",
    "batch": "batch {}",
    "memory_mb": "{} MB on the chip",
    "cores_by": "cores by {}",
}


def cost_table(cases: Sequence[Case], notes: Iterable[str] = ()) -> Table:
    """Return the table of the estimates; what is the same in every line stands in the caption instead."""
    rows = [case.row() for case in cases]
    same = [key for key in _SHOWN_WHERE_ASKED if len({row[key] for row in rows}) == 1]
    columns = [Column(key, header, key not in _TEXT) for key, header in _HEADERS.items() if key not in same]
    shown = [text.format(rows[0][key]) for key, text in _SHOWN_WHERE_ASKED.items() if text and key in same]
    return Table(
        title="What inference costs on the accelerator of PACT's figure 6"
        + (f": {rows[0]['model']}" if "model" in same else ""),
        columns=columns,
        rows=rows,
        records=[case.record() for case in cases],
        caption=f"Modelled, not measured. {', '.join(shown)}{'. ' if shown else ''}"
        "waiting: share of the time in which the cores wait for the external memory; MAC area: 2-bit = 1; "
        "density: MACs in the area of a 16-bit one; TOPS: 2 operations per MAC.",
        notes=[*notes, *CONSTANTS],
    )


def fit_table(rows: Sequence[LeftOut], refits: Sequence[float], fitted: float) -> Table:
    """Return the figure's 12 points beside the model.

    Args:
        rows: the points with their errors under the fits that leave something out.
        refits: the constant of each of those fits.
        fitted: the constant, fitted now.
    """
    records = [_fit_record(row) for row in rows]
    headers = {
        "bits": "bits",
        "bandwidth_gb_s": "GB/s",
        "published": "published images/s",
        "modelled": "modelled images/s",
        "error": "error",
        "without_point": "without this point",
        "without_bits": "without its bits",
        "without_bandwidth": "without its bandwidth",
    }
    errors = [key for key in headers if key == "error" or key.startswith("without")]
    span = f"{min(refits):.3f} to {max(refits):.3f}"
    worst = {key: max(abs(float(str(record[key]))) for record in records) for key in errors}
    return Table(
        title="PACT's figure 6c (ResNet50) beside the system model",
        columns=[Column(key, header, number=True) for key, header in headers.items()],
        rows=[
            {
                **{key: f"{record[key]:g}" for key in headers},
                "modelled": f"{record['modelled']:.0f}",
                **{key: f"{100 * float(str(record[key])):+.1f}%" for key in errors},
            }
            for record in records
        ],
        records=records,
        caption="Published: read off the figure, accurate to about 1%. Error: modelled / published - 1; the last "
        "three columns fit the constant again without the point, without its bit-width, without its bandwidth.",
        notes=[
            f"Largest error: {', '.join(f'{headers[key]} {100 * value:.1f}%' for key, value in worst.items())}.",
            f"The fitted constant: {fitted:.3f} now, {USABLE_MEMORY} stored; {span} over {len(refits)} fits "
            "that leave something out. No point at infinite bandwidth or 2 bits depends on it.",
            "The paper does not say which ResNet50 it ran. At 16 bits and infinite bandwidth its figure, "
            "times the 4.09 GMAC of this one, is 1.006 of the machine's peak, so the model must stay below "
            "it; on the original ResNet50 (stride in the 1x1 convolutions, 3.86 GMAC) the model comes to 0.2% "
            "above the figure there.",
            *CONSTANTS,
        ],
    )


def _fit_record(row: LeftOut) -> Mapping[str, object]:
    point = row.point
    return {
        "bits": point.bits,
        "bandwidth_gb_s": point.bandwidth,
        "published": point.published,
        "modelled": round(point.modelled, 2),
        "error": round(point.error, 5),
        "without_point": round(row.without_point, 5),
        "without_bits": round(row.without_bits, 5),
        "without_bandwidth": round(row.without_bandwidth, 5),
    }


def label(bits: Bits) -> str:
    """Return widths as they are typed.

    >>> label((4, 8))
    'w4a8'
    """
    return f"w{bits[0]}a{bits[1]}"
