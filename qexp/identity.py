"""A run's identity: what decides its result, in one canonical form, and the name that follows from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qexp.build import locate
from qexp.calibration import VERSIONS
from qexp.config import PLAIN_ROUNDING, Config, LayerSetting
from qexp.later import without_later
from qexp.ops import VERSIONS as OPS_VERSIONS
from qexp.paths import DATASET_PLACES

FORMAT = 1
"""Of the identity itself; a new one gives every run a new name."""

_MODEL_PLACES, _TASK_PLACES = ("weights",), ("teacher",)
"""Keys of a model and of a task that say where things are: a digest stands for what they hold."""

_METHOD_KEYS = ("weight", "activation")


def identity(config: Config, digests: Mapping[str, str], *, compiled: bool | None = None) -> dict[str, Any]:
    """Return what decides the result of `config`, as plain containers in canonical form.

    Places, loggers, progress and the cadence of checkpoints are left out; what has no effect is normalised away:
    widths, rounding and penalty where nothing is quantized, the penalty of a method without clip levels.

    Args:
        config: the checked configuration.
        digests: of the contents that paths stand for (`data`, and `weights` where some are loaded).
        compiled: whether the step is compiled, once `trainer.compile=auto` is decided; None: as configured.

    Raises:
        ConfigError: a method that does not exist, or that is refused.
    """
    content = {
        "format": FORMAT,
        "dataset": _told(config.dataset, DATASET_PLACES),
        "model": _told(config.model, _MODEL_PLACES),
        "digests": dict(digests),
        "seed": config.seed,
        "quantization": _quantization(config),
    }
    if config.normalization is not None:
        content |= {"normalization": config.normalization}
    if versions := _ops_versions(config):
        content |= {"versions": versions}
    if config.calibration is not None:
        content |= {"calibration": _calibration(config)}
    else:
        content |= _training(config, compiled)
    return dict(canonical(content))


def _ops_versions(config: Config) -> dict[str, int]:
    """Return the versions of `qexp.ops` that act, but for first ones (see `_stage_versions`)."""
    acting = {
        "shift_norm": config.normalization is not None,
        f"{config.gradient_form}_gradient": config.gradient_bits is not None,
        "shift_adamax": config.calibration is None and config.optimizer["_target_"].endswith(".shift_adamax"),
    }
    return {name: OPS_VERSIONS[name] for name, acts in acting.items() if acts and OPS_VERSIONS[name] > 1}


def _training(config: Config, compiled: bool | None) -> dict[str, Any]:
    again = {} if config.batch_norm_batches is None else {"batch_norm_batches": config.batch_norm_batches}
    return {
        **again,
        "task": _told(config.task, _TASK_PLACES),
        "optimizer": _told(config.optimizer),
        "schedule": config.schedule,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "precision": config.trainer.precision,
        "world_size": config.trainer.devices,
        "channels_last": config.trainer.channels_last,
        "deterministic": config.trainer.deterministic,
        "compiled": config.trainer.compile if compiled is None else compiled,
    }


def _calibration(config: Config) -> dict[str, Any]:
    """What decides a network that was quantized after training; without a quantizer only how it was folded."""
    settings = dataclasses.asdict(config.calibration)  # type: ignore[arg-type]
    if not list(_targets(config)):
        return {"fold": settings["fold"]}
    decided: dict[str, Any] = {"equalize": config.equalize, "bias_correction": config.bias_correction}
    del settings["absorb"]  # there since dfq's second version; runs without it keep their names
    if config.absorb:
        decided["absorb"] = True
    if versions := _stage_versions(config, settings):
        decided["versions"] = versions
    return {**settings, **decided, "observer": config.observer}


def _stage_versions(config: Config, settings: Mapping[str, Any]) -> dict[str, int]:
    """Return the versions of the stages that act, but for first ones: earlier runs keep their names."""
    acting = {
        "folding": settings["fold"] != "none",
        "equalization": config.equalize,
        "absorption": config.absorb,
        "bias_correction": config.bias_correction != "none",
    }
    found = {stage: VERSIONS[stage] for stage, acts in acting.items() if acts}
    if config.observer is not None:
        found["observer"] = locate(config.observer["_target_"]).version  # type: ignore[attr-defined]
    return {stage: version for stage, version in found.items() if version > 1}


def _quantization(config: Config) -> dict[str, Any] | None:
    targets = list(_targets(config))
    if not targets:
        return None
    method: dict[str, Any] = {key: config.quantizer.get(key) for key in _METHOD_KEYS}
    widths = [config.bits.weight, config.bits.activation, config.first_bits, config.last_bits]
    if not config.layers:  # a layer set apart may bring back what the method at large does not use
        widths = _effective_widths(config)
    return {
        **method,
        **_gradient(config),
        "placement": config.quantizer["placement"],
        "rounding": config.rounding,
        **({} if config.discretisation is None else {"discretisation": config.discretisation}),
        "versions": {**{target: _version(target) for target in targets}, **_rounding_versions(config)},
        **_special_versions(config, targets),
        "bits": widths,
        "layers": [_layer(setting) for setting in config.layers],
        "lambda_alpha": config.lambda_alpha if any(_has_alpha(target) for target in targets) else None,
    }


def _gradient(config: Config) -> dict[str, Any]:
    """Return width and form of quantized gradients.

    Float weights that quantized ReLUs feed have some behind them, too, which earlier runs did not have: `fed`.
    """
    if config.gradient_bits is None:
        return {}
    weight, activation = (width or 32 for width in _effective_widths(config)[0])
    fed = ["fed"] if config.quantizer["placement"] == "relu" and weight == 32 and activation < 32 else []
    return {"gradient": [config.gradient_bits, config.gradient_form, *fed]}


def _rounding_versions(config: Config) -> dict[str, int]:
    """Return the versions of the rounding and of what is around it, but for first ones (see `_stage_versions`)."""
    targets = [str(node["_target_"]) for node in (config.rounding, config.discretisation) if node is not None]
    return {target: _version(target) for target in targets if _version(target) > 1}


def _special_versions(config: Config, targets: list[str]) -> dict[str, dict[str, int]]:
    """Return the quantizers' `special_versions`, by what this run has, but for first ones."""
    methods = [config.quantizer, *(setting.method for setting in config.layers if setting.method is not None)]
    nodes = [node for method in methods for key in _METHOD_KEYS if (node := method.get(key)) is not None]
    scopes = {*(node.get("scope") for node in nodes), *(setting.scope for setting in config.layers)}
    has = {
        "soft": config.rounding["_target_"] != PLAIN_ROUNDING,
        "network": "network" in scopes,
        "relu": any(method["placement"] == "relu" for method in methods),
        "float_activations": config.bits.activation == 32,
        "perturbed": any(node.get("perturbation") for node in nodes),
    }
    content = {}
    for what in (what for what, is_so in has.items() if is_so):
        found = {target: getattr(locate(target), "special_versions", {}).get(what, 1) for target in targets}
        if later := {target: version for target, version in found.items() if version > 1}:
            content[f"{what}_versions"] = later
    return content


