"""Rounding to multiples of a step that is learned: the grid, its gradients, and how they are scaled.

Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153v3; the formulas as a public review of that
version prints them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qexp.ops.codes import Codes, uniform_codebook
from qexp.ops.rounding import ste


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """Return the lowest and the highest integer: -2^(bits-1) to 2^(bits-1) - 1, or 0 to 2^bits - 1.

    >>> limits(3, signed=True), limits(3, signed=False)
    ((-4, 3), (0, 7))
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def step_gradient(
    step: Tensor, scale: float, *, simulated: Tensor | None = None, mixed_in: float | None = None
) -> Tensor:
    """Return `step`, bit for bit; its gradient is the one that comes back times `scale`, or a simulated one.

    Args:
        step: any shape.
        scale: LSQ's 1 / sqrt(N Q_P), say.
        simulated: a gradient that does not depend on the loss, shaped as `step`.
        mixed_in: None lets `simulated` take the place of the loss's gradient; a number adds that much of it.

    >>> step = torch.tensor(0.1, requires_grad=True)
    >>> (3 * step_gradient(step, 0.5)).backward()
    >>> step.grad.item()
    1.5
    """
    if not torch.is_grad_enabled():
        return step
    kept = 1.0 if simulated is None or mixed_in is not None else 0.0
    added = None if simulated is None else simulated * (1.0 if mixed_in is None else mixed_in)
    return _StepGradient.apply(step, kept * scale, added)


def computed(x: Tensor) -> Tensor:
    """Return `x` as grids compute with it: in float32, float64 as it is.

    >>> [computed(torch.ones((), dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
    [torch.float32, torch.float64]
    """
    return x if x.dtype == torch.float64 else x.float()


def nearest(x: Tensor, step: Tensor | float, lowest: int, highest: int) -> Tensor:
    """Return round(clip(x / step, lowest, highest)), the integers, as `computed` has them; their gradient is 0."""
    return (computed(x) / step).clamp_(lowest, highest).round_()


def round_to_step(
    x: Tensor,
    step: Tensor,
    lowest: int,
    highest: int,
    rounding: Callable[[Tensor], Tensor] = ste,
    *,
    masked: bool = True,
) -> Tensor:
    """Return step * round(clip(x / step, lowest, highest)), in x's dtype, computed in float32 or wider.

    With the straight-through estimator the step's gradient is LSQ's: round(x/s) - x/s inside the range, `lowest`
    or `highest` at its ends and beyond; that of x is 1 inside, else 0. Another rounding's gradient takes
    the place of the straight-through 1 in both, by the chain rule.

    Args:
        x: any shape.
        step: above 0, broadcasts against x.
        lowest, highest: of the integers.
        rounding: real to integer.
        masked: False lets the gradient of x pass outside the range too (LLSQ's weights).
    """
    if not torch.is_grad_enabled():
        return (nearest(x, step, lowest, highest) * step).to(x.dtype)
    if rounding is ste:
        return _StraightThrough.apply(x, step, lowest, highest, masked)
    u = computed(x) / step
    inside = _Clip.apply(u, lowest, highest)
    y = rounding(inside) * step
    if not masked:
        ends = (inside.detach() <= lowest) | (inside.detach() >= highest)  # `_Clip` hands nothing back there
        y = y + (computed(x) - computed(x).detach()) * ends
    return y.to(x.dtype)


def step_codes(x: Tensor, step: Tensor, lowest: int, highest: int) -> Codes:
    """Return the integers behind `round_to_step`, from 0 (for `lowest`) up."""
    step = step.detach()
    integers = nearest(x.detach(), step, lowest, highest) - lowest
    return Codes(integers.int(), uniform_codebook(lowest, highest, step))


def scoped_axes(x: Tensor, step: Tensor) -> tuple[int, ...]:
    """Return the axes of `x` that one value of `step` spans; `step` broadcasts against the last axes of x."""
    leading = x.dim() - step.dim()
    return tuple(axis for axis in range(x.dim()) if axis < leading or step.shape[axis - leading] == 1)


def scoped_mean(x: Tensor, step: Tensor) -> Tensor:
    """Return the mean of `x` over what each value of `step` spans, shaped as `step`."""
    axes = scoped_axes(x, step)
    return (x.mean(axes) if axes else x).reshape(step.shape)


class _StepGradient(torch.autograd.Function):
    """The identity whose gradient is scaled, added to, or replaced."""

    @staticmethod
    def forward(step: Tensor, scale: float, added: Tensor | None) -> Tensor:
        return step.view_as(step)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.scale, added = inputs
        ctx.has_added = added is not None
        ctx.save_for_backward(*([added] if added is not None else []))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.has_added:
            return gradient * ctx.scale, None, None
        (added,) = ctx.saved_tensors
        # A product with 0 would let an infinite gradient through as not-a-number.
        return (gradient * ctx.scale + added if ctx.scale else added.clone()), None, None


class _Clip(torch.autograd.Function):
    """Clips to [lowest, highest] with gradient 1 strictly inside, 0 at the ends: LSQ's `<=` and `>=`."""

    @staticmethod
    def forward(u: Tensor, lowest: int, highest: int) -> Tensor:
        return u.clamp(lowest, highest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, ctx.lowest, ctx.highest = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return within(gradient, u, ctx.lowest, ctx.highest), None, None


def within(gradient: Tensor, u: Tensor, lowest: float, highest: float) -> Tensor:
    """Return `gradient` where u is strictly between the ends, else 0.

    In one pass over memory; masks of booleans, and products with them, are slow.
    """
    found: Tensor = torch.ops.aten.hardtanh_backward(gradient, u, lowest, highest)
    return found


class _StraightThrough(torch.autograd.Function):
    """`round_to_step` with the straight-through estimator; only x, which a ReLU before it keeps too, is saved."""

    @staticmethod
    def forward(x: Tensor, step: Tensor, lowest: int, highest: int, masked: bool) -> Tensor:
        return nearest(x, step, lowest, highest).mul_(step).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, step, ctx.lowest, ctx.highest, ctx.masked = inputs
        ctx.save_for_backward(x, step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, step = ctx.saved_tensors
        u = computed(x) / step
        gradient = gradient.to(u.dtype)
        wanted = within(gradient, u, ctx.lowest, ctx.highest)
        grad_x = (wanted if ctx.masked else gradient).to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_step = None
        if ctx.needs_input_grad[1]:
            integers = u.clamp(ctx.lowest, ctx.highest).round_()
            grad_step = _scoped_product(gradient, integers, step) - _scoped_product(wanted, u, step)
        return grad_x, grad_step, None, None, None


def _scoped_product(one: Tensor, other: Tensor, step: Tensor) -> Tensor:
    """Return the sum of `one` * `other` over what each value of `step` spans, shaped as `step`."""
    if step.numel() > 1 or torch.compiler.is_compiling():
        product = one * other
        return product.sum(scoped_axes(product, step)).reshape(step.shape)
    last = torch.channels_last
    if one.dim() == 4 and one.is_contiguous(memory_format=last) and other.is_contiguous(memory_format=last):
        one, other = one.permute(0, 2, 3, 1), other.permute(0, 2, 3, 1)  # flat without a copy
    return torch.dot(one.reshape(-1), other.reshape(-1)).reshape(step.shape)
