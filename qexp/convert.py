"""Put a plan's quantizers into a network: layers become their quantized forms, calls of ReLU their quantizers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from qexp.errors import ConfigError
from qexp.graph.plan import Plan
from qexp.graph.tracing import has_hooks, input_node, layer_calls, relu_sites
from qexp.layers.quantized import QUANTIZED_LAYERS, QuantConv2d, QuantLinear
from qexp.quantizers.base import Quantizer


class TwoModes(nn.Module):
    """A network whose training and evaluation graphs differ; both run the same modules.

    Everything is registered here under its own name, so a state dict looks as if there were one graph.
    """

    def __init__(self, training: fx.GraphModule, evaluation: fx.GraphModule) -> None:
        super().__init__()
        for graph in (training, evaluation):
            _take_over(self, graph)
        # The generated code alone: it finds modules and parameters by name, here.
        self._forwards = {True: type(training).forward, False: type(evaluation).forward}
        self._evaluation = evaluation.graph
        self.train(training.training)

    def forward(self, *inputs: Any) -> Any:
        """Run the graph of the current mode."""
        return self._forwards[self.training](self, *inputs)

    def evaluation(self) -> fx.GraphModule:
        """Return the evaluation graph as a network of its own, on the same modules and parameters."""
        return fx.GraphModule(self, copy.deepcopy(self._evaluation)).train(self.training)


def _take_over(target: nn.Module, source: nn.Module, path: str = "") -> None:
    """Register in `target`, at `path`, what `source` holds and `target` lacks; containers are joined.

    Raises:
        ConfigError: one name stands for two modules, of which one mode would run the other's.
    """
    # Not by named_parameters() and its like: they show a tensor or module of two names only once.
    for name, parameter in source._parameters.items():
        if name not in target._parameters:
            target.register_parameter(name, parameter)
    for name, buffer in source._buffers.items():
        if name not in target._buffers:
            target.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
    for name, child in source._modules.items():
        if name not in target._modules:
            target.add_module(name, child)
        elif child is not None and target._modules[name] is not child:
            joined = f"{path}.{name}" if path else name
            held = target.get_submodule(name)
            if type(child) is not nn.Module:  # fx's containers are
                raise ConfigError(
                    f"{joined}: training would run {type(held).__name__} there, evaluation"
                    f" {type(child).__name__}: its calls of the two modes were not recognised as the same; give"
                    " each call a module of its own."
                )
            _take_over(held, child, joined)


def quantize_model(plan: Plan, gradient: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Return the network with the plan's quantizers in place.

    Every planned layer becomes its quantized form and every planned ReLU call its own quantizer. The float
    network's parameter tensors are used, not copied, under the names they had. `gradient` makes what stands behind
    each quantized layer to quantize its gradient, also of float weights that a quantized ReLU feeds.

    Raises:
        ConfigError: a layer or ReLU that is to be replaced has hooks, or one name would stand for two modules.
    """
    swapped = _quantized_layers(plan, fed=gradient is not None)
    if gradient is not None:
        for layer in swapped.values():
            layer.gradient_quantizer = gradient().train(layer.training)
    for graph in plan.graphs:
        _rewrite(graph, plan, swapped, trains=graph is not plan.graphs[-1])
    return plan.graphs[0] if len(plan.graphs) == 1 else TwoModes(*plan.graphs)


def _quantized_layers(plan: Plan, *, fed: bool) -> dict[str, nn.Module]:
    """Return the quantized form of each planned layer, one for both graphs.

    Args:
        fed: also of a layer without quantizers of its own that reads quantized values.
    """
    swapped: dict[str, nn.Module] = {}
    for graph in plan.graphs:
        for layer in plan.layers:
            own = layer.weight is not None or layer.input is not None
            if layer.name in swapped or not (own or (fed and layer.quantized)):
                continue
            if layer.name in layer_calls(graph):
                module = graph.get_submodule(layer.name)
                _refuse_hooks(module, layer.name)
                swapped[layer.name] = QUANTIZED_LAYERS[type(module)](module, layer.weight, layer.input)  # type: ignore[arg-type]
    return swapped


