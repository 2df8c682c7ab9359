"""What a setting that is a plain number may be."""

from __future__ import annotations

import math


def is_positive(value: object) -> bool:
    """Say whether `value` is a finite number above 0; no bool and no string, which configurations can hold too.

    >>> [is_positive(value) for value in (0.5, 2, 0, math.inf, math.nan, True, "1")]
    [True, True, False, False, False, False, False]
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
