"""AdaRound's relaxation: between rounding down and rounding up, a value that training pushes to either end.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568; the formulas
as MQBench's documentation has them, the constants ZETA and GAMMA from memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1
"""How far the sigmoid is stretched beyond 1 and 0, so that both ends are reached."""

BETA_START, BETA_END = 20.0, 2.0
"""Exponents of the penalty that annealing goes from and to."""


def rectified_sigmoid(v: Tensor) -> Tensor:
    """Return h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1): 0 rounds down, 1 up.

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse(h: Tensor) -> Tensor:
    """Return the V with h(V) = `h`, for 0 <= h <= 1."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def rounding_penalty(h: Tensor, beta: float) -> Tensor:
    """Return the sum of 1 - |2 h - 1|^beta: 0 where all are at an end, and flat in between for a large beta."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def annealed(progress: float) -> float:
    """Return beta after a share `progress` (0 to 1) of the annealed steps: by a cosine, from 20 to 2.

    >>> [round(annealed(share), 1) for share in (0.0, 0.5, 1.0)]
    [20.0, 11.0, 2.0]
    """
    return BETA_END + (BETA_START - BETA_END) * (1 + math.cos(math.pi * progress)) / 2
