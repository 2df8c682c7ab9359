"""What is done about the discretisation error e = u - round(u) in training, beside any rounding.

Three readings of "MDE" in LG-LSQ (Lin et al. 2022, arXiv 2202.09009), whose formulas are not public; each works on
values in steps of the grid, around whatever `rounding` a quantizer has, and leaves evaluation as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.ops.numbers import is_positive
from qexp.ops.rounding import TrainedRounding

Rounding = Callable[[Tensor], Tensor]


def none(inner: Rounding) -> Rounding:
    """Return the rounding as it is."""
    return inner


class Discretisation(TrainedRounding):
    """A rounding around another one.

    Args:
        inner: the rounding; trained, it is a module of the network like this one, and told of its progress itself.
    """

    weights_only: ClassVar[bool] = False
    """Whether it means something for weights alone: activations have no value that could be pulled."""

    def __init__(self, inner: Rounding) -> None:
        super().__init__()
        self.inner = inner

    def learned(self) -> dict[str, nn.Parameter]:
        """Return what the inner rounding learns."""
        return self.inner.learned() if isinstance(self.inner, TrainedRounding) else {}


class EWGS(Discretisation):
    """Gradients scaled by the error: g_u = g (1 + strength sign(g) e) (Lee et al. 2021, arXiv 2104.00903).

    Where a step of the optimizer would move a value towards its level, its gradient grows; away from it, it
    shrinks.

    Args:
        strength: the paper's delta counts errors in parts of the whole range: strength = delta / (2^bits - 1).
    """

    def __init__(self, inner: Rounding, *, strength: float = 0.01) -> None:
        super().__init__(inner)
        self.strength = _share("strength", strength, 2.0)  # at 2 the gradient of a value at a tie can vanish

    def forward(self, x: Tensor) -> Tensor:
        """Return the inner rounding's value."""
        if not torch.is_grad_enabled():
            return self.inner(x)
        return self.inner(_ScaledByError.apply(x, self.strength))


class MSEPull(Discretisation):
    """Weights pulled to their levels: the gradient of (strength / 2) * the sum of e^2 is added. Ours.

    The error is in steps, e = u - round(u) with u = x / step, so a step that learns from the loss is pulled as
    well; LLSQ's and that of `scale_gradient=ssg` are not. A layer that is called several times in one pass is
    pulled as often.

    Args:
        strength: in units of the loss for an error of one step.
    """

    weights_only = True

    def __init__(self, inner: Rounding, *, strength: float = 1e-5) -> None:
        super().__init__(inner)
        self.strength = _share("strength", strength, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the inner rounding's value."""
        if not torch.is_grad_enabled():
            return self.inner(x)
        return self.inner(_Pulled.apply(x, self.strength))


class Blend(Discretisation):
    """Weights trained between the real value and its level: round(u) + beta e, with beta falling to 0.

    Ours, after a hint in the abstract of PQDE (Yue et al. 2024), which uses the name MDE for a forward function.

    Args:
        beta: at the start, 0 to 1.
        until: the share of the training after which it is 0.
    """

    weights_only = True
    beta: Tensor

    def __init__(self, inner: Rounding, *, beta: float = 0.5, until: float = 0.8) -> None:
        super().__init__(inner)
        self.start, self.until = _share("beta", beta, 1.0), _share("until", until, 1.0)
        self.register_buffer("beta", torch.tensor(self.start))

    def forward(self, x: Tensor) -> Tensor:
        """Return what training uses; in evaluation the inner rounding's value."""
        y = self.inner(x)
        if not self.training or not torch.is_grad_enabled():
            return y
        return y + self.beta * (x - y)

    def progress(self, share: float) -> None:
        """Lower beta in a straight line."""
        self.beta.fill_(self.start * max(0.0, 1.0 - share / self.until))


class _ScaledByError(torch.autograd.Function):
    """The identity whose gradient is multiplied by 1 + strength sign(g) e."""

    @staticmethod
    def forward(x: Tensor, strength: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.strength = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.addcmul(gradient, gradient.abs(), x - torch.round(x), value=ctx.strength), None


class _Pulled(torch.autograd.Function):
    """The identity whose gradient gets `strength` e added."""

    @staticmethod
    def forward(x: Tensor, strength: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.strength = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.add(gradient, x - torch.round(x), alpha=ctx.strength), None


def _share(name: str, value: float, largest: float) -> float:
    if not (is_positive(value) and value <= largest):
        raise ConfigError(f"discretisation.{name}={value}: a number above 0, at most {largest:g}.")
    return float(value)
