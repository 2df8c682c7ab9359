"""A layer, its batch norm and the sign behind it as one comparison: bits in, bits out, no float between.

The sign of a batch norm turns at one accumulator of each channel. It is found by bisection over the layer's own
float arithmetic, so that fused and layer by layer give the same bits.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from qexp.layers.normalization import ShiftBatchNorm
from qexp.quantizers.base import Quantizer
from qexp.quantizers.qnn_binary import BinaryActivation
from qexp.xnor.layers import IntegerLayer
from qexp.xnor.product import Limits, linear_geometry

NORMS = (nn.BatchNorm1d, ShiftBatchNorm)
IDLE = (nn.Dropout, nn.Identity)
"""What does nothing in evaluation mode."""


def limits_of(layer: IntegerLayer, after: nn.Module) -> Limits:
    """Return where the sign of `after(layer's output)` turns, for each channel of a linear layer.

    Args:
        after: monotone in each channel (batch norm of any kind, dropout), in evaluation mode.
    """
    bound = layer.bound
    low = torch.full((layer.weight.outputs,), -bound, dtype=torch.int64, device=layer.scale.device)
    high = torch.full_like(low, bound)

    def positive(sums: Tensor) -> Tensor:
        scores = after(layer.rescaled(sums.to(torch.int32).unsqueeze(0), linear_geometry(1)))
        return scores[0] >= 0

    start, end = positive(low), positive(high)
    turned = start & ~end  # a negative gain
    constant = start == end
    low, high = low - 1, high + 1  # `low` is below the limit, `high` has reached it
    while bool((high - low > 1).any()):
        middle = (low + high).div(2, rounding_mode="floor").clamp(-bound, bound)
        reached = positive(middle) ^ turned
        high, low = torch.where(reached, middle, high), torch.where(reached, low, middle)
        low, high = torch.minimum(low, high - 1), torch.maximum(high, low + 1)
    least = torch.where(constant, torch.where(start, -bound - 1, bound + 1), high)
    return Limits(least.to(torch.int32), turned)


class FusedLinear(nn.Module):
    """A linear layer that reads or returns packed signs; nothing is learned here.

    Args:
        layer: linear, its weights' grid centred.
        after: what stands between it and the sign that it returns, in evaluation mode; None: it returns floats.
        packed: whether it reads packed signs; else values on its grid, as `layer` does.
    """

    def __init__(self, layer: IntegerLayer, after: nn.Module | None, *, packed: bool) -> None:
        super().__init__()
        self.layer, self.packed = layer, packed
        with torch.no_grad():
            self.limits = None if after is None else limits_of(layer, after)

    def forward(self, x: Tensor) -> Tensor:
        """Return packed signs (1, N, words) or values (N, out) for packed signs or values (N, features)."""
        layer = self.layer
        words = x if self.packed else layer.packed_input(x)
        geometry = linear_geometry(words.shape[1])
        base = layer.base(geometry)
        if self.limits is None:
            return layer.rescaled(layer.product.sums(words, layer.weight, geometry, base), geometry)
        return layer.product.reached(words, layer.weight, geometry, base, self.limits)


def fused(network: fx.GraphModule) -> fx.GraphModule:
    """Return a network of `IntegerLayer`s whose signs between linear layers stay packed; it shares the modules.

    Where nothing can be fused it is `network` itself.

    Args:
        network: in evaluation mode.
    """
    result = fx.GraphModule(network, copy.deepcopy(network.graph))
    after: dict[fx.Node, nn.Module] = {}
    readers: set[fx.Node] = set()
    for node in result.graph.nodes:
        if (made := _before(result, node)) is not None and (reading := _readers(result, node)):
            source, after[source] = made
            readers.update(reading)
            for reader in reading:
                reader.args = (source,)
    if not after:
        return network
    for node in [node for node in result.graph.nodes if node in after or node in readers]:
        layer = _linear(result, node)
        assert layer is not None  # as it was found
        linear = FusedLinear(layer, after.get(node), packed=node in readers)
        node.target = f"_fused_{node.name}"
        result.add_submodule(node.target, linear.eval())
    result.graph.eliminate_dead_code()
    result.delete_all_unused_submodules()
    result.recompile()
    return result


def called(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that `node` calls; None where it calls none."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _linear(network: fx.GraphModule, node: fx.Node) -> IntegerLayer | None:
    """Return the layer that `node` calls, where it is one that `FusedLinear` can take."""
    layer = called(network, node)
    if not isinstance(layer, IntegerLayer) or not isinstance(layer.layer, nn.Linear) or layer.weight_grid.shift:
        return None
    return layer


def _before(network: fx.GraphModule, sign: fx.Node) -> tuple[fx.Node, nn.Module] | None:
    """Return the linear layer of whose output alone `sign` is the sign, and what stands between the two."""
    quantizer = called(network, sign)
    if not isinstance(quantizer, BinaryActivation) or quantizer.bits != 1:
        return None
    between: list[nn.Module] = []
    (node,) = sign.all_input_nodes
    while _linear(network, node) is None:
        module = called(network, node)
        if module is None or not _monotone(module) or len(node.users) > 1:
            return None
        between.insert(0, module)
        (node,) = node.all_input_nodes
    if len(node.users) > 1 or not _rows(network, node):
        return None
    return node, nn.Sequential(*between)


def _rows(network: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a value is known to be rows (N, features), flattened once and kept so.

    Of (N, places, features) a batch norm's channels are the places and not a layer's outputs.
    """
    module = called(network, node)
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target in (torch.flatten, "flatten"):
        return (node.args[1:], node.kwargs) in (((1,), {}), ((), {"start_dim": 1}))
    if node.target in ("view", "reshape"):
        return len(node.args) == 3
    keeps = isinstance(module, (IntegerLayer, Quantizer, *NORMS, *IDLE))
    return keeps and _rows(network, node.all_input_nodes[0])


def _monotone(module: nn.Module) -> bool:
    """Say whether each output of a module rises, or falls, with the one input of its channel."""
    if isinstance(module, NORMS):
        return module.running_mean is not None  # else the batch's own
    return isinstance(module, IDLE)


def _readers(network: fx.GraphModule, sign: fx.Node) -> list[fx.Node]:
    """Return the linear layers that read signs, whatever does nothing in between; none if others read them too."""
    found: list[fx.Node] = []
    for user in sign.users:
        layer = _linear(network, user)
        if layer is not None and layer.reads_signs:
            found.append(user)
        elif isinstance(called(network, user), IDLE) and (behind := _readers(network, user)):
            found.extend(behind)
        else:
            return []
    return found
