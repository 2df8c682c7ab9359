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
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape[1:])
        return value


def record_shapes(graph: fx.GraphModule, input_shape: Shape) -> dict[str, Shape]:
    """Return the shape of one sample at every node of `graph`, by node name.

    Args:
        graph: a traced network; it is copied to the meta device, so nothing is computed or changed.
        input_shape: one sample's (C, H, W).

    Raises:
        ConfigError: the network cannot take inputs of that shape.
    """
    recorder = _Recorder(copy.deepcopy(graph).to("meta"))
    try:
        # Two samples: batch normalization in training mode refuses one value per channel.
        recorder.run(torch.empty(2, *input_shape, device="meta"))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the network does not take inputs of {tuple(input_shape)} (C, H, W): {reason}. "
            "Choose a data set of the size it was made for, or another model."
        ) from error
    return recorder.shapes


def parameter_count(module: nn.Module) -> int:
    """Return the number of elements of `module`'s own parameters, those of quantizers left out."""
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))
