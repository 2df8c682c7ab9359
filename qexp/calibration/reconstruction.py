"""Layer by layer: roundings are chosen so that a layer, fed what the quantized network gives it, keeps its output.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568: the layer's
input is the quantized network's, its target the float network's, both seen behind the activation that follows.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qexp.calibration.bias import channel_axis
from qexp.errors import ConfigError
from qexp.graph.plan import LayerPlan, Plan
from qexp.graph.tracing import is_relu, layer_calls, relu_end
from qexp.layers.quantized import float_output
from qexp.ops.soft_rounding import annealed, inverse, rectified_sigmoid, rounding_penalty
from qexp.quantizers.adaround import AdaRoundWeight

KEPT_BYTES = 2**30
"""Of one layer's inputs and outputs, at most; where the images' are more, some of them are drawn."""

BATCH = 32
"""Images that run through the network at once."""

_ELEMENTWISE = (
    *(nn.Hardswish, nn.SiLU, nn.GELU, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh),
)


def learn_roundings(model: nn.Module, plan: Plan, batches: Iterable[Any], seed: int) -> None:
    """Choose the roundings of every AdaRound quantizer of `plan`, in forward order; their steps are fitted.

    Args:
        model: the float network; it is left as it is. Beside the images the inputs and outputs of one layer at
            a time are kept in memory, of as many images as `KEPT_BYTES` hold.
        batches: of (images, labels), the same ones each time they are asked for; labels are not looked at.
        seed: of which images meet in an iteration.
    """
    wanted = [
        layer for layer in plan.layers if isinstance(layer.weight, AdaRoundWeight) and layer.weight.bits < 32
    ]
    if not wanted:
        return
    images = torch.cat([images for images, _ in batches])
    partial = copy.deepcopy(model)  # becomes the quantized network, layer by layer
    generator = torch.Generator().manual_seed(seed)
    for layer in plan.layers:
        module = partial.get_submodule(layer.name)
        if layer in wanted:
            assert isinstance(layer.weight, AdaRoundWeight)
            act = _activation(plan.graphs[-1], layer.name)
            calls = len(layer_calls(plan.graphs[-1])[layer.name])
            kept = _kept(partial, layer, calls, images, layer.weight.samples, generator)
            inputs = _seen(partial, layer, calls, kept)
            targets = act(_outputs(model, layer, calls, kept))
            search(layer.weight, module, inputs, targets, act, generator)
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
    if isinstance(module, nn.Conv2d) and module.groups > 1:  # on a CPU in three quarters of the time
        inputs, targets = (x.contiguous(memory_format=torch.channels_last) for x in (inputs, targets))
    weight: Any = module.weight
    weight = weight.detach()
    step = quantizer.step
    lowest, highest = quantizer.limits
    scaled = weight / torch.where(step > 0, step, 1.0)
    floor = scaled.floor()
    v = inverse((scaled - floor).clamp(0, 1)).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=quantizer.learning_rate)
    channels = targets.shape[channel_axis(module)]
    for iteration in range(quantizer.iterations):
        rows = torch.randint(len(inputs), (min(quantizer.samples, len(inputs)),), generator=generator)
        h = rectified_sigmoid(v)
        soft = (floor + h).clamp(lowest, highest) * step
        output = act(float_output(module, inputs[rows], soft))
        # What the mean of the squared error over all but the channels hands back, without the error itself.
        handed = (output.detach() - targets[rows]).mul_(2 * channels / output.numel())
        optimizer.zero_grad()
        output.backward(handed, retain_graph=True)
        progress = (iteration / quantizer.iterations - quantizer.warmup) / (1 - quantizer.warmup)
        if progress >= 0:
            (quantizer.penalty * rounding_penalty(h, annealed(progress))).backward()
        optimizer.step()
    quantizer.choose(weight, floor + (rectified_sigmoid(v.detach()) >= 0.5))


def _same(x: Tensor) -> Tensor:
    return x


def _activation(graph: fx.GraphModule, name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation that all users of a layer's output apply to it; the identity where they do not."""
    users = [user for call in layer_calls(graph)[name] for user in call.users]
    if users and all(is_relu(graph, user) for user in users):
        ends = {relu_end(graph, user) for user in users}
        return _same if len(ends) > 1 else functools.partial(F.hardtanh, min_val=0.0, max_val=ends.pop())
    if len(users) == 1 and users[0].op == "call_module":
        module = graph.get_submodule(str(users[0].target))
        if isinstance(module, _ELEMENTWISE):
            alone = copy.deepcopy(module)
            alone.__dict__.update({"inplace": False} if "inplace" in module.__dict__ else {})
            return alone
    return _same


class _Reached(Exception):  # noqa: N818, no error: what was looked for is there
    pass


@torch.no_grad()
def _kept(
    model: nn.Module, layer: LayerPlan, calls: int, images: Tensor, least: int, generator: torch.Generator
) -> Tensor:
    """Return the images whose inputs and outputs of `layer` fit in `KEPT_BYTES`, at least `least`; mostly all."""
    x = _seen(model, layer, calls, images[:1])
    module = model.get_submodule(layer.name)
    weight: Any = module.weight
    each = (x.numel() + float_output(module, x, weight).numel()) * x.element_size()
    most = max(KEPT_BYTES // each, least)
    if len(images) <= most:
        return images
    return images[torch.randperm(len(images), generator=generator)[:most].sort().values.to(images.device)]


def _seen(model: nn.Module, layer: LayerPlan, calls: int, images: Tensor) -> Tensor:
    """Return what reaches `layer` in `model`, quantized as the plan says; the rest of the network is not run."""
    return _caught(model, layer, calls, images, lambda x, _: x if layer.input is None else layer.input(x))


def _outputs(model: nn.Module, layer: LayerPlan, calls: int, images: Tensor) -> Tensor:
    """Return what `layer` makes of `images` in `model`."""
    return _caught(model, layer, calls, images, lambda _, output: output)


@torch.no_grad()
def _caught(
    model: nn.Module, layer: LayerPlan, calls: int, images: Tensor, take: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return what `take` makes of every call of `layer` whose input has the size that the first one's has."""
    found: list[Tensor] = []
    sizes: list[torch.Size] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(inputs[0].shape[1:])
        if sizes[-1] == sizes[0]:
            kept = take(inputs[0], output)
            found.append(kept.clone() if calls > 1 else kept)  # what follows a call may write into its output
        if len(sizes) % calls == 0:
            raise _Reached

    handle = model.get_submodule(layer.name).register_forward_hook(look)
    try:
        for batch in images.split(BATCH):
            try:
                model(batch)
            except _Reached:
                continue
            raise ConfigError("calibration: a planned layer is not run by the network.")
    finally:
        handle.remove()
    return torch.cat(found)


@torch.no_grad()
def _quantize(module: nn.Module, layer: LayerPlan) -> None:
    """Give a float layer its quantized weights, and a hook that quantizes its input."""
    weight: Any = module.weight
    if layer.weight is not None:
        module.weight = nn.Parameter(layer.weight(weight))  # a new one: another layer may be tied to the float one
    if (quantizer := layer.input) is not None:
        module.register_forward_pre_hook(lambda _, inputs: (quantizer(inputs[0]), *inputs[1:]))
