"""WRPN, wide reduced-precision networks: weights clipped to [-1, 1] on a signed grid, one bit of it the sign.

Mishra et al. 2017, "WRPN: Wide Reduced-Precision Networks", arXiv 1709.01134; the formula is written as public
reimplementations have it, so no equation number is given. Its activations are DoReFa's.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qexp.ops.clip import clip_codes, clip_round, clipped_share
from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding, Site


def wrpn_weight(weight: Tensor, bits: int, rounding: Rounding = ste) -> Tensor:
    """Clip weights to [-1, 1] and round them to 2^bits - 1 levels, zero among them.

    w_q = round(n w) / n with n = 2^(bits-1) - 1; the gradient is 1 where |w| < 1, else 0. The grid does not follow
    the weights: at 2 bits those below 1/2 in magnitude are zero.

    >>> wrpn_weight(torch.tensor([-3.0, -0.4, 0.4, 0.6]), bits=3).mul(3).round().tolist()
    [-3.0, -1.0, 1.0, 2.0]
    """
    if bits == 32:
        return weight
    return clip_round(weight, weight.new_ones((), dtype=torch.float32), _steps(bits), rounding, signed=True)


def _steps(bits: int) -> int:
    return 2 ** (bits - 1) - 1


class WRPNWeight(Quantizer):
    """The weight quantizer of WRPN: the same grid for every layer, nothing learned.

    One bit is not offered: with the sign taken out, the formula has no level left beside zero.
    """

    supported_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 32)
    fixed_grid = True
    level: Tensor

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste) -> None:
        super().__init__(bits, site, rounding)
        self.register_buffer("level", torch.tensor(1.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized weights."""
        return wrpn_weight(x, self.bits, self.rounding)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the 2^bits - 1 levels each weight takes."""
        return clip_codes(x, self.level, _steps(self.require_grid()), signed=True)

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of weights at or beyond 1 in magnitude."""
        return clipped_share(x, self.level, signed=True)
