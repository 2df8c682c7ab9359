"""Shift-based AdaMax: every product and quotient of an update is a shift by a power of two.

The learning rate becomes the nearest power of two, whatever a schedule makes of it; only a scale of updates by fan
(`update_scale=fan`, not `fan_power_of_two`) is none.

Courbariaux et al. 2016, arXiv 1602.02830, algorithm 2 of the proceedings (4 of the preprint), and the authors'
Torch code, which differs. AP2 is `qexp.ops.powers.ap2`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from qexp.ops.powers import ap2, ap2_without_nan_

Variant = Literal["paper", "authors"]


class ShiftAdaMax(torch.optim.Optimizer):
    """m = beta1 m + (1 - beta1) g and v = max(beta2 v, |g|), then one of two updates.

    paper: w -= (AP2(lr) AP2(1 - beta1)) m AP2(1 / v), AP2 of the rate ours: the algorithm has 2^-10. It prints no
    power of beta1 and calls m what it never defines; so it is read. Where v is 0, so is m, and nothing moves. Read
    literally it is slow: AP2(1 - beta1), 1/8 for the beta1 of 7/8, multiplies an m that has this factor in its
    average already. The first step is lr / 64 (2^-16 for g = 1 and lr = 2^-10), and under a steady gradient steps
    grow to lr / 8, no further.
    authors: v = AP2(v) + eps, kept so, then w -= AP2(lr / (1 - beta1^t)) m / v.

    Args:
        params: groups, each with an `lr`, a `weight_decay` (coupled) and a `scale` of its updates of its own.
        lr: above 0.
        betas: of the two averages.
        eps: of variant `authors`, 2^-27 there.
        variant: as above.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        variant: Variant,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "variant": variant, "weight_decay": 0.0, "scale": 1.0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return what `closure`, run before, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * parameter
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "largest": torch.zeros_like(parameter)}
        state["step"] += 1
        first, second = group["betas"]
        mean = state["mean"].mul_(first).add_(gradient, alpha=1 - first)
        largest = torch.maximum(state["largest"].mul_(second), gradient.abs(), out=state["largest"])
        if group["variant"] == "paper":
            factor = group["scale"] * _shift(group["lr"]) * _shift(1 - first)
            # Below the smallest normal number 1 / v has no float; there, as where v is 0, m is as good as 0.
            inverse = ap2_without_nan_(largest.clamp(min=torch.finfo(torch.float32).tiny).reciprocal_())
            if second <= max(first, 0.5):  # above, v is 0 only where m is: it decays later, and no float to 0
                inverse.masked_fill_(largest == 0, 0.0)
            parameter.addcmul_(mean, inverse, value=-factor)
            return
        ap2_without_nan_(largest).add_(group["eps"])  # m is NaN where v is
        factor = group["scale"] * _shift(group["lr"] / (1 - first ** state["step"]))
        parameter.addcdiv_(mean, largest, value=-factor)


def _shift(value: float) -> float:
    return float(ap2(torch.tensor(value)))
