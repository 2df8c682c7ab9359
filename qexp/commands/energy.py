"""`qexp cost --energy`: memory, energy and unique filters of a network composed here, or of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexp.config import Config, parse
from qexp.hardware.cost import packed_bytes
from qexp.hardware.energy import DRAM_PJ, Energy, layer_energy, total, unique_filters
from qexp.report.tables import Column, Table

if TYPE_CHECKING:
    from torch import nn

    from qexp.commands.explain import LayerRow
    from qexp.data.base import DataSource
    from qexp.graph.plan import Plan

NOTES = (
    "Energies of operations: Horowitz 2014, 45 nm, as arXiv 1602.02830 prints them (tables 2 and 3). A product of"
    " at most 8 bits is scaled from int8 by its bits and accumulated in 32 bits: this project's model.",
    f"Each weight is read from DRAM once ({DRAM_PJ[0] / 1000:g} to {DRAM_PJ[1] / 1000:g} nJ for 64 bits), each"
    " input from a 1 MB cache once. Nothing is measured.",
    "Unique filters: the share of a run's binary 2-D filters that differ, a filter and its negative counted once.",
)
COLUMNS = (
    Column("layer", "layer"),
    Column("bits", "bits"),
    Column("macs", "MACs", number=True),
    Column("bit_operations", "bit-operations", number=True),
    Column("weight_bytes", "weights, bytes", number=True),
    Column("times", "times smaller", number=True),
    Column("arithmetic_uj", "arithmetic, uJ", number=True),
    Column("inputs_uj", "inputs, uJ", number=True),
    Column("weights_uj", "weights, uJ", number=True),
    Column("unique", "unique filters", number=True),
)


def energy_table(words: Sequence[str]) -> Table:
    """Return the table for a run's folder and where things are now, or for settings as for `qexp explain`.

    Raises:
        QexpError: there is no such run, or what the composition or the plan says.
    """
    from qexp.build import build  # torch is imported below, after the words were looked at
    from qexp.commands.explain import layer_row, stored_once

    folders = [word for word in words if "=" not in word]
    run = Path(folders[0]) if folders else None
    config = _config(run, [word for word in words if word not in folders[:1]])
    source = build(config.dataset)
    model, plan = _planned(config, source, run)
    records, energies, floats = [], [], []
    rows = [layer_row(layer, plan) for layer in plan.layers]
    for layer, row in zip(plan.layers, rows, strict=True):
        read = packed_bytes(layer.inputs, row.stored_activation_bits)
        macs = row.products * row.macs
        energies.append(layer_energy(macs, row.weight_bytes, row.weight_bits, read, row.activation_bits))
        floats.append(layer_energy(row.macs, 4 * row.parameters, 32, 4 * layer.inputs, 32))
        signs = run is not None and config.calibration is None and row.weight_bits == 1
        weight = model.get_submodule(layer.name).weight if signs else None
        bits = f"w{row.weight_bits}a{row.activation_bits}"
        records.append(_record(layer.name, bits, row, energies[-1]) | {"unique": _unique(weight)})
    records.append(_whole(records, stored_once(rows, plan), total(energies)))
    left_out = _left_out(model, plan, records[-1])
    return Table(
        title=f"{_network(words, config)}: memory and energy for one sample",
        columns=COLUMNS,
        rows=[_row(record) for record in records],
        records=records,
        notes=[
            *NOTES,
            f"All of it in float32: {_sum(total(floats))} uJ; as it is: {_sum(total(energies))} uJ.",
            *left_out,
        ],
    )


def _left_out(model: nn.Module, plan: Plan, whole: Mapping[str, Any]) -> list[str]:
    """Say which weights no line counts, as no quantizer can reach them (an embedding), and what they change."""
    modules, listed, more = dict(model.named_modules()), [], 0
    for name, kind in plan.float_modules:
        own = modules.get(name, model).parameters(recurse=False)
        size = 4 * sum(parameter.numel() for parameter in own)
        listed.append(f"{name} ({kind}), {size:,} bytes")
        more += size
    if not listed:
        return []
    stored = whole["weight_bytes"] + more
    times = (whole["times"] * whole["weight_bytes"] + more) / stored
    with_it = f"with it the weights take {stored:,} bytes, {times:.4g} times smaller"
    return [f"Float and in no line: {', '.join(listed)}; {with_it}."]


def _config(run: Path | None, settings: Sequence[str]) -> Config:
    from qexp.commands.bench import composed
    from qexp.saved import places_of, run_config

    return composed(*settings) if run is None else parse(run_config(run, "--energy", places_of(settings)))


def _planned(config: Config, source: DataSource, run: Path | None) -> tuple[nn.Module, Plan]:
    """Return the network and its plan, of a run with the run's weights.

    One quantized after training comes folded and with what was fitted: bits in memory may depend on it.
    """
    from qexp.commands.eval import load_run
    from qexp.commands.network import build_float, calibrated_network, folded_plan, scheme
    from qexp.graph.plan import make_plan
    from qexp.models.weights import load_weights
    from qexp.runs import RunDirectory

    if run is not None and config.calibration is not None:
        network = calibrated_network(config, source)
        plan = network.plan or folded_plan(network.folding, config, source)
        load_run(network.quantized(), RunDirectory(run))
        return network.model, plan
    model = build_float(config, source)
    if run is not None:
        load_weights(model, run)
    return model, make_plan(model, scheme(config, source), source.shape)


def _network(words: Sequence[str], config: Config) -> str:
    """Return the network and its data set, and what else was typed."""
    rest = [word for word in words if word.partition("=")[0] not in ("model", "dataset")]
    return ", ".join([f"{config.names['model']} on {config.names['dataset']}", *rest])


def _record(name: str, bits: str, row: LayerRow, energy: Energy) -> dict[str, Any]:
    return {
        "layer": name,
        "bits": bits,
        "macs": row.macs,
        "bit_operations": row.bit_operations,
        "weight_bytes": row.weight_bytes,
        "times": 4 * row.parameters / row.weight_bytes,
        **_microjoules(energy),
    }


def _whole(records: Sequence[dict[str, Any]], stored: Sequence[LayerRow], energy: Energy) -> dict[str, Any]:
    """Return the line of all layers; its share of unique filters is the mean of the layers', as in the paper.

    Args:
        stored: of each tensor of weights, one row.
    """
    sums = {key: sum(record[key] for record in records) for key in ("macs", "bit_operations")}
    sums["weight_bytes"] = sum(row.weight_bytes for row in stored)
    floats = 4 * sum(row.parameters for row in stored)
    shares = [record["unique"] for record in records if record["unique"] is not None]
    return {
        "layer": "all",
        "bits": "",
        **sums,
        "times": floats / sums["weight_bytes"],
        **_microjoules(energy),
        "unique": sum(shares) / len(shares) if shares else None,
    }


def _unique(weight: Any) -> float | None:
    if weight is None or weight.dim() != 4:
        return None
    return unique_filters((weight >= 0).flatten(0, 1).flatten(1).tolist())


def _microjoules(energy: Energy) -> dict[str, float]:
    least, most = energy.weights
    return {
        "arithmetic_uj": energy.arithmetic / 1e6,
        "inputs_uj": energy.activations / 1e6,
        "weights_least_uj": least / 1e6,
        "weights_most_uj": most / 1e6,
    }


def _sum(energy: Energy) -> str:
    least, most = ((energy.arithmetic + energy.activations + value) / 1e6 for value in energy.weights)
    return f"{least:.4g} to {most:.4g}"


def _row(record: dict[str, Any]) -> dict[str, str]:
    texts = {key: _text(value) for key, value in record.items()}
    return {**texts, "weights_uj": f"{texts['weights_least_uj']} to {texts['weights_most_uj']}"}


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
