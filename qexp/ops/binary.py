"""Signs with a gradient: deterministic and stochastic binarization, and the straight-through estimator's window.

Courbariaux et al. 2016, "Binarized Neural Networks", arXiv 1602.02830, equations 1 to 5; Hubara et al., "Quantized
Neural Networks", arXiv 1609.07061, has the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sign(x: Tensor) -> Tensor:
    """Return +1 where x >= 0, else -1, in x's dtype; never 0, unlike `torch.sign` (equation 1).

    >>> sign(torch.tensor([-0.5, -0.0, 0.0, 2.0])).tolist()
    [-1.0, 1.0, 1.0, 1.0]
    """
    return torch.sign(x).add_(0.5).sign_()  # ten times as fast as `where` between two numbers, uncompiled


def stochastic_sign(x: Tensor) -> Tensor:
    """Return +1 with probability clip((x + 1) / 2, 0, 1), else -1: its mean is clip(x, -1, 1) (equations 2 and 3).

    Draws one float32 number an element from torch's global generator.
    """
    probability = ((x.float() + 1) / 2).clamp(0, 1)
    return torch.where(torch.rand_like(probability) < probability, 1.0, -1.0).to(x.dtype)


def windowed(value: Tensor, x: Tensor, window: float | None = 1.0) -> Tensor:
    """Return `value`, exactly; its gradient goes to x where |x| <= window, both ends included (equations 4 and 5).

    Args:
        value: what stands in the forward pass.
        x: where the gradient goes, in value's shape.
        window: half-width; None lets every gradient pass.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        finite = x.clamp(-1.0, 1.0)
        return value + (finite - finite)  # as below: what is no number (NaN) stays none
    passing = inside(x, window)
    return value.detach() + (passing - passing.detach())


def inside(x: Tensor, window: float | None = 1.0) -> Tensor:
    """Return x clipped to the window, up to rounding; the gradient is 1 at both ends, else as a clip's.

    (clamp's own gradient at its ends depends on torch's version.)
    """
    largest = torch.finfo(x.dtype).max
    finite = x.clamp(-largest, largest)  # infinity less infinity would leave no number behind
    if window is None:
        return finite
    return finite - F.relu(finite - window) + F.relu(-finite - window)
