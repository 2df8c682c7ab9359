"""Powers of two: AP2, the nearest one by its exponent, which turns a product into a shift."""

from __future__ import annotations

import torch
from torch import Tensor

_EXPONENT_AND_SIGN = -0x00800000  # 0xFF800000 as a signed number
_TO_NEXT = 0x00800000 - 0x003504F4
"""What carries a mantissa of at least sqrt(2) into the exponent: 0x3504F4 is the first one that is."""


def ap2(x: Tensor) -> Tensor:
    """Return sign(x) 2^round(log2 |x|) in float32, exactly; 0 for 0, infinity for what no float32 can hold.

    A mantissa below sqrt(2) goes down, others up; no float32 lies between the two. Of magnitudes under 2^-126
    those below (sqrt(2) - 1) 2^-126 become 0, the others 2^-126. Nothing is differentiated. Source: algorithm 3
    of arXiv 1602.02830 (whose footnote, the index of the highest bit, would be the floor).

    >>> ap2(torch.tensor([3.0, 2.8, -0.75, 0.0])).tolist()
    [4.0, 2.0, -1.0, 0.0]
    """
    x = x.detach().float()
    return torch.where(x.isnan(), x, ap2_without_nan(x))


def ap2_without_nan(x: Tensor) -> Tensor:
    """Return `ap2(x)` of a float32 x in a third of its time; NaN becomes a zero or an infinity.

    For what is multiplied by its own source, which brings NaN back.
    """
    return (x.detach().view(torch.int32) + _TO_NEXT).bitwise_and_(_EXPONENT_AND_SIGN).view(torch.float32)


def ap2_without_nan_(x: Tensor) -> Tensor:
    """Likewise, in place."""
    x.view(torch.int32).add_(_TO_NEXT).bitwise_and_(_EXPONENT_AND_SIGN)
    return x


def power_below(x: Tensor) -> Tensor:
    """Return the largest power of two that is not above |x|, in float32, exactly; 0 below 2^-126.

    >>> power_below(torch.tensor([3.99, -4.0, 0.0])).tolist()
    [2.0, 4.0, 0.0]
    """
    return (x.detach().float().view(torch.int32) & 0x7F800000).view(torch.float32)
