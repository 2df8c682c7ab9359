"""Batch norms folded into the layers in front of them, found in the network's graph, not by its name.

Jacob et al. 2018 (arXiv 1712.05877), section 3.2; Fang et al. 2020 (PWLQ, arXiv 2002.00104) fold before they
quantize: w' = gamma w / sqrt(var + eps), b' = beta + gamma (b - mean) / sqrt(var + eps).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.errors import ConfigError
from qexp.graph.agreement import require_agreement
from qexp.graph.shapes import Shape, record_shapes
from qexp.graph.tracing import has_hooks, input_node, inside, is_layer, trace

FOLDS_INTO: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: nn.Linear,
    nn.BatchNorm2d: nn.Conv2d,
    nn.SyncBatchNorm: nn.Conv2d,
}
"""Which batch norm normalizes the output channels of which layer."""

BATCH_NORM_FUNCTIONS = {F.batch_norm, torch.batch_norm}

SHOWN = 3
"""How many batch norms an error names."""


@dataclass(frozen=True)
class Folding:
    """A network with its batch norms folded, and what became of each.

    Attributes:
        model: the folded network in evaluation mode; it shares nothing with the one that was given.
        folded: (batch norm's name, name of the layer that does its work now), in forward order.
        kept: (batch norm's name, why it stays a float affine of each channel), in forward order.
        statistics: by the name of a layer that a batch norm was folded into, the mean (beta) and the standard
            deviation (|gamma| sqrt(var / (var + eps)): 0 of a channel that never varies) of each output channel
            (C), as training left them, for methods without data.
    """

    model: fx.GraphModule
    folded: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]
    statistics: dict[str, tuple[Tensor, Tensor]]


def fold_batch_norm(
    model: nn.Module, mode: Literal["auto", "strict", "none"] = "auto", input_shape: Shape | None = None
) -> Folding:
    """Fold each batch norm of `model` that is fed only by one layer whose output nothing else uses.

    Only what the network does in evaluation counts: heads for training are not in the result. Layers keep their
    names, those without a bias get one, and a folded batch norm is gone with its module. A BatchNorm1d behind a
    Linear is taken to read rows of features (N, C), as every classifier's does.

    Args:
        model: a float network that torch.fx can trace; it is left as it is.
        mode: `auto` keeps what cannot be folded, `strict` refuses it, `none` keeps every batch norm.
        input_shape: of one sample; without it nothing says whether the graph is the network's, nor whether a
            linear layer reads sequences, of which a batch norm normalizes the steps.

    Raises:
        ConfigError: the network cannot be traced, or not rightly, or under `strict` a batch norm cannot be folded.
    """
    graph = trace(copy.deepcopy(model))[-1]
    shapes: dict[str, Shape] = {}
    if input_shape is not None:
        shapes = record_shapes(graph, input_shape)
        require_agreement(model, graph, input_shape)
    folded: list[tuple[str, str]] = []
    kept: dict[str, str] = {}
    statistics: dict[str, tuple[Tensor, Tensor]] = {}
    for node in _batch_norm_calls(graph):
        reason = "calibration.fold=none" if mode == "none" else next(_obstacles(graph, node, shapes), "")
        if reason:
            kept.setdefault(_label(node), reason)
        else:
            layer = str(input_node(node).target)
            folded.append((str(node.target), layer))
            statistics[layer] = _fold(graph, node)
    if mode == "strict" and kept:
        raise ConfigError(_refusal(kept, len(kept) + len(folded)))
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    return Folding(graph.eval(), tuple(folded), tuple(kept.items()), statistics)


def folded_parameters(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the weights and the bias of a layer that does `norm`'s work too, both in float64.

    Args:
        weight: the layer's weights (C, ...).
        bias: its bias (C), or None for zeros.
        norm: a batch norm of C channels with running statistics, read as in evaluation.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    gamma, beta = affine(norm)
    scale = gamma.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    offset = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
    per_channel = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return per_channel * weight.double(), beta.double() + scale * offset


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return gamma and beta of `norm` (C each): ones and zeros where it has none of its own."""
    assert norm.running_mean is not None
    gamma = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias.detach()
    return gamma, beta


def _batch_norm_calls(graph: fx.GraphModule) -> list[fx.Node]:
    return [
        node
        for node in graph.graph.nodes
        if (node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), _BatchNorm))
        or (node.op == "call_function" and node.target in BATCH_NORM_FUNCTIONS)
    ]


