"""What a setting that is a plain number may be."""

from __future__ import annotations

import math
from typing import TypeGuard


def is_positive(value: object) -> bool:
    """Say whether `value` is a finite number above 0; no bool and no string, which configurations can hold too.

    >>> [is_positive(value) for value in (0.5, 2, 0, math.inf, math.nan, True, "1")]
    [True, True, False, False, False, False, False]
    """
    return _is_number(value) and 0 < value < math.inf


def is_positive_or_zero(value: object) -> bool:
    """Likewise, 0 included.

    >>> [is_positive_or_zero(value) for value in (0.5, 0, -1, math.inf, math.nan, False, "0")]
    [True, True, False, False, False, False, False]
    """
    return _is_number(value) and 0 <= value < math.inf


def is_count(value: object) -> bool:
    """Say whether `value` is a whole number above 0, and no bool.

    >>> [is_count(value) for value in (3, 0, -1, 2.0, True, "1")]
    [True, False, False, False, False, False]
    """
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
