"""`qexp explain`: the plan of a network, layer by layer, before any time is spent."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qexp.build import build
from qexp.calibration.folding import fold_batch_norm
from qexp.commands.network import build_float, folded_plan, scheme
from qexp.config import Config
from qexp.graph.plan import LayerPlan, Plan, make_plan
from qexp.hardware.cost import bit_operations, convolution_macs, linear_macs, packed_bytes
from qexp.quantizers.base import Quantizer
from qexp.report.tables import WIDE


@dataclass(frozen=True)
class LayerRow:
    """One layer as it is shown: names and bits, and what it costs for one sample.

    `stored_activation_bits` are those that an input takes in memory; `macs` count every call, and `products` is
    how many products each of them takes; `bit_operations` counts a float operand as 32 bits; `weight_bytes` is the
    packed size of the weights alone; `quantized_before` names the ReLUs before its own input quantizer that are
    quantized already.
    """

    name: str
    kind: str
    weight: str
    weight_bits: int
    activation: str
    activation_bits: int
    stored_activation_bits: float
    scope: str
    signed: bool
    shape: tuple[int, ...]
    parameters: int
    macs: int
    products: int
    bit_operations: int
    weight_bytes: int
    note: str
    quantized_before: str


def run(config: Config) -> dict[str, Any]:
    """Print the plan of `config`'s network as text or JSON and return what was printed as JSON."""
    source = build(config.dataset)
    network = build_float(config, source)
    if config.explain.fold or config.calibration is not None:
        mode = "auto" if config.calibration is None else config.calibration.fold
        plan = folded_plan(fold_batch_norm(network.eval(), mode, source.shape), config, source)
    else:
        plan = make_plan(network, scheme(config, source), source.shape)
    report = summary(config, plan)
    if config.explain.format == "json":
        print(json.dumps(report, indent=1))
    else:
        _print(report)
    return report


def summary(config: Config, plan: Plan) -> dict[str, Any]:
    """Return the whole plan as plain values: `layers`, `activations`, `alphas`, `totals`, and what stays float."""
    rows = [layer_row(layer, plan) for layer in plan.layers]
    learned = {id(value): value for quantizer in plan.quantizers() for value in quantizer.learned().values()}
    ends = {"first": config.first_bits, "last": config.last_bits}
    return {
        "model": config.names["model"],
        "dataset": config.names["dataset"],
        "quantizer": config.names["quantizer"],
        "bits": {"weight": config.bits.weight, "activation": config.bits.activation},
        **{end: {"weight": weight, "activation": activation} for end, (weight, activation) in ends.items()},
        "gradients": config.gradient_bits if config.quantized else None,
        "gradients_behind": [layer.name for layer in plan.layers if layer.quantized and config.gradient_bits],
        "layers": [asdict(row) for row in rows],
        "activations": [_site_row(site) for site in plan.sites],
        "alphas": len(learned),
        "alpha_values": sum(value.numel() for value in learned.values()),
        "float_modules": [{"name": name, "kind": kind} for name, kind in plan.float_modules],
        "float_norms": [{"name": name, "reason": reason} for name, reason in plan.float_norms],
        "totals": {
            **_sums(stored_once(rows, plan), "parameters", "weight_bytes"),
            **_sums(rows, "macs", "bit_operations"),
        },
    }


def _sums(rows: Sequence[LayerRow], *keys: str) -> dict[str, int]:
    return {key: sum(getattr(row, key) for row in rows) for key in keys}


def stored_once(rows: Sequence[LayerRow], plan: Plan) -> list[LayerRow]:
    """Return one row of each tensor of weights, that with the most bytes: layers that share one store it once."""
    layers = dict(module for graph in plan.graphs for module in graph.named_modules(remove_duplicate=False))
    kept: dict[int, LayerRow] = {}
    for row in sorted(rows, key=lambda row: row.weight_bytes):
        kept[id(layers[row.name].weight)] = row
    return list(kept.values())


def layer_row(layer: LayerPlan, plan: Plan) -> LayerRow:
    """Return what is shown of one layer; its activation is its own input quantizer, or the ReLUs that feed it."""
    sites = {site.name: site for site in plan.sites}
    fed = [sites[name].quantizer for name in layer.fed_by]
    readers = (
        [layer.input] if layer.input is not None else [quantizer for quantizer in fed if quantizer is not None]
    )
    before = [
        f"{name} ({_label(quantizer)}, {quantizer.bits} bit{'s' * (quantizer.bits > 1)})"
        for name, quantizer in zip(layer.fed_by, fed, strict=True)
        if quantizer is not None and quantizer.bits < 32
    ]
    count = convolution_macs if layer.kind == "Conv2d" else linear_macs
    macs = sum(count(layer.weight_shape, made) for _, made in layer.calls)
    products = 1 if layer.weight is None else layer.weight.products
    parameters = math.prod(layer.weight_shape)
    return LayerRow(
        name=layer.name,
        kind=layer.kind,
        weight=_label(layer.weight),
        weight_bits=layer.weight_bits,
        activation=", ".join(dict.fromkeys(_label(reader) for reader in readers)) or "float",
        activation_bits=layer.activation_bits,
        stored_activation_bits=max([layer.activation_bits, *(reader.stored_bits for reader in readers)]),
        scope=", ".join(dict.fromkeys(reader.scope for reader in readers if reader.learned())),
        signed=any(reader.below_zero() for reader in readers),
        shape=layer.weight_shape,
        parameters=parameters,
        macs=macs,
        products=products,
        bit_operations=bit_operations(products * macs, layer.weight_bits, layer.activation_bits),
        weight_bytes=packed_bytes(parameters, 32 if layer.weight is None else layer.weight.stored_bits),
        note=layer.note,
        quantized_before="" if layer.input is None else ", ".join(before),
    )


