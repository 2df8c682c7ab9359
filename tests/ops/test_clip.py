"""Clipping at a learned level (PACT's equations 1 to 3): by hand, at the boundaries, by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from qexp.ops.clip import clip, clip_codes, clip_round, clipped_share
from qexp.ops.discretisation import EWGS
from qexp.ops.rounding import ASR, DSQ, SoftRound, ste


def composed(x: Tensor) -> Tensor:
    """The same straight-through rounding under another name, so that `clip_round` takes its composed path."""
    return ste(x)


PATHS = {"eager": ste, "composed": composed}
SOFT = {
    "asr": ASR(),
    "soft_round": SoftRound(),
    "dsq": DSQ(),
    "learned": ASR(mode="learned"),
    "around": EWGS(ASR()),
}
BITS = (1, 2, 3, 4, 5, 6, 7, 8, 32)


def steps_of(bits: int, signed: bool = False) -> int | None:
    return None if bits == 32 else 2 ** (bits - signed) - 1


def gradients(
    x: Tensor, level: Tensor, steps: int | None, rounding: Callable[[Tensor], Tensor], signed: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient of x and gradient of the level for an upstream gradient that differs by element."""
    x, level = x.clone().requires_grad_(), level.clone().requires_grad_()
    y = clip_round(x, level, steps, rounding, signed)
    upstream = torch.arange(1, x.numel() + 1, dtype=torch.float32).reshape(x.shape)
    (y.float() * upstream).sum().backward()
    return y.detach(), x.grad, level.grad


@pytest.mark.parametrize("path", PATHS)
def test_by_hand(path: str) -> None:
    x = torch.tensor([-1.0, 0.0, 0.4, 0.5, 1.6, 2.999, 3.0, 7.0])
    y, grad_x, grad_level = gradients(x, torch.tensor(3.0), 3, PATHS[path])
    # alpha = 3 at two bits: levels 0, 1, 2, 3; half goes to the even neighbour.
    assert y.tolist() == [0, 0, 0, 0, 2, 3, 3, 3]
    # Equation 1 and the straight-through estimator: 1 for 0 <= x < alpha. Equation 3: 1 for x >= alpha.
    assert grad_x.tolist() == pytest.approx([0, 2, 3, 4, 5, 6, 0, 0], rel=1e-6)
    assert grad_level.item() == pytest.approx(7 + 8)


@pytest.mark.parametrize("path", PATHS)
def test_by_hand_where_values_can_be_negative(path: str) -> None:
    x = torch.tensor([-9.0, -3.0, -2.9, -1.6, 0.0, 0.4, 3.0, 4.0])
    y, grad_x, grad_level = gradients(x, torch.tensor(3.0), 3, PATHS[path], signed=True)
    assert y.tolist() == [-3, -3, -3, -2, 0, 0, 3, 3]
    assert grad_x.tolist() == pytest.approx([0, 0, 3, 4, 5, 6, 0, 0], rel=1e-6)
    assert grad_level.item() == pytest.approx((7 + 8) - (1 + 2))


