"""Which quantizer goes where: decided for a whole network before any module is touched."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from qexp.errors import ConfigError
from qexp.graph.agreement import require_agreement
from qexp.graph.scheme import Factory, Scheme, Setting, layer_settings, rule_on_relus, site_setting
from qexp.graph.shapes import Shape, record_shapes
from qexp.graph.tracing import (
    consumers,
    features_last,
    image_channels,
    input_node,
    is_traced,
    keeps_levels,
    layer_calls,
    nonnegative,
    read_image,
    relu_end,
    relu_sites,
    sources,
    trace,
)
from qexp.layers.recurrence import Recurrence
from qexp.quantizers.base import Quantizer, Site
from qexp.quantizers.image import ImageGrid


@dataclass
class LayerPlan:
    """One convolution or linear layer: its quantizers, and why what is float stays float.

    `calls` has the shapes of one sample, (input, output), at each call; evaluation's where that calls it.
    """

    name: str
    kind: str
    weight_shape: Shape
    calls: list[tuple[Shape, Shape]]
    groups: int = 1
    bias: bool = False
    weight: Quantizer | None = None
    input: Quantizer | None = None
    fed_by: list[str] = field(default_factory=list)
    activation_bits: int = 32
    note: str = ""

    @property
    def inputs(self) -> int:
        """How many values it reads for one sample, over all calls."""
        return sum(math.prod(read) for read, _ in self.calls)

    @property
    def outputs(self) -> int:
        """How many values it makes for one sample, over all calls."""
        return sum(math.prod(made) for _, made in self.calls)

    @property
    def weight_bits(self) -> int:
        """Bits of the weights; 32 where they stay float."""
        return 32 if self.weight is None else self.weight.bits

    @property
    def quantized(self) -> bool:
        """Whether its weights or its input are quantized, be it by the ReLUs that feed it."""
        return self.weight is not None or self.input is not None or self.activation_bits < 32


@dataclass
class SitePlan:
    """One ReLU call and what replaces it (None: it stays; `kept`: as a rule for it, and for no layer, says)."""

    name: str
    shape: Shape
    feeds: list[str]
    bits: int
    quantizer: Quantizer | None = None
    kept: bool = False


@dataclass
class Plan:
    """The plan of a whole network.

    `float_modules` lists (name, kind) of modules with weights for which no quantized form exists; `float_norms`,
    of a network whose batch norms were folded, (name, why) of those that stay a float affine of each channel.
    """

    layers: list[LayerPlan]
    sites: list[SitePlan]
    float_modules: list[tuple[str, str]]
    graphs: tuple[fx.GraphModule, ...]
    float_norms: tuple[tuple[str, str], ...] = ()

    def quantizers(self) -> Iterator[Quantizer]:
        """Yield every quantizer of the plan once: the ReLU sites first, then layer by layer."""
        yield from (site.quantizer for site in self.sites if site.quantizer is not None)
        for layer in self.layers:
            yield from (quantizer for quantizer in (layer.input, layer.weight) if quantizer is not None)


def make_plan(model: nn.Module, scheme: Scheme, input_shape: Shape) -> Plan:
    """Decide the quantizers of every layer and ReLU of `model`; the model is not changed.

    Args:
        model: a float network that torch.fx can trace.
        scheme: method, bits and rules.
        input_shape: of one sample, (C, H, W) or (steps,).

    Raises:
        ConfigError: the network cannot be traced, or not rightly, or does not take that shape, a rule matches
            nothing, or the method refuses a site.
    """
    graphs = trace(model)
    settings = layer_settings(graphs, scheme)
    shapes = [record_shapes(graph, input_shape) for graph in graphs]
    if not is_traced(model):  # a folded network was compared when it was traced
        require_agreement(model, graphs[-1], input_shape)
    sites = _merge(
        [_plan_sites(graph, seen, scheme, settings) for graph, seen in zip(graphs, shapes, strict=True)]
    )
    parts = [
        _plan_layers(graph, seen, scheme, settings, sites) for graph, seen in zip(graphs, shapes, strict=True)
    ]
    layers = _merge(parts) | parts[-1]  # what a layer reads in evaluation decides
    plan = Plan(list(layers.values()), list(sites.values()), _float_modules(model, layers), graphs)
    _share_across_network(plan)
    return plan


def _merge(parts: Sequence[dict]) -> dict:
    """Join the plans of the graphs by name: a site that both modes have gets one quantizer."""
    merged: dict = {}
    for part in parts:
        merged = {**part, **merged}
    return merged


def _plan_sites(
    graph: fx.GraphModule, shapes: dict[str, Shape], scheme: Scheme, settings: dict[str, Setting]
) -> dict[str, SitePlan]:
    planned = {}
    for name, node in relu_sites(graph).items():
        feeds = sorted(consumers(graph, node))
        setting = site_setting(name, [settings[layer] for layer in feeds], scheme)
        shape = shapes[node.name]
        if features_last(graph, shapes, node):
            shape = shape[-1:]  # axes before it are positions, as in `_plan_input`
        site = Site(name, "activation", shape, end=relu_end(graph, node))
        quantizer = None
        if setting.method.placement == "relu":
            quantizer = _make(setting.method.activation, setting.bits.activation, site, scheme, setting.scope)
        bits = setting.bits.activation if quantizer is not None else 32
        kept = quantizer is None and rule_on_relus(name, settings, scheme.rules)
        planned[name] = SitePlan(name, shapes[node.name], feeds, bits, quantizer, kept)
    return planned


def _plan_layers(
    graph: fx.GraphModule,
    shapes: dict[str, Shape],
    scheme: Scheme,
    settings: dict[str, Setting],
    sites: dict[str, SitePlan],
) -> dict[str, LayerPlan]:
    relus = {node: name for name, node in relu_sites(graph).items()}
    planned = {}
    for name, calls in layer_calls(graph).items():
        layer, setting = graph.get_submodule(name), settings[name]
        made_by = [source for call in calls for source in sources(graph, call)]
        passes = [(shapes[input_node(call).name], shapes[call.name]) for call in calls]
        if isinstance(layer, Recurrence):  # it reads its own output, and is called with what the inputs contribute
            passes = [(produced, contributed) for contributed, produced in passes]
        plan = LayerPlan(
            name,
            type(layer).__name__,
            tuple(layer.weight.shape),  # type: ignore[arg-type]
            passes,
            groups=getattr(layer, "groups", 1),
            bias=layer.bias is not None,
            fed_by=list(dict.fromkeys(relus[source] for source in made_by if source in relus)),
        )
        site = Site(name, "weight", plan.weight_shape)
        plan.weight = _make(setting.method.weight, setting.bits.weight, site, scheme)
        averaged = any(source not in made_by for call in calls for source in sources(graph, call, keeps_levels))
        image = read_image(graph, calls)
        mixed = image and not all(image_channels(graph, shapes, call) for call in calls)
        _plan_input(plan, graph, made_by, setting, scheme, sites, averaged=averaged, image=image, mixed=mixed)
        planned[name] = plan
    return planned


def _plan_input(
    plan: LayerPlan,
    graph: fx.GraphModule,
    made_by: list[fx.Node],
    setting: Setting,
    scheme: Scheme,
    sites: dict[str, SitePlan],
    *,
    averaged: bool,
    image: bool,
    mixed: bool,
) -> None:
    """Give the layer an input quantizer where nothing before it quantizes, and note what stays float and why."""
    decided = all(sites[name].quantizer is not None or sites[name].kept for name in plan.fed_by)
    by_relus = setting.method.placement == "relu" and len(plan.fed_by) == len(set(made_by)) and decided
    signed = image or (not by_relus and _signed(graph, made_by, sites))
    # A linear layer reads the last axis alone; axes before it (the steps of a sequence) are positions.
    (shape, _), *_ = plan.calls
    shape = shape if plan.kind == "Conv2d" else shape[-1:]
    site = Site(f"{plan.name}.input", "input", shape, signed=signed)
    if image:
        plan.input = _image_grid(setting, site, scheme, mixed=mixed)
    elif not by_relus:
        plan.input = _make(setting.method.activation, setting.bits.activation, site, scheme, setting.scope)
    if plan.input is not None:
        plan.activation_bits = plan.input.bits
    elif by_relus:
        plan.activation_bits = max((sites[name].bits for name in plan.fed_by), default=32)
    plan.note = _note(plan, setting, sites, averaged=averaged and by_relus and plan.input is None)


def _signed(graph: fx.GraphModule, made_by: list[fx.Node], sites: dict[str, SitePlan]) -> bool:
    """Say whether values of `made_by` can be negative, also by what stands in a ReLU's place."""
    quantizers = {node: sites[name].quantizer for name, node in relu_sites(graph).items()}

    def below_zero(relu: fx.Node) -> bool:
        quantizer = quantizers[relu]
        return quantizer is not None and quantizer.below_zero()

    return not all(nonnegative(graph, source, below_zero) for source in made_by)


