"""Uniform post-training quantization: equal steps over a range measured once, per layer or per channel.

Fang et al. 2020, "Post-Training Piecewise Linear Quantization for Deep Neural Networks", arXiv 2002.00104,
equations 1 and 2: the baseline that every post-training method is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qexp.errors import ConfigError, did_you_mean
from qexp.ops.clip_search import percentile_range, squared_error_range
from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.ops.uniform import KINDS, Grid, Kind, extremes, make_grid
from qexp.quantizers.base import Observed, Quantizer, Rounding, Site, scope_shape

RANGES = ("minmax", "percentile", "mse")


LARGEST = 1e15
"""Magnitude of a weight: a billion of its squares are still a number."""


class UniformWeight(Quantizer):
    """Rounds weights to 2^bits equal steps over their range.

    Args:
        scope: one range per `layer` or per output `channel`.
        grid: `full`, `restricted` or `asymmetric`, as `ops.uniform.make_grid` has them; `full` is the paper's.
        range: `minmax`; `percentile`, without the share `gamma` at either end; `mse`, the clip with the least
            squared error.
        gamma: share, 0 to below 1/2.

    Raises:
        ConfigError: a value that is none of these; one bit, which leaves `full` and `restricted` no grid.
    """

    supported_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 32)
    low: Tensor
    high: Tensor

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        scope: Literal["layer", "channel"] = "channel",
        grid: Kind = "full",
        range: Literal["minmax", "percentile", "mse"] = "minmax",
        gamma: float = 0.001,
    ) -> None:
        super().__init__(bits, site, rounding)
        self.scope, self.grid, self.range, self.gamma = scope, grid, range, gamma
        shape = range_shape(scope, site)
        refuse_other("grid", grid, KINDS)
        refuse_other("range", range, RANGES)
        if not 0 <= gamma < 0.5:
            raise ConfigError(f"gamma={gamma} does not fit: a share of the weights, 0 to below 1/2.")
        self.register_buffer("low", torch.full(shape, torch.nan))
        self.register_buffer("high", torch.full(shape, torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded weights; until they were fitted, over the range that they have now."""
        return x if self.bits == 32 else self._grid(x).round(x, self.rounding)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the levels each weight takes."""
        self.require_grid()
        return self._grid(x).codes(x)

    @torch.no_grad()
    def fit_weights(self, weight: Tensor) -> None:
        """Keep the range of `weight`."""
        refuse_no_numbers(self.site, weight)
        low, high = self._range(weight)
        self.low.copy_(low)
        self.high.copy_(high)

    def fitted(self) -> dict[str, Tensor]:
        """Return the ends of the range."""
        return {"low": self.low, "high": self.high}

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of weights beyond the range."""
        return share_outside(x, *self._ends(x))

    def _grid(self, x: Tensor) -> Grid:
        return make_grid(self.grid, self.bits, *self._ends(x))

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kept_ends(self, self.low, self.high, lambda: self._range(x.detach()))

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.scope == "channel"
        if self.range == "percentile":
            return percentile_range(x, self.gamma, channels)
        low, high = extremes(x, channels)
        return squared_error_range(x, self.grid, self.bits, low, high) if self.range == "mse" else (low, high)


class UniformActivation(Quantizer):
    """Rounds a layer's input to 2^bits equal steps over the range that calibration found.

    Values that are never negative use all steps from 0 to the largest; others a grid of both signs up to the
    larger magnitude, with one level more below zero (the authors' `QuantAct`). Until it was fitted the range is
    that of the tensor at hand.

    Raises:
        ConfigError: one bit where values can be negative.
    """

    supported_bits: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5, 6, 7, 8, 32)
    low: Tensor
    high: Tensor

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste) -> None:
        super().__init__(bits, site, rounding)
        if bits == 1 and site.signed:
            raise ConfigError(
                f"{site.name}: 1 bit leaves no level above zero for an input that can be negative; set"
                f" layers.'{site.name.removesuffix('.input')}'.bits=2 or more."
            )
        self.register_buffer("low", torch.tensor(torch.nan))
        self.register_buffer("high", torch.tensor(torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded values, in x's dtype."""
        return x if self.bits == 32 else self._grid(x).round(x, self.rounding)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the levels each element takes."""
        self.require_grid()
        return self._grid(x).codes(x)

    @torch.no_grad()
    def fit_activations(self, seen: Observed) -> None:
        """Keep the observed range."""
        self.low.copy_(seen.low)
        self.high.copy_(seen.high)

    def fitted(self) -> dict[str, Tensor]:
        """Return the ends of the range."""
        return {"low": self.low, "high": self.high}

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of elements beyond the range."""
        return share_outside(x, *self._ends(x))

    def _grid(self, x: Tensor) -> Grid:
        low, high = self._ends(x)
        if self.site.signed:
            return make_grid("full", self.bits, low, high)
        # The grid of make_grid("asymmetric", ...) from 0; without the offset it takes two passes less.
        steps = 2**self.bits - 1
        return Grid(high.clamp(min=0) / steps, 0, steps)

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kept_ends(self, self.low, self.high, lambda: extremes(x.detach(), channels=False))


def kept_ends(
    quantizer: Quantizer, low: Tensor, high: Tensor, measure: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the ends of a range that was kept, those that `measure` returns where they are NaN still."""
    if quantizer.holds(low):
        return low, high
    missing = low.isnan()
    measured = measure()
    return torch.where(missing, measured[0], low), torch.where(missing, measured[1], high)


def share_outside(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return the share (0 to 1) of elements beyond a range."""
    return ((x < low) | (x > high)).float().mean()


def range_shape(scope: str, site: Site) -> tuple[int, ...]:
    """Return the shape of a weight's ranges. Raises ConfigError for a scope other than layer and channel."""
    refuse_other("scope", scope, ("layer", "channel"))
    return scope_shape(scope, site)


def refuse_other(key: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `known`."""
    if value not in known:
        raise ConfigError(f"{key}={value}: {', '.join(known)}.{did_you_mean(str(value), known)}")


def refuse_no_numbers(site: Site, x: Tensor) -> None:
    """Raise ConfigError where `x` holds NaN, infinity, or magnitudes whose squares do not fit in float32."""
    if bool(x.abs().amax() <= LARGEST):
        return
    what = f"values beyond {LARGEST:g}" if bool(x.isfinite().all()) else "values that are no finite numbers"
    raise ConfigError(f"{site.name}: its weights hold {what}; give another checkpoint.")
