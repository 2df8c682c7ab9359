"""ACIQ: where to clip a bell-shaped distribution before uniform quantization, from its shape and scale alone.

Banner, Nahshan and Soudry 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment",
arXiv 1810.05723, section 3: the expected squared error of clipping at -a and a and rounding to 2^M levels between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from qexp.errors import ConfigError


def laplace_error(alpha: float, bits: int) -> float:
    """Return the expected squared error for a Laplace density, in units of b^2; `alpha` is in units of b.

    2 e^-a for what is clipped, a^2 / (3 4^M) for the rounding, as if it were uniform in a step of 2a / 2^M.
    """
    return 2 * math.exp(-alpha) + _rounding_error(alpha, bits)


def gauss_error(alpha: float, bits: int) -> float:
    """Return the expected squared error for a Gauss density, in units of sigma^2; `alpha` is in units of sigma."""
    tail = (alpha**2 + 1) * math.erfc(alpha / math.sqrt(2))
    return tail - math.sqrt(2 / math.pi) * alpha * math.exp(-(alpha**2) / 2) + _rounding_error(alpha, bits)


@cache
def laplace_clip(bits: int) -> float:
    """Return the clip level of least `laplace_error`, in units of b = E|x - E x|: a / (3 4^M) = e^-a (equation 6).

    >>> round(laplace_clip(4), 4)
    5.0286

    Raises:
        ConfigError: bits below 1.
    """
    _require_bits(bits)
    return _root(lambda a: a / (3 * 4**bits) - math.exp(-a))


@cache
def gauss_clip(bits: int) -> float:
    """Return the clip level of least `gauss_error`, in units of sigma.

    >>> round(gauss_clip(4), 4)
    2.5591

    Raises:
        ConfigError: bits below 1.
    """
    _require_bits(bits)

    def slope(a: float) -> float:
        density = math.sqrt(2 / math.pi) * math.exp(-(a**2) / 2)
        return a * math.erfc(a / math.sqrt(2)) - density + a / (3 * 4**bits)

    return _root(slope)


def _rounding_error(alpha: float, bits: int) -> float:
    return alpha**2 / (3 * 4**bits)


def _require_bits(bits: int) -> None:
    if bits < 1:
        raise ConfigError(f"bits={bits}: a clip level needs at least 1 bit.")


def _root(slope: Callable[[float], float]) -> float:
    """Bisect a slope that rises from below zero at 0; both errors are convex, so there is one root."""
    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high
