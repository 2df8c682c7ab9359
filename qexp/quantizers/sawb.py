"""SAWB, statistics-aware weight binning: a clip level from two moments of the weights, then equal bins.

Choi et al. 2018, "Bridging the Accuracy Gap for 2-bit Quantized Neural Networks", arXiv 1807.06964, equation 7;
the widths that it has no coefficients for are the authors' code's or ours, as `COEFFICIENTS` says.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding

COEFFICIENTS = {
    2: (3.2, -2.1),  # equation 7
    3: (7.509, -6.892),  # 3, 4, 5 and 8 bits: the authors' code (IBM's fms-model-optimizer, `sawb_params`)
    4: (12.68, -12.80),
    5: (17.74, -18.64),
    6: (24.01, -25.95),  # 6 and 7 bits: ours, by the same regression; tests/quantizers/test_sawb.py repeats it
    7: (29.89, -32.86),
    8: (31.76, -35.04),
}
"""(c1, c2) of a = c1 sqrt(E w^2) + c2 E|w| by bits.

A line through six distributions (Gauss, uniform, Laplace, logistic, triangle, von Mises) of the scale that
minimizes the squared error. The paper prints the second term with a minus and c2 as negative; one of the two
is a misprint, for both together put the level of Gaussian weights at 4.9 deviations, where the optimum is 1.5.
For Gaussian weights every width is within 4% of the optimum; for uniform ones the line is a poor guide from 6
bits on.
"""


def sawb_level(weight: Tensor, bits: int) -> Tensor:
    """Return the clip level a, a scalar without gradient: it is taken anew from the weights at every step.

    It is never below E|w| (ours): the line was fitted to spread-out weights, and turns negative for those that
    are nearly alike in magnitude, where E|w| itself is the optimum. All-zero weights get 1.

    >>> round(sawb_level(torch.tensor([-1.5, -0.5, 0.5, 1.5]), bits=2).item(), 4)
    1.4777
    """
    w = weight.detach().float()
    magnitude = w.abs().mean()
    c1, c2 = COEFFICIENTS[bits]
    level = torch.maximum(c1 * w.square().mean().sqrt() + c2 * magnitude, magnitude)
    return torch.where(level < torch.finfo(torch.float32).tiny, 1.0, level)


def sawb(weight: Tensor, bits: int, rounding: Rounding = ste) -> Tensor:
    """Quantize a layer's weights to 2^bits levels from -a to a, equally spaced, none of them zero.

    The gradient is 1 where |w| <= a, else 0, as in the authors' code.

    >>> sawb(torch.tensor([-1.5, -0.5, 0.5, 1.5]), bits=2).div(1.4777).mul(3).round().tolist()
    [-3.0, -1.0, 1.0, 3.0]
    """
    if bits == 32:
        return weight
    level, steps = sawb_level(weight, bits), 2**bits - 1
    return ((2 * rounding(_bins(weight, level, steps)) - steps) * (level / steps)).to(weight.dtype)


def _bins(weight: Tensor, level: Tensor, steps: int) -> Tensor:
    """Map [-level, level] to [0, steps]; what lies outside goes to the ends, without gradient."""
    w = weight.float()
    # Not ops.clip, whose gradient at the very end is zero: weights of one magnitude all lie there.
    clipped = torch.where(w.abs() <= level, w, w.detach().sign() * level)
    return (clipped / level + 1) * (steps / 2)


class SAWB(Quantizer):
    """The weight quantizer of PACT-SAWB. One clip level per layer, from its statistics; nothing is learned."""

    supported_bits: ClassVar[tuple[int, ...]] = (*COEFFICIENTS, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized weights."""
        return sawb(x, self.bits, self.rounding)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the 2^bits levels each weight takes."""
        steps = 2 ** self.require_grid() - 1
        level = sawb_level(x, self.bits)
        odd = torch.arange(-steps, steps + 1, 2, dtype=torch.float32, device=x.device)
        return Codes(torch.round(_bins(x.detach(), level, steps)).int(), odd * (level / steps))