@pytest.mark.parametrize("signed", [False, True])
def test_the_value_is_the_same_without_a_gradient(signed: bool) -> None:
    x, level = torch.linspace(-20, 20, 4001), torch.tensor(3.1)
    with torch.no_grad():
        value = clip(x, level, signed)
        rounded = clip_round(x, level, 7, composed, signed)
    assert torch.equal(value, clip(x, level, signed))
    assert torch.equal(rounded, clip_round(x, level, 7, composed, signed))


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    st.floats(0.03125, 20, width=32),
    st.sampled_from(BITS),
    st.booleans(),
)
def test_both_paths_are_one_function(values: list[float], level: float, bits: int, signed: bool) -> None:
    assume(bits > 1 or not signed)
    x, alpha = torch.tensor([*values, 0.0, level, -level]), torch.tensor(level)
    eager = gradients(x, alpha, steps_of(bits, signed), ste, signed)
    plain = gradients(x, alpha, steps_of(bits, signed), composed, signed)
    assert torch.equal(eager[0], plain[0])
    # The composed path multiplies by steps / level and level / steps, so a gradient of 1 may be 1 + 1e-7.
    torch.testing.assert_close(eager[1], plain[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(eager[2], plain[2], rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("signed", [False, True])
def test_next_to_the_boundary_the_paths_still_agree(signed: bool) -> None:
    level = torch.tensor([1.0, 0.1, 3.0, 10.0, 0.7])
    x = torch.cat([torch.nextafter(side * level, torch.tensor(way)) for side in (1, -1) for way in (-99.0, 99.0)])
    levels = level.repeat(4)
    eager, plain = (gradients(x, levels, 7, rounding, signed) for rounding in (ste, composed))
    for one, other in zip(eager, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_clip_is_the_papers_first_equation() -> None:
    x, alpha = torch.linspace(-4, 9, 200, dtype=torch.float64), torch.tensor(2.5, dtype=torch.float64)
    equation = 0.5 * (x.abs() - (x - alpha).abs() + alpha)
    torch.testing.assert_close(clip(x, alpha), equation, rtol=0, atol=1e-15)


@pytest.mark.parametrize("signed", [False, True])
def test_finite_differences_away_from_the_boundaries(signed: bool) -> None:
    x = torch.tensor([-5.0, -1.2, -0.3, 0.4, 1.7, 2.2, 8.0], dtype=torch.float64, requires_grad=True)
    level = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, level: clip(x, level, signed), (x, level), eps=1e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("signed", [False, True])
def test_infinite_and_missing_numbers(path: str, signed: bool) -> None:
    infinity = float("inf")
    y, grad_x, grad_level = gradients(
        torch.tensor([-infinity, infinity, float("nan")]), torch.tensor(2.0), 3, PATHS[path], signed
    )
    assert y[:2].tolist() == ([-2, 2] if signed else [0, 2])
    assert y[2].isnan(), "a NaN must not be clipped away"
    assert grad_x[:2].tolist() == [0, 0]
    y, _, grad_level = gradients(torch.tensor([-infinity, infinity]), torch.tensor(2.0), 3, PATHS[path], signed)
    assert grad_level.item() == (1 if signed else 2)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (3, 4, 5)])
@pytest.mark.parametrize("signed", [False, True])
def test_each_level_gets_the_sum_over_its_own_elements(path: str, shape: tuple[int, ...], signed: bool) -> None:
    x = 3 * torch.randn(2, 3, 4, 5)
    level = torch.rand(shape) + 1
    _, _, grad_level = gradients(x, level, 7, PATHS[path], signed)
    upstream = torch.arange(1.0, x.numel() + 1).reshape(x.shape)
    sign = (x >= level).float() - (float(signed) * (x <= -level).float())
    expected = (sign * upstream).double()
    for axis in range(4):
        if axis == 0 or not shape or shape[axis - 1] == 1:
            expected = expected.sum(axis, keepdim=True)
    torch.testing.assert_close(grad_level.double().reshape(-1), expected.reshape(-1), rtol=1e-5, atol=1e-3)
    assert grad_level.shape == shape


@pytest.mark.parametrize("path", PATHS)
def test_bfloat16_keeps_its_dtype_and_sums_the_level_in_float32(path: str) -> None:
    x = torch.full((4000,), 5.0, dtype=torch.bfloat16).requires_grad_()
    level = torch.tensor(3.0, requires_grad=True)
    y = clip_round(x, level, 15, PATHS[path])
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, level.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert level.grad.item() == 4000, "4000 is no bfloat16 number"


def before(x: Tensor, level: Tensor, steps: int, rounding: Callable[[Tensor], Tensor], signed: bool) -> Tensor:
    """The rounding of the clipped values alone: right but for the level, which gets the rounding's gradient."""
    fixed = level.detach()
    return (rounding(clip(x.float(), level, signed) * (steps / fixed)) * (fixed / steps)).to(x.dtype)


@pytest.mark.parametrize("shape", [(), (5, 1)])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rounding", SOFT)
def test_a_level_hears_of_each_clipped_element_alone_whatever_the_rounding(
    rounding: str, signed: bool, shape: tuple[int, ...]
) -> None:
    x, level = 4 * torch.randn(3, 5, 7), torch.rand(shape) + 0.5
    value, grad_x, grad_level = gradients(x, level, 7, SOFT[rounding], signed)
    _, straight_x, straight_level = gradients(x, level, 7, ste, signed)
    torch.testing.assert_close(grad_level, straight_level, rtol=1e-6, atol=0)
    assert torch.equal(grad_x == 0, straight_x == 0)
    leaf = x.clone().requires_grad_()
    expected = before(leaf, level, 7, SOFT[rounding], signed)
    (expected * torch.arange(1.0, x.numel() + 1).reshape(x.shape)).sum().backward()
    assert torch.equal(value, expected) and torch.equal(grad_x, leaf.grad), "the staircase's own, inside the range"


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=30),
    st.floats(0.03125, 20, width=32),
    st.sampled_from([1, 3, 15, 255]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from(sorted(SOFT)),
)
def test_the_levels_gradient_leaves_every_bit_of_the_values(
    values: list[float], level: float, steps: int, signed: bool, dtype: torch.dtype, rounding: str
) -> None:
    x, alpha = torch.tensor([*values, 0.0, level, -level], dtype=dtype), torch.tensor(level, requires_grad=True)
    found = clip_round(x, alpha, steps, SOFT[rounding], signed)
    assert found.requires_grad and found.dtype == dtype
    torch.testing.assert_close(
        found, before(x, alpha, steps, SOFT[rounding], signed), rtol=0, atol=0, equal_nan=True
    )


def test_double_input_keeps_its_dtype() -> None:
    x = torch.randn(8, dtype=torch.float64, requires_grad=True)
    for level in (torch.tensor(2.0), torch.tensor(2.0, dtype=torch.float64), torch.full((8,), 2.0).double()):
        for rounding in PATHS.values():
            y = clip_round(x, level.requires_grad_(), 15, rounding)
            y.sum().backward()
            assert y.dtype == torch.float64


@pytest.mark.parametrize(
    ("backend", "steps", "signed", "rounding"),
    [
        ("aot_eager", 15, False, ste),
        ("aot_eager", None, False, ste),
        ("aot_eager", 7, True, ste),
        ("aot_eager", 15, False, ASR()),
        ("aot_eager", 7, True, DSQ()),
        pytest.param("inductor", 15, False, ste, marks=pytest.mark.slow),
        pytest.param("inductor", 15, False, ASR(), marks=pytest.mark.long),
    ],
)
def test_a_compiled_step_gives_the_same_numbers(
    backend: str, steps: int | None, signed: bool, rounding: Callable[[Tensor], Tensor]
) -> None:
    torch._dynamo.reset()
    x, level = 3 * torch.randn(2, 4, 6), torch.tensor(2.5)

    def step(x: Tensor, level: Tensor) -> Tensor:
        return clip_round(x, level, steps, rounding, signed)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    found = []
    for function in (step, compiled):
        leaves = x.clone().requires_grad_(), level.clone().requires_grad_()
        y = function(*leaves)
        (y * torch.arange(48.0).reshape(x.shape)).sum().backward()
        found.append((y.detach(), leaves[0].grad, leaves[1].grad))
    for eager, other in zip(*found, strict=True):
        torch.testing.assert_close(eager, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("signed", [False, True])
def test_codes_are_the_integers_behind_the_values(signed: bool) -> None:
    x, level = 4 * torch.randn(3, 5, 7), torch.rand(5, 1) + 0.5
    codes = clip_codes(x, level, 7, signed)
    assert torch.equal(codes.decode(), clip_round(x, level, 7, signed=signed))
    assert codes.levels == (15 if signed else 8)
    assert codes.values.min() >= 0 and codes.values.max() < codes.levels


def test_clipped_share_counts_the_level_itself() -> None:
    x, level = torch.tensor([-3.0, -1.0, 2.0, 5.0]), torch.tensor(2.0)
    assert clipped_share(x, level).item() == 0.5
    assert clipped_share(x, level, signed=True).item() == 0.75


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("level", [-1.0, 0.0])
@pytest.mark.parametrize("shape", [(), (4,)])
def test_at_a_level_that_is_not_above_zero_every_value_is_the_level(
    path: str, level: float, shape: tuple[int, ...]
) -> None:
    """min(max(x, 0), level) is then `level` for all x: its derivative by x is 0, by the level 1."""
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5])
    y, grad_x, grad_level = gradients(x, torch.full(shape, level), None, PATHS[path])
    assert y.tolist() == [level] * 4
    assert not grad_x.any()
    assert grad_level.flatten().tolist() == ([1.0, 2.0, 3.0, 4.0] if shape else [10.0])
