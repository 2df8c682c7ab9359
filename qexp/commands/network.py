"""From a configuration to the network that a command runs: float model, its weights, the plan, the quantizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from qexp.build import build
from qexp.calibration.absorption import absorb_biases
from qexp.calibration.bias import correct_biases, expected_inputs, give_biases, measured_inputs
from qexp.calibration.equalization import Equalized, equalize
from qexp.calibration.fit import Fitted, correct_weights, fit_activations, fit_weights, fitted_weights
from qexp.calibration.folding import Folding, fold_batch_norm
from qexp.calibration.observers import Observer
from qexp.calibration.reconstruction import learn_roundings
from qexp.config import Config, LayerSetting
from qexp.convert import quantize_model
from qexp.data.base import DataSource
from qexp.errors import ConfigError
from qexp.graph.plan import LayerPlan, Plan, make_plan
from qexp.graph.scheme import Factory, LayerRule, Method, Scheme, Widths
from qexp.layers.normalization import shifted
from qexp.lit.losses import class_scores
from qexp.models.weights import load_weights
from qexp.ops.discretisation import Discretisation
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding, Site
from qexp.quantizers.gradient import GradientQuantizer
from qexp.quantizers.image import ImageGrid


def refuse_text(config: Config, what: str) -> None:
    """Raise ConfigError where a network of tokens is asked for something that is made for images."""
    if config.reads_text:
        raise ConfigError(
            f"{what} networks that read images, not yet those that read a text (model={config.names['model']})."
        )


def build_float(config: Config, source: DataSource, *, of_float: bool = False) -> nn.Module:
    """Return the float model, its random start drawn from `seed`, or loaded from `model.weights`.

    Args:
        of_float: those have to be of a float network, as they always have after training.
    """
    node = dict(config.model)
    weights = node.pop("weights", None)
    torch.manual_seed(config.seed)
    model: nn.Module = build(node, input_shape=source.shape, num_classes=source.num_classes)
    if (task := getattr(model, "task", "classification")) != source.task:
        raise ConfigError(
            f"model={config.names['model']}, dataset={config.names['dataset']}: a network for {task}, and data for"
            f" {source.task}; choose two that agree."
        )
    if config.normalization is not None:
        shifted(model, config.normalization)
    if weights is not None:
        load_weights(model, weights, of_float=of_float or config.calibration is not None)
    return model


def build_network(config: Config, source: DataSource) -> nn.Module:
    """Return the quantized network of `config`; without any quantizer the float model as it is.

    Raises:
        ConfigError: the model cannot be traced, a layer pattern matches nothing, a method refuses a site.
        CheckpointError: `model.weights` does not fit.
    """
    if config.calibration is not None:
        return calibrated_network(config, source).quantized()
    if not config.quantized:
        _require_layers(config, [])
        return build_float(config, source)
    model = build_float(config, source)
    plan = make_plan(model, scheme(config, source), source.shape)
    _require_layers(config, [layer for layer in plan.layers if layer.quantized])
    _require_scores(plan.graphs[-1], source)
    _require_rounding(config, plan)
    return quantize_model(plan, _gradient(config))


def _require_scores(graph: fx.GraphModule, source: DataSource) -> None:
    """Refuse a classifier that answers with several tensors, before any time is spent."""
    answer = next(node.args[0] for node in graph.graph.nodes if node.op == "output")
    if source.task == "classification" and not isinstance(answer, fx.Node):
        class_scores(answer)


def _require_rounding(config: Config, plan: Plan) -> None:
    """Refuse a rounding that nothing in the network would call: the run would be named after it for nothing."""
    asked = {"rounding": build(config.rounding) is not ste, "discretisation": config.discretisation is not None}
    quantizers = [one for one in plan.quantizers() if one.bits < 32 and not isinstance(one, ImageGrid)]
    used = [one.rounding for one in quantizers if one.rounds]
    around = [one for one in used if isinstance(one, Discretisation)]
    inner = [one.inner if isinstance(one, Discretisation) else one for one in used]
    uses = {"rounding": any(one is not ste for one in inner), "discretisation": bool(around)}
    if idle := [key for key in asked if asked[key] and not uses[key]]:
        methods = ", ".join(sorted({type(one).__name__ for one in quantizers})) or "all is at 32 bits"
        raise ConfigError(
            f"{' and '.join(idle)}: no quantizer here would use it ({methods}); leave it away, or take a method"
            " that rounds to equal steps, such as quantizer=lsq or pact (mse_pull and blend: its weights)."
        )


def _require_layers(config: Config, quantized: Sequence[LayerPlan]) -> None:
    """Refuse gradients that no layer would quantize."""
    if config.gradient_bits is not None and not quantized:
        raise ConfigError(
            f"gradient_bits={config.gradient_bits}: gradients are quantized behind quantized layers, and"
            " nothing is quantized here; leave it out."
        )


def _gradient(config: Config) -> Callable[[], nn.Module] | None:
    bits, form = config.gradient_bits, config.gradient_form
    return None if bits is None else lambda: GradientQuantizer(bits, form)


@dataclass
class AfterTraining:
    """A trained network, folded, with the quantizers that belong on it, before and after they are fitted."""

    folding: Folding
    plan: Plan | None
    correction: str = "none"
    equalized: Equalized | None = None
    uncorrected: tuple[str, ...] = ()
    """Layers without the statistics that analytic bias correction needs."""

    @property
    def model(self) -> fx.GraphModule:
        """The folded float network."""
        return self.folding.model

    def fit(self, batches: Iterable[Any], observer: Callable[[int, Site], Observer], seed: int) -> list[Fitted]:
        """Fit every quantizer: inputs, weights, roundings that are learned; return what each kept.

        Args:
            batches: of (images, labels), the same ones each time they are asked for.
            observer: as `calibration.fit.fit_activations` has it.
            seed: of what is learned.
        """
        if self.plan is None:
            return []
        for quantizer in self.plan.quantizers():
            quantizer.to(next(self.model.parameters()).device)
        inputs = list(fit_activations(self.model, self.plan, batches, observer))
        fit_weights(self.model, self.plan)
        learn_roundings(self.model, self.plan, batches, seed)
        found = list(fitted_weights(self.model, self.plan))
        if self.correction == "analytic":
            means = expected_inputs(self.model, self.folding.statistics)
            self.uncorrected = correct_biases(self.model, self.plan, means)
        elif self.correction == "empirical":
            correct_biases(self.model, self.plan, measured_inputs(self.model, self.plan, batches))
        return [*inputs, *found]

    def quantized(self) -> nn.Module:
        """Return the network with the quantizers in place, in evaluation mode."""
        return self.model if self.plan is None else quantize_model(self.plan).eval()


def check_network(config: Config, source: DataSource) -> None:
    """Refuse what the network of `config` does not support, at the cost of its shapes alone.

    Raises:
        ConfigError: the method does not support what is asked of it.
    """
    bare = {key: value for key, value in config.model.items() if key != "weights"}
    with torch.device("meta"):  # shapes without numbers: what a method refuses shows there
        build_network(dataclasses.replace(config, model=bare, calibration=None), source)


def calibrated_network(config: Config, source: DataSource) -> AfterTraining:
    """Return the folded float network of `config` and its plan, with bias correction where it is asked for.

    Raises:
        ConfigError: as `build_network`; a batch norm that cannot be folded with calibration.fold=strict.
    """
    settings = config.calibration
    assert settings is not None  # the caller has looked
    folding = fold_batch_norm(build_float(config, source).eval(), settings.fold, source.shape)
    _require_scores(folding.model, source)
    if not config.quantized:
        return AfterTraining(folding, None)
    equalized = equalize(folding) if config.equalize else None
    if equalized is not None:
        equalized = absorb_biases(equalized) if config.absorb else equalized
        folding = equalized.folding
    plan = folded_plan(folding, config, source)
    correct_weights(plan, config.bias_correction)
    if config.bias_correction in ("analytic", "empirical"):
        give_biases(folding.model, plan)
    for quantizer in plan.quantizers():
        quantizer.eval()  # as the network is: what was fitted is used as it is
    return AfterTraining(folding, plan, config.bias_correction, equalized)


def folded_plan(folding: Folding, config: Config, source: DataSource) -> Plan:
    """Return the plan of a folded network, which lists the batch norms that stay."""
    plan = make_plan(folding.model, scheme(config, source), source.shape)
    plan.float_norms = folding.kept
    return plan


def scheme(config: Config, source: DataSource) -> Scheme:
    """Return what decides the plan of `config`'s network."""
    return Scheme(
        method=_method(config.names["quantizer"], config.quantizer),
        bits=Widths(config.bits.weight, config.bits.activation),
        first=Widths(*config.first_bits),
        last=Widths(*config.last_bits),
        rules=tuple(_rule(setting) for setting in config.layers),
        rounding=lambda site: _rounding(config, site),
        input_range=source.input_range(),
    )


