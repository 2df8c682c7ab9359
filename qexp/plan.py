"""Which quantizer goes where: decided for a whole network before any module is touched."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import fx, nn

from qexp.errors import ConfigError, did_you_mean
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding, Site
from qexp.quantizers.image import ImageGrid
from qexp.shapes import Shape, record_shapes
from qexp.tracing import consumers, layer_calls, nonnegative, relu_sites, sources, trace

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
        rounding: makes one rounding function for each quantizer.
        input_range: lowest and highest normalized pixel value by channel; needed when the image is quantized.
    """

    method: Method
    bits: Widths
    first: Widths
    last: Widths
    rules: tuple[LayerRule, ...] = ()
    rounding: Callable[[], Rounding] = lambda: ste
    input_range: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass
class LayerPlan:
    """One convolution or linear layer: its quantizers, and why what is float stays float."""

    name: str
    kind: str
    weight_shape: Shape
    input_shape: Shape
    output_shape: Shape
    groups: int = 1
    bias: bool = False
    weight: Quantizer | None = None
    input: Quantizer | None = None
    fed_by: list[str] = field(default_factory=list)
    activation_bits: int = 32
    note: str = ""

    @property
    def weight_bits(self) -> int:
        """Bits of the weights; 32 where they stay float."""
        return 32 if self.weight is None else self.weight.bits


@dataclass
class SitePlan:
    """One ReLU call and what replaces it (None: it stays)."""

    name: str
    shape: Shape
    feeds: list[str]
    bits: int
    quantizer: Quantizer | None = None


@dataclass
class Plan:
    """The plan of a whole network.

    `float_modules` lists (name, kind) of modules with weights for which no quantized form exists.
    """

    layers: list[LayerPlan]
    sites: list[SitePlan]
    float_modules: list[tuple[str, str]]
    graphs: tuple[fx.GraphModule, ...]

    def quantizers(self) -> Iterator[Quantizer]:
        """Yield every quantizer of the plan once: the ReLU sites first, then layer by layer."""
        yield from (site.quantizer for site in self.sites if site.quantizer is not None)
        for layer in self.layers:
            yield from (quantizer for quantizer in (layer.input, layer.weight) if quantizer is not None)


@dataclass(frozen=True)
class _Setting:
    """What one layer or site is to get, before quantizers are made."""

    bits: Widths
    method: Method
    scope: str | None = None


def make_plan(model: nn.Module, scheme: Scheme, input_shape: Shape) -> Plan:
    """Decide the quantizers of every layer and ReLU of `model`; the model is not changed.

    Args:
        model: a float network that torch.fx can trace.
        scheme: method, bits and rules.
        input_shape: one sample's (C, H, W).

    Raises:
        ConfigError: the network cannot be traced or does not take that shape, a rule matches nothing, or the
            method refuses a site.
    """
    graphs = trace(model)
    settings = _layer_settings(graphs, scheme)
    sites = _merge(_plan_sites(graph, record_shapes(graph, input_shape), scheme, settings) for graph in graphs)
    layers = _merge(
        _plan_layers(graph, record_shapes(graph, input_shape), scheme, settings, sites) for graph in graphs
    )
    plan = Plan(list(layers.values()), list(sites.values()), _float_modules(model), graphs)
    _share_across_network(plan)
    return plan


def _merge(parts: Iterator[dict]) -> dict:
    """Join the plans of the graphs by name: a site that both modes have gets one quantizer."""
    merged: dict = {}
    for part in parts:
        merged = {**part, **merged}
    return merged


def _layer_settings(graphs: Sequence[fx.GraphModule], scheme: Scheme) -> dict[str, _Setting]:
    """Return the setting of each layer by name, and of each ReLU site that a rule names itself."""
    names = list(layer_calls(graphs[-1]))
    if not names:
        raise ConfigError("the network has no convolution or linear layer that could be quantized.")
    for graph in graphs:  # layers that only training runs (auxiliary heads) come after, so they are never `last`
        names += [name for name in layer_calls(graph) if name not in names]
    evaluated = list(layer_calls(graphs[-1]))
    settings = {name: _Setting(scheme.bits, scheme.method) for name in names}
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
        for name in matched:
            settings[name] = _apply(rule, settings.get(name) or _Setting(scheme.bits, scheme.method))
    return settings


def _apply(rule: LayerRule, setting: _Setting) -> _Setting:
    bits = Widths(
        setting.bits.weight if rule.weight_bits is None else rule.weight_bits,
        setting.bits.activation if rule.activation_bits is None else rule.activation_bits,
    )
    return _Setting(bits, rule.method or setting.method, rule.scope or setting.scope)


