"""A run's configuration, typed and checked: every mistake in it is reported at once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from qexp.bits import BITS, parse_bits
from qexp.errors import ConfigError
from qexp.paths import from_home
from qexp.schema import Reader, finite, one_of
from qexp.settings import (
    AlphaRegularization,
    Bits,
    Budget,
    Calibration,
    Config,
    Correction,
    Engine,
    Evaluation,
    Experiment,
    Explain,
    LayerSetting,
    Trainer,
    end_bits,
)

SCOPES = ("layer", "channel", "element", "network")
WEIGHT_SCOPES = (*SCOPES, "depthwise")
PLACEMENTS = ("relu", "input")
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)
PLAIN_ROUNDING = "qexp.ops.rounding.ste"
NO_DISCRETISATION = "qexp.ops.discretisation.none"
LARGEST_SEED = 2**63 - 1
"""What torch's generators take."""

_NODES = ("task", "dataset", "model", "rounding", "optimizer", "schedule")
_GROUPS = (*_NODES, "quantizer", "bits", "layers", "alpha_regularization", "trainer", "logger", "experiment")
_AFTER_TRAINING = ("calibration", "observer")
_OPTIONAL = ("budget", "explain", "eval", "engine", "names", "decay_by_bits")
_REQUIRED = (*_GROUPS, "first_last", "epochs", "batch_size", "seed", "output_dir")


def parse(plain: Mapping[str, Any]) -> Config:
    """Check a composed configuration (plain containers, interpolations resolved).

    Raises:
        ConfigError: with all mistakes, one a line.
    """
    errors: list[str] = []
    root = Reader(plain, "", errors, (*_REQUIRED, *_OPTIONAL, *_WHERE_GIVEN, *_AFTER_TRAINING))
    root.errors.extend(f"{key} is missing: choose one." for key in _GROUPS if key not in root.node)
    node: dict[str, Any] = {key: root.node.get(key, {}) for key in _REQUIRED}
    nodes = {key: root.target(key) for key in _NODES if key in root.node}
    bits = _bits(Reader(node["bits"], "bits", errors, ("weight", "activation", "first", "last")))
    fields: dict[str, Any] = {
        **{key: nodes.get(key, {}) for key in _NODES},
        "quantizer": _method(node["quantizer"], "quantizer", errors),
        "bits": bits,
        "first_last": _first_last(root, bits),
        "layers": _layers(node["layers"] or {}, errors),
        "alpha_regularization": _alpha_regularization(node["alpha_regularization"], errors),
        "trainer": _trainer(Reader(node["trainer"], "trainer", errors, Trainer.__dataclass_fields__)),
        "logger": _loggers(node["logger"] or {}, errors),
        "epochs": root.integer("epochs", 1),
        "batch_size": root.integer("batch_size", 1),
        "seed": root.integer("seed", 0, LARGEST_SEED),
        "output_dir": from_home(root.text("output_dir")),
        "experiment": _experiment(node["experiment"], errors, "ptq" if "calibration" in root.node else "train"),
        "budget": _budget(root.node.get("budget"), errors),
        "explain": _explain(root.node.get("explain"), errors),
        "eval": _evaluation(root.node.get("eval"), errors),
        "engine": _engine(root.node.get("engine"), errors),
        "names": _names(root.node.get("names"), node),
    }
    fields |= {key: read(root) for key, read in _WHERE_GIVEN.items() if key in root.node}
    _check_descent(fields.get("progressive", ()), bits, errors)
    if "calibration" in root.node:
        fields["calibration"] = _calibration(root.node["calibration"], errors)
        fields["observer"] = root.target("observer")
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    return Config(**fields, plain=dict(plain))


_WHERE_GIVEN: dict[str, Callable[[Reader], Any]] = {
    "gradient_bits": lambda root: root.choice("gradient_bits", (None, *BITS[1:-1])),
    "gradient_form": lambda root: root.choice("gradient_form", ("dorefa", "log")),
    "normalization": lambda root: root.choice("normalization", (None, "shift", "shift_authors")),
    "batch_norm_batches": lambda root: root.optional_integer("batch_norm_batches", 1),
    "progressive": lambda root: _progressive(root),
    "discretisation": lambda root: _discretisation(root.target("discretisation")),
}


