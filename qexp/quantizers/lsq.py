"""LSQ: weights and layer inputs on a uniform grid whose step is learned by the loss's own gradient.

Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153v3; the formulas as a public review of that
version prints them. Steps per channel, the floor under a step and what a step of zeros starts at are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.ops.codes import Codes
from qexp.ops.numbers import is_positive
from qexp.ops.oscillation import Oscillation
from qexp.ops.rounding import ste
from qexp.ops.steps import limits, nearest, round_to_step, scoped_mean, step_codes, step_gradient
from qexp.quantizers.base import Description, ParameterGroup, Quantizer, Rounding, Site, scope_shape
from qexp.quantizers.uniform import share_outside

FLOOR = 2.0**-10
"""The smallest part of its start value that a step may shrink to: steps stay positive."""

FALLEN = 0.01
"""The part of its start value below which a step is said to have been lost."""


class LSQ(Quantizer):
    """Rounds to multiples of a learned `step`: integers of `bits` bits, signed for weights and signed inputs.

    A step that the optimizer brings below a 1024th of its start value is put back there after the step.

    Args:
        scope: one step per `layer` (the paper's), `channel`, `element` or for the whole `network`, there for all
            sites with the same integers; `depthwise`: per channel for weights whose filters see one channel, else
            per layer.
        gradient_scale: of the step's gradient, with N weights or features of a sample for each step and the
            largest integer Q: `features_and_levels` is 1 / sqrt(N Q) (the paper's), `features` 1 / sqrt(N).
        gradient_factor: multiplies it.
        lr_factor: of the step's learning rate.
        weight_decay: of the step, 0 or more; the paper's is not known, 0 is common.
        freeze_above: flips per step, above which a weight is held at its mean level (`qexp.ops.oscillation`); None
            holds none, 1 only counts. For weights alone.

    Raises:
        ConfigError: one bit; a scope that needs a shape where none is known; a factor out of range; from
            `calibrate`, values without a start for the step.
    """

    supported_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 32)
    # Since layers with other integers have another step for the network; since a ReLU's place starts behind it.
    special_versions: ClassVar[Mapping[str, int]] = {"network": 2, "relu": 2}
    floor: Tensor

    masked: bool = True
    """Whether the gradient of values beyond the range is 0."""

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        scope: Literal["layer", "channel", "element", "network", "depthwise"] = "layer",
        gradient_scale: Literal["features_and_levels", "features", "none"] = "features_and_levels",
        gradient_factor: float = 1.0,
        lr_factor: float = 1.0,
        weight_decay: float = 0.0,
        freeze_above: float | None = None,
    ) -> None:
        super().__init__(bits, site, rounding)
        self.lowest, self.highest = limits(bits, site.kind == "weight" or site.signed)
        self.scope = _scope(scope, site)
        if gradient_scale not in ("features_and_levels", "features", "none"):
            raise ConfigError(f"gradient_scale={gradient_scale}: features_and_levels, features or none.")
        self.gradient_scale, self.gradient_factor = gradient_scale, _positive("gradient_factor", gradient_factor)
        self.lr_factor = _positive("lr_factor", lr_factor)
        if weight_decay != 0 and not is_positive(weight_decay):
            raise ConfigError(f"weight_decay={weight_decay}: of the step, a number of 0 or more.")
        self.weight_decay = float(weight_decay)
        self.freeze_above = freeze_above
        self.oscillation = self._oscillation()
        self.is_shared = False
        self.step = nn.Parameter(torch.ones(scope_shape(self.scope, site)))
        self.register_buffer("floor", torch.full_like(self.step.detach(), FLOOR))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded values, in x's dtype."""
        if self.bits == 32:
            return x
        return round_to_step(x, self.step_for(x), self.lowest, self.highest, self.rounding, masked=self.masked)

    def step_for(self, x: Tensor) -> Tensor:
        """Return the step, with the gradient that it is to get from `x`."""
        return step_gradient(self.step, self.scale_for(x))

    def scale_for(self, x: Tensor) -> float:
        """Return what the step's gradient is multiplied by.

        A layer that is called several times for one output (a recurrence, once a step of the sequence) has the
        features of one call here, and its gradients add up; a linear layer on (N, T, F) has T * F.
        """
        if self.gradient_scale == "none":
            return self.gradient_factor
        values = x.shape if self.site.kind == "weight" else x.shape[1:]
        features = math.prod(values) // self.step.numel()
        levels = self.highest if self.gradient_scale == "features_and_levels" else 1
        return self.gradient_factor / math.sqrt(features * levels)

    def codes(self, x: Tensor) -> Codes:
        """Return the integers, from 0 for the lowest."""
        self.require_grid()
        return step_codes(x, self.step, self.lowest, self.highest)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Start the steps from `x`; a channel of zeros takes the mean of the others."""
        if self.bits == 32:
            return
        if not self.is_shared:
            self._start_step(self.within(x))
        if self.oscillation is not None:
            self.oscillation.begin(nearest(x, self.step, self.lowest, self.highest))

    def within(self, x: Tensor) -> Tensor:
        """Return `x` as far as it can be on the grid: what stands in place of a ReLU cuts where that does."""
        return x.clamp(0.0, self.site.end) if self.site.kind == "activation" and self.lowest == 0 else x

    def _start_step(self, x: Tensor) -> None:
        start = self.start(x.detach().float())
        if not bool(torch.isfinite(start).all()) or not bool((start > 0).any()):
            what = "no finite numbers" if not bool(torch.isfinite(start).all()) else "zeros alone"
            raise ConfigError(
                f"{self.site.name}: {what} in its {'weights' if self.site.kind == 'weight' else 'first batch'}, so"
                f" the step has no start; leave this layer in float (layers.'{self._layer}'.bits=32), or start"
                " from other weights (model.weights)."
            )
        self.step.copy_(torch.where(start > 0, start, start[start > 0].mean()) if start.dim() else start)
        self.floor.copy_(FLOOR * self.step)

    def _oscillation(self) -> Oscillation | None:
        if self.freeze_above is None or self.bits == 32:
            return None
        if self.site.kind != "weight":
            raise ConfigError(f"{self.site.name}: freeze_above={self.freeze_above}: weights alone are frozen.")
        if not 0 < self.freeze_above <= 1:
            raise ConfigError(f"freeze_above={self.freeze_above}: flips per step, above 0, at most 1.")
        return Oscillation(self.site.shape)

    @property
    def _layer(self) -> str:
        return self.site.name.removesuffix(".input")

    def start(self, x: Tensor) -> Tensor:
        """Return the steps to start from: 2 mean |x| / sqrt(Q), with Q the largest integer.

        What else a method starts from `x` it sets here (LSQ+ its offset).
        """
        return 2 * scoped_mean(x.abs(), self.step) / math.sqrt(self.highest)

    def after_step(self) -> None:
        """Keep the steps positive."""
        if not self.is_shared:
            torch.maximum(self.step, self.floor, out=self.step)
        if self.oscillation is not None:
            for weight in self.real:
                integers = nearest(weight, self.step, self.lowest, self.highest)
                self.oscillation.count(integers, self.freeze_above)
                held = self.oscillation.integers * self.step
                weight.copy_(torch.where(self.oscillation.frozen, held, weight))

    def can_share(self, other: Quantizer) -> bool:
        """Say whether both have the same integers as well: a step of 8 bits is none for 2."""
        return super().can_share(other) and (self.lowest, self.highest) == (other.lowest, other.highest)

    def share(self, other: Quantizer) -> None:
        """Take over the step of `other`, which starts it and keeps it positive."""
        super().share(other)
        self.is_shared = True

    def learned(self) -> dict[str, nn.Parameter]:
        """Return `step`."""
        return {} if self.bits == 32 else {"step": self.step}

    def parameter_groups(self) -> Iterator[ParameterGroup]:
        """Yield the steps at their own rate and decay, and what the rounding learns."""
        own = tuple(self.learned().values())
        yield ParameterGroup(own, self.lr_factor, self.weight_decay)
        yield ParameterGroup(tuple(p for p in self.parameters() if all(p is not mine for mine in own)))

    @torch.no_grad()
    def describe(self, x: Tensor | None = None) -> Description:
        """Add the shares of weights that oscillate and that are held."""
        description = super().describe(x)
        if x is not None and self.oscillation is not None:
            description.shares |= self.oscillation.shares()
        return description

    @torch.no_grad()
    def complaint(self) -> str | None:
        """Say which steps the optimizer threw to almost nothing: gradients of their size bring none back.

        (Of a shared step its owner says so, which knows where it started.)
        """
        if self.is_shared:
            return None
        count = int((self.step < FALLEN / FLOOR * self.floor).sum())
        if not count:
            return None
        which = "its step has" if self.step.numel() == 1 else f"{count} of its {self.step.numel()} steps have"
        part = "weight" if self.site.kind == "weight" else "activation"
        return (
            f"{which} fallen below a hundredth of the start; a lower rate for steps may hold them"
            f" (quantizer.{part}.lr_factor)"
        )

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of elements beyond the range."""
        lowest = self.lowest - 0.5 if self.lowest else -math.inf
        return share_outside(x.float() / self.step, lowest, self.highest + 0.5)


def _scope(scope: str, site: Site) -> str:
    if scope == "element" and site.kind == "weight":
        raise ConfigError(f"{site.name}: scope=element is for activations; take layer, channel or depthwise.")
    if scope == "depthwise":
        if site.kind != "weight":
            raise ConfigError(f"{site.name}: scope=depthwise is for weights; take layer or channel.")
        return "channel" if len(site.shape) == 4 and site.shape[1] == 1 else "layer"
    return scope


def _positive(name: str, value: float) -> float:
    if not is_positive(value):
        raise ConfigError(f"{name}={value}: a number above 0.")
    return float(value)