def _version(target: str) -> int:
    version: int = getattr(locate(target), "version", 1)
    return version


def _effective_widths(config: Config) -> list[Any]:
    used = [config.quantizer.get(key) is not None for key in _METHOD_KEYS]
    pairs = ((config.bits.weight, config.bits.activation), config.first_bits, config.last_bits)
    return [[width if use else None for width, use in zip(pair, used, strict=True)] for pair in pairs]


def _layer(setting: LayerSetting) -> dict[str, Any]:
    method = setting.method and {key: value for key, value in setting.method.items() if key != "name"}
    return {"pattern": setting.pattern, "bits": setting.bits, "method": method, "scope": setting.scope}


def _targets(config: Config) -> Iterator[str]:
    """Yield the dotted name of every quantizer that `config` uses."""
    for node in (config.quantizer, *(setting.method or {} for setting in config.layers)):
        for key in _METHOD_KEYS:
            if isinstance(node.get(key), Mapping):
                yield str(node[key]["_target_"])


def _has_alpha(target: str) -> bool:
    """Return whether the quantizer has parameters that the penalty acts on, by its class's own `penalized`."""
    found = locate(target)
    bases = getattr(found, "__mro__", None)
    if bases is None:  # a function that makes quantizers: nothing is known of them
        return True
    return any("penalized" in vars(base) for base in bases if base.__module__ != "qexp.quantizers.base")


def _told(node: Mapping[str, Any], places: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a node without places, and as earlier runs, which keep their names, have it."""
    return {key: value for key, value in without_later(node).items() if key not in places}


def canonical(value: Any) -> Any:
    """Return `value` with sorted keys, lists for tuples and whole floats as integers (1.0 and 1 are one number).

    >>> canonical({"b": (1.0, True), "a": 0.5})
    {'a': 0.5, 'b': [1, True]}
    """
    if isinstance(value, Mapping):
        return {str(key): canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [canonical(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def digest(value: Any) -> str:
    """Return the SHA-256 of plain containers, in hexadecimal; the order of keys does not matter."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def config_digest(config: Config) -> str:
    """Return the digest of the whole configuration as composed, without the folder it writes to."""
    return digest({key: value for key, value in config.plain.items() if key != "output_dir"})


def run_id(config: Config, identity: Mapping[str, Any]) -> str:
    """Return the run's name: `resnet20-cifar10-pact-w4a4-s0-1a2b3c4d`, its last part of the identity's digest."""
    names = config.names
    parts = [names["model"], names["dataset"], names["quantizer"]]
    if identity["quantization"] is not None:
        parts.append(_width(identity["quantization"]["bits"]))
    parts += [f"s{config.seed}", digest(identity)[:8]]
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


def _width(widths: Sequence[Any]) -> str:
    """Return an identity's widths in one word; what the method leaves in float has 32, whatever was typed.

    >>> _width([[4, 8], [32, 32], [32, 32]]), _width([2, 3, [8, 8], [8, 8]]), _width([[2, None]])
    ('w4a8', 'w2a3', 'w2a32')
    """
    weight, activation = widths[0] if isinstance(widths[0], Sequence) else widths[:2]
    return f"w{weight or 32}a{activation or 32}"
