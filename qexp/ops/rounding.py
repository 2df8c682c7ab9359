"""Rounding to integers with a gradient: what a quantizer's `rounding` argument may be.

The value is always the nearest integer in evaluation; what differs is the gradient. The soft forms work cell by
cell, [n, n + 1) each: u = m + r with m = floor(u) + 1/2, and a soft step of r whose gradient stands in for the
rounding's. The mean of that gradient over a cell is 1, so learning rates keep their meaning.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.errors import ConfigError
from qexp.ops.numbers import is_positive


def ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if nothing had been done (straight-through).

    The forward value is exactly `torch.round(x)` in every dtype: the difference to the nearest integer is a
    multiple of x's last place no larger than 1/2, so both additions are exact.

    Source: PACT (arXiv 1805.06085) equation 3.

    >>> x = torch.tensor([0.5, 1.5, -0.7], requires_grad=True)
    >>> y = ste(x)
    >>> y.tolist()
    [0.0, 2.0, -1.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [1.0, 1.0, 1.0]
    """
    if not torch.is_grad_enabled():
        return torch.round(x)  # the same values in one pass over memory instead of three
    return x + (torch.round(x) - x).detach()


class TrainedRounding(nn.Module):
    """A rounding that has something of its own to train, to anneal, or to do after a step."""

    version: ClassVar[int] = 1
    """Raised with every change of its maths: it is part of a run's identity."""

    def learned(self) -> dict[str, nn.Parameter]:
        """Return what it learns by its name in the logs. Default: nothing."""
        return {}

    def progress(self, share: float) -> None:
        """Take note of how much of the training is done, 0 to 1, before each step. Default: nothing."""

    def after_step(self) -> None:
        """Act after each optimizer step, under `no_grad`. Default: nothing."""


class SoftCells(TrainedRounding):
    """Rounds by value; the gradient is that of `soft`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the nearest integers."""
        return self.hard(x) if torch.is_grad_enabled() else torch.round(x)

    def hard(self, x: Tensor) -> Tensor:
        """Return the nearest integers with the gradient of `soft`."""
        soft = self.soft(x)
        return torch.round(x).detach() + (soft - soft.detach())  # adds an exact zero that carries the gradient

    def soft(self, x: Tensor) -> Tensor:
        """Return the soft staircase: between the integers around x, and equal to x in the middle and at both."""
        raise NotImplementedError(type(self).__name__)


