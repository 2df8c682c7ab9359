"""Makes the tables beside this file from runs.csv, as `qexp table` makes them from run folders: python tables.py

Each row of runs.csv is one run of `qexp ptq`; the same settings with the same seed count once.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from qexp.bits import parse_bits
from qexp.report.across import across_table
from qexp.report.tables import Column, Table, render
from qexp.runs import Run

HERE = Path(__file__).parent
SETTINGS = ("scope", "breakpoints", "search", "variant", "range", "clip", "allocate")
NETWORKS = {
    "resnet20_v1": ("public", "resnet20_v1, the public checkpoint, 91.73 % in float"),
    "resnet20": ("outputs/results/pact", "resnet20 of outputs/results/pact, 88.38 % in float"),
    "resnet20_short": ("weights/resnet20", "resnet20, weights/resnet20.safetensors, 85.70 % in float"),
    "mobilenet_v2_cifar": (
        "weights/mobilenet_v2_cifar",
        "mobilenet_v2_cifar at a quarter of the width, weights/mobilenet_v2_cifar.safetensors",
    ),
}
"""Table -> its network's weights in runs.csv, and its title."""


def usual(row: dict[str, str]) -> bool:
    """Say whether a run is of the settings that the tables by bits compare: those of experiment=pwlq/cifar10."""
    clip = "laplace" if row["quantizer"] == "aciq" and row["scope"] == "layer" else "none"
    return (
        row["bits"] in ("", "w3a8", "w4a8", "w6a8", "w8a8")
        and row["range"] in ("", "minmax")
        and row["variant"] in ("", "paper")
        and (row["clip"] in ("", clip) or asymmetric(row))
    )


def rows() -> list[dict[str, str]]:
    """Return the rows of runs.csv, each combination of settings and seed once."""
    with (HERE / "runs.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    keys = ("model", "weights", "quantizer", "bits", *SETTINGS, "bias_correction", "seed")
    return [row for _, row in sorted({tuple(row[key] for key in keys): row for row in found}.items())]


def asymmetric(row: dict[str, str]) -> bool:
    """Say whether a run neither clips nor gives channels bits: equal steps from least to largest weight."""
    return row["quantizer"] == "aciq" and (row["clip"], row["allocate"]) == ("none", "False")


def run_of(row: dict[str, str]) -> Run:
    """Return a row as a run, with as much of its configuration as the row tells."""
    name, weight = row["quantizer"], {key: row[key] for key in SETTINGS if row[key]}
    if name == "uniform":
        weight["grid"] = "full"
    if asymmetric(row):
        name, weight = "uniform", {"scope": row["scope"], "range": "minmax", "grid": "asymmetric"}
    config: dict[str, Any] = {
        "names": {"model": row["model"], "dataset": "cifar10", "quantizer": name},
        "seed": int(row["seed"]),
        "quantizer": {"weight": weight, "first_last": "same"},
        "calibration": {"bias_correction": row["bias_correction"] or "none"},
    }
    metrics = {"test_accuracy": float(row["test_accuracy"]), "test_loss": float(row["test_loss"])}
    if row["bits"]:
        config["bits"] = dict(zip(("weight", "activation"), parse_bits(row["bits"]), strict=True))
        metrics |= {"weight_mse": float(row["weight_mse"]), "weight_bits": float(row["stored_bits"])}
    else:
        config["quantizer"] = {"weight": None, "activation": None}
    return Run(HERE / row["run"], "done", config, {"metrics": metrics}, None, {})


def write(name: str, runs: list[Run], across: str, title: str) -> None:
    """Write one table."""
    if runs:
        table = render(across_table(runs, "test_accuracy", across), "markdown")
        (HERE / f"{name}.md").write_text(f"{title}.\n\n{table}")


def spread(found: list[float]) -> str:
    """Return the median of some seconds with the least, the most and their number; one is shown alone."""
    if not found:
        return "–"
    middle, least, most = (f"{each:.{int(each < 100)}f}" for each in (median(found), min(found), max(found)))
    return f"{middle} ({least} to {most}; n = {len(found)})" if found[1:] else middle


def seconds(every: list[dict[str, str]]) -> Table:
    """Return the table of calibration seconds: of each method on each network the median, least and most."""
    networks = {weights: name for name, (weights, _) in NETWORKS.items()}
    spent: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in every:
        if usual(row):
            method = "uniform, asymmetric" if asymmetric(row) else row["quantizer"]
            cells = spent[method, row["scope"] or "–", row["breakpoints"] or "–"]
            cells[networks[row["weights"]]].append(float(row["calibration_seconds"]))
    names = ("quantizer", "quantizer.weight.scope", "quantizer.weight.breakpoints")
    lines = [
        dict(zip(names, settings, strict=True)) | {name: spread(cells[name]) for name in NETWORKS}
        for settings, cells in sorted(spent.items(), key=lambda each: (each[0][0] != "none", each[0]))
    ]
    columns = [*(Column(name, name) for name in names), *(Column(name, name, number=True) for name in NETWORKS)]
    caption = (
        "calibration_seconds over all bits and seeds, with and without bias correction: median (least to most; n)."
    )
    return Table("calibration seconds by network", columns, lines, lines, caption)


def main() -> None:
    """Write the tables by bits of every network, that by stored bits, and that of the seconds."""
    every = rows()
    for name, (weights, title) in NETWORKS.items():
        here = [row for row in every if row["weights"] == weights]
        write(name, [run_of(row) for row in here if usual(row)], "bits", title)
    for name in ("resnet20_v1", "resnet20_short", "mobilenet_v2_cifar"):
        weights, title = NETWORKS[name]
        here = [row for row in every if row["weights"] == weights and row["scope"] != "layer"]
        one_shot = [row for row in here if row["quantizer"] in ("none", "uniform", "aciq", "omse", "pwlq")]
        write(f"equal_storage_{name}", [run_of(row) for row in one_shot], "stored_bits", title)
    (HERE / "seconds.md").write_text(render(seconds(every), "markdown"))


if __name__ == "__main__":
    main()
