"""Histograms against numpy's on the same edges; moments against those of all values at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.calibration.histograms import Histogram
from qexp.calibration.moments import Moments
from qexp.errors import ConfigError
from qexp.quantizers.base import Site

SITE = Site("relu", "activation")

floats = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@given(st.lists(st.lists(floats, min_size=1, max_size=8), min_size=1, max_size=6), st.sampled_from([16, 33, 256]))
def test_a_histogram_counts_every_value_in_its_cell(batches: list[list[float]], bins: int) -> None:
    histogram = Histogram(bins)
    for batch in batches:
        histogram.add(torch.tensor(batch), min(batch), max(batch))
    x = np.concatenate(batches)
    edges = histogram.edges().numpy()
    assert histogram.counts.tolist() == np.histogram(x, edges)[0].tolist()
    assert (histogram.low, histogram.high) == (x.min(), x.max())
    assert histogram.zeros == np.count_nonzero(x == 0)
    assert histogram.nonzero_counts().sum() == np.count_nonzero(x)
    # At least half of the cells cover the range, where values are not all but equal.
    reach = np.abs(x).max()
    if x.max() - x.min() > 1e-3 * reach and reach > 1e-30:
        assert x.max() - x.min() > (bins / 2 - 2) * histogram.width


def test_cells_are_merged_in_pairs() -> None:
    histogram = Histogram(16)
    histogram.add(torch.arange(16.0), 0.0, 15.0)
    assert histogram.counts.tolist() == [1] * 16 and histogram.width == 1
    histogram.add(torch.tensor([16.0]), 16.0, 16.0)
    assert histogram.counts.tolist() == [2] * 8 + [1] + [0] * 7 and histogram.width == 2
    histogram.add(torch.tensor([-1.0]), -1.0, -1.0)
    assert histogram.counts.tolist() == [1] + [2] * 8 + [1] + [0] * 6 and histogram.first == -1


@pytest.mark.parametrize("shift", [0.0, 1e3, -1e5])
def test_moments_are_those_of_all_values(shift: float) -> None:
    random = np.random.default_rng(0)
    batches = [torch.tensor(random.laplace(shift, size=700 * place)).float() for place in range(1, 6)]
    moments = Moments(SITE)
    for batch in batches:
        moments.observe(batch.reshape(7, -1))
    x = torch.cat(batches).double()
    assert moments.count == x.numel()
    assert moments.mean == pytest.approx(x.mean().item(), rel=1e-12)
    assert moments.std == pytest.approx(x.std().item(), rel=1e-9)
    assert (moments.low, moments.high) == (x.min().item(), x.max().item())
    exact = (x - x.mean()).abs().mean().item()
    assert abs(moments.deviation - exact) <= (moments.high - moments.low) / 2047
    assert moments.deviation == pytest.approx(exact, rel=1e-3)


def test_moments_count_a_relus_zeros_exactly() -> None:
    moments = Moments(SITE, bins=16)
    moments.observe(torch.tensor([0.0] * 95 + [8.0] * 5))
    # The mean is 0.4: 95 values are 0.4 away from it, 5 are 7.6.
    assert moments.deviation == pytest.approx(0.76)


def test_moments_of_one_value_and_of_none() -> None:
    moments = Moments(SITE)
    moments.observe(torch.empty(0))
    assert (moments.count, moments.mean, moments.std, moments.deviation) == (0, 0.0, 0.0, 0.0)
    moments.observe(torch.tensor(3.0))
    assert (moments.mean, moments.std, moments.deviation, moments.low, moments.high) == (3.0, 0.0, 0.0, 3.0, 3.0)
    with pytest.raises(ConfigError, match="relu: NaN"):
        moments.observe(torch.tensor([math.nan]))
