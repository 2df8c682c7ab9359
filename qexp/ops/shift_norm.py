"""Shift-based batch normalization: every product of batch norm is a shift by a power of two.

Courbariaux et al. 2016, arXiv 1602.02830, algorithm 3, with the learned shift that its last line leaves out; the
backward pass is that of the authors' Torch code: batch norm's, with powers of two in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qexp.ops.powers import ap2


class ShiftNormalize(torch.autograd.Function):
    """AP2(gain) (C AP2(1 / sqrt(var + eps))) + shift, C = x - mean, var = mean(C AP2(C)), by channel.

    Takes x (N, channels), gain and shift (channels,), and eps; returns the result, the mean and the variance, the
    last two without gradient.
    """

    @staticmethod
    def forward(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return (N, channels), (channels,), (channels,)."""
        mean = x.mean(0)
        centred = x - mean
        variance = (centred * ap2(centred)).mean(0)
        return ap2(gain) * (centred * ap2((variance + eps).rsqrt())) + shift, mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the input and the statistics."""
        x, gain, _, eps = inputs
        _, mean, variance = output
        ctx.save_for_backward(x, gain, mean, (variance + eps).rsqrt())
        ctx.mark_non_differentiable(mean, variance)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, gain and shift."""
        x, gain, mean, inverse = ctx.saved_tensors
        centred, inverse = x - mean, ap2(inverse)
        power = ap2(centred)
        inner = gradient * ap2(gain)
        through_variance = power * inverse.square() * (inner * power).mean(0)
        back = inverse * (inner - inner.mean(0) - through_variance)
        return back, (gradient * ap2(centred * inverse)).sum(0), gradient.sum(0), None


def shift_normalize(x: Tensor, gain: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """Return AP2(gain) ((x - mean) AP2(inverse)) + shift: the same with statistics that are given.

    Args:
        x: (N, channels).
        gain, shift, mean: (channels,).
        inverse: of the standard deviation, (channels,).
    """
    return ap2(gain) * ((x - mean) * ap2(inverse)) + shift
