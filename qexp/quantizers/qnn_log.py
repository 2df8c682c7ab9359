"""LogQuant: weights and activations are powers of two, so that a product is a shift.

Hubara et al., "Quantized Neural Networks", arXiv 1609.07061: LogQuant(x) = Clip(AP2(x), minV, maxV). The range is
ours: a sign and bits - 1 bits of exponent, magnitudes from 2^-(2^(bits-1) - 1) to 1; there is no zero.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qexp.ops.binary import sign, windowed
from qexp.ops.codes import Codes
from qexp.ops.powers import ap2
from qexp.quantizers.base import Quantizer
from qexp.quantizers.bounded import BoundedWeight

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 32)
"""Eight bits would reach below the smallest normal float32."""


def log_quant(x: Tensor, bits: int) -> Tensor:
    """Return the nearest of the 2^bits powers of two, by exponent; 0 becomes the smallest positive one.

    >>> log_quant(torch.tensor([-3.0, 0.0, 0.2, 0.8]), bits=3).tolist()
    [-1.0, 0.125, 0.25, 1.0]
    """
    smallest = 2.0 ** (1 - 2 ** (bits - 1))
    return (sign(x) * ap2(x.abs()).clamp(smallest, 1.0)).to(x.dtype)


def log_codes(x: Tensor, bits: int) -> Codes:
    """Return which of the 2^bits powers each element becomes, from 0 (for -1) up to 2^bits - 1 (for +1)."""
    count = 2 ** (bits - 1)
    exponents = torch.arange(count, dtype=torch.float32, device=x.device)
    magnitudes = torch.exp2(-exponents)
    codebook = torch.cat([-magnitudes, magnitudes.flip(0)])
    return Codes(torch.searchsorted(codebook, log_quant(x.detach().float(), bits).contiguous()).int(), codebook)


class LogWeight(BoundedWeight):
    """Weights by LogQuant; their gradient passes whole, and clipping them is its window."""

    supported_bits: ClassVar[tuple[int, ...]] = WIDTHS
    rounds = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the powers of two."""
        return x if self.bits == 32 else windowed(log_quant(x, self.bits), x, None)

    def codes(self, x: Tensor) -> Codes:
        """Return which power each weight becomes."""
        self.require_grid()
        return log_codes(x, self.bits)


class LogActivation(Quantizer):
    """Activations by LogQuant behind a hard tanh: the gradient passes where |x| <= 1."""

    supported_bits: ClassVar[tuple[int, ...]] = WIDTHS
    rounds = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the powers of two."""
        return x if self.bits == 32 else windowed(log_quant(x, self.bits), x)

    def codes(self, x: Tensor) -> Codes:
        """Return which power each activation becomes."""
        self.require_grid()
        return log_codes(x, self.bits)

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of elements whose gradient is cancelled."""
        return (x.abs() > 1).float().mean()
