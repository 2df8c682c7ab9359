"""Rounding to integers with a gradient: what a quantizer's `rounding` argument may be."""

from __future__ import annotations

import torch
from torch import Tensor


def ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if nothing had been done (straight-through).

    The forward value is exactly `torch.round(x)` in every dtype: the difference to the nearest integer is a
    multiple of x's last place no larger than 1/2, so both additions are exact.

    Source: PACT (arXiv 1805.06085) equation 3.

    >>> x = torch.tensor([0.5, 1.5, -0.7], requires_grad=True)
    >>> y = ste(x)
    >>> y.tolist()
    [0.0, 2.0, -1.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [1.0, 1.0, 1.0]
    """
    if not torch.is_grad_enabled():
        return torch.round(x)  # the same values in one pass over memory instead of three
    return x + (torch.round(x) - x).detach()
