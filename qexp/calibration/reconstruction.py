"""Layer by layer: roundings are chosen so that a layer, fed what the quantized network gives it, keeps its output.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568: the layer's
input is the quantized network's, its target the float network's, both seen behind the ReLU that follows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from qexp.errors import ConfigError
from qexp.layers import float_output
from qexp.ops.soft_rounding import annealed, inverse, rectified_sigmoid, rounding_penalty
from qexp.plan import LayerPlan, Plan
from qexp.quantizers.adaround import AdaRoundWeight
from qexp.tracing import is_relu, layer_calls


def learn_roundings(model: nn.Module, plan: Plan, batches: Iterable[Any], seed: int) -> None:
    """Choose the roundings of every AdaRound quantizer of `plan`, in forward order; their steps are fitted.

    Args:
        model: the float network; it is left as it is. Inputs and outputs of one layer at a time are kept in
            memory, of all of `batches`.
        batches: of (images, labels), the same ones each time they are asked for; labels are not looked at.
        seed: of which images meet in an iteration.
    """
    wanted = [
        layer for layer in plan.layers if isinstance(layer.weight, AdaRoundWeight) and layer.weight.bits < 32
    ]
    if not wanted:
        return
    images = [images for images, _ in batches]
    partial = copy.deepcopy(model)  # becomes the quantized network, layer by layer
    generator = torch.Generator().manual_seed(seed)
    for layer in plan.layers:
        module = partial.get_submodule(layer.name)
        if layer in wanted:
            act = nn.functional.relu if _feeds_relu_alone(plan.graphs[-1], layer.name) else _same
            inputs = _seen(partial, layer, images)
            targets = [act(output) for output in _outputs(model, layer, images)]
            assert isinstance(layer.weight, AdaRoundWeight)
            search(layer.weight, module, torch.cat(inputs), torch.cat(targets), act, generator)
        _quantize(module, layer)


def search(
    quantizer: AdaRoundWeight,
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    act: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> None:
    """Choose each weight's rounding by gradient steps on the squared error of the layer's output, then keep it.

    Args:
        module: the layer, with float weights.
        inputs: (samples, ...), as the quantized network feeds it, quantized themselves.
        targets: (samples, channels, ...), the float layer's output behind `act`.
        act: what follows the layer.
    """
    weight: Any = module.weight
    weight = weight.detach()
    step = quantizer.step
    lowest, highest = quantizer.limits
    scaled = weight / torch.where(step > 0, step, 1.0)
    floor = scaled.floor()
    v = inverse((scaled - floor).clamp(0, 1)).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=quantizer.learning_rate)
    for iteration in range(quantizer.iterations):
        rows = torch.randint(len(inputs), (min(quantizer.samples, len(inputs)),), generator=generator)
        h = rectified_sigmoid(v)
        soft = (floor + h).clamp(lowest, highest) * step
        output = act(float_output(module, inputs[rows], soft))
        loss = (output - targets[rows]).square().sum(1).mean()
        progress = (iteration / quantizer.iterations - quantizer.warmup) / (1 - quantizer.warmup)
        if progress >= 0:
            loss = loss + quantizer.penalty * rounding_penalty(h, annealed(progress))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    quantizer.choose(weight, floor + (rectified_sigmoid(v.detach()) >= 0.5))


def _same(x: Tensor) -> Tensor:
    return x


def _feeds_relu_alone(graph: fx.GraphModule, name: str) -> bool:
    users = [user for call in layer_calls(graph)[name] for user in call.users]
    return bool(users) and all(is_relu(graph, user) for user in users)


class _Reached(Exception):  # noqa: N818, no error: what was looked for is there
    pass


@torch.no_grad()
def _seen(model: nn.Module, layer: LayerPlan, images: list[Tensor]) -> list[Tensor]:
    """Return what reaches `layer` in `model`, quantized as the plan says; the rest of the network is not run."""
    found: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0] if layer.input is None else layer.input(inputs[0]))
        raise _Reached

    _run(model, images, lambda: model.get_submodule(layer.name).register_forward_pre_hook(look))
    return found


@torch.no_grad()
def _outputs(model: nn.Module, layer: LayerPlan, images: list[Tensor]) -> list[Tensor]:
    found: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output)
        raise _Reached

    _run(model, images, lambda: model.get_submodule(layer.name).register_forward_hook(look))
    return found


def _run(model: nn.Module, images: list[Tensor], register: Callable[[], Any]) -> None:
    handle = register()
    try:
        for batch in images:
            try:
                model(batch)
            except _Reached:
                continue
            raise ConfigError("calibration: a planned layer is not run by the network.")
    finally:
        handle.remove()


@torch.no_grad()
def _quantize(module: nn.Module, layer: LayerPlan) -> None:
    """Give a float layer its quantized weights, and a hook that quantizes its input."""
    weight: Any = module.weight
    if layer.weight is not None:
        weight.copy_(layer.weight(weight))
    if (quantizer := layer.input) is not None:
        module.register_forward_pre_hook(lambda _, inputs: (quantizer(inputs[0]), *inputs[1:]))
