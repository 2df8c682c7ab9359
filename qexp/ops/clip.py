"""Clipping at a level that may be learned, then rounding to a uniform grid that ends at that level.

Two implementations of the same equations: composed torch operations, which a compiler fuses into the
neighbouring layers, and one autograd function for eager mode, which keeps one byte an element for the backward
pass instead of several floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qexp.ops.codes import Codes, uniform_codebook
from qexp.ops.rounding import ste


def clip(x: Tensor, level: Tensor, signed: bool = False) -> Tensor:
    """Return clip(x, 0, level), or clip(x, -level, level) if `signed`; `level` broadcasts against x.

    The gradient of x is 1 for 0 <= x < level (|x| < level), else 0; that of the level is 1 where x >= level
    (and -1 where x <= -level). Source: PACT equations 1 and 3; the signed form is ours.
    """
    value = torch.maximum(torch.minimum(x, level), -level) if signed else torch.minimum(x.clamp(min=0), level)
    if not torch.is_grad_enabled():
        return value
    # The gradient comes from relu's own backward pass, which compares again instead of keeping a mask: a
    # compiler stores such masks slowly. The value comes from a plain clip, because a - (a - x) is not exactly x.
    finite = x.clamp(min=torch.finfo(x.dtype).min, max=torch.finfo(x.dtype).max)
    if signed:
        gradient = F.relu(finite + level) - F.relu(level - finite) - finite
    else:
        # Not clamp(min=0) alone: its gradient at exactly 0 is 1 or 0, by torch's version. This one is 1.
        gradient = level - F.relu(level - (finite + F.relu(-finite)))
    return value.detach() + (gradient - gradient.detach())


def clip_round(
    x: Tensor,
    level: Tensor,
    steps: int | None,
    rounding: Callable[[Tensor], Tensor] = ste,
    signed: bool = False,
) -> Tensor:
    """Clip `x` and round it to multiples of level / steps.

    Computed in float32, returned in x's dtype. The level takes no part in the gradient of the rounding (PACT
    equation 3: no residual inside the range, 1 for each element beyond it), whatever the rounding; x's gradient
    inside the range is the rounding's.

    Args:
        x: any shape.
        level: clip level, broadcasts against x.
        steps: grid steps between 0 and the level; None clips without rounding.
        rounding: real to integer.
        signed: the range is [-level, level] instead of [0, level].
    """
    if rounding is ste and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _EagerClipRound.apply(x, level, steps, signed)
    value, fixed = x.float(), level.detach()
    if steps is None:
        return clip(value, level, signed).to(x.dtype)
    if rounding is ste or not (torch.is_grad_enabled() and level.requires_grad):
        return (rounding(clip(value, level, signed) * (steps / fixed)) * (fixed / steps)).to(x.dtype)
    y = rounding(clip(value, fixed, signed) * (steps / fixed)) * (fixed / steps)
    # Through a soft rounding the level would get the slope of the staircase's end in place of 1.
    ends = clip(value.detach(), level, signed)
    return (y + (ends - ends.detach())).to(x.dtype)  # an exact zero that carries the level's gradient


def clip_codes(x: Tensor, level: Tensor, steps: int, signed: bool = False) -> Codes:
    """Return the integers behind `clip_round(x, level, steps)`, from 0 (the lowest level) up."""
    level = level.detach()
    lowest = -steps if signed else 0
    clipped = clip(x.detach().float(), level, signed)
    integers = torch.round(clipped * (steps / level)) - lowest
    return Codes(integers.int(), uniform_codebook(lowest, steps, level / steps))


def clipped_share(x: Tensor, level: Tensor, signed: bool = False) -> Tensor:
    """Return the share (0 to 1) of elements at or beyond the clip level."""
    return ((x.abs() if signed else x) >= level).float().mean()


class _EagerClipRound(torch.autograd.Function):
    """`clip_round` with the straight-through estimator, in few passes; one byte an element is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, level: Tensor, steps: int | None, signed: bool) -> Tensor:
        value = x.float()
        # From 0 to a level that is not above 0 nothing is inside: all of x counts as above, as its value says.
        end = level if signed else F.threshold(level, 0.0, -math.inf)
        start = -level if signed else end.clamp(max=0)
        # 0 below the range, 1 inside, 2 above. Comparisons that write floats are three times as fast as those
        # that write booleans, here and in the products of the backward pass.
        region = torch.ge(value, end, out=torch.empty_like(value))
        region += (torch.gt if signed else torch.ge)(value, start, out=torch.empty_like(value))
        ctx.save_for_backward(region.to(torch.uint8))
        ctx.level_shape, ctx.signed = level.shape, signed
        y = torch.maximum(value, -level) if signed else value.clamp(min=0)
        y = torch.minimum(y, level, out=y)
        if steps is not None:
            y = y.mul_(steps / level).round_().mul_(level / steps)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (region,) = ctx.saved_tensors
        side = region.to(grad.dtype).sub_(1)  # -1 below, 0 inside, 1 above
        grad_x = torch.addcmul(grad, grad * side, side, value=-1) if ctx.needs_input_grad[0] else None
        grad_level = None
        if ctx.needs_input_grad[1]:
            clipped = grad.float() * (side if ctx.signed else side.clamp_(min=0))
            grad_level = clipped.sum_to_size(ctx.level_shape) if ctx.level_shape else clipped.sum()
        return grad_x, grad_level, None, None
