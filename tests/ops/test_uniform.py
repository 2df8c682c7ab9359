"""Uniform grids: the same values with and without a gradient."""

import pytest
import torch

from qexp.ops.uniform import KINDS, Kind, make_grid


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_do_not_depend_on_whether_a_gradient_is_wanted(kind: Kind, bits: int, dtype: torch.dtype) -> None:
    x = (3 * torch.randn(5, 400, generator=torch.Generator().manual_seed(bits))).to(dtype)
    kept = x.clone()
    low = torch.tensor([-2.0, -1.0, -3.0, 0.0, 0.0]).reshape(-1, 1)
    high = torch.tensor([2.5, 0.5, 0.0, 0.0, 4.0]).reshape(-1, 1)  # the fourth row is a grid of one value
    grid = make_grid(kind, bits, low, high)
    with torch.no_grad():
        plain = grid.round(x)
    with_gradient = grid.round(x.requires_grad_())
    assert plain.dtype == dtype
    assert torch.equal(plain, with_gradient)
    assert torch.equal(plain.float(), grid.codes(x).decode().to(dtype).float())
    assert torch.equal(x, kept), "what is rounded is not written to"


@torch.no_grad()
def test_a_grid_may_have_more_axes_than_what_it_rounds() -> None:
    x = torch.linspace(-1, 1, 11)
    grid = make_grid("asymmetric", 3, torch.tensor([[-1.0], [-0.5]]), torch.tensor([[1.0], [0.5]]))
    both = grid.round(x)
    for row, (low, high) in enumerate([(-1.0, 1.0), (-0.5, 0.5)]):
        assert torch.equal(both[row], make_grid("asymmetric", 3, torch.tensor(low), torch.tensor(high)).round(x))