_END_RULE = "null for what the method's paper did, a width (1 to 8, 32, or w4a8), or same"


def _first_last(root: Reader, bits: Bits) -> Any:
    return root.get("first_last", None, lambda value: end_bits(value, (bits.weight, bits.activation)), _END_RULE)


def _bits(reader: Reader) -> Bits:
    def width(value: object) -> int:
        return one_of(value, BITS)

    def end(key: str) -> tuple[int, int] | None:
        return reader.get(key, None, lambda value: None if value is None else parse_bits(value, f"bits.{key}"), "")

    rule = "a width is 1 to 8, or 32 for no rounding"
    return Bits(
        reader.get("weight", 32, width, rule),
        reader.get("activation", 32, width, rule),
        end("first") if "first" in reader.node else None,
        end("last") if "last" in reader.node else None,
    )


def _progressive(root: Reader) -> tuple[tuple[int, int], ...]:
    def widths(value: Any) -> tuple[tuple[int, int], ...]:
        if isinstance(value, str):
            raise TypeError
        return tuple(parse_bits(each, "progressive") for each in value or ())

    none: tuple[tuple[int, int], ...] = ()
    return root.get("progressive", none, widths, "null, or a list of widths as [32,4,w3a4]")


def _check_descent(widths: Sequence[tuple[int, int]], bits: Bits, errors: list[str]) -> None:
    """Widths of a chain come down: no width rises, and no two neighbours are the same."""
    pairs = (*widths, (bits.weight, bits.activation))
    for before, after in itertools.pairwise(pairs):
        if before == after or before[0] < after[0] or before[1] < after[1]:
            names = [f"w{weight}a{activation}" for weight, activation in pairs]
            errors.append(
                f"progressive=[{','.join(names[:-1])}]: widths come down, from the first to bits={names[-1]}."
            )
            return


def _method(node: object, path: str, errors: list[str]) -> dict[str, Any]:
    reader = Reader(node, path, errors)
    for key in ("weight", "activation"):
        if reader.node.get(key) is not None:
            target = reader.target(key)
            if "scope" in target:
                Reader(target, f"{path}.{key}", errors).choice(
                    "scope", WEIGHT_SCOPES if key == "weight" else SCOPES
                )
    reader.choice("placement", PLACEMENTS)
    for key, known in (("equalize", (True, False)), ("absorb", (True, False)), ("bias_correction", CORRECTIONS)):
        if key in reader.node:
            reader.choice(key, known)
    if "image" in reader.node:
        reader.choice("image", BITS)
    reader.get("first_last", None, lambda value: end_bits(value, (32, 32)), "a width (1 to 8, or 32), or same")
    return dict(reader.node)


def _layers(node: object, errors: list[str]) -> tuple[LayerSetting, ...]:
    layers = Reader(node, "layers", errors)
    settings = []
    for pattern, entry in layers.node.items():
        path = f"layers.'{pattern}'"
        reader = Reader(entry, path, errors, ("bits", "quantizer", "scope"))
        choice = reader.node.get("quantizer")
        method = _method(choice, f"{path}.quantizer", errors) if isinstance(choice, Mapping) else None
        settings.append(
            LayerSetting(
                pattern=str(pattern),
                bits=reader.get("bits", None, lambda value, path=path: parse_bits(value, f"{path}.bits"), "")  # type: ignore[misc]
                if "bits" in reader.node
                else None,
                quantizer=str(choice.get("name", "")) if isinstance(choice, Mapping) else choice,
                method=method,
                scope=reader.choice("scope", SCOPES) if "scope" in reader.node else None,
            )
        )
    return tuple(settings)


def _alpha_regularization(node: object, errors: list[str]) -> AlphaRegularization:
    reader = Reader(node, "alpha_regularization", errors, ("lambda_alpha",))

    def convert(value: Any) -> Any:
        return value if value == "weight_decay" else finite(value, 0.0)

    rule = "a number, at least 0, or weight_decay"
    return AlphaRegularization(reader.get("lambda_alpha", 0.0, convert, rule))


