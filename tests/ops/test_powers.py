from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.ops.powers import ap2, ap2_without_nan, ap2_without_nan_

SQRT2_BELOW, SQRT2_ABOVE = 1.41421353816986083984375, 1.4142136573791503906250
"""The two float32 on either side of sqrt(2), where round(log2 x) turns from 0 to 1."""


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (1.0, 1.0), (2.0, 2.0), (0.125, 0.125), (-4.0, -4.0), (2.0**-126, 2.0**-126), (2.0**127, 2.0**127),
        (1.5, 2.0), (3.0, 4.0), (0.75, 1.0), (-1.5, -2.0), (0.375, 0.5),  # half way between two: log2 1.5 = 0.585
        (1.25, 1.0), (5.0, 4.0), (7.0, 8.0), (0.3, 0.25), (-0.3, -0.25),
        (SQRT2_BELOW, 1.0), (SQRT2_ABOVE, 2.0), (-SQRT2_BELOW, -1.0), (-SQRT2_ABOVE, -2.0),  # next to a tie
        (0.0, 0.0), (-0.0, 0.0), (1e-45, 0.0), (0.414 * 2.0**-126, 0.0), (-0.415 * 2.0**-126, -(2.0**-126)),
        (math.inf, math.inf), (-math.inf, -math.inf), (3e38, math.inf),
    ],
)  # fmt: skip
def test_by_hand(x: float, expected: float) -> None:
    assert ap2(torch.tensor(x)).item() == expected


def test_what_is_no_number_stays_none() -> None:
    assert ap2(torch.tensor([math.nan, -math.nan])).isnan().all()


@given(st.floats(min_value=2.0**-125, max_value=2.0**125, width=32), st.sampled_from([-1.0, 1.0]))
def test_against_the_formula_in_float64(magnitude: float, sign: float) -> None:
    expected = sign * 2.0 ** round(math.log2(magnitude))
    assert ap2(torch.tensor(sign * magnitude)).item() == expected


def test_nothing_is_differentiated() -> None:
    assert not ap2(torch.ones(2, requires_grad=True)).requires_grad


def test_the_shorter_forms_differ_at_nan_alone() -> None:
    every = torch.cat([torch.arange(-(2**31), 2**31, 65521), torch.tensor([0x7F800000, -0x00800000])])
    x = every.int().view(torch.float32)
    number = ~x.isnan()
    assert not number.all() and x.isinf().sum() == 2
    assert torch.equal(ap2_without_nan(x)[number], ap2(x)[number])
    given = x.clone()
    assert ap2_without_nan_(given) is given and torch.equal(given[number], ap2(x)[number])
    assert not ap2_without_nan(x).isnan().any() and ap2(x)[~number].isnan().all()
