"""What a network does between its layers, read from its torch.fx graph: call sites, sources, consumers, signs."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from qexp.errors import ConfigError
from qexp.layers.normalization import ShiftBatchNorm
from qexp.layers.quantized import QUANTIZED_LAYERS, QuantConv2d, QuantLinear
from qexp.layers.recurrence import Recurrence
from qexp.quantizers.base import Quantizer

RELU_MODULES = (nn.ReLU, nn.ReLU6)
RELU_FUNCTIONS = {F.relu, F.relu6, F.relu_, torch.relu, torch.relu_}
RELU_METHODS = {"relu", "relu_"}

# Operations that only move, select or average values: what goes in decides the sign of what comes out.
_PASSING_MODULES = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)
_PASSING_FUNCTIONS = {
    torch.flatten,
    torch.mean,
    torch.cat,
    torch.reshape,
    torch.transpose,
    torch.chunk,
    torch.split,
    operator.getitem,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.dropout,
    F.pad,
}
_PASSING_METHODS = {"flatten", "view", "reshape", "mean", "contiguous", "permute", "transpose", "chunk", "split"}
_ROUTING_FUNCTIONS = {torch.mean, torch.cat, torch.transpose, torch.chunk, torch.split, operator.getitem}
_ROUTING_METHODS = {"mean", "permute", "transpose", "chunk", "split"}
_TURNING_FUNCTIONS = {torch.transpose, torch.permute}
_TURNING_METHODS = {"permute", "transpose"}
_RESHAPING_FUNCTIONS = {torch.reshape}
_RESHAPING_METHODS = {"view", "reshape"}
_AVERAGING_MODULES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_AVERAGING_FUNCTIONS = {torch.mean, F.avg_pool2d, F.adaptive_avg_pool2d}
_AVERAGING_METHODS = {"mean"}
_NONNEGATIVE_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax)
_NONNEGATIVE_FUNCTIONS = {torch.sigmoid, F.sigmoid, F.hardsigmoid, F.softmax}
_SUMS = {operator.add, operator.iadd, torch.add, "add"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul"}  # a squeeze-and-excitation block's factor


_SITE = "relu_site"
"""Key of a ReLU call's name in the meta data of its node."""


class _Tracer(fx.Tracer):
    stopped_in = ""  # the innermost module whose forward pass failed
    stateful = False  # whether the network is called with a state that an earlier call returned

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, (Quantizer, QuantConv2d, QuantLinear, Recurrence, ShiftBatchNorm))
        return own or super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *others: Any, **named: Any) -> Any:
        """As fx's; but an argument beside the network's input, which nobody gives, is what it is by default."""
        if kind == "placeholder" and args and len(self.graph.nodes) and not self.stateful:
            return args[0]
        return super().create_proxy(kind, target, args, kwargs, *others, **named)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.stopped_in = self.stopped_in or self.path_of_module(m)
            raise


