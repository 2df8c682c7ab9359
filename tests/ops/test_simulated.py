from __future__ import annotations

import itertools

import pytest
import torch

from qexp.ops.simulated import rounding_errors, scaled_simulated_gradient, simulated_gradient


def by_the_table(half: float, here: float, double: float) -> int:
    """LLSQ's decision: +1 makes alpha larger, -1 smaller, 0 keeps it."""
    a1, a2 = here - half, double - here
    g1, g2, g3 = a1 >= 0, a2 > 0, a1 + a2 >= 0
    if (not g1 and not g2) or (g1 and not g2 and not g3):
        return 1
    if (g1 and g2) or (g1 and not g2 and g3):
        return -1
    return 0


def test_the_decision_table():
    for errors in itertools.product((0.0, 1.0, 2.0, 2.5), repeat=3):
        step = torch.tensor(0.5)
        found = simulated_gradient(step, *torch.tensor(errors)).item()
        assert found == -0.25 * by_the_table(*errors), errors
        lowest = min(range(3), key=lambda i: errors[i])
        if sorted(errors)[0] < sorted(errors)[1]:  # towards the lowest of the three
            assert by_the_table(*errors) == lowest - 1, errors


@pytest.mark.parametrize("power", [1, 2])
def test_errors_are_those_of_three_grids(power):
    x, step = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)), torch.full((4, 1), 0.3)
    for factor, found in zip((0.5, 1.0, 2.0), rounding_errors(x, step, -4, 3, power), strict=True):
        grid = torch.arange(-4, 4) * 0.3 * factor
        nearest = (x[..., None] - grid).abs().amin(-1)
        torch.testing.assert_close(found, (nearest**power).mean(1, keepdim=True))


def test_the_scaled_gradient_agrees_with_the_table_and_is_bounded():
    """Sign for sign on a Gaussian at 3 bits, for steps from far too small to far too large."""
    x, moved = torch.randn(20_000, generator=torch.Generator().manual_seed(0)), 0
    for step in torch.logspace(-1.7, 0.7, 60):
        errors = rounding_errors(x, step, -4, 3)
        table, scaled = simulated_gradient(step, *errors), scaled_simulated_gradient(step, *errors)
        assert table.sign() == scaled.sign() and scaled.abs() <= step.square()
        moved += int(scaled != 0)
    assert 40 < moved < 60


def test_the_scaled_gradient_by_hand():
    """Step 2: the slope is the difference over 1.5, in parts of the step's own error; clipped at 1."""
    for errors, expected in (
        ((1.0, 2.0, 1.6), 4 * (0.6 / 1.5) / 2.0),
        ((0.5, 2.0, 8.0), 4.0),
        ((8.0, 2.0, 0.5), -4.0),
    ):
        found = scaled_simulated_gradient(torch.tensor(2.0), *map(torch.tensor, errors))
        assert found.item() == pytest.approx(expected)


def test_descent_ends_at_the_lowest_error():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    for start in (0.01, 3.0):
        step = torch.tensor(start)
        for _ in range(400):  # a twentieth of the step at a time
            step -= 0.05 * simulated_gradient(step, *rounding_errors(x, step, -4, 3)) / step
        half, here, double = rounding_errors(x, step, -4, 3)
        assert here <= half and here <= double


def test_no_error_gives_no_gradient():
    zeros = (torch.tensor(0.0),) * 3
    assert scaled_simulated_gradient(torch.tensor(1.0), *zeros).item() == 0
