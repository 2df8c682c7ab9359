"""Put a plan's quantizers into a network: the only place that swaps modules and rewrites calls."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from qexp.layers import QUANTIZED_LAYERS
from qexp.plan import Plan, SitePlan
from qexp.tracing import layer_calls, relu_sites


class TwoModes(nn.Module):
    """A network whose training and evaluation graphs differ; both run the same modules.

    The modules are registered here under their own names, so a state dict looks as if there were one graph.
    """

    def __init__(self, training: fx.GraphModule, evaluation: fx.GraphModule) -> None:
        super().__init__()
        for graph in (evaluation, training):  # of two containers with one name, training's holds more
            for name, child in graph.named_children():
                self.add_module(name, child)
        # Past nn.Module's registration, which would list every parameter twice more.
        self.__dict__["graphs"] = {True: training, False: evaluation}

    def forward(self, *inputs: Any) -> Any:
        """Run the graph of the current mode."""
        return self.__dict__["graphs"][self.training](*inputs)


def quantize_model(plan: Plan) -> nn.Module:
    """Return the network with the plan's quantizers in place.

    Every planned layer becomes its quantized form and every planned ReLU call its own quantizer. The float
    network's parameter tensors are used, not copied, under the names they had.
    """
    swapped = _quantized_layers(plan)
    for graph in plan.graphs:
        _rewrite(graph, plan, swapped)
    return plan.graphs[0] if len(plan.graphs) == 1 else TwoModes(*plan.graphs)


def _quantized_layers(plan: Plan) -> dict[str, nn.Module]:
    """Return the quantized form of each planned layer, one for both graphs."""
    swapped: dict[str, nn.Module] = {}
    for graph in plan.graphs:
        for layer in plan.layers:
            if layer.name in swapped or (layer.weight is None and layer.input is None):
                continue
            if layer.name in layer_calls(graph):
                module = graph.get_submodule(layer.name)
                swapped[layer.name] = QUANTIZED_LAYERS[type(module)](module, layer.weight, layer.input)  # type: ignore[arg-type]
    return swapped


def _rewrite(graph: fx.GraphModule, plan: Plan, swapped: dict[str, nn.Module]) -> None:
    sites = {site.name: site for site in plan.sites}
    layers = [name for name in layer_calls(graph) if name in swapped]
    for name, node in relu_sites(graph).items():
        if sites[name].quantizer is not None:
            _replace_call(graph, node, sites[name])
    for name in layers:
        _set_submodule(graph, name, swapped[name])
    graph.graph.lint()
    graph.recompile()


def _replace_call(graph: fx.GraphModule, node: fx.Node, site: SitePlan) -> None:
    """Let `node`'s ReLU call run the site's quantizer instead."""
    _set_submodule(graph, site.name, site.quantizer)
    with graph.graph.inserting_after(node):
        call = graph.graph.call_module(site.name, (node.args[0],))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)


def _set_submodule(graph: fx.GraphModule, name: str, module: nn.Module | None) -> None:
    """Put `module` at the dotted `name`, making the containers on the way."""
    parent: nn.Module = graph
    *path, last = name.split(".")
    for part in path:
        if not hasattr(parent, part):
            parent.add_module(part, nn.Module())
        parent = getattr(parent, part)
    parent.add_module(last, module)
