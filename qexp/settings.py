"""A checked configuration, typed: what `qexp.config.parse` returns and everything below it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qexp.bits import BITS, parse_bits
from qexp.build import locate

Correction = Literal["none", "channel", "analytic", "empirical"]
"""Bias corrections after training."""


@dataclass(frozen=True)
class Bits:
    """Widths of weights and activations; `first` and `last` (weights, that layer's input) as far as set apart."""

    weight: int = 32
    activation: int = 32
    first: tuple[int, int] | None = None
    last: tuple[int, int] | None = None


@dataclass(frozen=True)
class LayerSetting:
    """What one pattern of `layers` sets apart; None leaves it as it is.

    `quantizer` is the name of a file in configs/quantizer, `method` what that file says.
    """

    pattern: str
    bits: tuple[int, int] | None = None
    quantizer: str | None = None
    method: dict[str, Any] | None = None
    scope: str | None = None


@dataclass(frozen=True)
class Trainer:
    """Where and how a run is computed; configs/trainer/default.yaml says what each means."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    channels_last: bool = True
    compile: Literal["auto", True, False] = "auto"
    deterministic: bool = False
    threads: int | None = None
    checkpoint_minutes: float | None = 5
    checkpoint_steps: int | None = None
    watchdog: Literal["warn", "stop", "off"] = "warn"
    progress: bool = True


@dataclass(frozen=True)
class AlphaRegularization:
    """The penalty on clip levels: a number, 0 for none, or `weight_decay` for the optimizer's."""

    lambda_alpha: float | Literal["weight_decay"] = 0.0


@dataclass(frozen=True)
class Experiment:
    """`name` is the folder below `output_dir` that holds the runs."""

    name: str = "train"


@dataclass(frozen=True)
class Budget:
    """`name` is full, short or smoke; the other keys of the group are what these names stand for.

    `full_epochs` is the length of the recipe, whatever this run takes of it; None where there is no recipe. Tables
    read `full_by_bits` beside it: other lengths for some weights' bits (`w8`).
    """

    name: str = "full"
    full_epochs: int | None = None


@dataclass(frozen=True)
class Explain:
    """What `qexp explain` shows: the run in folder `run` (None: the network composed here), as text or JSON.

    `fold`: as `qexp ptq` has it, with its batch norms folded; the plan of such a run is always that one.
    """

    format: Literal["text", "json"] = "text"
    run: str | None = None
    fold: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What `qexp eval` measures: the run in folder `run` (None: the network composed here), on `split`."""

    run: str | None = None
    split: Literal["test", "validation"] = "test"


@dataclass(frozen=True)
class Engine:
    """What `qexp eval` computes with; configs/engine/xnor.yaml says what each means."""

    name: Literal["torch", "xnor"] = "torch"
    fallback: bool = False
    save: str | None = None
    load: str | None = None


@dataclass(frozen=True)
class Calibration:
    """How `qexp ptq` puts quantizers on a trained network; configs/ptq.yaml says what each means."""

    samples: int = 512
    batch_size: int = 4
    fold: Literal["auto", "strict", "none"] = "auto"
    equalize: bool | None = None
    absorb: bool | None = None
    bias_correction: Correction | None = None


@dataclass(frozen=True)
class Config:
    """A checked configuration. Nodes with a `_target_` stay plain dicts.

    `names` are the options chosen for model, dataset and quantizer, for people to read; `plain` is the whole as it
    was composed, where the observer's name stands with them. `progressive` are widths (weights, activations) to
    train at before. `calibration` and `observer` are there for a network that is quantized after training.
    """

    task: dict[str, Any]
    dataset: dict[str, Any]
    model: dict[str, Any]
    quantizer: dict[str, Any]
    rounding: dict[str, Any]
    bits: Bits
    first_last: tuple[int, int] | None
    layers: tuple[LayerSetting, ...]
    alpha_regularization: AlphaRegularization
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    trainer: Trainer
    logger: dict[str, dict[str, Any]]
    epochs: int
    batch_size: int
    seed: int
    output_dir: str
    experiment: Experiment
    budget: Budget
    explain: Explain
    eval: Evaluation
    names: dict[str, str]
    plain: dict[str, Any]
    engine: Engine = Engine()
    gradient_bits: int | None = None
    gradient_form: Literal["dorefa", "log"] = "dorefa"
    batch_norm_batches: int | None = None
    progressive: tuple[tuple[int, int], ...] = ()
    discretisation: dict[str, Any] | None = None
    normalization: Literal["shift", "shift_authors"] | None = None
    calibration: Calibration | None = None
    observer: dict[str, Any] | None = None

    @property
    def quantized(self) -> bool:
        """Whether anything is quantized at all, be it a part set apart alone."""
        return any(
            node.get("weight") or node.get("activation")
            for node in (self.quantizer, *(setting.method or {} for setting in self.layers))
        )

    @property
    def first_bits(self) -> tuple[int, int]:
        """Widths (weights, input) of the first layer: its own, else `first_last`, which may be the method's."""
        if self.bits.first or self.first_last or "image" not in self.quantizer:
            return self.bits.first or self._end_bits()
        weight, activation = self._end_bits()
        return weight, 32 if activation == 32 else self._image_bits(activation)

    def _image_bits(self, inner: int) -> int:
        """Return the method's width of the image; for a text the layers' own where the method lacks that width."""
        image: int = self.quantizer["image"]
        method = self.quantizer.get("activation")
        if not self.reads_text or method is None:
            return image
        return image if image in getattr(locate(method["_target_"]), "supported_bits", BITS) else inner

    @property
    def reads_text(self) -> bool:
        """Whether the network reads tokens of a text, where others read images."""
        return "sequence_length" in self.dataset

    @property
    def last_bits(self) -> tuple[int, int]:
        """Widths (weights, input) of the last layer: its own, else `first_last`, which may be the method's."""
        return self.bits.last or self._end_bits()

    @property
    def equalize(self) -> bool:
        """Whether neighbouring layers are equalized after training: as typed, else as the method has it."""
        typed = self.calibration.equalize if self.calibration else None
        return bool(self.quantizer.get("equalize", False)) if typed is None else typed

    @property
    def absorb(self) -> bool:
        """Whether equalized layers hand high biases on: as typed, else as the method has it."""
        typed = self.calibration.absorb if self.calibration else None
        return self.equalize and (bool(self.quantizer.get("absorb", False)) if typed is None else typed)

    @property
    def bias_correction(self) -> Correction:
        """The correction after training: as typed, else as the method has it, else none."""
        typed = self.calibration.bias_correction if self.calibration else None
        return typed or self.quantizer.get("bias_correction") or "none"

    def _end_bits(self) -> tuple[int, int]:
        inner = (self.bits.weight, self.bits.activation)
        return self.first_last or end_bits(self.quantizer["first_last"], inner) or inner

    @property
    def lambda_alpha(self) -> float:
        """The penalty's factor as a number."""
        value = self.alpha_regularization.lambda_alpha
        return float(self.optimizer.get("weight_decay") or 0.0) if value == "weight_decay" else float(value)


def end_bits(value: object, same: tuple[int, int]) -> tuple[int, int] | None:
    """Return the widths of an end of the network: None for None, `same` for "same". Others: ConfigError."""
    if value is None:
        return None
    return same if value == "same" else parse_bits(value, "first_last")