def _rounding(config: Config, site: Site) -> Rounding:
    """Return a rounding for one site; what weights alone can do with their error is left out elsewhere."""
    rounding: Rounding = build(config.rounding)
    if config.discretisation is None:
        return rounding
    around: Rounding = build(config.discretisation, inner=rounding)
    weights_only = isinstance(around, Discretisation) and around.weights_only
    return rounding if weights_only and site.kind != "weight" else around


def _method(name: str, node: Mapping[str, Any]) -> Method:
    return Method(name, _factory(node.get("weight")), _factory(node.get("activation")), node["placement"])


def _factory(node: Mapping[str, Any] | None) -> Factory | None:
    return None if node is None else _Maker(dict(node))


@dataclass(frozen=True)
class _Maker:
    """Makes quantizers of a node; equal nodes make equal makers, so layers can agree on a method.

    What a site adds overrides what the file says (a rule's `scope`).
    """

    node: dict[str, Any]

    def __call__(self, **extra: object) -> Quantizer:
        quantizer: Quantizer = build({**self.node, **extra})
        return quantizer

    def __hash__(self) -> int:
        return hash(repr(sorted(self.node.items())))


def _rule(setting: LayerSetting) -> LayerRule:
    weight, activation = setting.bits or (None, None)
    method = None if setting.method is None else _method(setting.quantizer or "", setting.method)
    return LayerRule(setting.pattern, weight, activation, method, setting.scope)
