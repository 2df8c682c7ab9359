"""Quantized gradients: the identity forward, fewer bits backward, so that its products are of small integers too.

Which quantizer the QNN paper (arXiv 1609.07061) used for its 6-bit gradients is not known here. Both forms below
are this project's choice: DoReFa's (Zhou et al. 2016, arXiv 1606.06160, and its authors' code), and powers of two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qexp.ops.powers import power_below


def dorefa_gradient(gradient: Tensor, bits: int, noise: Tensor) -> Tensor:
    """Return 2 m (q(g / (2 m) + 1/2 + noise / n) - 1/2), m = max |g| of each sample, q to n = 2^bits - 1 steps.

    Noise, uniform in [-1/2, 1/2], makes the result unbiased inside the range; a sample of zeros stays zeros.

    Args:
        gradient: (N, ...).
        bits: 2 to 8.
        noise: as `gradient`.

    Returns:
        Float32, as `gradient`.
    """
    steps = 2**bits - 1
    gradient = gradient.float()
    largest = _largest(gradient)
    unit = gradient / (2 * torch.where(largest > 0, largest, 1.0)) + 0.5
    rounded = torch.round(unit * steps + noise).clamp(0, steps)
    return 2 * largest * (rounded / steps - 0.5)


def log_gradient(gradient: Tensor, bits: int, noise: Tensor) -> Tensor:
    """Return sign(g) 2^e or 0, unbiased: one bit of sign, the others for 2^(bits-1) - 1 exponents and zero.

    The largest power is the first one that is not below max |g| of the sample (6 bits: 31 powers, down to 2^-30 of
    it). A magnitude between two powers, or between zero and the smallest, goes up with the probability that keeps
    its mean.

    Args:
        gradient: (N, ...).
        bits: 2 to 8.
        noise: as `gradient`, uniform in [-1/2, 1/2].

    Returns:
        Float32, as `gradient`.
    """
    gradient = gradient.float()
    largest = _largest(gradient)
    below = power_below(largest)
    top = torch.where(below < largest, 2 * below, below)
    magnitude = gradient.abs() / torch.where(top > 0, top, 1.0)  # a quotient by a power of two is exact
    smallest = 2.0 ** (2 - 2 ** (bits - 1))
    tiny = magnitude < smallest
    low = torch.where(tiny, 0.0, power_below(magnitude))
    gap = torch.where(tiny, smallest, low)
    up = (noise + 0.5) * gap < magnitude - low
    return torch.sign(gradient) * top * torch.where(up, low + gap, low)


def _largest(gradient: Tensor) -> Tensor:
    return gradient.abs().amax(dim=tuple(range(1, gradient.dim())), keepdim=True)


class QuantizedGradient(torch.autograd.Function):
    """Returns its input; the gradient that comes back is quantized, with noise from torch's global generator."""

    @staticmethod
    def forward(x: Tensor, bits: int, logarithmic: bool) -> Tensor:
        """Return a copy of `x`: into a view, what follows (an in-place ReLU, a residual sum) could not write."""
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the settings; no tensor is needed."""
        _, ctx.bits, ctx.logarithmic = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the quantized gradient in its own dtype."""
        noise = torch.rand_like(gradient, dtype=torch.float32) - 0.5
        quantize = log_gradient if ctx.logarithmic else dorefa_gradient
        return quantize(gradient, ctx.bits, noise).to(gradient.dtype), None, None