def trace(model: nn.Module) -> tuple[fx.GraphModule, ...]:
    """Return the graphs of `model`: one, or two (training, evaluation) where the modes differ.

    The graphs share the model's modules. The mode of each module is left as it was.

    Raises:
        ConfigError: the forward pass depends on data; the text names the module where tracing stopped.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        training, evaluation = (_trace_once(model.train(mode)) for mode in (True, False))
    finally:
        for module, mode in modes.items():
            module.training = mode
    graphs = (evaluation,) if training.code == evaluation.code else (training, evaluation)
    for module in (module for graph in graphs for module in graph.modules()):
        module.training = modes.get(module, model.training)
    _name_relus(graphs)
    return graphs


def is_traced(model: nn.Module) -> bool:
    """Say whether `model` is a graph that `trace` made."""
    return isinstance(model, fx.GraphModule) and model.graph._tracer_cls is _Tracer


def _trace_once(model: nn.Module) -> fx.GraphModule:
    if is_traced(model):
        # Traced a second time, functional calls would forget which module made them, and sites be renamed.
        return fx.GraphModule(model, copy.deepcopy(model.graph))  # type: ignore[arg-type]
    tracer = _Tracer()
    tracer.stateful = getattr(model, "task", "") == "language_modelling"
    try:
        graph = tracer.trace(model)
    except Exception as error:  # fx lets through whatever the model's own code raises on a symbolic value
        where = tracer.stopped_in or type(model).__name__
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{type(model).__name__} cannot be traced: '{where}' does not run on symbolic values ({reason}). "
            "Its forward pass must not branch on data; qexp train quantizer=none runs it as it is."
        ) from error
    _follow_writes(model, graph)
    for node in graph.nodes:
        if node.op == "call_module" and _has_quantized_form(module := model.get_submodule(str(node.target))):
            # By place, whatever the model's code does: hooks see only what is given so.
            given = inspect.signature(module.forward).bind(*node.args, **node.kwargs)
            node.args, node.kwargs = given.args, given.kwargs
    return fx.GraphModule(model, graph)


def _follow_writes(model: nn.Module, graph: fx.Graph) -> None:
    """Let what reads a tensor after something wrote into it read the writer's result, which is what it sees.

    The graph knows values, not memory: a quantizer in an in-place ReLU's place would leave later readers the old
    value, and what they read would pass for what was there before.
    """
    places = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if _writes(model, node) and node.all_input_nodes:
            before = node.all_input_nodes[0]
            for user in list(before.users):
                if places[user] > places[node]:
                    user.replace_input_with(before, node)
            _refuse_other_views(model, node, before, places)


_VIEW_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)
_VIEW_FUNCTIONS = {
    *(operator.getitem, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.chunk, torch.split),
    *(torch.squeeze, torch.unsqueeze, torch.narrow, torch.select, torch.unbind, F.dropout),
}
_VIEW_METHODS = {
    *("view", "view_as", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "chunk", "split"),
    *("squeeze", "unsqueeze", "narrow", "select", "unbind", "expand", "expand_as", "contiguous", "detach"),
}


def _refuse_other_views(model: nn.Module, write: fx.Node, before: fx.Node, places: dict[fx.Node, int]) -> None:
    """Raise ConfigError where what `write` wrote is read, later on, under another name than its own."""

    def is_view(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(model.get_submodule(str(node.target)), _VIEW_MODULES)
        if node.target is operator.getitem:
            return not isinstance(node.args[1], int)  # a number picks one of several tensors
        if node.op == "call_function":
            return node.target in _VIEW_FUNCTIONS
        return node.op == "call_method" and node.target in _VIEW_METHODS

    base = before
    while is_view(base) and base.all_input_nodes:
        base = base.all_input_nodes[0]
    views, queue = {base}, [base]
    while queue:
        seen = queue.pop()
        for user in seen.users:
            if places[user] < places[write] and is_view(user) and user.all_input_nodes[0] is seen:
                views.add(user)
                queue.append(user)
    if not is_relu(model, write) and not nonnegative(model, base):
        return  # it stays where it is, and nobody counts on what was there before
    for view in views - {before}:
        if any(places[user] > places[write] for user in view.users):
            where = write.target if write.op == "call_module" else inside(write, write.name)
            raise ConfigError(
                f"{where}: it writes into a tensor that is read elsewhere as '{view.name}'; take a form that is"
                " not in place."
            )


def _writes(model: nn.Module, node: fx.Node) -> bool:
    """Say whether `node` writes its result into its first input."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return getattr(module, "inplace", False) is True
    if node.op == "call_method":
        return _in_place(str(node.target))
    if node.op != "call_function" or getattr(node.target, "__module__", "") == "_operator":  # and_ and or_ do not
        return False
    return node.kwargs.get("inplace") is True or _in_place(getattr(node.target, "__name__", ""))


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def is_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether `node` calls a layer that has a quantized form."""
    return node.op == "call_module" and _has_quantized_form(graph.get_submodule(str(node.target)))


def _has_quantized_form(module: nn.Module) -> bool:
    # A weight that hooks compute before each call (torch.nn.utils.spectral_norm) is none that can be replaced.
    return type(module) in QUANTIZED_LAYERS and isinstance(module.weight, nn.Parameter)


def has_hooks(module: nn.Module) -> bool:
    """Say whether something else runs before or after `module`, and may change what it reads or returns."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def layer_calls(graph: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Return the calls of each quantizable layer by its name, in forward order."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if is_layer(graph, node):
            calls.setdefault(str(node.target), []).append(node)
    return calls


def is_relu(graph: nn.Module, node: fx.Node) -> bool:
    """Say whether `node` is a ReLU or ReLU6, be it a module, a function or a tensor method."""
    return _calls(graph, node, RELU_MODULES, RELU_FUNCTIONS, RELU_METHODS)


def _calls(
    graph: nn.Module,
    node: fx.Node,
    modules: tuple[type[nn.Module], ...],
    functions: Collection[Any],
    methods: Collection[str] = (),
) -> bool:
    """Say whether `node` calls one of these."""
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), modules)
    if node.op == "call_function":
        return node.target in functions
    return node.op == "call_method" and node.target in methods


def relu_end(graph: fx.GraphModule, node: fx.Node) -> float:
    """Return where the values behind a ReLU end: infinity, or 6 behind a ReLU6."""
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return 6.0 if isinstance(module, nn.ReLU6) or node.target is F.relu6 else math.inf