def _refuse_hooks(module: nn.Module, name: str) -> None:
    """Raise ConfigError for a module with hooks: what takes its place would not run them."""
    if has_hooks(module):
        raise ConfigError(
            f"{name}: it has hooks that may change what it computes, and its quantized form would not run them;"
            f" remove them, or leave it in float (layers.'{name}'.quantizer=none)."
        )


def _rewrite(graph: fx.GraphModule, plan: Plan, swapped: dict[str, nn.Module], *, trains: bool) -> None:
    quantizers = {site.name: site.quantizer for site in plan.sites}
    layers = {name: calls for name, calls in layer_calls(graph).items() if name in swapped}
    relus = relu_sites(graph)
    modules = {
        name: graph.get_submodule(str(node.target)) for name, node in relus.items() if node.op == "call_module"
    }
    for name, node in relus.items():
        if (quantizer := quantizers[name]) is not None:
            if name in modules:
                _refuse_hooks(modules[name], name)
            _replace_call(graph, node, name, quantizer)
        elif name in modules and quantizers.get(str(node.target)) is not None:
            # A shared ReLU, whose name is the quantizer of its first call by now.
            _set_submodule(graph, name, modules[name])
            node.target = name
    for name, calls in layers.items():
        _set_submodule(graph, name, swapped[name])
        _take_dropout(graph, calls, swapped[name], trains=trains)
    graph.graph.lint()
    graph.recompile()


def _take_dropout(graph: fx.GraphModule, calls: list[fx.Node], layer: nn.Module, *, trains: bool) -> None:
    """Let a layer with an input quantizer drop values out itself, behind it, where one dropout serves it alone."""
    if not isinstance(layer, QuantConv2d | QuantLinear) or layer.input_quantizer is None:
        return
    readers = [_behind_flattening(graph, call) for call in calls]
    before = [input_node(reader) for reader in readers]
    dropout, *others = (_dropout(graph, node, trains=trains) for node in before)
    if any(other is not dropout for other in others):
        return
    wanted = (nn.Dropout, nn.Dropout2d) if readers == calls else (nn.Dropout,)  # flattened, channels are no more
    if isinstance(dropout, wanted) and all(len(node.users) == 1 for node in before):
        layer.input_dropout = dropout
        for reader, node in zip(readers, before, strict=True):
            reader.replace_input_with(node, input_node(node))
            graph.graph.erase_node(node)


def _dropout(graph: fx.GraphModule, node: fx.Node, *, trains: bool) -> nn.Module | None:
    """Return the module that a node calls, or a new one for the F.dropout of a training graph.

    (In the only graph of a network it drops values out in evaluation too.)
    """
    if node.op == "call_module":
        return graph.get_submodule(str(node.target))
    if not trains or node.target is not F.dropout:
        return None
    given = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    return nn.Dropout(given.arguments["p"]).train(graph.training) if given.arguments["training"] is True else None


def _behind_flattening(graph: fx.GraphModule, call: fx.Node) -> fx.Node:
    """Return the first of the reshapings that alone lead to `call`; `call` itself without any."""
    before = input_node(call)
    while len(before.users) == 1 and _flattens(graph, before):
        call, before = before, input_node(before)
    return call


def _flattens(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), nn.Flatten)
    return node.target in (torch.flatten, torch.reshape, "flatten", "reshape", "view")


def _replace_call(graph: fx.GraphModule, node: fx.Node, name: str, quantizer: Quantizer) -> None:
    """Let `node`'s ReLU call run `quantizer` instead."""
    _set_submodule(graph, name, quantizer.train(graph.training))
    with graph.graph.inserting_after(node):
        call = graph.graph.call_module(name, (input_node(node),))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)


def _set_submodule(graph: fx.GraphModule, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted `name`, in the network's mode, making the containers on the way."""
    parent: nn.Module = graph
    *path, last = name.split(".")
    for part in path:
        if not hasattr(parent, part):
            parent.add_module(part, nn.Module().train(parent.training))
        parent = getattr(parent, part)
    parent.add_module(last, module)
