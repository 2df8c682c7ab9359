"""LSQ+: LSQ with a learned offset for layer inputs, and a start that minimizes the squared error.

Bhalgat et al. 2020, "LSQ+: Improving low-bit quantization through learnable offsets and better initialization",
arXiv 2004.09576. The equations and the start of weights are from memory, unverified; the search is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.ops.steps import computed, limits, round_to_step, scoped_mean, step_gradient
from qexp.quantizers.base import Rounding, Site
from qexp.quantizers.lsq import LSQ
from qexp.quantizers.uniform import share_outside

SAMPLES = 2**16
"""How many values the search for a start looks at, at most."""

_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, fall evenly everywhere and keep step with no row or image."""


class LSQPlusWeight(LSQ):
    """LSQ's weights, started at max(|mean - 3 std|, |mean + 3 std|) / 2^(bits - 1)."""

    def start(self, x: Tensor) -> Tensor:
        """Return the steps to start from."""
        mean = scoped_mean(x, self.step)
        std = (scoped_mean(x.square(), self.step) - mean.square()).clamp(min=0).sqrt()
        return torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / 2 ** (self.bits - 1)


class LSQPlusActivation(LSQ):
    """x_q = step * round(clip((x - offset) / step)) + offset.

    The offset's gradient is 1 outside the range, 0 inside, and scaled as the step's (the scale is ours).

    Args:
        form: `unsigned_offset` (the paper's best, from memory: integers from 0, with an offset), `signed_offset`,
            `signed`, or `unsigned` (LSQ; at sites that are never negative alone).

    Raises:
        ConfigError: an unknown form; `unsigned` where values can be negative.
    """

    of_either_sign: ClassVar[tuple[str, ...]] = ("offset",)

    version: ClassVar[int] = 2  # since the start looks at values of every row

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        form: Literal["unsigned_offset", "signed_offset", "signed", "unsigned"] = "unsigned_offset",
        gradient_factor: float = 1.0,
        lr_factor: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        if form not in ("unsigned_offset", "signed_offset", "signed", "unsigned"):
            raise ConfigError(f"form={form}: unsigned_offset, signed_offset, signed or unsigned.")
        if form == "unsigned" and site.signed:
            raise ConfigError(f"{site.name}: form=unsigned has no level below 0 for values that can be negative.")
        super().__init__(
            bits,
            site,
            rounding,
            gradient_factor=gradient_factor,
            lr_factor=lr_factor,
            weight_decay=weight_decay,
        )
        self.lowest, self.highest = limits(bits, form.startswith("signed"))
        self.offset = nn.Parameter(torch.zeros(())) if form.endswith("offset") else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded values, in x's dtype."""
        if self.bits == 32 or self.offset is None:
            return super().forward(x)
        offset = step_gradient(self.offset, self.scale_for(x))
        moved = computed(x) - offset
        y = round_to_step(moved, self.step_for(x), self.lowest, self.highest, self.rounding) + offset
        return y.to(x.dtype)

    def codes(self, x: Tensor) -> Codes:
        """Return the integers, from 0 for the lowest."""
        if self.offset is None:
            return super().codes(x)
        found = super().codes(x.detach().float() - self.offset.detach())
        return Codes(found.values, found.codebook + self.offset.detach())

    def start(self, x: Tensor) -> Tensor:
        """Return the step of the least squared error, and set the offset that goes with it."""
        values = x.flatten()
        if (count := values.numel()) > SAMPLES:
            shares = torch.arange(SAMPLES, dtype=torch.float64, device=x.device) * _GOLDEN % 1.0
            values = values[(shares * count).long()]
        low, high = torch.aminmax(values)
        best = None
        for step, offset in self._candidates(low, high):
            error = (
                (values - offset - round_to_step(values - offset, step, self.lowest, self.highest)).square().mean()
            )
            if best is None or bool(error < best[0]):
                best = (error, step, offset)
        assert best is not None
        if self.offset is not None:
            self.offset.copy_(best[2])
        return best[1]

    def _candidates(self, low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield steps and offsets for parts of the range [low, high]; without an offset, of [-m, m]."""
        parts = [part / 20 for part in range(1, 21)]
        if self.offset is None:
            largest = torch.maximum(low.abs(), high.abs()) / max(self.highest, 1)
            yield from ((part * largest, torch.zeros_like(low)) for part in parts)
            return
        for below in parts if bool(low < 0) else [1.0]:
            for above in parts:
                step = (above * high - below * low) / (self.highest - self.lowest)
                if bool(step > 0):
                    yield step, below * low - self.lowest * step
        if bool(low == high):  # values that are all alike: any step will do, and theirs is of their size
            step = low.abs() / max(self.highest, 1)
            yield step, low - self.lowest * step

    def _clipped(self, x: Tensor) -> Tensor:
        if self.offset is None:
            return super()._clipped(x)
        u = (x.float() - self.offset) / self.step  # with an offset the lower end cuts more than what a ReLU would
        return share_outside(u, self.lowest - 0.5, self.highest + 0.5)

    def learned(self) -> dict[str, nn.Parameter]:
        """Return `step` and `offset`."""
        found = super().learned()
        return {**found, "offset": self.offset} if found and self.offset is not None else found
