"""WRPN against a transcription of its formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.errors import ConfigError
from qexp.quantizers.base import Site
from qexp.quantizers.wrpn import WRPNWeight, wrpn_weight

WEIGHT = Site("conv", "weight", (8, 4, 3, 3))
BITS = range(2, 9)

weights = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=40)


@given(weights, st.sampled_from(BITS))
def test_weights_follow_the_formula(values: list[float], bits: int) -> None:
    weight = np.array(values, dtype=np.float32)
    steps = 2.0 ** (bits - 1) - 1
    clipped = np.clip(weight.astype(np.float64), -1, 1)
    leaf = torch.from_numpy(weight).requires_grad_()
    quantized = wrpn_weight(leaf, bits)
    quantized.sum().backward()
    at_tie = np.abs(clipped * steps % 1 - 0.5) < 1e-4  # float32 may round a tie the other way
    difference = np.abs(quantized.detach().numpy() - np.round(steps * clipped) / steps)
    assert np.all(difference <= np.where(at_tie, 1.001 / steps, 1e-6))
    assert leaf.grad.tolist() == (np.abs(weight) < 1).astype(float).tolist()


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_symmetric_with_zero_and_one_fewer_than_codes(bits: int) -> None:
    levels = wrpn_weight(torch.linspace(-2, 2, 10_001), bits).unique()
    assert levels.numel() == 2**bits - 1
    assert torch.equal(levels, -levels.flip(0)) and 0 in levels
    assert (levels[0].item(), levels[-1].item()) == (-1.0, 1.0)


def test_two_bits_are_ternary_with_thresholds_at_one_half() -> None:
    weight = torch.tensor([-0.9, -0.51, -0.49, 0.0, 0.49, 0.51, 7.0])
    assert wrpn_weight(weight, 2).tolist() == [-1, -1, 0, 0, 0, 1, 1]


def test_the_grid_is_the_same_for_small_weights() -> None:
    # Unlike DoReFa's and SAWB's, which follow the weights: He-initialized layers start at zero at 2 bits.
    assert not wrpn_weight(0.05 * torch.randn(1000).clamp(-4, 4), 2).any()


def test_thirty_two_bits_leave_weights_alone_and_one_bit_is_refused() -> None:
    weight = torch.randn(10)
    assert wrpn_weight(weight, 32) is weight
    with pytest.raises(ConfigError, match="conv: bits=1 is not supported by WRPNWeight"):
        WRPNWeight(1, WEIGHT)


def test_it_counts_what_it_clips() -> None:
    description = WRPNWeight(2, WEIGHT).describe(torch.tensor([-2.0, -0.3, 0.7, 1.0]))
    assert description.shares["clipped"].item() == 0.5
    assert description.levels == 3
