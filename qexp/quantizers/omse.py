"""OMSE: the scale of each channel (or layer) that minimizes the squared error of its weights.

Choukroun et al. 2019, "Low-bit Quantization of Neural Networks for Efficient Inference", arXiv 1902.06822: the
scale alpha that minimizes ||T - alpha T_q||^2, and for layers whose error stays large a second tensor of integers,
T = a1 T1 + a2 T2; from memory, its threshold is ours.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.clip_search import least_squares_step
from qexp.ops.codes import Codes, ascending
from qexp.ops.rounding import ste
from qexp.ops.steps import limits
from qexp.ops.uniform import Grid
from qexp.quantizers.base import Quantizer, Rounding, Site
from qexp.quantizers.uniform import range_shape, refuse_no_numbers

MOST_DUAL = 4
"""Bits of each of two tensors, at most; the paper's are 4."""


class OMSEWeight(Quantizer):
    """Rounds weights to multiples of the scale with the least squared error; the largest may be clipped.

    The integers are those of two's complement, -2^(bits-1) to 2^(bits-1) - 1.

    Args:
        scope: one scale per `layer` or per output `channel`.
        dual_above: a layer whose squared error, as a share of its weights' squares, is above this gets a second
            tensor of integers for what the first leaves over, and takes twice the memory and twice
            the products; None for no layer.

    Raises:
        ConfigError: a negative share; a second tensor of more than 4 bits.
    """

    version: ClassVar[int] = 2  # since steps are looked for as far as the shorter side asks

    supported_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 32)
    step: Tensor
    second: Tensor
    """The scale of the second tensor; 0 where there is none."""

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        scope: Literal["layer", "channel"] = "channel",
        dual_above: float | None = None,
    ) -> None:
        super().__init__(bits, site, rounding)
        if dual_above is not None and not dual_above >= 0:
            raise ConfigError(f"dual_above={dual_above}: a share of the weights' squares, 0 or more, or null.")
        if dual_above is not None and MOST_DUAL < bits < 32:
            raise ConfigError(
                f"{site.name}: dual_above={dual_above} at {bits} bits: two tensors are for {MOST_DUAL} or fewer."
            )
        self.scope, self.dual_above = scope, dual_above
        self.register_buffer("step", torch.full(range_shape(scope, site), torch.nan))
        self.register_buffer("second", torch.zeros(range_shape(scope, site)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded weights; until they were fitted, with the scale that is best for them now."""
        if self.bits == 32:
            return x
        first, second = self._grids(x)
        if self.dual_above is None:
            return first.round(x, self.rounding)
        rounded = first.round(x.float(), self.rounding)
        return (rounded + second.round(x.float() - rounded, self.rounding)).to(x.dtype)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the levels each weight takes: with a second tensor, of the sums of two levels."""
        self.require_grid()
        first, second = self._grids(x)
        codes = first.codes(x)
        if self.dual_above is None:
            return codes
        rest = second.codes(x.detach().float() - codes.decode())
        sums = codes.codebook.unsqueeze(1) + rest.codebook.unsqueeze(0)
        return ascending(codes.values * 2**self.bits + rest.values, sums.flatten(0, 1))

    @property
    def stored_bits(self) -> int:
        """Twice the width where there is a second tensor."""
        return self.products * self.bits

    @property
    def products(self) -> int:
        """2 where there is a second tensor."""
        return 2 if self.bits < 32 and bool(self.second.any()) else 1

    @torch.no_grad()
    def fit_weights(self, weight: Tensor) -> None:
        """Keep the scale of `weight`, and of what it leaves over."""
        refuse_no_numbers(self.site, weight)
        step, second = self._best(weight)
        self.step.copy_(step)
        self.second.copy_(second)

    def fitted(self) -> dict[str, Tensor]:
        """Return the scale, and that of the second tensor where there may be one."""
        return {"step": self.step} if self.dual_above is None else {"step": self.step, "second": self.second}

    def _grids(self, x: Tensor) -> tuple[Grid, Grid]:
        ends = limits(self.bits, signed=True)
        step, second = self.step, self.second
        if not self.holds(step):
            measured = self._best(x.detach())
            missing = step.isnan()
            step, second = torch.where(missing, measured[0], step), torch.where(missing, measured[1], second)
        return Grid(step, *ends), Grid(second, *ends)

    @torch.no_grad()
    def _best(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ends, channels = limits(self.bits, signed=True), self.scope == "channel"
        step = least_squares_step(x, *ends, channels)
        if self.dual_above is None:
            return step, torch.zeros_like(step)
        rest = x.float() - Grid(step, *ends).round(x.float())
        large = rest.square().sum() > self.dual_above * x.float().square().sum()
        return step, torch.where(large, least_squares_step(rest, *ends, channels), 0.0)
