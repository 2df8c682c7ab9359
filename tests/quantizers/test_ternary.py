from __future__ import annotations

import torch

from qexp.ops.binary import sign
from qexp.quantizers.base import Site
from qexp.quantizers.ternary import TernaryWeight, ternarize


def test_threshold_and_scale_by_hand() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.9, -1.2], [0.0, 3.0, -0.3, 0.3]])
    # mean |w| = 0.75, threshold 0.525: 0.9, 1.2, 3.0 lie beyond it, their mean is 1.7.
    signs, scale = ternarize(weight)
    assert signs.tolist() == [[0, 0, 1, -1], [0, 1, 0, 0]]
    torch.testing.assert_close(scale, torch.tensor([[1.7]]))
    # By channel: means 0.6 and 0.9, thresholds 0.42 and 0.63.
    signs, scale = ternarize(weight, channels=True)
    assert signs.tolist() == [[0, 0, 1, -1], [0, 1, 0, 0]]
    torch.testing.assert_close(scale, torch.tensor([[1.05], [3.0]]))


def test_the_threshold_is_seven_tenths_of_the_mean() -> None:
    weight = torch.tensor([0.51, -0.54, 1.05, -0.9])  # mean 0.75, threshold 0.525
    signs, scale = ternarize(weight)
    assert signs.tolist() == [0, -1, 1, -1]
    torch.testing.assert_close(scale, torch.tensor([0.83]))


def test_three_values_come_closer_than_two() -> None:
    """What the paper is about: a ternary weight is nearer to a normal one than the best scaled sign."""
    torch.manual_seed(0)
    weight = torch.randn(64, 32)
    ternary = TernaryWeight(2, Site("fc", "weight", (64, 32)))(weight)
    binary = weight.abs().mean() * sign(weight)
    assert (weight - ternary).square().sum() < 0.6 * (weight - binary).square().sum()


def test_zeros_stay_zeros() -> None:
    assert TernaryWeight(2, Site("fc", "weight", (2, 3)))(torch.zeros(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
