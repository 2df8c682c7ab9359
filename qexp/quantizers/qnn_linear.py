"""LinearQuant: weights and activations on a fixed uniform grid in [-1, 1), a power of two apart.

Hubara et al., "Quantized Neural Networks", arXiv 1609.07061: LinearQuant(x) = Clip(round(x / step) step, minV,
maxV). What the three are is ours, as in RedBit, an independent reading: step = 2^-(bits-1), from -1 to 1 - step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.binary import sign, windowed
from qexp.ops.codes import Codes, uniform_codebook
from qexp.ops.numbers import is_positive
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding, Site
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
    if rounding is ste:  # the values and the gradient of what is below, in a third of the passes over memory
        levels = x.detach().float().clamp(-1.0, 1.0).mul_(half).round_().clamp_(max=half - 1).div_(half)
        return windowed(levels.to(x.dtype), x, window)
    # Clipped before it is multiplied, so that no finite value overflows; by the window's gradient, not the clip's.
    inside = windowed(x.float().clamp(-1.0, 1.0), x.float(), window)
    integers = rounding(inside * half)
    return ((integers - (integers - (half - 1)).clamp(min=0).detach()) / half).to(x.dtype)


def linear_codes(x: Tensor, bits: int, reach: Tensor | None = None) -> Codes:
    """Return which of the 2^bits levels each element takes, from 0 (for -1, or for -`reach`) up."""
    if bits == 1:
        return sign_codes(x)
    half = 2 ** (bits - 1)
    x = x.detach().float() if reach is None else x.detach().float() / reach
    integers = torch.round(x.clamp(-1.0, 1.0) * half).clamp(max=half - 1)
    step = torch.tensor(1.0 / half, device=x.device) if reach is None else reach / half
    return Codes((integers + half).int(), uniform_codebook(-half, half - 1, step))


class LinearWeight(BoundedWeight):
    """Weights by LinearQuant; their gradient passes whole, and clipping them is its window.

    Args:
        reach: None: the grid goes from -1 to 1, which wants a batch norm behind the layer. A number: from
            minus so many times the mean of |w| to a step short of as many, taken anew at every pass and without a
            gradient. The scale is that of He et al. (arXiv 1611.10176) for recurrent networks, whose products
            nothing normalises: 2.5 for the whole range, so 1.25 here. Their levels are symmetric, without a zero,
            and their clip holds back the gradient beyond the range; here it passes whole.

    Raises:
        ConfigError: a reach that is not above 0, or one for a single bit, whose levels are -1 and 1.
    """

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste, *, reach: float | None = None) -> None:
        super().__init__(bits, site, rounding)
        if reach is not None and (not is_positive(reach) or bits == 1):
            raise ConfigError(f"{site.name}: reach={reach}: a number above 0, and for 2 bits or more; or null.")
        self.reach, self.fixed_grid = reach, reach is None
        self.rounds = bits > 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded weights."""
        if self.bits == 32:
            return x
        if (reach := self._reach(x)) is None:
            return linear_quant(x, self.bits, self.rounding, window=None)
        return (linear_quant(x.float() / reach, self.bits, self.rounding, window=None) * reach).to(x.dtype)

    def _reach(self, x: Tensor) -> Tensor | None:
        """The grid's end; a tensor of zeros takes the smallest there is, and stays zeros."""
        if self.reach is None:
            return None
        return (self.reach * x.detach().float().abs().mean()).clamp(min=torch.finfo(torch.float32).tiny)

    def codes(self, x: Tensor) -> Codes:
        """Return which level each weight takes."""
        self.require_grid()
        return linear_codes(x, self.bits, self._reach(x))


class LinearActivation(Quantizer):
    """Activations by LinearQuant behind a hard tanh: the gradient passes where |x| <= 1."""

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste) -> None:
        super().__init__(bits, site, rounding)
        self.rounds = bits > 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded activations."""
        return x if self.bits == 32 else linear_quant(x, self.bits, self.rounding)

    def codes(self, x: Tensor) -> Codes:
        """Return which level each activation takes."""
        self.require_grid()
        return linear_codes(x, self.bits)

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of elements whose gradient is cancelled."""
        return (x.abs() > 1).float().mean()
