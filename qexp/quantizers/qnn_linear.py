"""LinearQuant: weights and activations on a fixed uniform grid in [-1, 1), a power of two apart.

Hubara et al., "Quantized Neural Networks", arXiv 1609.07061: LinearQuant(x) = Clip(round(x / step) step, minV,
maxV). What the three are is ours, as in RedBit, an independent reading: step = 2^-(bits-1), from -1 to 1 - step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.ops.binary import sign, windowed
from qexp.ops.codes import Codes, uniform_codebook
from qexp.ops.rounding import ste
from qexp.quantizers.base import Description, Quantizer, Rounding
from qexp.quantizers.bounded import BoundedWeight
from qexp.quantizers.qnn_binary import sign_codes


def linear_quant(x: Tensor, bits: int, rounding: Rounding = ste, window: float | None = 1.0) -> Tensor:
    """Round `x` to the 2^bits multiples of 2^-(bits-1) from -1 up; one bit is the sign, +1 for 0.

    The gradient passes where |x| <= window, at the upper end too, where the grid stops short of 1.

    >>> linear_quant(torch.tensor([-3.0, 0.2, 0.3, 1.0]), bits=2).tolist()
    [-1.0, 0.0, 0.5, 0.5]
    """
    if bits == 1:
        return windowed(sign(x), x, window)
    half = 2 ** (bits - 1)
    # Clipped before it is multiplied, so that no finite value overflows; by the window's gradient, not the clip's.
    inside = windowed(x.float().clamp(-1.0, 1.0), x.float(), window)
    integers = rounding(inside * half)
    return ((integers - (integers - (half - 1)).clamp(min=0).detach()) / half).to(x.dtype)


def linear_codes(x: Tensor, bits: int) -> Codes:
    """Return which of the 2^bits levels each element takes, from 0 (for -1) up."""
    if bits == 1:
        return sign_codes(x)
    half = 2 ** (bits - 1)
    integers = torch.round(x.detach().float().clamp(-1.0, 1.0) * half).clamp(max=half - 1)
    step = torch.tensor(1.0 / half, device=x.device)
    return Codes((integers + half).int(), uniform_codebook(-half, half - 1, step))


class LinearWeight(BoundedWeight):
    """Weights by LinearQuant; their gradient passes whole, and clipping them is its window."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded weights."""
        return x if self.bits == 32 else linear_quant(x, self.bits, self.rounding, window=None)

    def codes(self, x: Tensor) -> Codes:
        """Return which level each weight takes."""
        self.require_steps(None if self.bits == 32 else 1)
        return linear_codes(x, self.bits)


class LinearActivation(Quantizer):
    """Activations by LinearQuant behind a hard tanh: the gradient passes where |x| <= 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded activations."""
        return x if self.bits == 32 else linear_quant(x, self.bits, self.rounding)

    def codes(self, x: Tensor) -> Codes:
        """Return which level each activation takes."""
        self.require_steps(None if self.bits == 32 else 1)
        return linear_codes(x, self.bits)

    @torch.no_grad()
    def describe(self, x: Tensor | None = None) -> Description:
        """Add the share of elements whose gradient is cancelled."""
        description = super().describe(x)
        if x is not None:
            description.shares["clipped"] = (x.abs() > 1).float().mean()
        return description
