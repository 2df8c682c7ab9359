"""Optimizers over named groups: what decays, what learns at its own rate, and each parameter exactly once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from qexp.errors import ConfigError
from qexp.lit.shift_adamax import ShiftAdaMax, Variant
from qexp.ops.powers import ap2
from qexp.quantizers.base import named_quantizers

UpdateScale = Literal["none", "fan", "fan_power_of_two"]
"""A factor on every weight's update: none, or 1 / Glorot's coefficient, as it is or as a power of two."""

Decay = Literal["weights", "all"]
"""What weight decay acts on: the weights of convolutions and linear layers, or what is no quantizer's at all."""


@dataclass(frozen=True)
class Group:
    """Parameters treated alike.

    `weight_decay` is a number of the group's own, or None for the optimizer's, where `kind` decides whether the
    optimizer's applies.
    """

    kind: Literal["weights", "others", "quantizers"]
    parameters: tuple[nn.Parameter, ...]
    lr_factor: float = 1.0
    weight_decay: float | None = None


def parameter_groups(network: nn.Module) -> list[Group]:
    """Sort the trained parameters of `network`: each is in one group, however often it is shared.

    A quantizer's groups come from its `parameter_groups()`; weights are the tensors called `weight` of more than
    one axis (as the public script of PACT's ResNet20 decays `.*/W` only); the others are biases, normalization and
    embeddings, whose rows are looked up, so that they have no fan.
    """
    seen: set[int] = set()

    def fresh(parameters: Sequence[nn.Parameter]) -> tuple[nn.Parameter, ...]:
        new = {id(p): p for p in parameters if p.requires_grad and id(p) not in seen}
        seen.update(new)
        return tuple(new.values())

    groups = [
        Group("quantizers", fresh(wanted.parameters), wanted.lr_factor, wanted.weight_decay or 0.0)
        for _, quantizer in named_quantizers(network)
        for wanted in quantizer.parameter_groups()
    ]
    rest = list(_own_parameters(network))
    groups.append(Group("weights", fresh([p for is_weight, p in rest if is_weight])))
    groups.append(Group("others", fresh([p for is_weight, p in rest if not is_weight])))
    return [group for group in _merged(groups) if group.parameters]


def _own_parameters(network: nn.Module) -> Iterator[tuple[bool, nn.Parameter]]:
    """Yield (is a weight, parameter). An embedding's table is none, unless a layer has it for its weight."""
    tables: set[int] = set()
    of_layers: set[int] = set()
    for module in network.modules():
        owners = tables if isinstance(module, nn.Embedding) else of_layers
        owners.update(id(parameter) for parameter in module.parameters(recurse=False))
    for name, parameter in network.named_parameters():
        is_weight = name.rpartition(".")[2] == "weight" and parameter.ndim > 1
        yield is_weight and id(parameter) not in tables - of_layers, parameter


def _merged(groups: Sequence[Group]) -> list[Group]:
    """Join groups of equal settings: fewer groups make a faster step."""
    joined: dict[tuple[str, float, float | None], tuple[nn.Parameter, ...]] = {}
    for group in groups:
        key = (group.kind, group.lr_factor, group.weight_decay)
        joined[key] = joined.get(key, ()) + group.parameters
    return [Group(kind, found, factor, decay) for (kind, factor, decay), found in joined.items()]  # type: ignore[arg-type]


