"""A clip at a level that stays where it was put: what PACT's learned level is compared with.

Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks", arXiv 1805.06085v2,
figure 1; the paper says neither the level nor the bits that it used there. At level 1 it is DoReFa's activation.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.clip import clip_codes, clip_round, clipped_share
from qexp.ops.codes import Codes
from qexp.ops.numbers import is_positive
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding, Site, clip_steps, grid_steps


class FixedClip(Quantizer):
    """Clips activations to [0, level] (signed sites: [-level, level], ours) and rounds; at 32 bits it clips only.

    The gradient is 1 inside the range, else 0; nothing is learned.

    Args:
        level: the clip level of every site, above 0.

    Raises:
        ConfigError: level not above 0; a signed site at 1 bit.
    """

    acts_at_32: ClassVar[bool] = True
    level: Tensor

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste, *, level: float = 1.0) -> None:
        super().__init__(bits, site, rounding)
        if not is_positive(level):
            raise ConfigError(f"level={level} does not fit: the clip level is a number above 0.")
        self.steps = clip_steps(bits, site)
        self.register_buffer("level", torch.tensor(float(level)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` clipped and rounded, in x's dtype."""
        return clip_round(x, self.level, self.steps, self.rounding, self.site.signed)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the levels each element takes."""
        return clip_codes(x, self.level, grid_steps(self.require_grid(), self.site), self.site.signed)

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of elements at or beyond the level."""
        return clipped_share(x, self.level, self.site.signed)