def _fold(graph: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Fold the batch norm that `node` calls, erase the call, and return its `statistics`."""
    source = input_node(node)
    layer, norm = graph.get_submodule(str(source.target)), graph.get_submodule(str(node.target))
    assert isinstance(layer, (nn.Conv2d, nn.Linear)) and isinstance(norm, _BatchNorm)
    assert norm.running_var is not None
    like = layer.weight
    with torch.no_grad():
        weight, bias = folded_parameters(layer.weight, layer.bias, norm)
        gamma, beta = affine(norm)
        deviation = gamma.abs() * torch.sqrt(norm.running_var / (norm.running_var + norm.eps))
    layer.weight = nn.Parameter(weight.to(like.dtype), like.requires_grad)
    layer.bias = nn.Parameter(bias.to(like.dtype), like.requires_grad)
    node.replace_all_uses_with(source)
    graph.graph.erase_node(node)
    return beta.clone(), deviation


def _obstacles(graph: fx.GraphModule, node: fx.Node, shapes: dict[str, Shape]) -> Iterator[str]:
    """Yield what forbids to fold the batch norm that `node` calls: its own obstacles, then its layer's."""
    if node.op == "call_function":
        yield "it is a call of a function, and no module"
        return
    norm = graph.get_submodule(str(node.target))
    yield from _call_obstacles(graph, node, "it")
    if norm.running_mean is None or norm.running_var is None:
        yield "it has no running statistics: it normalizes by those of each batch, in evaluation too"
    source = input_node(node)
    if not is_layer(graph, source):
        yield f"it is fed by {_described(graph, source)}, not by a Conv2d or Linear"
        return
    layer = graph.get_submodule(str(source.target))
    if FOLDS_INTO.get(type(norm)) is not type(layer) or norm.num_features != layer.weight.shape[0]:  # type: ignore[index]
        yield f"it does not normalize the output channels of {_described(graph, source)}"
    elif isinstance(norm, nn.BatchNorm1d) and len(shapes.get(source.name, ())) > 1:
        yield f"it normalizes the steps of a sequence, not the output channels of {_described(graph, source)}"
    yield from _call_obstacles(graph, source, f"'{source.target}'")
    if others := [_described(graph, user) for user in source.users if user is not node]:
        yield f"the output of '{source.target}' is also used by {', '.join(others)}"
    if others := shared_names(graph, str(source.target)):
        yield f"the parameters of '{source.target}' are also used as {', '.join(others)}"


def _call_obstacles(graph: fx.GraphModule, node: fx.Node, who: str) -> Iterator[str]:
    """Yield what makes the call of a module more, or less, than what its parameters say."""
    calls = sum(other.op == "call_module" and other.target == node.target for other in graph.graph.nodes)
    if calls > 1:
        yield f"{who} is called at {calls} places"
    if has_hooks(graph.get_submodule(str(node.target))):
        yield f"{who} has hooks that may change what it computes"


def shared_names(graph: fx.GraphModule, name: str) -> list[str]:
    """Return the names by which anything else reads the parameters of the layer `name`."""
    own = {id(parameter) for parameter in graph.get_submodule(name).parameters()}
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    named = [n for n, parameter in graph.named_parameters(remove_duplicate=False) if id(parameter) in own]
    return [other for other in named if other in read or other.rpartition(".")[0] != name]


def _label(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else inside(node, node.name)


def _described(graph: fx.GraphModule, node: fx.Node) -> str:
    if node.op in ("placeholder", "output"):
        return "the network's input" if node.op == "placeholder" else "the network's output"
    kind = f"{type(graph.get_submodule(str(node.target))).__name__} " if node.op == "call_module" else ""
    return f"{kind}'{_label(node)}'"


def _refusal(kept: dict[str, str], total: int) -> str:
    named = ", ".join(f"{name} ({reason})" for name, reason in list(kept.items())[:SHOWN])
    more = f" and {len(kept) - SHOWN} more" if len(kept) > SHOWN else ""
    return (
        f"calibration.fold=strict: {len(kept)} of {total} batch norms cannot be folded: {named}{more}. "
        "calibration.fold=auto leaves them in float."
    )
