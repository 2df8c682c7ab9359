"""How numbers are written: accuracies in percent, differences of them in points, the rest with four digits."""

from __future__ import annotations

import math
import re

from qexp.report.intervals import Summary


def is_share(metric: str) -> bool:
    """Tell whether a metric is a share of 1, shown in percent.

    >>> is_share("test_accuracy"), is_share("test_accuracy_top5"), is_share("test_miou"), is_share("test_loss")
    (True, True, True, False)
    """
    return metric.endswith(("accuracy", "accuracy_top5", "_miou", "_map"))


def unit(metric: str) -> str:
    """Return the unit for a header: ` (%)`, or nothing."""
    return " (%)" if is_share(metric) else ""


def value_text(value: float, metric: str, digits: int = 2) -> str:
    """Return a value of `metric`.

    >>> value_text(0.9134, "test_accuracy"), value_text(-1e-5, "test_miou"), value_text(0.31415926, "test_loss")
    ('91.34', '0.00', '0.3142')
    """
    return f"{_percent(value, digits):.{digits}f}" if is_share(metric) else f"{value:.4g}"


def _percent(share: float, digits: int) -> float:
    # A zero that rounding leaves is no negative one.
    return round(100 * share, digits) + 0.0


def published_text(value: float, metric: str, printed: str, unit: str) -> str:
    """Return a published value with the digits it was printed with; a share in percent, with one at least.

    Args:
        value: in units of `metric`.
        metric: that it is compared by.
        printed: the number's characters in its source, in `unit`.
        unit: `fraction` where a share is printed as such.

    >>> (
    ...     published_text(0.916, "test_accuracy", "0.916", "fraction"),
    ...     published_text(0.761, "test_accuracy", "76.10", "percent"),
    ... )
    ('91.6', '76.10')
    >>> published_text(2.3e-05, "weight_mse", "2.30e-5", "1")
    '2.30e-5'
    """
    if not is_share(metric):
        return printed
    digits = len(printed.partition(".")[2]) - (2 if unit == "fraction" else 0)
    return value_text(value, metric, max(digits, 1))


def difference_text(value: float, metric: str, digits: int = 2) -> str:
    """Return a difference with its sign, in points for a share.

    >>> difference_text(-0.012, "test_accuracy")
    '-1.20'
    """
    return f"{_percent(value, digits):+.{digits}f}" if is_share(metric) else f"{value:+.3g}"


def change_text(summary: Summary, metric: str) -> str:
    """Return a mean difference, with half its 95% interval where there is one.

    >>> change_text(Summary(3, -0.012, 0.004), "test_accuracy")
    '-1.20 ± 0.40'
    """
    text = difference_text(summary.mean, metric)
    return text if summary.half_width is None else f"{text} ± {value_text(summary.half_width, metric)}"


def interval_text(summary: Summary, metric: str) -> str:
    """Return `lowest to highest` of the 95% interval, or how many runs there are where none is given.

    >>> interval_text(Summary(3, 0.91, 0.01), "test_accuracy")
    '90.00 to 92.00'
    >>> interval_text(Summary(1, 0.91, None), "test_accuracy")
    'n = 1'
    """
    if summary.low is None or summary.high is None:
        return f"n = {summary.n}"
    return f"{value_text(summary.low, metric)} to {value_text(summary.high, metric)}"


def by_size(text: str) -> list[tuple[bool, float, str]]:
    """Return a key that sorts values by their size: numbers first, then words by the numbers within them.

    >>> sorted(["0.001", "1e-05", "none", "0.0001"], key=by_size)
    ['1e-05', '0.0001', '0.001', 'none']
    >>> sorted(["w16a8", "w4a8", "32"], key=by_size)
    ['32', 'w4a8', 'w16a8']
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isnan(number):  # which has no place among numbers
        return [(False, number, "")]
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(False, float(part), "") if index % 2 else (True, 0.0, part) for index, part in enumerate(parts)]
