"""Cross-layer equalization: the channels between two layers are rescaled so that both layers use their ranges.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721; the
formulas from memory, as standard: s_i = sqrt(r1_i r2_i) / r2_i, W1 <- W1 / s, b1 <- b1 / s, W2 <- W2 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from qexp.calibration.folding import Folding, shared_names
from qexp.graph.tracing import input_node, is_layer, is_relu, layer_calls, relu_end

PASSES = 100
"""At most, over all pairs; a chain of layers settles step by step."""

SETTLED = 1e-4
"""Largest change of a scale, relative, at which it is done."""

_SCALING = (nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Identity)
"""What a positive factor of a channel passes through unchanged (ReLU6 once it is a ReLU)."""


@dataclass(frozen=True)
class Equalized:
    """What was done.

    Attributes:
        folding: the folded network, its weights rescaled in place, and its statistics, which follow.
        pairs: names of the layers whose common channels were rescaled.
        unclipped: names of the ReLU6 that became ReLUs: a rescaled channel no longer ends at 6.
        absorbed: names of the layers whose biases were lowered, see `absorption`.
    """

    folding: Folding
    pairs: tuple[tuple[str, str], ...]
    unclipped: tuple[str, ...]
    absorbed: tuple[str, ...] = ()


@torch.no_grad()
def equalize(folding: Folding) -> Equalized:
    """Rescale every pair of neighbouring layers of a folded network; what it computes stays the same.

    A pair is a layer whose output only feeds one other layer, with nothing between them but ReLU, pooling and
    dropout. Grouped and depthwise layers count.
    """
    graph = folding.model
    pairs = list(neighbours(graph))
    clipped = [node for _, _, between in pairs for node in between if _is_relu6(graph, node)]
    unclipped = tuple(dict.fromkeys(_unclip(graph, node) for node in clipped))
    graph.recompile()
    scales = {
        first: torch.ones(layer_of(graph, first).weight.shape[0], dtype=torch.float64) for first, _, _ in pairs
    }
    weights = {name: layer_of(graph, name).weight.double() for pair in pairs for name in pair[:2]}
    for _ in range(PASSES):
        change = max((_rescale(graph, weights, scales, first, second) for first, second, _ in pairs), default=0.0)
        if change < SETTLED:
            break
    for name, weight in weights.items():
        layer_of(graph, name).weight.copy_(weight)
    statistics = dict(folding.statistics)
    for name, scale in scales.items():
        bias = layer_of(graph, name).bias
        if bias is not None:
            bias.copy_(bias.double() / scale)
        if name in statistics:
            mean, deviation = statistics[name]
            statistics[name] = ((mean / scale).to(mean.dtype), (deviation / scale).to(mean.dtype))
    named = tuple((first, second) for first, second, _ in pairs)
    return Equalized(replace(folding, statistics=statistics), named, unclipped)


def _rescale(
    graph: fx.GraphModule, weights: dict[str, Tensor], scales: dict[str, Tensor], first: str, second: str
) -> float:
    """Equalize one pair; return the largest relative change of a scale."""
    produced = weights[first].abs().flatten(1).amax(1)
    groups = getattr(layer_of(graph, second), "groups", 1)
    read = _by_input_channel(weights[second], groups)
    consumed = read.abs().flatten(1).amax(1)
    usable = (produced > 0) & (consumed > 0)
    scale = torch.where(usable, (produced / torch.where(usable, consumed, 1.0)).sqrt(), 1.0)
    weights[first] = weights[first] / scale.reshape(-1, *([1] * (weights[first].dim() - 1)))
    weights[second] = _from_input_channel(
        read * scale.reshape(-1, *([1] * (read.dim() - 1))), weights[second], groups
    )
    scales[first] = scales[first] * scale
    return float((scale - 1).abs().max())


def _by_input_channel(weight: Tensor, groups: int) -> Tensor:
    """Return weights (out, in / groups, ...) as (in, out / groups, ...): all that one input channel meets."""
    out, inside, *kernel = weight.shape
    parts = weight.reshape(groups, out // groups, inside, *kernel).transpose(1, 2)
    return parts.reshape(groups * inside, out // groups, *kernel)


def _from_input_channel(read: Tensor, like: Tensor, groups: int) -> Tensor:
    out, inside, *kernel = like.shape
    return read.reshape(groups, inside, out // groups, *kernel).transpose(1, 2).reshape(like.shape)


def neighbours(graph: fx.GraphModule) -> Iterator[tuple[str, str, list[fx.Node]]]:
    """Yield (first, second, the nodes between them) of each pair, in forward order.

    Layers whose parameters something else reads too belong to no pair: they cannot change for one reader alone.
    """
    calls = {name: nodes for name, nodes in layer_calls(graph).items() if not shared_names(graph, name)}
    for name, (call, *others) in calls.items():
        between: list[fx.Node] = []
        node = call
        while not others and len(node.users) == 1:
            (user,) = node.users
            if is_layer(graph, user):
                alone = len(calls.get(str(user.target), ())) == 1
                if alone and input_node(user) is node and _fits(graph, name, user):
                    yield name, str(user.target), between
                break
            if not _scales_along(graph, user):
                break
            between.append(user)
            node = user


def _fits(graph: fx.GraphModule, first: str, second: fx.Node) -> bool:
    """Say whether each output channel of `first` is one input channel of `second` (flattening mixes them)."""
    layer = layer_of(graph, str(second.target))
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    return type(layer) is type(layer_of(graph, first)) and channels == layer_of(graph, first).weight.shape[0]


def _scales_along(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), _SCALING)
    return is_relu(graph, node) and relu_end(graph, node) == math.inf  # a functional ReLU6 cannot become a ReLU


def _is_relu6(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.ReLU6)


def _unclip(graph: fx.GraphModule, node: fx.Node) -> str:
    """Make the ReLU6 that `node` calls a ReLU, of its own where others call it too; return the ReLU6's name."""
    name = own = str(node.target)
    calls = [other for other in graph.graph.nodes if other.op == "call_module" and other.target == name]
    while len(calls) > 1 and own in dict(graph.named_modules()):
        own += "_unclipped"
    graph.add_submodule(own, nn.ReLU())
    node.target = own
    return name


def layer_of(graph: fx.GraphModule, name: str) -> nn.Conv2d | nn.Linear:
    """Return the layer of that name."""
    layer = graph.get_submodule(name)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    return layer