def _site_row(site: Any) -> dict[str, Any]:
    return {
        "name": site.name,
        "quantizer": _label(site.quantizer, kept="ReLU"),
        "bits": site.bits,
        "scope": site.quantizer.scope if site.quantizer is not None and site.quantizer.learned() else "",
        "shape": site.shape,
        "feeds": site.feeds,
    }


def _label(quantizer: Quantizer | None, kept: str = "float") -> str:
    return kept if quantizer is None else type(quantizer).__name__


def _print(report: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    inner, first, last = (_widths(report[key]) for key in ("bits", "first", "last"))
    quantized = any(layer["weight_bits"] < 32 or layer["activation"] != "float" for layer in report["layers"])
    bits = f"{inner}; first layer {first}, last layer {last}" if quantized else "everything in float"
    console.print(f"[bold]{report['model']}[/] for {report['dataset']}, quantizer={report['quantizer']}, {bits}")
    if report["gradients"] is not None:
        behind, layers = report["gradients_behind"], [layer["name"] for layer in report["layers"]]
        without = ", ".join(name for name in layers if name not in behind)
        console.print(
            f"gradients behind {len(behind)} of {len(layers)} layers: {report['gradients']} bits"
            f"{f'; full precision behind {without}' * bool(without)}"
        )
    _print_layers(console, report["layers"])
    if any(site["quantizer"] != "ReLU" for site in report["activations"]):
        console.print(_site_table(report))
    for layer in report["layers"]:
        if layer["quantized_before"]:
            console.print(f"quantized a second time: {layer['name']} reads {layer['quantized_before']}")
    for module in report["float_modules"]:
        console.print(
            f"stays float: {module['name']} ({module['kind']}: no quantized form, or no call of its own)"
        )
    reasons: dict[str, list[str]] = {}
    for norm in report["float_norms"]:
        reasons.setdefault(norm["reason"], []).append(norm["name"])
    for reason, names in reasons.items():
        console.print(f"not folded, a float affine of each channel: {', '.join(names)} ({reason})")
    totals = report["totals"]
    console.print(
        f"{len(report['layers'])} layers, {report['alphas']} learned clip levels or steps "
        f"({report['alpha_values']:,} values); for one sample {totals['macs']:,} multiply-accumulates, "
        f"{totals['bit_operations']:,} bit-operations; packed weights {totals['weight_bytes']:,} bytes "
        f"({4 * totals['parameters'] / max(totals['weight_bytes'], 1):.2f} times smaller than float32)."
    )


def _widths(widths: dict[str, int]) -> str:
    return f"W{widths['weight']}A{widths['activation']}"


_PLAN: dict[str, Callable[[dict[str, Any]], str]] = {
    "layer": lambda row: str(row["name"]),
    "kind": lambda row: str(row["kind"]),
    "weights": lambda row: str(row["weight"]),
    "W": lambda row: str(row["weight_bits"]),
    "input": lambda row: str(row["activation"]),
    "A": lambda row: str(row["activation_bits"]),
    "scope": lambda row: str(row["scope"]),
    "sign": lambda row: "" if row["activation"] == "float" else "±" if row["signed"] else "+",
}
_COSTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "parameters": lambda row: f"{row['parameters']:,}",
    "MACs": lambda row: f"{row['macs']:,}",
    "bit-operations": lambda row: f"{row['bit_operations']:,}",
    "bytes": lambda row: f"{row['weight_bytes']:,}",
}
_NOTE: dict[str, Callable[[dict[str, Any]], str]] = {"stays float": lambda row: str(row["note"])}


def _print_layers(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Print the plan and the cost of each layer; on a screen too narrow for one table, in two and a list."""
    whole = _layer_table("Layers", {**_PLAN, **_COSTS, **_NOTE}, rows)
    if console.measure(whole, options=console.options.update(max_width=WIDE)).maximum <= console.width:
        console.print(whole)
        return
    console.print(_layer_table("Layers", _PLAN, rows))
    console.print(_layer_table("What they cost", {"layer": _PLAN["layer"], **_COSTS}, rows))
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            notes.setdefault(row["note"], []).append(row["name"])
    for note, names in notes.items():
        console.print(f"stays float of {', '.join(names)}: {note}", markup=False)


def _layer_table(
    title: str, columns: Mapping[str, Callable[[dict[str, Any]], str]], rows: Sequence[dict[str, Any]]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in {"W", "A", *_COSTS} else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(text(row)) for text in columns.values()))
    return table


def _site_table(report: dict[str, Any]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title="ReLU calls", title_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in ("call", "becomes", "A", "scope", "shape", "feeds"):
        table.add_column(name, justify="right" if name == "A" else "left", overflow="fold")
    for site in report["activations"]:
        shape = "x".join(map(str, site["shape"]))
        values = (
            site["name"],
            site["quantizer"],
            str(site["bits"]),
            site["scope"],
            shape,
            ", ".join(site["feeds"]),
        )
        table.add_row(*map(Text, values))
    return table
