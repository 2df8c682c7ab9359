"""Bit widths and how they are written: `4`, `w4a8`."""

from __future__ import annotations

import re
from collections.abc import Container

from qexp.errors import ConfigError

BITS = (1, 2, 3, 4, 5, 6, 7, 8, 32)
"""The widths a configuration may ask for; 32 means no rounding."""

RULE = "a width is 1 to 8, or 32 for no rounding; write bits=4, or bits=w4a8 for weights and activations apart"


def parse_bits(
    value: object, key: str = "bits", known: Container[int] = BITS, rule: str = RULE
) -> tuple[int, int]:
    """Return (weight bits, activation bits) of `4`, `"4"` or `"w4a8"`.

    Raises:
        ConfigError: any other value, or a width that is none of `known`; `key` says where it stood.

    >>> parse_bits("w4a8"), parse_bits(2)
    ((4, 8), (2, 2))
    """
    match = re.fullmatch(r"(\d{1,2})|w(\d{1,2})a(\d{1,2})", str(value).strip())
    if match and not isinstance(value, bool):
        both, weight, activation = match.groups()
        pair = (int(both or weight), int(both or activation))
        if all(width in known for width in pair):
            return pair
    raise ConfigError(f"{key}={value}: {rule}.")
