"""What decides a plan: the method, bits of the inner layers and of both ends, and rules for layers by pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx

from qexp.errors import ConfigError, did_you_mean
from qexp.graph.tracing import layer_calls, read_image, relu_sites
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding, Site

Factory = Callable[..., Quantizer]
"""Makes a quantizer from `bits`, `site`, `rounding` and, for a layer rule that sets it, `scope`."""


@dataclass(frozen=True)
class Widths:
    """Bits of the weights and of the activations, 1 to 8 or 32."""

    weight: int
    activation: int


@dataclass(frozen=True)
class Method:
    """A quantization method: how it quantizes weights and activations, and where the latter stand.

    `placement` is `relu` (the quantizer replaces each ReLU, PACT) or `input` (it stands before each layer, LSQ).
    """

    name: str
    weight: Factory | None
    activation: Factory | None
    placement: Literal["relu", "input"] = "relu"


@dataclass(frozen=True)
class LayerRule:
    """What a pattern over layer or activation names changes; None leaves a setting as it is."""

    pattern: str
    weight_bits: int | None = None
    activation_bits: int | None = None
    method: Method | None = None
    scope: str | None = None


@dataclass(frozen=True)
class Scheme:
    """Everything that decides a plan.

    Attributes:
        method: for every layer that no rule gives another.
        bits: for every layer between the first and the last.
        first: of the first layer's weights and of the image.
        last: of the last layer's weights and of the activation that feeds only it.
        rules: layers by pattern; of those that match a name the last one wins.
        rounding: makes one rounding function for each quantizer, from its site.
        input_range: lowest and highest normalized pixel value by channel; needed when the image is quantized.
    """

    method: Method
    bits: Widths
    first: Widths
    last: Widths
    rules: tuple[LayerRule, ...] = ()
    rounding: Callable[[Site], Rounding] = lambda site: ste
    input_range: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Setting:
    """What one layer or site is to get, before quantizers are made."""

    bits: Widths
    method: Method
    scope: str | None = None


def layer_settings(graphs: Sequence[fx.GraphModule], scheme: Scheme) -> dict[str, Setting]:
    """Return the setting of each layer by name; a rule that matches neither layer nor ReLU is an error."""
    names = list(layer_calls(graphs[-1]))
    if not names:
        raise ConfigError("the network has no convolution or linear layer that could be quantized.")
    for graph in graphs:  # layers that only training runs (auxiliary heads) come after, so they are never `last`
        names += [name for name in layer_calls(graph) if name not in names]
    evaluated = list(layer_calls(graphs[-1]))
    settings = {name: Setting(scheme.bits, scheme.method) for name in names}
    for graph in graphs:
        for name, calls in layer_calls(graph).items():
            if read_image(graph, calls):
                settings[name] = Setting(replace(scheme.bits, activation=scheme.first.activation), scheme.method)
    settings[evaluated[0]] = replace(settings[evaluated[0]], bits=scheme.first)
    settings[evaluated[-1]] = replace(settings[evaluated[-1]], bits=scheme.last)
    relus = [name for graph in graphs for name in relu_sites(graph)]
    for rule in scheme.rules:
        matched = fnmatch.filter(dict.fromkeys([*names, *relus]), rule.pattern)
        if not matched:
            raise ConfigError(
                f"layers.'{rule.pattern}' matches no layer of this model.{did_you_mean(rule.pattern, names)} "
                "`qexp explain` lists the names."
            )
        for name in settings.keys() & matched:
            settings[name] = _apply(rule, settings[name])
    return settings


def _apply(rule: LayerRule, setting: Setting) -> Setting:
    bits = Widths(
        setting.bits.weight if rule.weight_bits is None else rule.weight_bits,
        setting.bits.activation if rule.activation_bits is None else rule.activation_bits,
    )
    return Setting(bits, rule.method or setting.method, rule.scope or setting.scope)


def rule_on_relus(name: str, layers: Iterable[str], rules: Sequence[LayerRule]) -> bool:
    """Say whether a rule is about the ReLU `name`, and about none of the `layers`."""
    return any(fnmatch.fnmatch(name, rule.pattern) and not fnmatch.filter(layers, rule.pattern) for rule in rules)


def site_setting(name: str, fed: Sequence[Setting], scheme: Scheme) -> Setting:
    """Return the setting of the layers a ReLU feeds where they agree on activations, then the rules on its name.

    (Agreement is how `last` reaches the final ReLU.)
    """
    setting = Setting(scheme.bits, scheme.method)
    if len({(layer.bits.activation, layer.method, layer.scope) for layer in fed}) == 1:
        setting = fed[0]
    for rule in scheme.rules:
        if fnmatch.fnmatch(name, rule.pattern):
            setting = _apply(rule, setting)
    return setting