def sgd(
    groups: Sequence[Group],
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay: Decay = "weights",
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum; `weight_decay` is added to the gradient (coupled)."""
    settings = _settings(groups, lr, weight_decay, decay)
    _refuse(not 0.0 <= momentum < 1.0, f"optimizer.momentum={momentum}: 0 or more, and below 1.")
    _refuse(nesterov and momentum == 0.0, "optimizer.nesterov=true: it needs optimizer.momentum above 0.")
    return torch.optim.SGD(settings, lr=lr, momentum=momentum, nesterov=nesterov, fused=_can_fuse(groups))


def adam(
    groups: Sequence[Group],
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay: Decay = "weights",
    update_scale: UpdateScale = "none",
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015); `weight_decay` is the coupled L2 penalty, not AdamW's."""
    settings = _settings(by_fan(groups, update_scale), lr, weight_decay, decay)
    _refuse(not eps >= 0.0, f"optimizer.eps={eps}: 0 or more.")
    return torch.optim.Adam(settings, lr=lr, betas=_two(betas), eps=eps, fused=_can_fuse(groups))


def adamax(
    groups: Sequence[Group],
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay: Decay = "weights",
    update_scale: UpdateScale = "none",
) -> torch.optim.Optimizer:
    """AdaMax (Kingma and Ba 2015, algorithm 2); by shifts it is `shift_adamax`. `eps` is added to |gradient|."""
    settings = _settings(by_fan(groups, update_scale), lr, weight_decay, decay)
    _refuse(not eps > 0.0, f"optimizer.eps={eps}: above 0; a weight without a gradient would be 0 / 0.")
    return torch.optim.Adamax(settings, lr=lr, betas=_two(betas), eps=eps)


SHIFT_EPS = 2**-27
"""Of the authors' shift-based AdaMax."""


def shift_adamax(
    groups: Sequence[Group],
    *,
    lr: float = 2**-10,
    betas: Sequence[float] = (1 - 2**-3, 1 - 2**-10),
    eps: float = SHIFT_EPS,
    variant: Variant = "paper",
    weight_decay: float = 0.0,
    decay: Decay = "weights",
    update_scale: UpdateScale = "none",
) -> torch.optim.Optimizer:
    """Shift-based AdaMax; `qexp.lit.shift_adamax` has the formulas. `eps` is for variant=authors alone."""
    scaled = by_fan(groups, update_scale)
    # The scale of updates stands behind the power of two that the rate becomes, as in the authors' code.
    settings = [
        {**setting, "lr": lr, "scale": group.lr_factor}
        for setting, group in zip(_settings(scaled, lr, weight_decay, decay), scaled, strict=True)
    ]
    _refuse(not eps > 0.0, f"optimizer.eps={eps}: above 0, a power of two in the authors' code.")
    _refuse(variant not in ("paper", "authors"), f"optimizer.variant={variant}: choose paper or authors.")
    without = f"optimizer.eps={eps}: variant=paper has none; leave it out, or take optimizer.variant=authors."
    _refuse(variant == "paper" and eps != SHIFT_EPS, without)
    return ShiftAdaMax(settings, lr=lr, betas=_two(betas), eps=eps, variant=variant)


def by_fan(groups: Sequence[Group], update_scale: UpdateScale) -> list[Group]:
    """Split the weights by the factor on their updates, sqrt((fan_in + fan_out) / 1.5) (arXiv 1602.02830's code).

    It reaches Adam and AdaMax through the learning rate, which their updates are proportional to.

    Raises:
        ConfigError: an unknown factor.
    """
    scales = ("none", "fan", "fan_power_of_two")
    _refuse(update_scale not in scales, f"optimizer.update_scale={update_scale}: choose {', '.join(scales)}.")
    if update_scale == "none":
        return list(groups)
    split = []
    for group in groups:
        if group.kind != "weights":
            split.append(group)
            continue
        for weight in group.parameters:
            factor = math.sqrt((weight.shape[0] + weight.shape[1]) * weight[0, 0].numel() / 1.5)
            if update_scale == "fan_power_of_two":
                factor = float(ap2(torch.tensor(factor)))
            split.append(Group(group.kind, (weight,), group.lr_factor * factor, group.weight_decay))
    return _merged(split)


def _settings(groups: Sequence[Group], lr: float, weight_decay: float, decay: Decay) -> list[dict[str, Any]]:
    _refuse(decay not in ("weights", "all"), f"optimizer.decay={decay}: choose weights or all.")
    _refuse(not lr > 0.0, f"optimizer.lr={lr}: a learning rate is above zero.")
    _refuse(not weight_decay >= 0.0, f"optimizer.weight_decay={weight_decay}: 0 for none, or above.")
    shared = {"weights": weight_decay, "others": weight_decay if decay == "all" else 0.0, "quantizers": 0.0}
    return [
        {
            "params": list(group.parameters),
            "lr": lr * group.lr_factor,
            "weight_decay": shared[group.kind] if group.weight_decay is None else group.weight_decay,
            "name": group.kind,
        }
        for group in groups
    ]


def _can_fuse(groups: Sequence[Group]) -> bool:
    """Whether torch can update these parameters in one pass over memory, not one for each operation."""
    return all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group.parameters)


def _two(betas: Sequence[float]) -> tuple[float, float]:
    wrong = len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas)
    _refuse(wrong, f"optimizer.betas={list(betas)}: two numbers, each 0 or more, and below 1.")
    return betas[0], betas[1]


def _refuse(wrong: bool, text: str) -> None:
    if wrong:
        raise ConfigError(text)
