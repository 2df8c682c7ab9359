"""ACIQ: weights on as many levels as each channel's range deserves, clipped where the distribution says.

Banner et al. 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment", arXiv
1810.05723: clipping from section 3, bit allocation from equation 11. Its clipped activations are `observer=aciq`,
its bias correction is `calibration.bias_correction=channel`.

Two readings are this project's. Equation 11 allocates bits by the channels' clip levels; with clip=none there are
none, and half of each channel's range stands for them. And the lowest level is the lower end of the range, no zero
point is rounded: zero may lie off the grid, so weights of exactly zero need not stay so.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from qexp.ops.aciq import gauss_clip, laplace_clip
from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.ops.uniform import extremes, spread_axes
from qexp.quantizers.base import Quantizer, Rounding, Site
from qexp.quantizers.uniform import kept_ends, range_shape, refuse_no_numbers, refuse_other

CLIPS = ("none", "laplace", "gauss")

MOST_BITS = 8


class ACIQWeight(Quantizer):
    """Rounds weights to equal steps from the lower to the upper end of their range.

    Args:
        scope: one range per `layer` or per output `channel`.
        clip: `none`, the range of the weights (what the paper's tables of weights are said to use); `laplace` or
            `gauss`, symmetric about the mean where that density's expected error is least.
        allocate: give each channel its own number of bits, 0 to 8, with `bits` as their mean (equation 11), and
            clip it for these. `auto`: with scope=channel, which it needs.

    Raises:
        ConfigError: a value that is none of these.
    """

    version: ClassVar[int] = 2  # since channels with their own bits are clipped for these
    low: Tensor
    high: Tensor
    steps: Tensor
    """Of each channel: 2^bits - 1."""

    supported_bits: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5, 6, 7, 8, 32)

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        scope: Literal["layer", "channel"] = "channel",
        clip: Literal["none", "laplace", "gauss"] = "none",
        allocate: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(bits, site, rounding)
        refuse_other("clip", clip, CLIPS)
        if not isinstance(allocate, bool):
            refuse_other("allocate", allocate, ("auto",))
        elif allocate and scope != "channel":
            refuse_other("scope", scope, ("channel",))
        self.scope, self.clip = scope, clip
        self.allocate = scope == "channel" if allocate == "auto" else bool(allocate)
        shape = range_shape(scope, site)
        self.register_buffer("low", torch.full(shape, torch.nan))
        self.register_buffer("high", torch.full(shape, torch.nan))
        self.register_buffer("steps", torch.full(shape, 2.0 ** min(bits, MOST_BITS) - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded weights; until they were fitted, over the range that they have now."""
        if self.bits == 32:
            return x
        low, step, steps = self._grid(x)
        return (self._integers(x, low, step, steps, self.rounding) * step + low).to(x.dtype)

    @property
    def stored_bits(self) -> float:
        """The width; where channels have their own, their mean."""
        return float(torch.log2(self.steps + 1).mean()) if self.allocate and self.bits < 32 else self.bits

    def codes(self, x: Tensor) -> Codes:
        """Return which of its channel's levels each weight takes; a channel with fewer repeats its last one."""
        self.require_grid()
        low, step, steps = self._grid(x)
        every = torch.arange(int(steps.max()) + 1, dtype=torch.float32, device=x.device)
        every = torch.minimum(every.reshape(-1, *([1] * steps.dim())), steps)
        return Codes(self._integers(x.detach(), low, step, steps, torch.round).int(), every * step + low)

    @torch.no_grad()
    def fit_weights(self, weight: Tensor) -> None:
        """Keep range and number of levels."""
        refuse_no_numbers(self.site, weight)
        low, high = self._range(weight)
        if self.allocate and self.bits < 32:
            bits = allocated_bits((high - low) / 2, self.bits)
            self.steps.copy_(2.0**bits - 1)
            low, high = self._range(weight, bits)
        self.low.copy_(low)
        self.high.copy_(high)

    def fitted(self) -> dict[str, Tensor]:
        """Return the ends of the range and the bits of each channel."""
        return {"low": self.low, "high": self.high, "bits": torch.log2(self.steps + 1)}

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (lowest level, step, steps); without a step the one level is the middle."""
        low, high = kept_ends(self, self.low, self.high, lambda: self._range(x))
        alone = self.steps == 0
        step = torch.where(alone, 0.0, (high - low) / torch.where(alone, 1.0, self.steps))
        return torch.where(alone, (low + high) / 2, low), step, self.steps

    def _integers(self, x: Tensor, low: Tensor, step: Tensor, steps: Tensor, rounding: Rounding) -> Tensor:
        places = rounding((x.float() - low) / torch.where(step > 0, step, 1.0))
        return torch.minimum(places.clamp(min=0), steps)

    @torch.no_grad()
    def _range(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the ends, clipped for `bits` of each channel; None: for the width of all."""
        channels = self.scope == "channel"
        low, high = extremes(x, channels)
        if self.clip == "none" or self.bits == 32:
            return low, high
        axes = spread_axes(x, channels)
        mean = _over(x.float(), axes, channels)
        if self.clip == "laplace":
            spread, clip = _over((x.float() - mean).abs(), axes, channels), laplace_clip
        else:
            spread, clip = _over((x.float() - mean).square(), axes, channels).sqrt(), gauss_clip
        if bits is None:
            reach = clip(self.bits) * spread
        else:  # without bits there is one level, the mean, wherever the ends are
            table = torch.tensor([clip(max(width, 1)) for width in range(MOST_BITS + 1)], device=x.device)
            reach = table[bits.long()] * spread
            alone = bits == 0
            low, high = torch.where(alone, mean - reach, low), torch.where(alone, mean + reach, high)
        return torch.maximum(low, mean - reach), torch.minimum(high, mean + reach)


def _over(x: Tensor, axes: tuple[int, ...], channels: bool) -> Tensor:
    return x.mean(dim=axes, keepdim=True) if channels and axes else x if channels else x.mean()


def allocated_bits(reach: Tensor, bits: int) -> Tensor:
    """Return each channel's bits: round(log2(a_i^(2/3) / sum a^(2/3) * B)), between 0 and 8 (equation 11).

    B, in the paper channels * 2^bits bins in all, is moved until the mean is `bits` as nearly as whole numbers
    allow, since rounding and the limits shift it.

    Args:
        reach: (channels, ...), half of each channel's range, at least 0.
        bits: the mean, 1 to 8.

    >>> allocated_bits(torch.tensor([0.1, 0.8, 1.0, 8.0]), 4).tolist()
    [2.0, 4.0, 4.0, 6.0]
    """
    if not bool((reach > 0).any()):
        return torch.full_like(reach, float(bits))
    shares = torch.log2(reach.double()) * (2 / 3)

    def given(offset: float) -> Tensor:
        return (shares + offset).round().clamp(0, MOST_BITS)

    finite = shares[shares.isfinite()]
    low, high = float(-finite.max()) - 1, float(MOST_BITS - finite.min()) + 1
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if float(given(middle).mean()) < bits else (low, middle)
    above, below = given(high), given(low)
    nearer = abs(float(below.mean()) - bits) < abs(float(above.mean()) - bits)
    return (below if nearer else above).to(reach.dtype)
