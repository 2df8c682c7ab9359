"""LSQ+: LSQ with a learned offset for layer inputs, and a start that minimizes the squared error.

Bhalgat et al. 2020, "LSQ+: Improving low-bit quantization through learnable offsets and better initialization",
arXiv 2004.09576. The equations and the start of weights are from memory, unverified; the search is ours.
"""

from __future__ import annotations

import itertools
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

PARTS, HALVINGS = 20, 5
"""Of the range of the values: how finely the search for a start sets both ends, and how often it halves that."""

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
        ConfigError: an unknown form; `unsigned` where values can be negative; another in place of a ReLU.
    """

    of_either_sign: ClassVar[tuple[str, ...]] = ("offset",)

    version: ClassVar[int] = 3  # since the start clips either end, whatever the signs of the values

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
        if form != "unsigned" and site.kind == "activation":
            raise ConfigError(
                f"{site.name}: form={form} has levels below 0, and here it would stand in place of a ReLU; take"
                " quantizer.placement=input, or quantizer.activation.form=unsigned."
            )
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
        if self.offset is None:
            largest = torch.maximum(low.abs(), high.abs()) / max(self.highest, 1)
            parts = [part / PARTS for part in range(1, PARTS + 1)]
            return self._best(values, [(part * largest, torch.zeros_like(low)) for part in parts])[0]
        if bool(low == high):  # values that are all alike: any step will do, and theirs is of their size
            step = low.abs() / max(self.highest, 1)
            self.offset.copy_(low - self.lowest * step)
            return step
        step, offset = self._search(values, low, high)
        self.offset.copy_(offset)
        return step

    def _search(self, values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return step and offset: of ranges that end on a grid in [low, high], then of ones beside the best."""
        levels, part = self.highest - self.lowest, (high - low) / PARTS
        found = self._best(
            values,
            [
                self._fitting(low + below * part, high - above * part)
                for below in range(PARTS)
                for above in range(PARTS - below)
            ],
        )
        for halving in range(1, HALVINGS + 1):
            low, move = found[1] + self.lowest * found[0], part / 2**halving
            high = low + levels * found[0]
            moved = itertools.product((0, -1, 1), repeat=2)
            found = self._best(
                values, [self._fitting(low + below * move, high + above * move) for below, above in moved]
            )
        return found

    def _fitting(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step and the offset of the grid that goes from `low` to `high`."""
        step = (high - low) / (self.highest - self.lowest)
        return step, low - self.lowest * step

    def _best(self, values: Tensor, tried: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the pair of the least squared error; a range without any width has none."""
        errors = []
        for step, offset in tried:
            moved = values - offset
            error = (moved - round_to_step(moved, step, self.lowest, self.highest)).square().mean()
            errors.append(torch.where(step > 0, error, torch.inf))
        return tried[int(torch.stack(errors).argmin())]

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of elements beyond the range; with an offset, at its lower end too."""
        if self.offset is None:
            return super().clipped(x)
        u = (x.float() - self.offset) / self.step  # with an offset the lower end cuts more than what a ReLU would
        return share_outside(u, self.lowest - 0.5, self.highest + 0.5)

    def learned(self) -> dict[str, nn.Parameter]:
        """Return `step` and `offset`."""
        found = super().learned()
        return {**found, "offset": self.offset} if found and self.offset is not None else found
