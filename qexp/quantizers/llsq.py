"""LLSQ: a learned step whose gradient comes from the rounding error alone, not from the loss.

Zhao et al. 2020, "Linear Symmetric Quantization of Neural Networks for Low-Precision Integer Hardware" (ICLR); the
formulas are those of its first author's code.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.rounding import ste
from qexp.ops.simulated import rounding_errors, simulated_gradient
from qexp.ops.steps import scoped_axes, step_gradient
from qexp.quantizers.base import Rounding, Site
from qexp.quantizers.lsq import LSQ


class LLSQ(LSQ):
    """LSQ's grid; the step moves to the lowest error of half of it, itself and twice it.

    This gradient is added at every call: to the input's step of a recurrence once for each step of the sequence.

    Args:
        scope: as LSQ.
        power: of the error, 1 or 2.
        lr_factor, weight_decay: as LSQ.
        masked: whether the gradient of values beyond the range is 0: as the code has it for inputs, not weights.

    Raises:
        ConfigError: as LSQ; another power.
    """

    version: ClassVar[int] = 2  # since a soft rounding leaves unmasked weights their gradient at the ends
    may_rest: ClassVar[bool] = True  # at the lowest of the three errors its gradient is 0

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        scope: Literal["layer", "channel", "element", "network", "depthwise"] = "layer",
        power: Literal[1, 2] = 2,
        lr_factor: float = 1.0,
        weight_decay: float = 0.0,
        masked: bool = True,
    ) -> None:
        super().__init__(bits, site, rounding, scope=scope, lr_factor=lr_factor, weight_decay=weight_decay)
        if power not in (1, 2):
            raise ConfigError(f"power={power}: the mean absolute (1) or squared (2) error.")
        self.power, self.masked = power, masked

    def step_for(self, x: Tensor) -> Tensor:
        """Return the step, whose gradient is the simulated one."""
        if not torch.is_grad_enabled():
            return self.step
        return step_gradient(self.step, 1.0, simulated=simulated_gradient(self.step.detach(), *self.errors(x)))

    def errors(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the errors at half the step, the step, and twice the step."""
        return rounding_errors(self.within(x.detach()), self.step.detach(), self.lowest, self.highest, self.power)

    def start(self, x: Tensor) -> Tensor:
        """Return the steps to start from: the largest magnitude spread over the integers, as the code has it."""
        largest = x.abs().amax(scoped_axes(x, self.step)).reshape(self.step.shape)
        if self.site.kind == "weight":
            return largest / (self.highest if self.step.dim() else 2 ** (self.bits - 1))
        return largest / (self.highest + 1 if self.bits >= 4 else 2 * self.highest)
