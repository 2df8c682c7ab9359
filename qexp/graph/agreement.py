"""Whether a traced graph computes what the network computes: both are run once, on the same random input."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from qexp.errors import ConfigError
from qexp.graph.shapes import Shape, input_dtype

TOLERANCE = 1e-3
"""Of the largest output; both run the same kernels, and mostly differ by nothing at all."""


@torch.no_grad()
def require_agreement(model: nn.Module, graph: fx.GraphModule, input_shape: Shape) -> None:
    """Refuse a network in evaluation mode that torch.fx reads wrongly: `x += y` writes, and its graph does not.

    Networks that read tokens, which are qexp's own, and networks on the meta device are not run.

    Args:
        graph: of `model`, sharing its modules, whose modes are left as they are.
        input_shape: of one sample.

    Raises:
        ConfigError: the outputs differ.
    """
    like = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
    if like.is_meta or input_dtype(graph) != torch.float32:
        return
    x = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    modes = {module: module.training for network in (model, graph) for module in network.modules()}
    try:
        answers = [_tensors(network.eval(), x.clone()) for network in (model, graph)]
    finally:
        for module, training in modes.items():
            module.training = training
    for own, traced in zip(*answers, strict=True):
        largest = float(own.abs().nan_to_num().max()) if own.numel() else 0.0
        if not torch.allclose(traced, own, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True):
            raise ConfigError(
                f"{type(model).__name__} does not compute what its traced graph computes: does it write into"
                " tensors in place (x += y)? x = x + y is read rightly."
            )


def _tensors(network: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(0)
        return [leaf.float() for leaf in tree_leaves(network(x)) if isinstance(leaf, Tensor)]