def relu_sites(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """Return every ReLU call of a graph made by `trace` by a name of its own, in forward order.

    A module keeps its name for its first call and gets `_1`, `_2` ... for the later ones; a functional call is
    named `relu` inside the module that makes it. A call that training and evaluation share has one name.
    """
    return {node.meta[_SITE]: node for node in _relus(graph)}


def _name_relus(graphs: Sequence[fx.GraphModule]) -> None:
    taken = {name for graph in graphs for name, _ in graph.named_modules()}
    given: set[str] = set()
    same: dict[fx.Node, fx.Node] = {}
    for graph in reversed(graphs):  # evaluation first: its names have no gaps
        if graph is not graphs[-1]:
            same = _counterparts(graph, graphs[-1])
        for node in _relus(graph):
            node.meta[_SITE] = same[node].meta[_SITE] if node in same else _free_name(node, taken, given)
            given.add(node.meta[_SITE])


def _free_name(node: fx.Node, taken: set[str], given: set[str]) -> str:
    own = _place(node)
    if own not in given and (node.op == "call_module" or own not in taken):
        return own
    numbered = (f"{own}_{number}" for number in itertools.count(1))
    return next(name for name in numbered if name not in taken and name not in given)


def _relus(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if is_relu(graph, node)]


def _place(node: fx.Node) -> str:
    """Return the module that a ReLU call runs, or `relu` inside the one that makes it."""
    return str(node.target) if node.op == "call_module" else inside(node, "relu")


def _counterparts(training: fx.GraphModule, evaluation: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Return which ReLU call of `evaluation` each of `training` is, where it is one.

    What computes the same is found first; then what stands between the same layers and ReLUs, as an operation that
    only training runs (stochastic depth) changes what all behind it compute; then what is the only call of its
    place in either mode.
    """
    found: dict[fx.Node, fx.Node] = {}
    for described in (_signatures, _surroundings, _only_calls):
        here, there = described(training), described(evaluation)
        left: dict[int, list[fx.Node]] = {}
        for node in _relus(evaluation):
            if node in there and node not in found.values():
                left.setdefault(there[node], []).append(node)
        for node in _relus(training):
            if node in here and node not in found and (same := left.get(here[node])):
                found[node] = same.pop(0)
    return found


def _signatures(graph: fx.GraphModule) -> dict[fx.Node, int]:
    """Return what each node computes, as a hash of its operation and its inputs'; constants do not count.

    Training and evaluation differ in constants (`training=True`) and in extra branches, so this finds again in
    one graph a call of the other.
    """
    found: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        found[node] = hash((node.op, node.target, *(found[before] for before in node.all_input_nodes)))
    return found


def _surroundings(graph: fx.GraphModule) -> dict[fx.Node, int]:
    """Return a hash of each node's place and of the inputs, ReLUs and modules with parameters before it.

    Other operations between them do not count.
    """
    nearest: dict[fx.Node, frozenset[int]] = {}
    found: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        before = frozenset[int]().union(*(nearest[one] for one in node.all_input_nodes))
        found[node] = hash((_place(node), before))
        stands = node.op == "placeholder" or is_relu(graph, node) or _has_parameters(graph, node)
        nearest[node] = frozenset({found[node]}) if stands else before
    return found


def _has_parameters(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return next(graph.get_submodule(str(node.target)).parameters(), None) is not None


def _only_calls(graph: fx.GraphModule) -> dict[fx.Node, int]:
    """Return a hash of the place of each ReLU call that has its place for itself."""
    places = Counter(map(_place, _relus(graph)))
    return {node: hash(_place(node)) for node in _relus(graph) if places[_place(node)] == 1}


def inside(node: fx.Node, name: str) -> str:
    """Return `name` below the module whose forward pass made the call `node`."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return f"{path}.{name}" if path else name


def input_node(node: fx.Node) -> fx.Node:
    """Return the node whose values a call of a layer or ReLU reads, passed by place or by name."""
    return node.all_input_nodes[0]


def _passes(graph: nn.Module, node: fx.Node) -> bool:
    """Say whether what `node` hands on is no more and no less than its inputs' values, or zeros beside them."""
    passing = _calls(graph, node, _PASSING_MODULES, _PASSING_FUNCTIONS, _PASSING_METHODS)
    return passing and not (node.target is F.pad and any(value not in (None, 0) for value in _borders(node)))


def image_channels(graph: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]], call: fx.Node) -> bool:
    """Say whether a layer reads the network's input with its channels where they were, flattened or not.

    Args:
        shapes: of one sample at every node, by name.
    """
    node = input_node(call)
    while node.op != "placeholder":
        if not _passes(graph, node) or _calls(graph, node, (), _ROUTING_FUNCTIONS, _ROUTING_METHODS):
            return False
        before = input_node(node)
        here, there = shapes[node.name], shapes[before.name]
        flat, reshaped = len(here) == 1, _calls(graph, node, (), _RESHAPING_FUNCTIONS, _RESHAPING_METHODS)
        if (flat or reshaped or len(here) != len(there)) and math.prod(here) != math.prod(there):
            return False  # a sample's values are not all in a row, or not in one sample any more
        if not flat and here[0] != there[0]:
            return False
        node = before
    return True


