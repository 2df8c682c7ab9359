"""`qexp cost`: what a network's inference costs on an accelerator, by bit-width and external bandwidth."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from qexp.bits import parse_bits
from qexp.commands.bench import composed
from qexp.commands.cost_table import Case, cost_table, fit_table
from qexp.commands.cost_weights import weights_table
from qexp.commands.options import Parser
from qexp.commands.table import check_only, write_or_print
from qexp.config import Config
from qexp.errors import ConfigError, did_you_mean
from qexp.hardware.figure6 import fit, left_out
from qexp.hardware.mac import CORE_RULES, WIDTHS
from qexp.hardware.system import Bits, Layer, Machine, default_ends, estimate
from qexp.published import Artefact
from qexp.report.tables import FORMATS, Table

Layers = tuple[list[Layer], list[str]]
"""A network's layers, and what of it is not counted."""

FIGURE_MODEL = "resnet50"
_WIDTH_RULE = (
    "a width here is 1 to 8, or 16, the paper's baseline; write bits=4, or bits=w4a8 for weights and activations"
)

_TEXT = """\
How many images a second a network would reach on the accelerator of PACT's figure 6 (arXiv 1805.06085): cores
of 8 x 64 multiply-accumulate units (MACs) that get smaller, and so more, with fewer bits; 16 MB of memory on
the chip; an external memory of limited bandwidth, which brings the weights that do not fit. Nothing is trained
or measured.

keys (a comma list makes one line for each value):
  model=resnet50             any model of `qexp list models`; its layers are those of `qexp explain`
  bits=16,8,4,2              1 to 8, or 16; w4a8: 4-bit weights and 8-bit activations, on 8-bit MACs
  bandwidth=inf,64,32        of the external memory, GB/s; inf: never waited for
  first_last=paper           bits of the first and last layer; paper: 8 where the others have fewer; same; a width
  batch=1                    images computed together, layer by layer: they share the weights and the memory
  memory=16                  MB on the chip
  cores=paper                4, 8, 16, 32 cores at 16, 8, 4, 2 bits; area: as many as the MACs' area would allow
  dataset=cifar10            another image size than the model's own; model.KEY=, dataset.KEY= as for qexp train
"""

