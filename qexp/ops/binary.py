"""Signs with a gradient: deterministic and stochastic binarization, and the straight-through estimator's window.

Courbariaux et al. 2016, "Binarized Neural Networks", arXiv 1602.02830, equations 1 to 5; Hubara et al., "Quantized
Neural Networks", arXiv 1609.07061, has the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qexp.ops.steps import within


def sign(x: Tensor) -> Tensor:
    """Return +1 where x >= 0, else -1, in x's dtype; never 0, unlike `torch.sign` (equation 1).

    It has no gradient, and is +1 where x is NaN.

    >>> sign(torch.tensor([-0.5, -0.0, 0.0, 2.0])).tolist()
    [-1.0, 1.0, 1.0, 1.0]
    """
    return torch.sign(x.detach()).add_(0.5).sign_()  # ten times as fast as `where` between two numbers, uncompiled


def stochastic_sign(x: Tensor) -> Tensor:
    """Return +1 with probability clip((x + 1) / 2, 0, 1), else -1: its mean is clip(x, -1, 1) (equations 2 and 3).

    Draws one float32 number an element from torch's global generator.
    """
    probability = ((x.detach().float() + 1) / 2).clamp_(0, 1)
    above = torch.sign(probability.sub_(torch.rand_like(probability)))  # 0 where the two are equal
    return above.sub_(0.5).sign_().to(x.dtype)


def windowed(value: Tensor, x: Tensor, window: float | None = 1.0) -> Tensor:
    """Return `value`, exactly; its gradient goes to x where |x| <= window, both ends included (equations 4 and 5).

    Args:
        value: what stands in the forward pass; NaN stands where x is NaN.
        x: where the gradient goes, in value's shape and dtype.
        window: half-width; None and infinity let the gradient of every finite x pass.
    """
    if torch.compiler.is_compiling():  # a compiler stores the masks of the function below, slowly
        passing = inside(x, window)
        return value.detach() + (passing - passing.detach())
    end = None if window is None or math.isinf(window) else _above(window, x.dtype)
    made: Tensor = _Windowed.apply(value.detach(), x, end)
    return made


class _Windowed(torch.autograd.Function):
    """`windowed` in few passes: the second operand gets the gradient, between -end and end or everywhere."""

    @staticmethod
    def forward(value: Tensor, x: Tensor, end: float | None) -> Tensor:
        finite = x.clamp(-1.0, 1.0)
        return finite.sub_(finite).add_(value)  # in place: two tensors less in memory

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, ctx.end = inputs
        ctx.save_for_backward(*([] if ctx.end is None else [x]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        if ctx.end is None:
            return None, gradient, None
        (x,) = ctx.saved_tensors
        return None, within(gradient, x, -ctx.end, ctx.end), None


def _above(window: float, dtype: torch.dtype) -> float:
    """Return the next number above `window`: in float64, or in float32, in which narrower ones are compared."""
    wide = torch.promote_types(dtype, torch.float32)
    low, high = torch.tensor([window, math.inf], dtype=wide, device="cpu")
    return torch.nextafter(low, high).item()


def inside(x: Tensor, window: float | None = 1.0) -> Tensor:
    """Return x clipped to the window, up to rounding; the gradient is 1 at both ends, else as a clip's.

    (clamp's own gradient at its ends depends on torch's version.)
    """
    largest = torch.finfo(x.dtype).max
    finite = x.clamp(-largest, largest)  # infinity less infinity would leave no number behind
    if window is None:
        return finite
    return finite - F.relu(finite - window) + F.relu(-finite - window)
