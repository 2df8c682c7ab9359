"""The plain ReLU, quantized: unbounded, so its grid has to reach up to the largest activation there is.

Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks", arXiv 1805.06085v2,
figure 1, which shows that it does not train; how the paper finds the range is not said, so what follows is ours.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.clip import clip_codes, clip_round, clipped_share
from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.quantizers.base import Description, Quantizer, Rounding, Site, clip_steps

SMALLEST = 2.0**-118
"""Of a range: 255 steps in a smaller one overflow float32."""


def largest_value(x: Tensor, signed: bool = False) -> Tensor:
    """Return the maximum of `x` (of |x| if `signed`) as a float32 scalar; 1 where there is nothing above zero.

    Its gradient reaches the maximum itself, so that a clip at this level passes every element's gradient on.

    >>> (
    ...     largest_value(torch.tensor([-3.0, 2.0])).item(),
    ...     largest_value(torch.tensor([-3.0, 2.0]), signed=True).item(),
    ... )
    (2.0, 3.0)
    """
    largest = (x.abs() if signed else x).amax().float()
    return torch.where(largest < SMALLEST, 1.0, largest)


class QuantizedReLU(Quantizer):
    """Rounds a ReLU's output on a grid from 0 to its maximum (signed sites: from minus to plus the largest |x|).

    In training the maximum is the batch's, so nothing is clipped. In evaluation it is a running one, or results
    would depend on how samples are batched: the first batch's, then moved towards each further one by `momentum`,
    as batch norm moves its statistics; what lies above it is clipped. Several processes each take their own share
    of the batch. At 32 bits it is the plain ReLU.

    Args:
        momentum: share of the newest batch in the running maximum, above 0, at most 1.

    Raises:
        ConfigError: momentum out of range; a signed site at 1 bit.
    """

    running_maximum: Tensor
    """0 until a batch was seen in training; till then evaluation takes its own batch's."""

    soft_version: ClassVar[int] = 2  # since the maximum's gradient is 1, not the slope of a soft rounding's end
    acts_at_32: ClassVar[bool] = False

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste, *, momentum: float = 0.1) -> None:
        super().__init__(bits, site, rounding)
        if isinstance(momentum, (bool, str)) or not 0 < momentum <= 1:
            raise ConfigError(
                f"momentum={momentum} does not fit: a share above 0 and at most 1 (batch norm's 0.1)."
            )
        self.momentum = momentum
        self.steps = clip_steps(bits, site)
        self.register_buffer("running_maximum", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded values, in x's dtype; in training the running maximum moves."""
        if self.steps is None:
            return x if self.site.signed else x.relu()
        level = self._level(x)
        if self.training:
            self._remember(level.detach())
        return clip_round(x, level, self.steps, self.rounding, self.site.signed)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the levels each element takes."""
        return clip_codes(x, self._level(x), self.require_steps(self.steps), self.site.signed)

    @torch.no_grad()
    def describe(self, x: Tensor | None = None) -> Description:
        """Add the share of elements at or beyond the maximum."""
        description = super().describe(x)
        if x is not None:
            description.shares["clipped"] = clipped_share(x, self._level(x), self.site.signed)
        return description

    def _level(self, x: Tensor) -> Tensor:
        largest = largest_value(x, self.site.signed)
        if self.training:
            return largest
        return torch.where(self.running_maximum > 0, self.running_maximum, largest)  # no value leaves the device

    @torch.no_grad()
    def _remember(self, largest: Tensor) -> None:
        moved = self.running_maximum.lerp(largest, self.momentum)
        self.running_maximum.copy_(torch.where(self.running_maximum > 0, moved, largest))