_EXAMPLES = """\
examples:
  qexp cost                                                   figure 6 of the paper: ResNet50
  qexp cost model=mobilenet_v2 bits=4,8 bandwidth=32
  qexp cost bits=2 first_last=8,same bandwidth=inf            what 8-bit ends cost
  qexp cost model=alexnet bits=8 batch=1,8,64 --output alexnet.md
  qexp cost --pwlq                                            PWLQ's hardware table: energy, speed-up of ResNet50
  qexp cost --pwlq model=mobilenet_v2 bandwidth=4,8           the same for another network
  qexp cost --energy RUN dataset.root=DIR                     of a run, whose data have moved
  qexp cost --fit                                             the model's error at each of the paper's 12 points

columns:
  against 16 bits    images/s divided by those of the same line at 16 bits
  peak TOPS          all MACs at work, 2 operations each
  bound by           what takes more than half of the time: computing, or waiting for the external memory
  traffic MB/image   what goes over the external memory
"""


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    options = Parser(
        prog="qexp cost",
        description=_TEXT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("words", nargs="*", metavar="key=value", help="see above")
    tables = options.add_mutually_exclusive_group()
    tables.add_argument(
        "--fit", action="store_true", help="the paper's figure beside the model, and its constants"
    )
    tables.add_argument(
        "--pwlq", action="store_true", help="narrow weights on one array; takes model= and bandwidth= (8,16)"
    )
    tables.add_argument(
        "--energy", action="store_true", help="memory, energy and unique filters of a run's folder or a network"
    )
    options.add_argument("--format", choices=FORMATS, help="terminal, or what --output's name asks for")
    options.add_argument("--output", type=Path, metavar="FILE", help="write the table to this file")
    return options


def main(argv: Sequence[str]) -> int:
    """Print or write the table.

    Raises:
        QexpError: an unknown key or model, a value without meaning, a file that cannot be written.
    """
    arguments = parser().parse_intermixed_args(list(argv))
    if arguments.fit and arguments.words:
        raise ConfigError(
            f"--fit compares {FIGURE_MODEL} as the paper's figure has it; leave out {' '.join(arguments.words)}."
        )
    write_or_print(_chosen(arguments), arguments.format, arguments.output)
    return 0


def _chosen(arguments: argparse.Namespace) -> Table:
    """Return the table that the options ask for."""
    if arguments.energy:
        from qexp.commands.energy import energy_table

        return energy_table(arguments.words)
    if arguments.pwlq:
        return pwlq_table(arguments.words)
    axes, overrides = parse_words(arguments.words)
    return figure6_table() if arguments.fit else _table(axes, overrides)


def pwlq_table(words: Sequence[str] = ()) -> Table:
    """Return the hardware table of PWLQ's supplement.

    Raises:
        QexpError: as `parse_words`; a key that the table does not have.
    """
    words = list(words) if any(word.startswith("bandwidth=") for word in words) else [*words, "bandwidth=8,16"]
    axes, overrides = parse_words(words)
    allowed = ("model", "bandwidth", "dataset")
    for word in words:
        if not word.partition("=")[0].startswith((*allowed, "model.", "dataset.")):
            raise ConfigError(
                f"{word}: --pwlq compares 8 and 4 bits, image by image; it takes model= and bandwidth=."
            )
    if len(axes["model"]) > 1 or math.inf in axes["bandwidth"]:
        raise ConfigError("--pwlq: one model at a time, and bandwidths in GB/s (at inf nothing is saved).")
    (model,) = axes["model"]
    compared = model == FIGURE_MODEL and not overrides
    return weights_table(model, _network(model, overrides)[0], axes["bandwidth"], compared=compared)


def parse_words(words: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the values of each key, those not typed by their defaults, and what is for the composition alone.

    Raises:
        ConfigError: a word that is no `key=value`, an unknown key, one typed twice, a value without meaning.

    >>> axes, overrides = parse_words(["bits=w4a8,2", "bandwidth=inf", "dataset=cifar10"])
    >>> axes["bits"], axes["bandwidth"], axes["batch"], overrides
    ([(4, 8), (2, 2)], [inf], [1], ['dataset=cifar10'])
    """
    typed: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"cannot read '{word}': write key=value.")
        if key not in _AXES and key != "dataset" and not key.startswith(("model.", "dataset.")):
            raise ConfigError(f"unknown key '{key}'.{did_you_mean(key, [*_AXES, 'dataset'])}")
        if key in typed:
            raise ConfigError(f"{key} is given twice; for several values: {key}={typed[key]},{value}")
        typed[key] = value
    axes = {}
    for key, (default, parse) in _AXES.items():
        values = [text.strip() for text in typed.pop(key, default).split(",")]
        axes[key] = list(dict.fromkeys(parse(text) for text in values))
    return axes, [f"{key}={value}" for key, value in typed.items()]


def _bits(text: str) -> Bits:
    return parse_bits(text, "bits", WIDTHS, _WIDTH_RULE)


def _ends(text: str) -> Bits | str:
    rule = "paper (8 where the others have fewer), same, or a width: 1 to 8, 16, w4a8"
    return text if text in ("paper", "same") else parse_bits(text, "first_last", WIDTHS, rule)


def _positive(key: str, rule: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not number > 0:
            raise ConfigError(f"{key}={text}: {rule}.")
        return number

    return parse


def _batch(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise ConfigError(f"batch={text}: a whole number of images, at least 1.")
    return number


def _cores(text: str) -> str:
    if text not in CORE_RULES:
        raise ConfigError(f"cores={text}: choose {' or '.join(CORE_RULES)}.")
    return text


def _model(text: str) -> str:
    if not text:
        raise ConfigError("model=: name a model; `qexp list models` shows them.")
    return text


_AXES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "model": (FIGURE_MODEL, _model),
    "batch": ("1", _batch),
    "memory": ("16", _positive("memory", "MB on the chip, above 0")),
    "cores": ("paper", _cores),
    "first_last": ("paper", _ends),
    "bandwidth": ("inf,64,32", _positive("bandwidth", "GB/s above 0, or inf")),
    "bits": ("16,8,4,2", _bits),
}
"""Key -> its default, and what reads one value; the table's lines vary the last one fastest."""


def layer_list(config: Config) -> Layers:
    """Return the layers of `config`'s network as `qexp explain` counts them, in the order inference runs them.

    With them comes what has weights but no place in that list, in words.

    Raises:
        QexpError: the network cannot be traced, or does not take the data set's images.
    """
    # torch is imported here, after the words were looked at.
    from qexp.build import build
    from qexp.commands.explain import layer_row
    from qexp.commands.network import build_float, scheme
    from qexp.graph.plan import make_plan
    from qexp.graph.tracing import layer_calls

    source = build(config.dataset)
    plan = make_plan(build_float(config, source), scheme(config, source), source.shape)
    planned = {layer.name: layer for layer in plan.layers}
    layers = []
    for layer in (planned[name] for name in layer_calls(plan.graphs[-1])):
        row = layer_row(layer, plan)
        sizes = (layer.inputs, layer.outputs)
        layers.append(Layer(layer.name, row.macs, row.parameters, *sizes, layer.weight_shape, layer.groups))
    return layers, [f"{module} ({kind})" for module, kind in plan.float_modules]


def _network(name: str, overrides: Sequence[str] = ()) -> Layers:
    return layer_list(composed(f"model={name}", "quantizer=none", *overrides))


def _table(axes: dict[str, list[Any]], overrides: Sequence[str]) -> Table:
    networks = {name: _network(name, overrides) for name in axes["model"]}
    notes = [
        f"{name}: not counted: {', '.join(uncounted)}" for name, (_, uncounted) in networks.items() if uncounted
    ]
    return cost_table(list(_cases(axes, networks)), notes)


def _cases(axes: dict[str, list[Any]], networks: dict[str, Layers]) -> Iterator[Case]:
    for model, batch, memory, cores, wanted, bandwidth, bits in product(*axes.values()):
        ends = {"paper": default_ends(bits), "same": bits}.get(wanted, wanted)
        machine = Machine(memory=memory * 1e6, cores=cores)
        layers, _ = networks[model]
        rest = {"bandwidth": bandwidth * 1e9, "batch": batch, "machine": machine}
        answer, baseline = (estimate(layers, *widths, **rest) for widths in ((bits, ends), ((16, 16), None)))
        yield Case(model, bits, ends, bandwidth, batch, memory, cores, answer, baseline)


def figure6_table() -> Table:
    """Return the 12 points beside the model, its errors where each is left out of the fit, and its constants."""
    layers, _ = _network(FIGURE_MODEL)
    rows, refits = left_out(layers)
    return fit_table(rows, refits, fit(layers))


def is_figure6(artefact: Artefact) -> bool:
    """Tell whether it is PACT's figure 6, the only one of the system models that is not PWLQ's table."""
    return artefact.full_name == "pact/fig6"


def system_table(artefact: Artefact, only: str = "") -> Table:
    """Return the model's table beside a published one for which nothing is trained.

    Args:
        artefact: its figure is `system`.
        only: show the rows whose label contains this text, in any case; empty for all.

    Raises:
        ConfigError: no row contains `only`.
    """
    table = figure6_table() if is_figure6(artefact) else pwlq_table()
    labels = list(map(system_label, table.records))
    check_only(only, labels)
    shown = [place for place, label in enumerate(labels) if only.lower() in label.lower()]
    return dataclasses.replace(
        table, rows=[table.rows[place] for place in shown], records=[table.records[place] for place in shown]
    )


def system_label(record: Mapping[str, Any]) -> str:
    """Return what a row of a system model's table is called.

    >>> system_label({"bits": 16, "bandwidth_gb_s": 32.0})
    '16 bits, 32 GB/s'
    """
    if "what" in record:
        return f"{record['what']}, {record['scheme']}"
    return f"{record['bits']} bits, {record['bandwidth_gb_s']:g} GB/s"
