"""The shape of every value in a network, from one pass over tensors without data."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from qexp.errors import ConfigError

Shape = tuple[int, ...]


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        first = (
            value[0] if isinstance(value, tuple) and value else value
        )  # a recurrent layer's outputs, then state
        if isinstance(first, Tensor):
            self.shapes[n.name] = tuple(first.shape[1:])
        return value


def record_shapes(graph: fx.GraphModule, input_shape: Shape) -> dict[str, Shape]:
    """Return the shape of one sample at every node of `graph`, by node name.

    Args:
        graph: a traced network; it is copied to the meta device, so nothing is computed or changed.
        input_shape: one sample's (C, H, W), or the (steps,) of a sequence of tokens.

    Raises:
        ConfigError: the network cannot take inputs of that shape.
    """
    tensors = (*graph.parameters(), *graph.buffers())
    without_data: dict[int, Any] = {id(tensor): _to_meta(tensor) for tensor in tensors}
    try:
        recorder = _Recorder(copy.deepcopy(graph, without_data))
    except RuntimeError as error:
        raise ConfigError(
            "the network holds tensors computed from parameters (torch.nn.utils.weight_norm?), which cannot be"
            " copied; torch.nn.utils.parametrizations has forms that can."
        ) from error
    try:
        # Two samples: batch normalization in training mode refuses one value per channel.
        recorder.run(torch.empty(2, *input_shape, dtype=input_dtype(graph), device="meta"))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the network does not take inputs of {tuple(input_shape)}: {reason}. "
            "Choose a data set of the size it was made for, or another model."
        ) from error
    return recorder.shapes


def input_dtype(graph: fx.GraphModule) -> torch.dtype:
    """Return what the network reads: whole numbers, where they are looked up in a table, else float32."""
    called = [node for node in graph.graph.nodes if node.op == "call_module"]
    looked_up = [node for node in called if isinstance(graph.get_submodule(str(node.target)), nn.Embedding)]
    return torch.long if any(node.args[0].op == "placeholder" for node in looked_up) else torch.float32


def _to_meta(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