def _note(plan: LayerPlan, setting: Setting, sites: dict[str, SitePlan], *, averaged: bool) -> str:
    if setting.method.weight is None and setting.method.activation is None:
        return "all: quantizer none"
    notes = []
    if plan.weight is None:
        notes.append("weights" if setting.bits.weight == 32 else "weights (the method has none for them)")
    if plan.activation_bits == 32:
        clipped = any(sites[name].quantizer is not None for name in plan.fed_by)
        notes.append("input (clipped only)" if clipped else "input")
    elif averaged:
        notes.append("input (averaged: between the levels)")
    return ", ".join(notes)


def _image_grid(setting: Setting, site: Site, scheme: Scheme, *, mixed: bool) -> Quantizer | None:
    """Return the grid of the image; where its channels are `mixed`, one over the range of all of them."""
    if setting.bits.activation == 32 or setting.method.activation is None:
        return None
    if scheme.input_range is None:
        raise ConfigError(f"{site.name}: quantizing the image to {setting.bits.activation} bits needs its range.")
    lowest, highest = scheme.input_range
    if mixed:
        lowest, highest = (min(lowest),), (max(highest),)
    return ImageGrid(setting.bits.activation, site, lowest=lowest, highest=highest)


def _make(
    factory: Factory | None, bits: int, site: Site, scheme: Scheme, scope: str | None = None
) -> Quantizer | None:
    """Return the quantizer for one site, or None where it would change nothing."""
    if factory is None:
        return None
    scoped = {} if scope is None else {"scope": scope}
    quantizer = factory(bits=bits, site=site, rounding=scheme.rounding(site), **scoped)
    acts = quantizer.acts_at_32 and not (quantizer.only_beside_fewer and scheme.bits.activation == 32)
    return quantizer if bits < 32 or acts else None


def _float_modules(model: nn.Module, layers: Container[str]) -> list[tuple[str, str]]:
    """List the modules whose weights no quantizer can reach.

    Those are convolutions of other ranks, embeddings, attention with its inner layers, and what is never called.
    """
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
    return [
        (name or "model", type(module).__name__)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
        and name not in layers
        and not isinstance(module, norms)
    ]


def _share_across_network(plan: Plan) -> None:
    """Make every quantizer of scope `network` use the learned tensors of the first that it can share them with."""
    owners: list[Quantizer] = []
    for quantizer in plan.quantizers():
        if quantizer.scope == "network":
            owner = next((other for other in owners if quantizer.can_share(other)), None)
            if owner is None:
                owners.append(quantizer)
            else:
                quantizer.share(owner)
