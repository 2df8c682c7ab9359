"""The ends of a batch: its smallest and largest value, or its k smallest and largest, in few passes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qexp.errors import ConfigError

BLOCK = 512
"""Elements searched as one; so many blocks of a large activation are passed over that its size is what one
maximum per block costs."""


def flat(x: Tensor) -> Tensor:
    """Return the values of `x` as a float32 vector without gradient, in the order in which they lie in memory.

    No observer asks for another order, and a channels-last activation is not copied this way.
    """
    by_stride = sorted(range(x.dim()), key=x.stride, reverse=True)
    return x.detach().permute(by_stride).reshape(-1).float()


def ends(values: Tensor, name: str) -> tuple[float, float]:
    """Return the smallest and the largest of `values`, which are not empty.

    Raises:
        ConfigError: one is NaN or infinite; the message starts with `name`.
    """
    low, high = torch.stack(torch.aminmax(values)).tolist()
    require_finite(low, high, name)
    return low, high


def median_ends(values: Tensor, k: int, name: str) -> tuple[float, float]:
    """Return the median of the k smallest and that of the k largest values, of all where there are fewer than k.

    The median is torch's: of an even number the lower of the two in the middle.

    Raises:
        ConfigError: a value is NaN or infinite; the message starts with `name`.

    >>> median_ends(torch.arange(100.0), 10, "conv")
    (4.0, 94.0)
    """
    smallest, largest = extreme(values, k, largest=False), extreme(values, k, largest=True)
    found = torch.stack([smallest.min(), largest.max(), smallest.median(), largest.median()])
    low, high, low_median, high_median = found.tolist()
    require_finite(low, high, name)
    return low_median, high_median


def extreme(values: Tensor, k: int, *, largest: bool) -> Tensor:
    """Return the k largest (or smallest) of a vector in any order, all of it where it is shorter.

    They lie within the k blocks whose own maxima are the largest: a value in any other block is exceeded or
    equalled by k maxima. So one maximum per block is taken of everything, and only k blocks are searched. NaN
    counts as larger than any number.
    """
    blocks = values.numel() // BLOCK
    if blocks <= k:
        return values.topk(min(k, values.numel()), largest=largest).values
    body, rest = values[: blocks * BLOCK].view(blocks, BLOCK), values[blocks * BLOCK :]
    best = body.amax(dim=1) if largest else body.amin(dim=1)
    searched = body[best.topk(k, largest=largest).indices].reshape(-1)
    return torch.cat([searched, rest]).topk(k, largest=largest).values


def require_finite(low: float, high: float, name: str) -> None:
    """Refuse ends that are no numbers, or too large for float32.

    Raises:
        ConfigError: names the site.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(
            f"{name}: NaN or infinity in the calibration data, so no range can be chosen; "
            "check the images and the network's weights."
        )
