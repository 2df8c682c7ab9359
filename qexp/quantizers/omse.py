"""OMSE: the scale of each channel (or layer) that minimizes the squared error of its weights.

Choukroun et al. 2019, "Low-bit Quantization of Neural Networks for Efficient Inference", arXiv 1902.06822: the
scale alpha that minimizes ||T - alpha T_q||^2. Its second tensor, for layers with a large error, is not here.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from qexp.ops.clip_search import least_squares_step
from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.ops.uniform import Grid
from qexp.quantizers.base import Quantizer, Rounding, Site
from qexp.quantizers.uniform import range_shape, refuse_no_numbers


class OMSEWeight(Quantizer):
    """Rounds weights to multiples of the scale with the least squared error; the largest may be clipped.

    The integers are those of two's complement, -2^(bits-1) to 2^(bits-1) - 1.

    Args:
        scope: one scale per `layer` or per output `channel`.
    """

    supported_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 32)
    step: Tensor

    def __init__(
        self, bits: int, site: Site, rounding: Rounding = ste, *, scope: Literal["layer", "channel"] = "channel"
    ) -> None:
        super().__init__(bits, site, rounding)
        self.scope = scope
        self.register_buffer("step", torch.zeros(range_shape(scope, site)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded weights; until they were fitted, with the scale that is best for them now."""
        return x if self.bits == 32 else self._grid(x).round(x, self.rounding)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the levels each weight takes."""
        self.require_steps(None if self.bits == 32 else self.bits)
        return self._grid(x).codes(x)

    @torch.no_grad()
    def fit_weights(self, weight: Tensor) -> None:
        """Keep the scale of `weight`."""
        refuse_no_numbers(self.site, weight)
        self.step.copy_(self._best(weight))

    def fitted(self) -> dict[str, Tensor]:
        """Return the scale."""
        return {"step": self.step}

    def _grid(self, x: Tensor) -> Grid:
        half = 2 ** (self.bits - 1)
        step = self.step
        if not self.holds(step):
            step = torch.where(step > 0, step, self._best(x.detach()))
        return Grid(step, -half, half - 1)

    @torch.no_grad()
    def _best(self, x: Tensor) -> Tensor:
        half = 2 ** (self.bits - 1)
        return least_squares_step(x, -half, half - 1, self.scope == "channel")
