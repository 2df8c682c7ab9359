"""Ranges that clip: by a share of the values, or by the least squared error, per layer or per channel at once."""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.ops.clip import clip_round
from qexp.ops.steps import scoped_axes, scoped_mean
from qexp.ops.uniform import Kind, make_grid, spread_axes

CANDIDATES = 80
"""In how many even parts a search divides what lies between its largest and its smallest candidate."""


def percentile_range(x: Tensor, gamma: float, channels: bool) -> tuple[Tensor, Tensor]:
    """Return the range without the share `gamma` of the values at either end, nearest ranks.

    Args:
        x: weights (channels, ...).
        gamma: 0 (nothing is cut) to below 1/2.
        channels: a range for each channel, shaped to broadcast; else one.
    """
    rows = x.float().flatten(1) if channels else x.float().reshape(1, -1)
    count = rows.shape[1]
    cut = min(int(gamma * count), (count - 1) // 2)
    low = rows.kthvalue(cut + 1, dim=1).values
    high = rows.kthvalue(count - cut, dim=1).values
    shape = (-1, *([1] * (x.dim() - 1))) if channels else ()
    return low.reshape(shape), high.reshape(shape)


def squared_error_range(x: Tensor, kind: Kind, bits: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return low and high times the share whose grid has the least squared error, each channel's own.

    Tried are shares from 1 to a fifth, evenly spaced. So both ends go towards zero: of a range that holds zero the
    result is a part, of another one it may begin (or end) nearer to zero than any value.

    Args:
        x: weights (channels, ...), any number of dimensions.
        kind, bits: of the grid.
        low, high: scalars, or one a channel, shaped to broadcast.
    """
    axes = spread_axes(x, low.dim() > 0)
    best, least = torch.ones_like(high), torch.full_like(high, torch.inf)
    for index in range(CANDIDATES + 1):
        share = 1.0 - 0.8 * index / CANDIDATES
        error = (make_grid(kind, bits, low * share, high * share).round(x.float()) - x).square()
        found = error.sum(axes, keepdim=True) if axes and low.dim() else error.sum()
        better = found < least
        best, least = torch.where(better, share, best), torch.where(better, found, least)
    return low * best, high * best


def squared_error_level(x: Tensor, level: Tensor, steps: int | None, signed: bool) -> Tensor:
    """Return the clip level of the least squared error, for each value of `level` its own; 0 for zeros alone.

    Tried are levels from the largest |x| to a fiftieth of it, in even ratios, then levels between the best one and
    its neighbours.

    Args:
        x: (N, ...), not below 0 unless `signed`.
        level: broadcasts against x; its shape alone counts.
        steps: grid steps between 0 and the level; None: nothing is rounded, and the largest |x| is the best level.
        signed: the range is [-level, level] instead of [0, level].
    """
    axes = scoped_axes(x, level)
    largest = (x.abs().amax(axes) if axes else x.abs()).reshape(level.shape)
    if steps is None:
        return largest
    best, least = largest, torch.full_like(largest, torch.inf)
    half = CANDIDATES // 2
    ratio = 50 ** (1 / half)
    coarse = [ratio**-index for index in range(half + 1)]
    fine = [ratio ** (index / half) for index in range(-half, half + 1)]
    for factors in (coarse, fine):
        middle = best
        for factor in factors:
            tried = middle * factor
            rounded = clip_round(x, torch.where(tried > 0, tried, 1.0), steps, signed=signed)
            error = scoped_mean((rounded - x).square(), level)
            best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return best


def least_squares_step(x: Tensor, lowest: int, highest: int, channels: bool) -> Tensor:
    """Return the step whose multiples from `lowest` to `highest` come nearest to `x` in the sum of squares.

    The best of many starts, each improved in three sweeps: the integers for a step, then the best step for these
    integers (<x, q> / <q, q>). The largest start is 1.2 times the step that takes the largest |x| to the nearer
    end, where few weights often have their best one; the smallest is a fifth of the step that takes it to the
    farther end. For very few weights a still larger step, which uses fewer of the integers, can be better: of
    Gaussian channels of 9 weights at 4 bits about one in twenty ends over 2% above its least error, of 25 none.

    Args:
        x: weights (channels, ...).
        lowest, highest: integers, one below 0 and one above.
        channels: a step for each channel, shaped to broadcast; else one. All-zero weights get 0.
    """
    rows = x.float().flatten(1) if channels else x.float().reshape(1, -1)
    magnitude = rows.abs().amax(1, keepdim=True)
    smallest, largest = 0.2 / max(-lowest, highest), 1.2 / min(-lowest, highest)
    best, least = torch.zeros_like(magnitude), rows.square().sum(1, keepdim=True)
    for index in range(CANDIDATES + 1):
        step = magnitude * (largest - (largest - smallest) * index / CANDIDATES)
        for _ in range(3):
            integers = (rows / torch.where(step > 0, step, 1.0)).round().clamp(lowest, highest)
            power = integers.square().sum(1, keepdim=True)
            step = (rows * integers).sum(1, keepdim=True) / power.clamp(min=1)
        integers = (rows / torch.where(step > 0, step, 1.0)).round().clamp(lowest, highest)
        error = (rows - integers * step).square().sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best.reshape(-1, *([1] * (x.dim() - 1))) if channels else best.reshape(())