class ASR(SoftCells):
    """Arctangent soft rounding: m + arctan(k r) / (2 arctan(k / 2)).

    Our reading of "ASR" in LG-LSQ (Lin et al. 2022, arXiv 2202.09009), whose formulas are not public: the
    arctangent in place of the hyperbolic tangent of soft rounding. Its gradient is largest where the
    value flips and never 0; k towards 0 is the straight-through estimator, k towards infinity the rounding itself.

    Args:
        k: sharpness, above 0; the paper's is not known.
        mode: `fixed`; `annealed`, from `k` to `k_end` in a straight line over the training; `learned`, one k for
            each quantizer, started at `k`.
        k_end: of `annealed`.
        forward: `hard`, the nearest integer; `soft` trains with the soft staircase's values and rounds in
            evaluation alone (what PQDE, 2024, seems to do under the same name).

    Raises:
        ConfigError: a sharpness that is not above 0; an unknown mode; a `k_end` that nothing would go to.
    """

    K_END = 10.0
    k: Tensor

    def __init__(
        self,
        *,
        k: float = 4.0,
        mode: Literal["fixed", "annealed", "learned"] = "fixed",
        k_end: float = K_END,
        forward: Literal["hard", "soft"] = "hard",
    ) -> None:
        super().__init__()
        _sharpness("rounding.k", k)
        _sharpness("rounding.k_end", k_end)
        if mode not in ("fixed", "annealed", "learned") or forward not in ("hard", "soft"):
            raise ConfigError(
                f"rounding.mode={mode}, rounding.forward={forward}: fixed, annealed or learned; hard or soft."
            )
        if mode != "annealed" and k_end != self.K_END:
            raise ConfigError(f"rounding.k_end={k_end}: rounding.mode={mode} stays at k; take mode=annealed.")
        self.mode, self.start, self.end, self.is_soft = mode, float(k), float(k_end), forward == "soft"
        if mode == "learned":
            self.raw_k = nn.Parameter(torch.tensor(math.log(math.expm1(k)) if k < 30 else float(k)))
        elif mode == "annealed":
            self.register_buffer("k", torch.tensor(float(k)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the nearest integers, or in training with `forward=soft` the soft staircase."""
        return self.soft(x) if self.is_soft and self.training else super().forward(x)

    def hard(self, x: Tensor) -> Tensor:
        """Return the nearest integers with the staircase's gradient, without its value."""
        rounded: Tensor = _HardArctan.apply(x, self.sharpness())
        return rounded

    def soft(self, x: Tensor) -> Tensor:
        """Return the soft staircase."""
        return arctan_round(x, self.sharpness())

    def sharpness(self) -> Tensor | float:
        """Return k as it is now."""
        if self.mode == "learned":
            return F.softplus(self.raw_k)
        return self.k if self.mode == "annealed" else self.start

    def learned(self) -> dict[str, nn.Parameter]:
        """Return the learned k before softplus keeps it above 0."""
        return {"raw_k": self.raw_k} if self.mode == "learned" else {}

    def progress(self, share: float) -> None:
        """Move an annealed k."""
        if self.mode == "annealed":
            self.k.fill_(self.start + (self.end - self.start) * share)


class SoftRound(SoftCells):
    """Soft rounding: m + tanh(alpha r) / (2 tanh(alpha / 2)) (Agustsson and Theis 2020).

    Args:
        alpha: sharpness, above 0.
    """

    def __init__(self, *, alpha: float = 4.0) -> None:
        super().__init__()
        self.alpha = _sharpness("rounding.alpha", alpha)

    def soft(self, x: Tensor) -> Tensor:
        """Return the soft staircase."""
        return tanh_round(x, self.alpha)


class DSQ(SoftCells):
    """Differentiable soft quantization (Gong et al. 2019, arXiv 1908.05033), as a public re-implementation has it.

    In a cell of width 1, phi(r) = tanh(k r) / (1 - a) with k = ln(2 / a - 1), whose ends are -1 and 1: soft
    rounding with a sharpness that is learned through `a`, one for each quantizer.

    Args:
        a: start value, above 0 and below 1; 0.2 in that code. It is held in [0.001, 0.999].
    """

    SMALLEST, LARGEST = 1e-3, 1 - 1e-3

    def __init__(self, *, a: float = 0.2) -> None:
        super().__init__()
        if isinstance(a, (bool, str)) or not self.SMALLEST <= a <= self.LARGEST:
            raise ConfigError(
                f"rounding.a={a}: a number from {self.SMALLEST} to {self.LARGEST}; 1 would be no step."
            )
        self.a = nn.Parameter(torch.tensor(float(a)))

    def soft(self, x: Tensor) -> Tensor:
        """Return the soft staircase."""
        return tanh_round(x, torch.log(2 / self.a - 1))

    def learned(self) -> dict[str, nn.Parameter]:
        """Return `a`."""
        return {"a": self.a}

    def after_step(self) -> None:
        """Hold `a` in its range."""
        self.a.clamp_(self.SMALLEST, self.LARGEST)


def arctan_round(x: Tensor, k: Tensor | float) -> Tensor:
    """Return m + arctan(k r) / (2 arctan(k / 2)), with m = floor(x) + 1/2 and r = x - m.

    >>> arctan_round(torch.tensor([1.0, 1.25, 1.5, 2.0]), 4.0)
    tensor([1.0000, 1.1453, 1.5000, 2.0000])
    """
    middle = torch.floor(x) + 0.5
    return middle + torch.arctan(k * (x - middle)) / _full_arctan(k)


def _full_arctan(k: Tensor | float) -> Any:
    return 2 * (torch.arctan(k / 2) if isinstance(k, Tensor) else math.atan(k / 2))


class _HardArctan(torch.autograd.Function):
    """Rounds; its gradients are those of `arctan_round`, whose value (an arctangent of every x) nobody needs."""

    @staticmethod
    def forward(x: Tensor, k: Tensor | float) -> Tensor:
        return torch.round(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, k = inputs
        ctx.k = None if isinstance(k, Tensor) else k
        ctx.save_for_backward(x, *([k] if isinstance(k, Tensor) else []))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        x, *saved = ctx.saved_tensors
        k = saved[0] if saved else ctx.k
        full = _full_arctan(k)
        r = x - torch.floor(x) - 0.5
        slope = k / full / (1 + (k * r).square())
        if not saved or not ctx.needs_input_grad[1]:
            return gradient * slope, None
        of_full = torch.arctan(k * r) / (full.square() * (1 + (k / 2).square()))
        return gradient * slope, (gradient * (slope * r / k - of_full)).sum().to(k.dtype)


def tanh_round(x: Tensor, alpha: Tensor | float) -> Tensor:
    """Return m + tanh(alpha r) / (2 tanh(alpha / 2)), with m = floor(x) + 1/2 and r = x - m."""
    middle = torch.floor(x) + 0.5
    full = 2 * (torch.tanh(alpha / 2) if isinstance(alpha, Tensor) else math.tanh(alpha / 2))
    return middle + torch.tanh(alpha * (x - middle)) / full


def _sharpness(name: str, value: float) -> float:
    if not is_positive(value):
        raise ConfigError(f"{name}={value}: a sharpness is a number above 0; close to 0 is rounding=ste.")
    return float(value)
