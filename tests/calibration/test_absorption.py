"""High biases handed on: exact where nothing falls below what was taken, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qexp.calibration.absorption import absorb_biases
from qexp.calibration.equalization import equalize
from qexp.calibration.folding import fold_batch_norm

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def network(padding: int = 0, act: type[nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), act(), nn.Conv2d(4, 5, 3, padding=padding, bias=bias)
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([100.0, 50.0, 2.0, -1.0]))
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 1.0, 1.0]))
    return model


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_nothing_changes_where_no_value_falls_below_what_was_absorbed(bias: bool) -> None:
    equalized = equalize(fold_batch_norm(network(bias=bias)))
    mean, deviation = equalized.folding.statistics["0"]
    before = equalized.folding.model(IMAGES)
    highest = equalized.folding.model.get_submodule("0")(IMAGES).relu().amax((0, 2, 3))
    done = absorb_biases(equalized)
    assert done.absorbed == ("0",)
    assert (done.folding.model(IMAGES) - before).abs().max() < 1e-10 * before.abs().max()
    # By hand: c = max(0, beta - 3 |gamma|) of the rescaled channels; the third and fourth have none.
    excess = torch.relu(mean - 3 * deviation)
    assert (excess > 0).tolist() == [True, True, False, False]
    lower = done.folding.model.get_submodule("0")(IMAGES).relu().amax((0, 2, 3))
    torch.testing.assert_close(lower, highest - excess)
    torch.testing.assert_close(done.folding.statistics["0"][0], mean - excess)
    assert torch.equal(done.folding.statistics["0"][1], deviation)


@torch.no_grad()
def test_the_papers_ratio_of_means_is_within_three_deviations_afterwards() -> None:
    done = absorb_biases(equalize(fold_batch_norm(network())))
    mean, deviation = done.folding.statistics["0"]
    assert (mean <= 3 * deviation + 1e-9).all()


@torch.no_grad()
def test_only_the_border_of_a_padded_layer_differs() -> None:
    equalized = equalize(fold_batch_norm(network(padding=1)))
    before = equalized.folding.model(IMAGES)
    difference = (absorb_biases(equalized).folding.model(IMAGES) - before).abs().amax((0, 1))
    assert difference[1:-1, 1:-1].max() < 1e-9 * before.abs().max()
    assert difference[0].min() > 1e-6 * before.abs().max()


@torch.no_grad()
def test_a_relu6_is_absorbed_once_it_is_a_relu_and_other_layers_are_left_alone() -> None:
    assert absorb_biases(equalize(fold_batch_norm(network(act=nn.ReLU6)))).absorbed == ("0",)
    hard = network(act=nn.Hardswish)
    assert absorb_biases(equalize(fold_batch_norm(hard))).absorbed == ()
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double().eval()
    assert absorb_biases(equalize(fold_batch_norm(plain))).absorbed == (), "no batch norm, no statistics"


@torch.no_grad()
def test_a_reader_gets_its_bias_whether_or_not_there_is_anything_to_hand_on() -> None:
    """A run's network is built again from its configuration alone, whose weights are others."""
    model = network(bias=False)
    model[1].bias.zero_()
    folding = fold_batch_norm(model)
    before = folding.model(IMAGES)
    done = absorb_biases(equalize(folding))
    assert done.absorbed == ()
    assert done.folding.model.get_submodule("3").bias.tolist() == [0.0] * 5
    assert (done.folding.model(IMAGES) - before).abs().max() < 1e-10 * before.abs().max()
