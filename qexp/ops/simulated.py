"""Gradients for a step that come from its rounding error alone, not from the loss.

Zhao et al. 2020, "Linear Symmetric Quantization of Neural Networks for Low-Precision Integer Hardware" (LLSQ), the
decision table as its first author's code has it; the scaled form is our reading of "SSG" in LG-LSQ (Lin et al.
2022, arXiv 2202.09009), whose formulas are not public.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.ops.steps import computed, nearest, scoped_mean


@torch.no_grad()
def rounding_errors(x: Tensor, step: Tensor, lowest: int, highest: int, power: int = 2) -> tuple[Tensor, ...]:
    """Return the mean |x - x_q|^power with half the step, the step and twice the step, each shaped as `step`."""
    x = computed(x)
    u, found = x / step, []
    for factor in (0.5, 1.0, 2.0):
        error = x - nearest(u, factor, lowest, highest) * (factor * step)  # exact: factors of two
        found.append(scoped_mean(error.square() if power == 2 else error.abs(), step))
    return tuple(found)


def simulated_gradient(step: Tensor, half: Tensor, here: Tensor, double: Tensor) -> Tensor:
    """Return LLSQ's gradient: step^2, 0 or -step^2, so that descent moves the step to where the error is lowest.

    >>> step = torch.full((3,), 2.0)
    >>> simulated_gradient(step, *torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0], [3.0, 1.0, 2.0]])).tolist()
    [4.0, -4.0, 0.0]

    Args:
        half, here, double: the errors with half the step, the step, and twice the step.
    """
    falls, rises = here - half, double - here  # towards larger steps
    left, right, either = falls >= 0, rises > 0, falls + rises >= 0
    larger = (~left & ~right) | (left & ~right & ~either)
    smaller = (left & right) | (left & ~right & either)
    return step.square() * (smaller.float() - larger.float())


def scaled_simulated_gradient(step: Tensor, half: Tensor, here: Tensor, double: Tensor) -> Tensor:
    """Return step^2 times the slope of the error, in parts of the error itself, held in [-1, 1]. Ours.

    The slope is the difference quotient between half and twice the step; where the step's own error is the lowest
    of the three, the gradient is 0.
    """
    slope = (double - half) / 1.5  # per relative change of the step
    relative = (slope / here.clamp(min=torch.finfo(torch.float32).tiny)).clamp(-1.0, 1.0)
    lowest = (here <= half) & (here <= double)
    return step.square() * torch.where(lowest, 0.0, relative)
