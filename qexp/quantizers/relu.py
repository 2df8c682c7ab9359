"""The plain ReLU, quantized: unbounded, so its grid has to reach up to the largest activation there is.

Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks", arXiv 1805.06085v2,
figure 1, which shows that it does not train; how the paper finds the range is not said, so what follows is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.clip import clip_codes, clip_round, clipped_share
from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.ops.uniform import SMALLEST
from qexp.quantizers.base import Quantizer, Rounding, Site, clip_steps, grid_steps


def largest_value(x: Tensor, signed: bool = False) -> Tensor:
    """Return the maximum of `x` (of |x| if `signed`) as a float32 scalar.

    Its gradient reaches the maximum itself, so that a clip at this level passes every element's gradient on; where
    several elements are the maximum, each gets the mean of theirs.

    >>> (
    ...     largest_value(torch.tensor([-3.0, 2.0])).item(),
    ...     largest_value(torch.tensor([-3.0, 2.0]), signed=True).item(),
    ... )
    (2.0, 3.0)
    """
    return (x.abs() if signed else x).amax().float()


class QuantizedReLU(Quantizer):
    """Rounds a ReLU's output on a grid from 0 to its maximum (signed sites: from minus to plus the largest |x|).

    In training the maximum is the batch's, so nothing is clipped. In evaluation it is a running one, or results
    would depend on how samples are batched: the first batch's, then moved towards each further one by `momentum`,
    as batch norm moves its statistics; what lies above it is clipped. Several processes each take their own share
    of the batch. A batch with nothing above zero moves nothing, and the range does not go beyond the end of a
    ReLU6. At 32 bits it is the plain ReLU.

    Args:
        momentum: share of the newest batch in the running maximum, above 0, at most 1.

    Raises:
        ConfigError: momentum out of range; a signed site at 1 bit.
    """

    running_maximum: Tensor
    """0 until a batch was seen in training; till then evaluation takes its own batch's."""

    version: ClassVar[int] = 2  # since the range of a ReLU6 ends where it does
    special_versions: ClassVar[Mapping[str, int]] = {"soft": 2}  # since the maximum has the gradient 1 then

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
        largest = self._largest(x)
        if self.training:
            self._remember(largest.detach())
        return clip_round(x, self._level(largest), self.steps, self.rounding, self.site.signed)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the levels each element takes."""
        level = self._level(self._largest(x))
        return clip_codes(x, level, grid_steps(self.require_grid(), self.site), self.site.signed)

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of elements at or beyond the maximum."""
        return clipped_share(x, self._level(self._largest(x)), self.site.signed)

    def _largest(self, x: Tensor) -> Tensor:
        return largest_value(x, self.site.signed).clamp(max=self.site.end)

    def _level(self, largest: Tensor) -> Tensor:
        """Return the end of the grid for a batch's maximum; 1 where no batch had anything above zero."""
        own = torch.where(largest < SMALLEST, 1.0, largest)
        if self.training:
            return own
        return torch.where(self.running_maximum > 0, self.running_maximum, own)  # no value leaves the device

    @torch.no_grad()
    def _remember(self, largest: Tensor) -> None:
        moved = self.running_maximum.lerp(largest, self.momentum)
        seen = torch.where(self.running_maximum > 0, moved, largest)
        self.running_maximum.copy_(torch.where(largest < SMALLEST, self.running_maximum, seen))
