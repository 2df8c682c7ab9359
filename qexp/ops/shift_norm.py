"""Shift-based batch normalization: every product of batch norm is a shift by a power of two.

Courbariaux et al. 2016, arXiv 1602.02830, algorithm 3, with the learned shift that its last line leaves out; the
backward pass is that of the authors' Torch code: batch norm's, with powers of two in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qexp.ops.powers import ap2, ap2_without_nan


class ShiftNormalize(torch.autograd.Function):
    """AP2(gain) (C AP2(1 / sqrt(var + eps))) + shift, C = x - mean, var = mean(C AP2(C)), by channel.

    Takes x (N, channels, ...), gain and shift (channels,), and eps; returns the result, the mean and the variance,
    the last two (channels,) and without gradient. Factors that are powers of two stand wherever they are cheapest:
    no product with them rounds.
    """

    @staticmethod
    def forward(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return (N, channels, ...), (channels,), (channels,)."""
        mean = x.mean(_places(x))
        centred = x - _by_channel(mean, x)
        variance = ap2_without_nan(centred).mul_(centred).mean(_places(x))
        return _scaled(centred, gain, shift, (variance + eps).rsqrt()), mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the input and the statistics."""
        x, gain, _, eps = inputs
        _, mean, variance = output
        ctx.save_for_backward(x, gain, mean, (variance + eps).rsqrt())
        ctx.mark_non_differentiable(mean, variance)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, gain and shift.

        AP2(C AP2(1 / std)), by which the gain's is summed, is AP2(C) AP2(1 / std); where x is NaN, so is 1 / std.
        """
        x, gain, mean, inverse = ctx.saved_tensors
        inverse, places, count = ap2(inverse), _places(x), x.numel() // len(gain)
        power = ap2_without_nan(x - _by_channel(mean, x))
        total, with_power = gradient.sum(places), (gradient * power).sum(places)
        back = gradient - _by_channel(total / count, x)
        back.addcmul_(power, _by_channel(inverse.square() * (with_power / count), x), value=-1)
        back.mul_(_by_channel(ap2(gain) * inverse, x))
        return back, with_power * inverse, total, None


def shift_normalize(x: Tensor, gain: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """Return AP2(gain) ((x - mean) AP2(inverse)) + shift: the same with statistics that are given.

    Args:
        x: (N, channels, ...).
        gain, shift, mean: (channels,).
        inverse: of the standard deviation, (channels,).
    """
    return _scaled(x - _by_channel(mean, x), gain, shift, inverse)


def _scaled(centred: Tensor, gain: Tensor, shift: Tensor, inverse: Tensor) -> Tensor:
    factor = ap2(gain) * ap2(inverse)
    return torch.addcmul(_by_channel(shift, centred), centred, _by_channel(factor, centred))


def _places(x: Tensor) -> list[int]:
    """All axes but the channels'."""
    return [axis for axis in range(x.dim()) if axis != 1]


def _by_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.view(-1, *[1] * (x.dim() - 2))
