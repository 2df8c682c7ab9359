"""The step of least squared error against a fine search through every step that could be it."""

from __future__ import annotations

import pytest
import torch

from qexp.ops.clip_search import least_squares_step, percentile_range
from qexp.quantizers.base import Site
from qexp.quantizers.pact import PACT
from qexp.quantizers.uniform import UniformWeight


def errors(rows: torch.Tensor, step: torch.Tensor, bits: int) -> torch.Tensor:
    half = 2 ** (bits - 1)
    return (rows - (rows / step).round().clamp(-half, half - 1) * step).square().sum(1)


@pytest.mark.parametrize(("bits", "worst", "summed"), [(2, 1.01, 1.001), (3, 1.01, 1.001), (4, 3.0, 1.015)])
def test_few_weights_whose_largest_is_positive_get_their_step(bits: int, worst: float, summed: float) -> None:
    rows = torch.randn(300, 9, generator=torch.Generator().manual_seed(0))
    found = errors(rows, least_squares_step(rows, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, channels=True), bits)
    # In double precision, each candidate as it is: no step above the largest weight itself can be better.
    exact = rows.double()
    largest = exact.abs().amax(1, keepdim=True)
    best = torch.stack([errors(exact, largest * index / 2000, bits) for index in range(100, 2400)]).amin(0)
    ratio = found / best
    assert ratio.max() < worst
    assert found.sum() < summed * best.sum()


def test_an_uneven_grid_is_searched_as_far_as_its_nearer_end_asks() -> None:
    rows = torch.tensor([[-1.0, 0.02, 0.9, 0.95]])
    for x, lowest, highest in ((rows, -1, 7), (-rows, -7, 1)):
        step = least_squares_step(x, lowest, highest, channels=True)
        # Every weight is close to 0 or to one step of about 0.95; with the small steps -1 would be far outside.
        assert step.item() == pytest.approx(0.95, abs=0.01)


def test_a_percentile_cuts_whole_values_rounded_down() -> None:
    low, high = percentile_range(torch.arange(26.0).reshape(1, -1), 0.1, channels=True)  # 2.6 of 26
    assert (low.item(), high.item()) == (2.0, 23.0)


def test_a_range_is_searched_down_to_a_fifth_of_the_largest() -> None:
    x = torch.full((1, 400), 0.2)
    x[0, 1:200] = -0.2
    x[0, 0] = 1.0
    quantizer = UniformWeight(2, Site("fc", "weight", (1, 400)), grid="restricted", range="mse")
    quantizer.fit_weights(x)
    assert quantizer.high.item() == pytest.approx(0.2, abs=0.011)


def test_a_level_is_searched_down_to_a_fiftieth_of_the_largest() -> None:
    x = torch.full((1, 100_000), 0.02)
    x[0, 0] = 1.0
    quantizer = PACT(2, Site("act", "input", (100_000,)), alpha="mse")
    quantizer.calibrate(x)
    assert quantizer.alpha.item() == pytest.approx(0.06, rel=0.01)  # three steps of 0.02
