"""A forward pass that begins at a module: what comes before it in the network is computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from torch import Tensor, fx, nn

Module = TypeVar("Module", bound=nn.Module)


def continuations(
    network: nn.Module, images: Tensor, modules: Collection[Module]
) -> Iterator[tuple[Module, Callable[[], Tensor]]]:
    """Yield each of `modules` when the pass reaches it first, with a function that runs from there to the output.

    The function may be called any number of times, until the next module is asked for; between two calls the
    module may change. Its values are those of `network(images)`, bit for bit: the same operations in the same
    order. For N modules evenly spread over a network it makes a scan about twice as fast as N whole passes.

    A network that is no graph (its training and evaluation graphs differ) runs whole each time.

    Args:
        network: images to logits; under `no_grad`, in the mode that is wanted.
        images: (N, C, H, W), left as they are.
        modules: parts of `network`; one inside a layer counts as reached when the layer is.
    """
    if not isinstance(network, fx.GraphModule):
        yield from ((module, lambda: network(images)) for module in modules)
        return
    interpreter = fx.Interpreter(network)
    known: dict[fx.Node, Any] = {}
    waiting = set(modules)
    for node in network.graph.nodes:
        if node.op == "call_module":
            for module in [one for one in network.get_submodule(str(node.target)).modules() if one in waiting]:
                waiting.remove(module)
                yield module, lambda: interpreter.run(initial_env=_copied(known))
        if not waiting:
            return
        interpreter.env = known
        known[node] = images.clone() if node.op == "placeholder" else interpreter.run_node(node)
        for dead in interpreter.user_to_last_uses.get(node, ()):
            known[dead] = None  # kept as a key: the node is not to run again


def _copied(known: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """Return the values so far as copies, for a network that works in place; what is one tensor stays one."""
    return dict(zip(known, copy.deepcopy(list(known.values())), strict=True))
