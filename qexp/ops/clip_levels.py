"""Where to clip, from a histogram of magnitudes: by the squared error of a uniform grid, or by its divergence."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_errors(counts: Tensor, width: float, levels: Tensor, steps: int) -> Tensor:
    """Return the summed squared error of clipping at each level and rounding to multiples of level / steps.

    The values count as evenly spread over their cell, and for such the error is exact: a cell may be wider than
    a step.

    Args:
        counts: float64 (cells,), of values from i * width to (i + 1) * width.
        levels: float64 (candidates,), above zero.
        steps: grid steps between 0 and the level.

    Returns:
        float64 (candidates,).

    >>> middle = torch.tensor([1.0], dtype=torch.float64)
    >>> (squared_errors(middle, 2.0, 2 * middle, steps=1) * 3).tolist()
    [1.0]
    """
    edges = torch.arange(len(counts) + 1, dtype=torch.float64) * width
    level = levels.unsqueeze(1)
    step = level / steps
    inside = torch.minimum(edges, level)
    nearest = torch.round(inside / step)
    # The integral of the squared error from 0 to each edge: whole steps, the rest of one, and what is clipped.
    rounding = nearest * step**3 / 12 + (inside - nearest * step) ** 3 / 3
    clipping = (edges - inside) ** 3 / 3
    return (rounding + clipping).diff(dim=1) @ (counts / width)


def divergences(counts: Tensor, levels: int) -> Tensor:
    """Return how far each clipped histogram is from its form with `levels` values, by Kullback and Leibler.

    For i = `levels` ... cells: the first P is the first i cells, what lies beyond added to the last of them; Q
    shares these i cells (without what lies beyond) among the values, and spreads each value's part evenly over
    those of its cells that are not empty. Infinite where Q is empty and P is not. As commonly described for
    TensorRT's calibration (Migacz 2017, "8-bit inference with TensorRT"), written from the idea.

    Args:
        counts: float64 (cells,), the last one not empty; cells >= levels.
        levels: number of values of the quantized form.

    Returns:
        float64 (cells - levels + 1,), in nats.
    """
    kept = torch.arange(levels, len(counts) + 1)
    bounds = kept.unsqueeze(1) * torch.arange(levels + 1) // levels
    below = _running(counts)
    mass = below[bounds].diff(dim=1)
    filled = _running((counts > 0).double())[bounds].diff(dim=1)
    log_share = torch.where(mass > 0, mass / filled, 1.0).log()
    total, inside, last = below[-1], below[kept], counts[kept - 1]
    beyond = total - inside
    # sum P log P - sum P log Q over the cells, before either is divided by its sum.
    own = _running(torch.xlogy(counts, counts))[kept - 1] + torch.xlogy(last + beyond, last + beyond)
    other = (mass * log_share).sum(dim=1) + beyond * log_share[:, -1]
    divergence = (own - other) / total - total.log() + inside.log()
    return torch.where((last > 0) | (beyond == 0), divergence, torch.inf)


def _running(counts: Tensor) -> Tensor:
    """Return the sums of the first 0, 1, 2 ... entries."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
