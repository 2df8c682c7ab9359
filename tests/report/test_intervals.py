from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qexp.report.intervals import summarize


@given(st.lists(st.floats(0, 1), min_size=3, max_size=12, unique=True))
def test_interval_is_that_of_scipy(values: list[float]) -> None:
    summary = summarize(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=summary.mean, scale=stats.sem(values))
    assert summary.low == pytest.approx(low, abs=1e-9)
    assert summary.high == pytest.approx(high, abs=1e-9)


@pytest.mark.parametrize("values", [[0.9], [0.9, 0.91]])
def test_below_three_runs_there_is_no_interval(values: list[float]) -> None:
    summary = summarize(values)
    assert (summary.n, summary.low, summary.high) == (len(values), None, None)


def test_a_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summarize([])
