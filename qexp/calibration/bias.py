"""Bias correction of outputs: what rounding the weights adds to a channel's mean is taken off its bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721; the
formulas from memory, as standard: b <- b - (W_q - W) E[x], with E[x] from the batch norm in front (a normal
density cut off by the ReLU), or measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from qexp.graph.plan import Plan
from qexp.graph.tracing import input_node, is_layer, is_relu, layer_calls, relu_end

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Of a layer's output: mean and standard deviation of each channel."""


def give_biases(model: nn.Module, plan: Plan) -> None:
    """Give every layer whose weights are quantized a bias of zeros where it has none."""
    for layer in plan.layers:
        module: Any = model.get_submodule(layer.name)
        if layer.weight is not None and module.bias is None:
            module.bias = nn.Parameter(
                torch.zeros_like(module.weight[(slice(None), *[0] * (module.weight.dim() - 1))])
            )
            layer.bias = True


@torch.no_grad()
def correct_biases(model: nn.Module, plan: Plan, means: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Take the mean error of fitted weights off each layer's bias; return the layers left as they are.

    Args:
        means: by layer, the mean of each input channel (C), from `expected_inputs` or `measured_inputs`.
    """
    left = []
    for layer in plan.layers:
        if layer.weight is None or layer.weight.bits == 32:
            continue
        if layer.name not in means:
            left.append(layer.name)
            continue
        module: Any = model.get_submodule(layer.name)
        error = layer.weight(module.weight) - module.weight
        module.bias.sub_(response(module, means[layer.name].to(error), error))
    return tuple(left)


def channel_axis(module: nn.Module) -> int:
    """Return the axis of a layer's input and output that counts channels; a Linear's others count places."""
    return -1 if isinstance(module, nn.Linear) else 1


def response(module: nn.Module, mean: Tensor, weight: Tensor) -> Tensor:
    """Return what `weight` makes of an input that is its mean everywhere, borders aside: one value a channel."""
    if isinstance(module, nn.Linear):
        return torch.nn.functional.linear(mean, weight)
    assert isinstance(module, nn.Conv2d)
    patch = mean.reshape(1, -1, 1, 1).expand(1, -1, *module.kernel_size)
    return torch.nn.functional.conv2d(patch, weight, groups=module.groups).flatten()


def expected_inputs(graph: fx.GraphModule, statistics: Statistics) -> dict[str, Tensor]:
    """Return the mean of each input channel of the layers that a batch norm's layer feeds, directly or by a ReLU.

    With the mean beta and the deviation gamma of a normal density, a ReLU leaves gamma phi(-beta / gamma) +
    beta (1 - Phi(-beta / gamma)), and a ReLU6 that less what it cuts off above 6.

    Args:
        graph: the folded network.
        statistics: of the outputs of its layers. What is not there, residual sums for instance, is left out, and
            so are layers that are called at several places.
    """
    found = {}
    for name, (call, *others) in layer_calls(graph).items():
        if others:
            continue
        source = input_node(call)
        cut = is_relu(graph, source)
        before = input_node(source) if cut else source
        if is_layer(graph, before) and (known := statistics.get(str(before.target))) is not None:
            found[name] = clipped_mean(*known, relu_end(graph, source)) if cut else known[0]
    return found


def clipped_mean(mean: Tensor, deviation: Tensor, highest: float = math.inf) -> Tensor:
    """Return E[min(max(x, 0), highest)] of a normal x, element by element.

    >>> clipped_mean(torch.tensor([0.0]), torch.tensor([1.0])).mul(10000).round().tolist()
    [3989.0]
    """
    mean, deviation = mean.double(), deviation.double().clamp(min=1e-12)

    def above(limit: float) -> Tensor:  # E[max(x - limit, 0)]
        z = (mean - limit) / deviation
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        return deviation * density + (mean - limit) * torch.special.ndtr(z)

    return above(0.0) if highest == math.inf else above(0.0) - above(highest)


@torch.no_grad()
def measured_inputs(model: nn.Module, plan: Plan, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Return the mean of each input channel of every planned layer over the images of `batches`, run in float."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def look(name: str, module: nn.Module, x: Tensor) -> None:
        channels = x.double().movedim(channel_axis(module), 0).flatten(1)
        sums[name] = sums.get(
            name, torch.zeros(len(channels), dtype=torch.float64, device=x.device)
        ) + channels.sum(1)
        counts[name] = counts.get(name, 0) + channels.shape[1]

    handles = [
        model.get_submodule(layer.name).register_forward_pre_hook(
            lambda module, inputs, name=layer.name: look(name, module, inputs[0])
        )
        for layer in plan.layers
    ]
    try:
        for images, _ in batches:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / counts[name] for name, total in sums.items()}
