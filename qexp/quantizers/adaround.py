"""AdaRound: every weight is rounded up or down, whichever keeps the layer's output; learned on calibration images.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.clip_search import least_squares_step
from qexp.ops.codes import Codes, uniform_codebook
from qexp.ops.rounding import ste
from qexp.ops.steps import limits
from qexp.quantizers.base import Quantizer, Rounding, Site
from qexp.quantizers.uniform import range_shape, refuse_no_numbers


class AdaRoundWeight(Quantizer):
    """Weights on the multiples of a fixed step (least squared error), each at the one below or above its value.

    Until the choice was learned, the nearest.

    Args:
        scope: one step per `layer` or per output `channel`.
        iterations: of the search in each layer; 0 keeps the nearest.
        learning_rate: Adam's, of the search.
        penalty: weight of the term that drives every choice to an end.
        warmup: share of the iterations before that term sets in.
        samples: calibration images of one iteration.

    Raises:
        ConfigError: a value out of range.
    """

    version: ClassVar[int] = 2  # since steps are looked for as far as the shorter side asks

    supported_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 32)
    step: Tensor
    moved: Tensor
    """int8, of the weights' shape: the chosen integer less the nearest one; 0 until it was learned."""

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        scope: Literal["layer", "channel"] = "channel",
        iterations: int = 1000,
        learning_rate: float = 0.01,
        penalty: float = 0.01,
        warmup: float = 0.2,
        samples: int = 32,
    ) -> None:
        super().__init__(bits, site, rounding)
        for name, value, least in (("iterations", iterations, 0), ("samples", samples, 1)):
            if isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value}: a whole number, at least {least}.")
        if not (learning_rate > 0 and penalty >= 0 and 0 <= warmup < 1):
            raise ConfigError(
                f"learning_rate={learning_rate} penalty={penalty} warmup={warmup}: the first above 0, the second"
                " at least 0, the third from 0 to below 1."
            )
        self.limits = limits(bits, signed=True)
        self.scope, self.iterations, self.learning_rate = scope, iterations, learning_rate
        self.penalty, self.warmup, self.samples = penalty, warmup, samples
        self.register_buffer("step", torch.full(range_shape(scope, site), torch.nan))
        self.register_buffer("moved", torch.zeros(site.shape, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded weights."""
        return x if self.bits == 32 else (self._integers(x, self.rounding) * self._step(x)).to(x.dtype)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the levels each weight takes."""
        self.require_grid()
        lowest, highest = self.limits
        integers = self._integers(x.detach(), torch.round) - lowest
        return Codes(integers.int(), uniform_codebook(lowest, highest, self._step(x)))

    @torch.no_grad()
    def fit_weights(self, weight: Tensor) -> None:
        """Keep the step of `weight`; each weight goes to the nearest multiple until `choose`."""
        refuse_no_numbers(self.site, weight)
        self.step.copy_(self._best(weight))
        self.moved.zero_()

    @torch.no_grad()
    def choose(self, weight: Tensor, integers: Tensor) -> None:
        """Keep `integers`, each the one below or above weight / step, within the limits."""
        nearest = torch.round(weight.float() / self._divisor(self.step))
        self.moved.copy_(integers.clamp(*self.limits) - nearest.clamp(*self.limits))

    def fitted(self) -> dict[str, Tensor]:
        """Return the step, and the share of weights that are not at the nearest multiple."""
        return {"step": self.step, "moved": (self.moved != 0).float().mean()}

    def _integers(self, x: Tensor, rounding: Rounding) -> Tensor:
        nearest = rounding(x.float() / self._divisor(self._step(x))).clamp(*self.limits)
        if x.shape != self.moved.shape:  # of other weights nothing is known
            return nearest
        return (nearest + self.moved).clamp(*self.limits)

    def _step(self, x: Tensor) -> Tensor:
        if self.holds(self.step):
            return self.step
        return torch.where(self.step.isnan(), self._best(x.detach()), self.step)

    def _divisor(self, step: Tensor) -> Tensor:
        return torch.where(step > 0, step, 1.0)

    @torch.no_grad()
    def _best(self, x: Tensor) -> Tensor:
        return least_squares_step(x, *self.limits, self.scope == "channel")