def keeps_levels(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether what `node` hands on are values of its inputs: `_passes`, but for what averages."""
    averages = _calls(graph, node, _AVERAGING_MODULES, _AVERAGING_FUNCTIONS, _AVERAGING_METHODS)
    return _passes(graph, node) and not averages


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes a passing operation takes its values from: its first argument, or all of a list of them."""
    for first in (*node.args, *node.kwargs.values()):
        items = list(first) if isinstance(first, (list, tuple)) else [first]
        if nodes := [item for item in items if isinstance(item, fx.Node)]:
            return nodes
    return []


def sources(
    graph: fx.GraphModule, node: fx.Node, passes: Callable[[fx.GraphModule, fx.Node], bool] = _passes
) -> Iterator[fx.Node]:
    """Yield the nodes that made the values `node` reads, seen through pooling, reshaping and dropout.

    Args:
        passes: says which nodes are seen through.
    """
    for before in _tensor_inputs(node):
        if passes(graph, before):
            yield from sources(graph, before, passes)
        else:
            yield before


def read_image(graph: fx.GraphModule, calls: Iterable[fx.Node]) -> bool:
    """Say whether `calls` read the network's input alone; beside features it is one of them."""
    return all(source.op == "placeholder" for call in calls for source in sources(graph, call))


def consumers(graph: fx.GraphModule, node: fx.Node) -> set[str]:
    """Return the names of the layers that `node`'s values reach before the next layer or ReLU."""
    return {str(reached.target) for reached in _reached(graph, node) if is_layer(graph, reached)}


def _reached(graph: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """Return what `node`'s values reach, up to the next layers and ReLUs."""
    seen: set[fx.Node] = set()
    queue = list(node.users)
    while queue:
        user = queue.pop()
        if user not in seen:
            seen.add(user)
            if not is_layer(graph, user) and not is_relu(graph, user):
                queue.extend(user.users)
    return seen


def features_last(graph: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]], node: fx.Node) -> bool:
    """Say whether the features of `node`'s values are their last axis: linear layers alone read them, as they are.

    A sequence's (steps, features) are told by their two axes; images with channels last by what does not flatten,
    pool or turn them on the way.

    Args:
        shapes: of one sample at every node, by name.
    """
    reached = _reached(graph, node)
    layers = [graph.get_submodule(str(user.target)) for user in reached if is_layer(graph, user)]
    if not layers or not all(isinstance(layer, nn.Linear) for layer in layers):
        return False
    between = [user for user in reached if user.op != "output" and not is_layer(graph, user)]
    return len(shapes[node.name]) == 2 or not any(
        shapes.get(user.name, shapes[node.name]) != shapes[node.name]
        or _calls(graph, user, (), _TURNING_FUNCTIONS, _TURNING_METHODS)
        for user in between
    )


def _takes_away(node: fx.Node) -> bool:
    """Say whether a sum is a difference (alpha below 0), as far as can be seen."""
    alpha: Any = node.kwargs.get("alpha")
    return alpha is not None and (isinstance(alpha, fx.Node) or alpha < 0)


def _borders(node: fx.Node) -> list[Any]:
    """Return the values that a padding may set, where it is given any."""
    return [node.kwargs.get("value"), *node.args[3:]]


def _interpolates(graph: nn.Module, node: fx.Node) -> bool:
    """Say whether `node` puts values between its input's, as resizing does in every mode but the bicubic one."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return isinstance(module, nn.Upsample) and module.mode != "bicubic"
    if node.target is not F.interpolate:
        return False
    return inspect.signature(F.interpolate).bind(*node.args, **node.kwargs).arguments.get("mode") != "bicubic"


def nonnegative(
    graph: nn.Module, node: fx.Node, below_zero: Callable[[fx.Node], bool] = lambda relu: False
) -> bool:
    """Say whether the values of `node` can be shown never to be negative.

    Args:
        below_zero: says of which ReLU what takes its place is negative at times.
    """
    if is_relu(graph, node):
        return not below_zero(node)
    if _calls(graph, node, _NONNEGATIVE_MODULES, _NONNEGATIVE_FUNCTIONS):
        return True
    if _takes_away(node):
        return False
    if _passes(graph, node) or _interpolates(graph, node):
        return all(nonnegative(graph, before, below_zero) for before in _tensor_inputs(node))
    if node.op in ("call_function", "call_method") and node.target in _SUMS | _PRODUCTS:
        both = [*node.args[:2], *(node.kwargs[name] for name in ("input", "other") if name in node.kwargs)]
        return len(both) == 2 and all(
            isinstance(arg, fx.Node) and nonnegative(graph, arg, below_zero) for arg in both
        )
    return False
