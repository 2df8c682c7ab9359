from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.ops.rounding import ste


@given(st.floats(-(2.0**23), 2.0**23, width=32))
def test_the_value_is_the_nearest_integer_exactly(value: float) -> None:
    # Python's own round goes half to even, in exact arithmetic.
    assert ste(torch.tensor(value)).item() == round(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_value_is_exact_in_every_dtype(dtype: torch.dtype) -> None:
    x = torch.linspace(-255, 255, 4001).to(dtype)
    for differentiable in (True, False):
        with torch.set_grad_enabled(differentiable):
            assert torch.equal(ste(x), torch.round(x))
            assert ste(x).dtype == dtype


def test_the_gradient_passes_unchanged() -> None:
    x = torch.randn(50, requires_grad=True)
    weights = torch.randn(50)
    (ste(x) * weights).sum().backward()
    assert torch.equal(x.grad, weights)
