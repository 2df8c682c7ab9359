"""The image at the network's entrance: a fixed grid over the range of pixel values, nothing learned.

Eight bits reproduce an 8-bit image exactly (up to float32). The choice is ours: no paper learns this range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.ops.codes import Codes, uniform_codebook
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding, Site


class ImageGrid(Quantizer):
    """2^bits levels between the lowest and the highest value that each channel can take.

    Args:
        lowest: per channel, what a black pixel becomes after normalization.
        highest: per channel, what a white pixel becomes.
    """

    lowest: Tensor
    step: Tensor

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        lowest: tuple[float, ...],
        highest: tuple[float, ...],
    ) -> None:
        super().__init__(bits, site, rounding)
        low, high = (_per_value(levels, site.shape) for levels in (lowest, highest))
        self.register_buffer("lowest", low, persistent=False)
        self.register_buffer("step", (high - low) / (2 ** min(bits, 8) - 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the nearest level of each pixel, in x's dtype."""
        if self.bits == 32:
            return x
        return (self._integers(x) * self.step + self.lowest).to(x.dtype)

    def codes(self, x: Tensor) -> Codes:
        """Return which level each pixel takes."""
        steps = 2 ** self.require_grid() - 1
        return Codes(self._integers(x).detach().int(), uniform_codebook(0, steps, self.step) + self.lowest)

    def _integers(self, x: Tensor) -> Tensor:
        integers = self.rounding((x.float() - self.lowest) / self.step)
        # Dropout that others than the first layer read, or that it reads through something else, acts before this
        # grid: in training it scales the pixels it keeps up, and they may lie beyond white.
        return integers if self.training and self.bits == 8 else integers.clamp(0, 2**self.bits - 1)


def _per_value(levels: tuple[float, ...], shape: tuple[int, ...]) -> Tensor:
    """Return values that broadcast against (N, *shape), from one a channel; (C * H * W,) is a flattened image."""
    values = torch.tensor(levels, dtype=torch.float32)
    if len(shape) == 1:
        return values.repeat_interleave(shape[0] // len(levels))
    return values.reshape(-1, *([1] * (len(shape) - 1)))
