"""Whether a traced graph computes what the network computes: both are run once, on the same random input."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from qexp.errors import ConfigError
from qexp.graph.modes import evaluating
from qexp.graph.shapes import Shape, input_dtype

TOLERANCE = 1e-3
"""Of the largest output; both run the same kernels, and mostly differ by nothing at all."""


@torch.no_grad()
def require_agreement(model: nn.Module, graph: fx.GraphModule, input_shape: Shape) -> None:
    """Refuse a network that torch.fx reads wrongly in evaluation: `x += y` writes, and its graph does not.

    Networks that read tokens, which are qexp's own, networks on the meta device, and networks that do not take
    random values are not compared.

    Args:
        graph: of `model` or a copy of it, in evaluation; the modes of both are left as they are.
        input_shape: of one sample.

    Raises:
        ConfigError: the outputs differ.
    """
    like = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
    if like.is_meta or input_dtype(graph) != torch.float32:
        return
    x = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    with evaluating(model), evaluating(graph):
        own = _tensors(model, x.clone())
        traced = None if own is None else _tensors(graph, x.clone())
    if own is not None and (traced is None or not _agree(own, traced)):
        raise ConfigError(
            f"{type(model).__name__} does not compute what its traced graph computes: does it write into tensors"
            " in place (x += y), draw random numbers or keep a state? x = x + y is read rightly."
        )


def _tensors(network: nn.Module, x: Tensor) -> list[Tensor] | None:
    try:
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(0)
            return [leaf.float() for leaf in tree_leaves(network(x)) if isinstance(leaf, Tensor)]
    except (RuntimeError, ValueError, TypeError, LookupError):
        return None


def _agree(own: list[Tensor], traced: list[Tensor]) -> bool:
    if [one.shape for one in own] != [one.shape for one in traced]:
        return False
    largest = [float(one.abs().nan_to_num().max()) if one.numel() else 0.0 for one in own]
    return all(
        torch.allclose(other, one, rtol=TOLERANCE, atol=TOLERANCE * size, equal_nan=True)
        for one, other, size in zip(own, traced, largest, strict=True)
    )