def _trainer(reader: Reader) -> Trainer:
    minutes = "null, or a number of minutes above 0"
    return Trainer(
        device=reader.choice("device", ("auto", "cpu", "cuda")),
        devices=reader.integer("devices", 1),
        strategy=reader.choice("strategy", ("auto", "ddp")),
        precision=reader.choice("precision", ("float32", "tf32", "bfloat16")),
        channels_last=reader.boolean("channels_last"),
        compile=reader.choice("compile", ("auto", True, False)),
        deterministic=reader.boolean("deterministic"),
        threads=reader.optional_integer("threads", 1),
        checkpoint_minutes=reader.get(
            "checkpoint_minutes", None, lambda value: None if value is None else finite(value, 1e-9), minutes
        ),
        checkpoint_steps=reader.optional_integer("checkpoint_steps", 1),
        watchdog=reader.choice("watchdog", ("warn", "stop", "off")),
        progress=reader.boolean("progress"),
    )


def _loggers(node: object, errors: list[str]) -> dict[str, dict[str, Any]]:
    reader = Reader(node, "logger", errors)
    return {key: reader.target(key) for key in reader.node}


def _experiment(node: object, errors: list[str], command: str) -> Experiment:
    reader = Reader(node, "experiment", errors, ("name", "command", "grids", "table"))
    name = reader.optional_text("name") or command
    if name and not re.fullmatch(r"\w[\w.+=-]*(/\w[\w.+=-]*)*", name):
        errors.append(
            f"experiment.name={name}: a folder below output_dir, of letters, digits, '-', '_', '.', '/'."
        )
    return Experiment(name)


def _budget(node: object, errors: list[str]) -> Budget:
    if node is None:
        return Budget()
    known = ("name", "full_epochs", "full_by_bits", "short_epochs", "short_samples", "smoke_shape")
    reader = Reader(node, "budget", errors, known)
    full = reader.optional_integer("full_epochs", 1) if "full_epochs" in reader.node else None
    return Budget(reader.choice("name", ("full", "short", "smoke")), full)


def _explain(node: object, errors: list[str]) -> Explain:
    if node is None:
        return Explain()
    reader = Reader(node, "explain", errors, Explain.__dataclass_fields__)
    return Explain(reader.choice("format", ("text", "json")), reader.optional_text("run"), reader.boolean("fold"))


def _evaluation(node: object, errors: list[str]) -> Evaluation:
    if node is None:
        return Evaluation()
    reader = Reader(node, "eval", errors, ("run", "split"))
    return Evaluation(reader.optional_text("run"), reader.choice("split", ("test", "validation")))


def _engine(node: object, errors: list[str]) -> Engine:
    if node is None:
        return Engine()
    reader = Reader(node, "engine", errors, Engine.__dataclass_fields__)
    name: Literal["torch", "xnor"] = reader.choice("name", ("torch", "xnor"))
    engine = Engine(name, reader.boolean("fallback"), reader.optional_text("save"), reader.optional_text("load"))
    if name == "torch" and engine != Engine():
        errors.append("engine.fallback, engine.save and engine.load belong to engine=xnor.")
    return engine


def _calibration(node: object, errors: list[str]) -> Calibration:
    reader = Reader(node, "calibration", errors, Calibration.__dataclass_fields__)
    return Calibration(
        samples=reader.integer("samples", 1),
        batch_size=reader.integer("batch_size", 1),
        fold=reader.choice("fold", ("auto", "strict", "none")),
        equalize=reader.choice("equalize", (None, True, False)),
        absorb=reader.choice("absorb", (None, True, False)),
        bias_correction=reader.choice("bias_correction", (None, *CORRECTIONS)),
    )


def _discretisation(node: dict[str, Any]) -> dict[str, Any] | None:
    """Return the node, or None for the one that does nothing, as if the key were not there."""
    return None if node.get("_target_") == NO_DISCRETISATION else node


def _names(node: object, nodes: Mapping[str, Any]) -> dict[str, str]:
    """Return the chosen options' names; without any (a configuration written by hand) the targets' own."""
    given = node if isinstance(node, Mapping) else {}
    found = {}
    for key in ("model", "dataset", "quantizer"):
        target = nodes[key].get("_target_", key) if isinstance(nodes[key], Mapping) else key
        found[key] = str(given.get(key) or str(target).rpartition(".")[2].lower())
    return found