def _plan_sites(
    graph: fx.GraphModule, shapes: dict[str, Shape], scheme: Scheme, settings: dict[str, _Setting]
) -> dict[str, SitePlan]:
    planned = {}
    for name, node in relu_sites(graph).items():
        feeds = sorted(consumers(graph, node))
        fed = {settings[layer] for layer in feeds}
        # An activation takes its layers' setting where they agree (that is how `last` reaches the final ReLU).
        agreed = fed.pop() if len(fed) == 1 else _Setting(scheme.bits, scheme.method)
        setting = settings.get(name, agreed)
        site = Site(name, "activation", shapes[node.name])
        quantizer = None
        if setting.method.placement == "relu":
            quantizer = _make(setting.method.activation, setting.bits.activation, site, scheme, setting.scope)
        bits = setting.bits.activation if quantizer is not None else 32
        planned[name] = SitePlan(name, shapes[node.name], feeds, bits, quantizer)
    return planned


def _plan_layers(
    graph: fx.GraphModule,
    shapes: dict[str, Shape],
    scheme: Scheme,
    settings: dict[str, _Setting],
    sites: dict[str, SitePlan],
) -> dict[str, LayerPlan]:
    relus = {node: name for name, node in relu_sites(graph).items()}
    planned = {}
    for name, calls in layer_calls(graph).items():
        layer, setting = graph.get_submodule(name), settings[name]
        made_by = [source for call in calls for source in sources(graph, call)]
        plan = LayerPlan(
            name,
            type(layer).__name__,
            tuple(layer.weight.shape),  # type: ignore[union-attr, arg-type]
            shapes[calls[0].args[0].name],  # type: ignore[union-attr]
            shapes[calls[0].name],
            groups=getattr(layer, "groups", 1),
            bias=layer.bias is not None,
            fed_by=list(dict.fromkeys(relus[source] for source in made_by if source in relus)),
        )
        site = Site(name, "weight", plan.weight_shape)
        plan.weight = _make(setting.method.weight, setting.bits.weight, site, scheme)
        _plan_input(plan, graph, made_by, setting, scheme, sites)
        planned[name] = plan
    return planned


def _plan_input(
    plan: LayerPlan,
    graph: fx.GraphModule,
    made_by: list[fx.Node],
    setting: _Setting,
    scheme: Scheme,
    sites: dict[str, SitePlan],
) -> None:
    """Give the layer an input quantizer where nothing before it quantizes, and note what stays float and why."""
    signed = not all(nonnegative(graph, source) for source in made_by)
    site = Site(f"{plan.name}.input", "input", plan.input_shape, signed=signed)
    by_relus = setting.method.placement == "relu" and len(plan.fed_by) == len(set(made_by))
    if any(source.op == "placeholder" for source in made_by):
        plan.input = _image_grid(setting, site, scheme)
    elif not by_relus:
        plan.input = _make(setting.method.activation, setting.bits.activation, site, scheme, setting.scope)
    if plan.input is not None:
        plan.activation_bits = plan.input.bits
    elif by_relus:
        plan.activation_bits = max((sites[name].bits for name in plan.fed_by), default=32)
    plan.note = _note(plan, setting, sites)


def _note(plan: LayerPlan, setting: _Setting, sites: dict[str, SitePlan]) -> str:
    if setting.method.weight is None and setting.method.activation is None:
        return "all: quantizer none"
    notes = []
    if plan.weight is None:
        notes.append("weights" if setting.bits.weight == 32 else "weights (the method has none for them)")
    if plan.activation_bits == 32:
        clipped = any(sites[name].quantizer is not None for name in plan.fed_by)
        notes.append("input (clipped only)" if clipped else "input")
    return ", ".join(notes)


def _image_grid(setting: _Setting, site: Site, scheme: Scheme) -> Quantizer | None:
    if setting.bits.activation == 32 or setting.method.activation is None:
        return None
    if scheme.input_range is None:
        raise ConfigError(f"{site.name}: quantizing the image to {setting.bits.activation} bits needs its range.")
    lowest, highest = scheme.input_range
    return ImageGrid(setting.bits.activation, site, scheme.rounding(), lowest=lowest, highest=highest)


def _make(
    factory: Factory | None, bits: int, site: Site, scheme: Scheme, scope: str | None = None
) -> Quantizer | None:
    """Return the quantizer for one site, or None where it would change nothing."""
    if factory is None:
        return None
    scoped = {} if scope is None else {"scope": scope}
    quantizer = factory(bits=bits, site=site, rounding=scheme.rounding(), **scoped)
    return quantizer if bits < 32 or quantizer.acts_at_32 else None


def _float_modules(model: nn.Module) -> list[tuple[str, str]]:
    """List the modules whose weights no quantizer can reach: convolutions of other ranks, embeddings, attention."""
    known = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
    return [
        (name, type(module).__name__)
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters(recurse=False)) and not isinstance(module, known)
    ]


def _share_across_network(plan: Plan) -> None:
    """Make every quantizer of scope `network` use the learned tensors of the first of its class."""
    first: dict[type[Quantizer], Quantizer] = {}
    for quantizer in plan.quantizers():
        if quantizer.scope == "network":
            owner = first.setdefault(type(quantizer), quantizer)
            if owner is not quantizer:
                quantizer.share(owner)
