"""What a run was, as the tables speak of it: its names, its bits, its recipe and its seed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from qexp.later import meaning_of_absence, without_later
from qexp.paths import DATASET_PLACES
from qexp.report.ends import ABSENT, Ends, bits_label, ends_of, fits, node_of, rule_of, told_rule
from qexp.runs import Run

SUBJECT = ("model", "dataset", "quantizer", "bits")
"""The keys that every table groups by."""

KEYS = (*SUBJECT, "first_last", "precision", "epochs", "seed", "command", "stored_bits")
"""The keys that every run has, whatever its recipe."""

FLOAT_BITS = "32"
"""The bits of a network in which nothing is quantized."""

_RUN_ID = re.compile(r"(?P<model>[^-]+)-(?P<dataset>[^-]+)-(?P<quantizer>[^-]+)(-w\d+a\d+)?-s\d+-[0-9a-f]{8}")

# Places, names and comfort: no part of what was asked of the run.
_PLACES = tuple(f"dataset.{name}" for name in DATASET_PLACES)
_NO_RECIPE = (
    "names",
    "seed",
    "experiment",
    "budget",
    "output_dir",
    "logger",
    "explain",
    "eval",
    "trainer",
    "decay_by_bits",
    "bits",
    "progressive",  # what a run was made after is told by its weights
    *_PLACES,
)

# Of the run itself, with the value that says what absence said; those of its nodes are in qexp.later.
_LATER = {
    "gradient_bits": None,
    "normalization": None,
    "batch_norm_batches": None,
    "discretisation._target_": "qexp.ops.discretisation.none",
}

# Rounding-level differences of the same recipe: they never split a group by themselves.
_NUMERICS = (
    "trainer.compile",
    "trainer.channels_last",
    "trainer.deterministic",
    "trainer.strategy",
    "trainer.device",
)

_BY_BITS = "by bits"
_LAMBDA = "alpha_regularization.lambda_alpha"
_METHODS_SEED = "quantizer.weight.seed"
_MOVED_BY_IT = "quantizer.weight.perturbation"

# What a float network does not have: left out when a baseline is looked for.
_QUANTIZATION = (
    "quantizer",
    "first_last",
    "gradient_bits",
    "gradient_form",
    "layers",
    "rounding",
    "discretisation",
    "alpha_regularization",
    "calibration",
    "observer",
    "versions",
)

# What decides a run of `qexp ptq`; how its network was trained is in its weights.
_AFTER_TRAINING = ("dataset", "model", "quantizer", "layers", "calibration", "observer")


@dataclass(frozen=True)
class Facts:
    """One run in the words of the tables.

    Attributes:
        bits: `w4a4`, or `32` for the float network.
        first_last: the rule for both ends: `32`, `8`, `same`, or `first w8a8, last 32` where they differ; the
            widths themselves where those in `ends` are others.
        ends: the widths (weights, input) of the first and the last layer, None for what stays in float; None where
            the run's identity is not known.
        command: what made it, train or ptq; runs of the two are never compared.
        recipe: every setting that decides the result but seed, subject and numerics; dotted key -> value.
        numerics: settings that move a result only by rounding.
        origins: of `weights` and `teacher` in the recipe, which are checkpoints: the recipe that made them, where
            they are of a run of the same seed.
    """

    run: Run
    model: str
    dataset: str
    quantizer: str
    bits: str
    first_last: str
    precision: str
    epochs: int | None
    seed: int | None
    command: str = "train"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    numerics: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    ends: Ends | None = None

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized, be it a part set apart alone."""
        return self.bits == FLOAT_BITS

    @property
    def stored_bits(self) -> str | None:
        """What a weight takes in memory, the mean over those quantized; None where a run does not say."""
        bits = ((self.run.result or {}).get("metrics") or {}).get("weight_bits")
        return None if bits is None else f"{bits:.3g}"

    @property
    def subject(self) -> str:
        """Model, data set, quantizer and bits in one line."""
        return f"{self.model} {self.dataset} {self.quantizer} {self.bits}"

    @property
    def shortened(self) -> str:
        """`30 of 200 epochs`, with fewer training samples and a smoke budget named; empty for the full budget."""
        budget, samples = node_of(self.run.config, "budget"), self.recipe.get("dataset.train_samples")
        # Runs from before recipes kept their length have that of their milestones at most.
        by_bits = {} if self.is_float else node_of(budget, "full_by_bits")
        full = by_bits.get(self.bits.partition("a")[0]) or budget.get("full_epochs")
        full = full or self.recipe.get("schedule.of")
        parts = []
        if isinstance(full, int) and self.epochs is not None and self.epochs < full:
            parts.append(f"{self.epochs} of {full} epochs")
        elif not isinstance(full, int) and self.epochs is not None and budget.get("name") == "short":
            parts.append(f"{self.epochs} epochs of a short budget")
        if isinstance(samples, int):
            parts = parts or ([] if self.epochs is None else [f"{self.epochs} epochs"])
            parts.append(f"{samples:,} training samples")
        if self.smoke:
            parts.append(f"smoke test on {self.dataset}")
        return ", ".join(parts)

    @property
    def smoke(self) -> bool:
        """Whether it was made to see the path run, on other data: its numbers mean nothing."""
        return node_of(self.run.config, "budget").get("name") == "smoke"

    def get(self, key: str) -> Any:
        """Return the value of a key, an attribute's name or a dotted config key; `ABSENT` if there is none."""
        if key in KEYS:
            value = getattr(self, key)
            return ABSENT if value is None else value
        return self.recipe.get(key, self.numerics.get(key, ABSENT))

    def setting(self, key: str) -> Any:
        """Return `get`'s value; of a setting that runs came to have later, what its absence says."""
        value = self.get(key)
        if value != ABSENT:
            return value
        node, _, name = key.rpartition(".")
        return _LATER.get(key, meaning_of_absence(self.recipe.get(f"{node}._target_"), name, ABSENT))

    def asked(self, key: str) -> Any:
        """Return `setting`'s value; of a weight decay by bits, the number for these bits."""
        value = self.setting(key)
        return node_of(self.run.config, "optimizer").get("weight_decay") if value == _BY_BITS else value

    def has_ends(self, rule: str) -> bool:
        """Say whether both ends have the widths of a rule, in whatever words: at 2 bits `same` is `2`."""
        return rule == self.first_last if self.ends is None else fits(rule, self.bits, self.ends)

    def baseline_key(self, without: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
        """Return what a float run must share with this one to be its baseline: all but the seed and `without`."""
        other = (*_QUANTIZATION, *without)
        kept = {key: value for key, value in self.recipe.items() if not _under(key, other)}
        kept |= {"model": self.model, "dataset": self.dataset, "command": self.command}
        return tuple(sorted((key, repr(value)) for key, value in kept.items()))


def flatten(config: Mapping[str, Any], prefix: str = "", *, whole: bool = False) -> dict[str, Any]:
    """Return the leaves of a configuration by dotted key, but for those that say what their absence says.

    Lists are leaves; an empty mapping has none. `whole`: those that say what their absence says, too.

    >>> flatten({"optimizer": {"lr": 0.1}, "layers": {}})
    {'optimizer.lr': 0.1}
    """
    leaves: dict[str, Any] = {}
    for key, value in (config if whole else without_later(config)).items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{name}.", whole=whole)
        else:
            leaves[name] = value
    return leaves


def facts(run: Run) -> Facts:
    """Describe a run from its folder's name and its saved configuration."""
    names = _names(run)
    flat = flatten(run.config)
    is_float = names["bits"] == FLOAT_BITS
    calibrated = bool(node_of(run.config, "calibration"))
    unset = [key for key, usual in _LATER.items() if flat.get(key) == usual]
    unset += ["gradient_form"] if flat.get("gradient_bits") is None else []
    recipe = {key: value for key, value in flat.items() if not _under(key, _NO_RECIPE) and key not in unset}
    if is_float:
        recipe = {key: value for key, value in recipe.items() if not _under(key, _QUANTIZATION)}
    quantization = node_of(run.identity, "quantization")
    ends = ends_of(quantization)
    rule = ABSENT if is_float else told_rule(rule_of(run.config), names["bits"], ends)
    without_effect = [_LAMBDA] if quantization.get("lambda_alpha", ABSENT) is None else []
    for key in ("first_last", "quantizer.first_last", "epochs", *without_effect):
        recipe.pop(key, None)
    if recipe.get(_METHODS_SEED, ABSENT) == run.config.get("seed") or recipe.get(_MOVED_BY_IT) == 0:
        recipe.pop(_METHODS_SEED, None)  # it follows the run's, or has nothing to move
    if _decays_by_bits(run.config):
        recipe["optimizer.weight_decay"] = _BY_BITS  # one recipe, whatever the width
    trained = {} if calibrated else _trained(run.config)
    recipe = _calibrated(run, recipe, is_float=is_float) if calibrated else {**_started(run, recipe), **trained}
    if not is_float:
        recipe |= {"first_last": rule, **_versions(run.identity)}
    recipe |= _later("ops.versions", node_of(run.identity, "versions"))  # of what a float network may have, too
    if digest := (run.result or {}).get("data_digest"):
        recipe["data_digest"] = digest
    return Facts(
        run=run,
        **names,
        first_last=rule,
        precision=trained.get("precision", ABSENT),
        epochs=trained.get("epochs"),
        seed=run.config.get("seed"),
        command="ptq" if calibrated else "train",
        recipe=recipe,
        numerics={} if calibrated else _numerics(run, flat),
        origins={} if calibrated else _origins(run),
        ends=ends,
    )


def _versions(identity: Mapping[str, Any]) -> dict[str, int]:
    """Return the versions of the maths that a run stands on, but for first ones, which absence says.

    >>> _versions({"quantization": {"versions": {"x.LSQ": 1, "x.LGLSQ": 2}, "relu_versions": {"x.LSQ": 2}}})
    {'versions.x.LGLSQ': 2, 'versions.relu.x.LSQ': 2}
    """
    quantization, stages = node_of(identity, "quantization"), node_of(node_of(identity, "calibration"), "versions")
    later = _later("calibration.versions", stages)
    for key in quantization:
        if key.endswith("versions"):  # `versions`, and those of what only some runs have: `relu_versions`
            later |= _later(f"versions.{key.removesuffix('versions')}".rstrip("._"), node_of(quantization, key))
    return later


def _later(name: str, versions: Mapping[str, Any]) -> dict[str, int]:
    return {f"{name}.{of}": version for of, version in versions.items() if version != 1}


def _trained(config: Mapping[str, Any]) -> dict[str, Any]:
    trainer = node_of(config, "trainer")
    # Each process has a batch norm of its own, so how many there are is more than a matter of rounding.
    devices = {} if trainer.get("devices", 1) == 1 else {"trainer.devices": trainer["devices"]}
    return {**devices, "epochs": config.get("epochs"), "precision": str(trainer.get("precision", ABSENT))}


def _decays_by_bits(config: Mapping[str, Any]) -> bool:
    """Say whether the weight decay is what the recipe's list has for the weights' bits."""
    width = f"w{_widths_used(config).get('weight')}"
    return node_of(config, "decay_by_bits").get(width, ABSENT) == node_of(config, "optimizer").get("weight_decay")


CHECKPOINTS = {"weights": "model.weights", "teacher": "task.teacher"}
"""What a run starts from or is taught by -> the setting with its path."""


def _started(run: Run, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe whose checkpoints are told apart by what they hold: digests stand for their paths."""
    found = dict(recipe)
    for name, key in CHECKPOINTS.items():
        path = found.pop(key, None)
        digest = (run.result or {}).get(f"{name}_digest")
        if digest is not None or path is not None:
            found[name] = str(path) if digest is None else str(digest)[:8]
    return found


def _origins(run: Run) -> dict[str, str]:
    recipes = {name: (run.result or {}).get(f"{name}_recipe") for name in CHECKPOINTS}
    return {name: str(recipe)[:8] for name, recipe in recipes.items() if recipe is not None}


def _calibrated(run: Run, recipe: Mapping[str, Any], *, is_float: bool) -> dict[str, Any]:
    """Return what decides a run of `qexp ptq`: of a float network only weights, data and how it was folded.

    Weights are told apart by what they hold: the beginning of their digest stands for their path.
    """
    found = {key: value for key, value in recipe.items() if _under(key, _AFTER_TRAINING)}
    path = found.pop("model.weights", ABSENT)
    digest = (run.result or {}).get("weights_digest")
    found["weights"] = str(path) if digest is None else str(digest)[:8]
    if is_float:
        return {**found, "calibration.fold": node_of(run.config, "calibration").get("fold", ABSENT)}
    for key, usual in (("equalize", False), ("absorb", False), ("bias_correction", "none")):
        if found.get(f"calibration.{key}") is None:  # as the method has it
            found[f"calibration.{key}"] = node_of(run.config, "quantizer").get(key, usual)
    target = found.pop("observer._target_", ABSENT)
    name = node_of(run.config, "names").get("observer") or _class_name({"_target_": target})
    return {**found, "observer": str(name)}


def _numerics(run: Run, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the arithmetic; `auto` stands for what was chosen."""
    found = {key: flat[key] for key in _NUMERICS if key in flat}
    compiled = (run.result or {}).get("compiled")
    return found if compiled is None else {**found, "trainer.compile": compiled}


def _names(run: Run) -> dict[str, str]:
    """Return model, dataset, quantizer and bits: as chosen, else from the run's name, else from the classes."""
    chosen = node_of(run.config, "names")
    identifier = str((run.result or {}).get("run_id") or run.path.name)
    if all(chosen.get(key) for key in ("model", "dataset", "quantizer")):
        names = {key: str(chosen[key]) for key in ("model", "dataset", "quantizer")}
    elif match := _RUN_ID.fullmatch(identifier):
        names = match.groupdict()
    else:
        activation = node_of(run.config, "quantizer").get("activation")
        weight = node_of(run.config, "quantizer").get("weight")
        names = {
            "model": _class_name(node_of(run.config, "model")),
            "dataset": _class_name(node_of(run.config, "dataset")),
            "quantizer": _class_name(activation or weight or {"_target_": "none"}),
        }
    if not _is_quantized(run.config, names["quantizer"]):
        return names | {"quantizer": "none", "bits": FLOAT_BITS}
    return names | {"bits": bits_label(_widths_used(run.config))}


def _is_quantized(config: Mapping[str, Any], name: str) -> bool:
    """Say whether anything is quantized, be it a part set apart; by the name where no method is described."""
    layers, method = node_of(config, "layers"), node_of(config, "quantizer")
    if not ({"weight", "activation"} & method.keys() or layers):
        return name != "none"
    apart = [node_of(node_of(layers, pattern), "quantizer") for pattern in layers]
    return any(node.get("weight") or node.get("activation") for node in (method, *apart))


def _widths_used(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bits, 32 for what the method leaves in float; a layer set apart may use what it does not."""
    bits, method = dict(node_of(config, "bits")), node_of(config, "quantizer")
    if not node_of(config, "layers"):
        bits |= {key: 32 for key in ("weight", "activation") if method.get(key, ABSENT) is None}
    return bits


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", ABSENT)).rsplit(".", 1)[-1].lower()


def of_quantization(key: str) -> bool:
    """Say whether a setting is one of quantization, which a float network does not have."""
    return _under(key, ("bits", "stored_bits", *_QUANTIZATION))


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    """Tell whether a dotted key is one of `prefixes` or stands below one."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
