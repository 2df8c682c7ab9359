"""Multiply-accumulate units by bit-width: area, density, and how many cores of them a chip holds.

Source: PACT (arXiv 1805.06085), section 6 and figure 6b, the published artefact `pact/fig6b`.
"""

from __future__ import annotations

import math
from functools import cache

from qexp.errors import ConfigError
from qexp.published import load_artefact

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
"""Bits that an operand can have here; 16 is the paper's baseline, not a width that qexp trains."""

CORE_RULES = ("paper", "area")
"""How cores are counted: as the paper does (64 / bits), or as many as fit the area of its 16-bit MACs."""

BASELINE_CORES = 4
"""The paper's cores at 16 bits."""


@cache
def _published() -> dict[int, float]:
    return {int(cell.row.partition(" ")[0]): cell.value for cell in load_artefact("pact/fig6b").cells}


def mac_area(bits: int) -> float:
    """Return the area of one MAC, the 2-bit one being 1.

    The paper's at 2, 4, 8 and 16 bits. Between them and at 1 bit ours: straight lines over log(bits), log(area).

    >>> [mac_area(bits) for bits in (16, 8, 4, 2)]
    [14.3, 6.63, 2.51, 1.0]
    """
    check_width(bits)
    known = _published()
    if bits in known:
        return known[bits]
    below = max((width for width in known if width < bits), default=min(known))
    above = min(width for width in known if width > below)
    slope = math.log(known[above] / known[below]) / math.log(above / below)
    return known[below] * (bits / below) ** slope


def mac_density(bits: int) -> float:
    """Return how many MACs take the area of one 16-bit MAC.

    >>> round(mac_density(2), 1)
    14.3
    """
    return mac_area(16) / mac_area(bits)


def core_count(bits: int, rule: str = "paper") -> int:
    """Return the cores of a chip whose MACs are `bits` wide.

    Args:
        bits: width of the MACs, one of `WIDTHS`.
        rule: `paper`: 4, 8, 16, 32 cores at 16, 8, 4, 2 bits, which is 64 / bits and, rounded down, ours between
            them; `area`: as many as the MACs' area alone would allow.

    >>> [core_count(bits) for bits in (16, 8, 4, 3, 2)], [core_count(bits, "area") for bits in (16, 8, 4, 2)]
    ([4, 8, 16, 21, 32], [4, 8, 22, 57])
    """
    check_width(bits)
    if rule not in CORE_RULES:
        raise ConfigError(f"cores={rule}: choose {' or '.join(CORE_RULES)}.")
    return math.floor(BASELINE_CORES * (16 / bits if rule == "paper" else mac_density(bits)))


def check_width(bits: int) -> None:
    """Refuse a width that the model does not know. Raises ConfigError."""
    if bits not in WIDTHS:
        raise ConfigError(f"bits={bits}: a width here is 1 to 8, or 16, the paper's baseline.")
