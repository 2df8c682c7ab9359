"""Cross-layer equalization: the network computes what it did, and both layers of a pair use their ranges."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qexp.calibration.equalization import equalize
from qexp.calibration.folding import fold_batch_norm
from qexp.ops.uniform import extremes, make_grid


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and scales that differ by orders of magnitude between channels."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 2.0)
            nn.init.normal_(module.bias)
            module.weight.data = torch.logspace(-1.5, 1.0, len(module.weight))[torch.randperm(len(module.weight))]
    return model.double().eval()


def chain(act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(1)  # two of them have the same weights
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), act(),
        nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), act(), nn.MaxPool2d(2),
        nn.Conv2d(16, 12, 3, groups=2), nn.BatchNorm2d(12), act(),
        nn.Conv2d(12, 8, 1),
    )  # fmt: skip


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def ranges(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the largest magnitude that each input channel meets."""
    out, inside, *_ = weight.shape
    found = torch.zeros(groups * inside, dtype=weight.dtype)
    for row in range(out):
        group = row // (out // groups)
        for column in range(inside):
            index = group * inside + column
            found[index] = torch.maximum(found[index], weight[row, column].abs().max())
    return found


@torch.no_grad()
def test_a_chain_computes_the_same_with_equal_ranges():
    folding = fold_batch_norm(randomized(chain()))
    before = folding.model(IMAGES)
    statistics = copy.deepcopy(folding.statistics)
    weights = {name: folding.model.get_submodule(name).weight.clone() for name in ("0", "3", "7", "10")}
    done = equalize(folding)
    assert done.pairs == (("0", "3"), ("3", "7"), ("7", "10")) and done.unclipped == ()
    after = done.folding.model(IMAGES)
    assert (after - before).abs().max() < 1e-10 * before.abs().max()
    for first, second in done.pairs:
        one, two = (done.folding.model.get_submodule(name) for name in (first, second))
        produced = one.weight.abs().flatten(1).amax(1)
        torch.testing.assert_close(produced, ranges(two.weight, two.groups), rtol=2e-4, atol=0.0)
        scale = weights[first].abs().flatten(1).amax(1) / produced
        if first == "0":  # the only one whose input was not rescaled
            torch.testing.assert_close(done.folding.statistics["0"][0], statistics["0"][0] / scale)


@torch.no_grad()
def test_one_range_for_a_layer_costs_less_afterwards():
    errors = []
    for equal in (False, True):
        folding = fold_batch_norm(randomized(chain()))
        before = folding.model(IMAGES)
        model = equalize(folding).folding.model if equal else folding.model
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                low, high = extremes(module.weight, channels=False)
                module.weight.copy_(make_grid("full", 6, low, high).round(module.weight))
        errors.append(float((model(IMAGES) - before).square().mean() / before.square().mean()))
    assert errors[1] < errors[0] / 5


@torch.no_grad()
def test_a_relu6_becomes_a_relu_and_is_named():
    folding = fold_batch_norm(randomized(chain(nn.ReLU6)))
    done = equalize(folding)
    assert done.unclipped == ("2", "5", "9")
    assert not any(isinstance(module, nn.ReLU6) for module in done.folding.model.modules())
    plain = fold_batch_norm(randomized(chain(nn.ReLU))).model(IMAGES)
    assert (done.folding.model(IMAGES) - plain).abs().max() < 1e-10 * plain.abs().max()


class Residual(nn.Module):
    """A sum, a layer with two readers, and a flattening: none of them is between two layers of a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Conv2d(6, 6, 3, padding=1),
        )
        self.fc1, self.fc2 = nn.Linear(6 * 14 * 14, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.b(self.a(x).relu())
        return self.fc2(self.fc1(x.flatten(1)).relu())


@torch.no_grad()
def test_only_what_stands_alone_between_two_layers_is_a_pair():
    torch.manual_seed(0)
    folding = fold_batch_norm(Residual().double().eval())
    before = folding.model(IMAGES)
    done = equalize(folding)
    assert done.pairs == (("a", "b"), ("fc1", "fc2"))
    assert (done.folding.model(IMAGES) - before).abs().max() < 1e-10 * before.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 1])
def test_a_dead_channel_is_left_alone(which):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double().eval()
    (model[0].weight[1] if which == 0 else model[2].weight[:, 1]).zero_()
    done = equalize(fold_batch_norm(model))
    assert all(parameter.isfinite().all() for parameter in done.folding.model.parameters())
    assert (done.folding.model(IMAGES) - model(IMAGES)).abs().max() < 1e-10


@torch.no_grad()
def test_tied_layers_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(),
        nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1),
    ).double().eval()  # fmt: skip
    model[4].weight = model[2].weight
    folding = fold_batch_norm(model)
    before = folding.model(IMAGES)
    done = equalize(folding)
    assert done.pairs == (("6", "8"),)
    assert (done.folding.model(IMAGES) - before).abs().max() < 1e-12 * before.abs().max()


class Shared(nn.Module):
    """One ReLU6, called between the layers of a pair and once more, where its end at 6 counts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU6()

    def forward(self, x):
        return self.act(self.b(self.act(self.a(x))))


@torch.no_grad()
def test_a_relu6_ends_at_6_wherever_it_is_not_between_a_pair():
    torch.manual_seed(0)
    model = Shared().double().eval()
    model.b.weight.mul_(20)
    done = equalize(fold_batch_norm(model))
    assert done.pairs == (("a", "b"),) and done.unclipped == ("act",)
    x = 3 * IMAGES
    expected = nn.functional.relu6(model.b(nn.functional.relu(model.a(x))))
    assert (expected == 6).any()
    torch.testing.assert_close(done.folding.model(x), expected)
