from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from qexp.errors import ConfigError
from qexp.lit import optimizers
from qexp.lit.step import classification_step
from qexp.quantizers.base import ParameterGroup, Site
from qexp.quantizers.pact import PACT


class Slow(PACT):
    """Wants a learning rate and a decay of its own."""

    def parameter_groups(self):
        yield ParameterGroup((self.alpha,), lr_factor=0.5, weight_decay=0.25)


def shared_pair() -> tuple[PACT, PACT]:
    first, second = (PACT(4, Site(name, "activation"), scope="network") for name in ("one", "two"))
    second.share(first)
    return first, second


def network() -> nn.Sequential:
    first, second = shared_pair()
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), first, nn.Conv2d(4, 4, 3), second,
        Slow(4, Site("slow", "activation")), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def test_each_parameter_is_in_one_group():
    net = network()
    counts = Counter(id(p) for group in optimizers.parameter_groups(net) for p in group.parameters)
    assert counts == {id(p): 1 for p in net.parameters()}


def test_what_decays():
    net = network()
    groups = optimizers.sgd(optimizers.parameter_groups(net), lr=0.1, weight_decay=1e-4).param_groups
    decay = {id(p): (group["weight_decay"], group["lr"]) for group in groups for p in group["params"]}
    for index in (0, 3, 7):
        assert decay[id(net[index].weight)] == (1e-4, 0.1)
        assert decay[id(net[index].bias)] == (0.0, 0.1)
    assert decay[id(net[1].weight)] == decay[id(net[1].bias)] == (0.0, 0.1)
    assert decay[id(net[2].alpha)] == (0.0, 0.1)
    assert decay[id(net[5].alpha)] == (0.25, 0.05)


def test_decay_all_reaches_biases_and_normalization_but_no_alpha():
    net = network()
    groups = optimizers.adam(optimizers.parameter_groups(net), lr=0.1, weight_decay=1e-4, decay="all").param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(net[1].bias)] == decay[id(net[0].bias)] == 1e-4
    assert decay[id(net[2].alpha)] == 0.0


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_is_no_weight_unless_it_is_a_layers_too(tied: bool):
    net = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "decoder": nn.Linear(4, 9)})
    if tied:
        net["decoder"].weight = net["embedding"].weight
    groups = optimizers.parameter_groups(net)
    settings = optimizers.adam(groups, lr=0.1, weight_decay=1e-4, update_scale="fan").param_groups
    seen = {id(p): (group["weight_decay"], group["lr"] / 0.1) for group in settings for p in group["params"]}
    as_a_weight = (1e-4, pytest.approx((13 / 1.5) ** 0.5))
    assert seen[id(net["decoder"].weight)] == as_a_weight
    assert seen[id(net["embedding"].weight)] == (as_a_weight if tied else (0.0, pytest.approx(1.0)))
    assert seen[id(net["decoder"].bias)] == (0.0, pytest.approx(1.0))


def test_nesterovs_momentum_looks_one_step_ahead():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = optimizers.sgd([optimizers.Group("weights", (weight,))], lr=0.5, momentum=0.5, nesterov=True)
    # The velocity v becomes 0.5 v + g, first (1, -4), then (2.5, -2); the weight moves by -0.5 (g + 0.5 v).
    for gradient, expected in (([[1.0, -4.0]], [[0.25, 1.0]]), ([[2.0, 0.0]], [[-1.375, 1.5]])):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        assert torch.equal(weight.detach(), torch.tensor(expected))


def test_adamax_is_its_algorithm():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = optimizers.adamax([optimizers.Group("weights", (weight,))], lr=0.5, betas=(0.5, 0.25))
    at, first, largest = weight.detach().double(), torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for step, gradient in enumerate(([[1.0, -4.0]], [[0.5, 0.25]], [[-2.0, 0.0]]), 1):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        first = 0.5 * first + 0.5 * weight.grad.double()
        largest = torch.maximum(0.25 * largest, weight.grad.abs().double())
        at = at - 0.5 / (1 - 0.5**step) * first / largest
        torch.testing.assert_close(weight.detach().double(), at, rtol=1e-6, atol=1e-6)


def test_adam_is_its_algorithm():
    weight = nn.Parameter(torch.randn(6, 5, dtype=torch.float64))
    groups = [optimizers.Group("weights", (weight,))]
    optimizer = optimizers.adam(groups, lr=0.1, betas=(0.5, 0.75), eps=0.01, weight_decay=0.25)
    at, first, second = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    for step in (1, 2, 3, 4):
        weight.grad = torch.randn_like(weight)
        gradient = weight.grad + 0.25 * at
        optimizer.step()
        first = 0.5 * first + 0.5 * gradient
        second = 0.75 * second + 0.25 * gradient**2
        at = at - 0.1 * first / (1 - 0.5**step) / ((second / (1 - 0.75**step)).sqrt() + 0.01)
        torch.testing.assert_close(weight.detach(), at)


@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.adam])
@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("meta", False)])
def test_parameters_are_updated_in_one_pass_where_torch_can(make, device, fused):
    groups = [optimizers.Group("weights", (nn.Parameter(torch.ones(2, device=device)),))]
    assert make(groups, lr=0.1).defaults["fused"] is fused


def test_frozen_parameters_are_left_out():
    net = network()
    net[0].weight.requires_grad_(False)
    assert all(p is not net[0].weight for group in optimizers.parameter_groups(net) for p in group.parameters)


def test_adams_decay_is_coupled():
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = optimizers.adam([optimizers.Group("weights", (weight,))], lr=0.1, weight_decay=0.5)
    weight.grad = torch.tensor([[0.25]])
    optimizer.step()
    # The moment sees gradient + decay * weight; AdamW's would see the gradient alone.
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], torch.tensor([[0.1 * (0.25 + 0.5 * 2.0)]]))


@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.adam, optimizers.adamax])
def test_the_penalty_on_alpha_is_exact_under_every_optimizer(make):
    """No activation reaches alpha, so its gradient is the penalty's: lambda * alpha, once for a shared alpha."""
    first, second = shared_pair()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), first, second, nn.Flatten(), nn.Linear(72, 3))
    groups = optimizers.parameter_groups(net)
    optimizer = make(groups, lr=0.1, weight_decay=0.3)
    penalized = list({id(p): p for q in (first, second) for p in q.penalized().values()}.values())
    images, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    loss, _ = classification_step(net, images, labels, [], penalized, 0.01, 0.0)
    loss.backward()
    alpha = torch.tensor(10.0)
    assert torch.equal(first.alpha.grad, 0.01 * alpha)
    optimizer.step()
    state = optimizer.state[first.alpha]
    if make is optimizers.sgd:
        assert torch.equal(state["momentum_buffer"], 0.01 * alpha)
        torch.testing.assert_close(first.alpha.detach(), alpha - 0.1 * 0.01 * alpha)
    else:
        torch.testing.assert_close(state["exp_avg"], 0.1 * 0.01 * alpha)
        torch.testing.assert_close(first.alpha.detach(), alpha - 0.1)


def test_without_penalty_alpha_has_no_gradient_from_it():
    quantizer = PACT(4, Site("one", "activation"))
    net = nn.Sequential(nn.Flatten(), quantizer, nn.Linear(4, 2))
    loss, statistics = classification_step(
        net, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), [], [quantizer.alpha], 0.0, 0.0
    )
    loss.backward()
    assert quantizer.alpha.grad.item() == 0.0
    assert statistics[2].item() == 0.0


@pytest.mark.parametrize("changes", [{"lr": 0.0}, {"lr": 0.1, "decay": "some"}])
def test_settings_without_meaning_are_refused(changes):
    with pytest.raises(ConfigError, match=r"optimizer\."):
        optimizers.sgd(optimizers.parameter_groups(network()), **changes)


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (optimizers.sgd, {"lr": 0.0}, "optimizer.lr=0.0"),
        (optimizers.sgd, {"lr": 0.1, "momentum": 1.0}, "optimizer.momentum=1.0: 0 or more, and below 1"),
        (optimizers.sgd, {"lr": 0.1, "momentum": 0.0, "nesterov": True}, "optimizer.nesterov=true: it needs"),
        (optimizers.sgd, {"lr": 0.1, "weight_decay": -1.0}, "optimizer.weight_decay=-1.0"),
        (optimizers.adam, {"lr": 0.1, "betas": [0.9]}, r"optimizer.betas=\[0.9\]: two numbers"),
        (optimizers.adam, {"lr": 0.1, "betas": [0.9, 1.0]}, "optimizer.betas"),
        (optimizers.adam, {"lr": 0.1, "eps": -1.0}, "optimizer.eps=-1.0"),
        (optimizers.adam, {"lr": 0.1, "eps": float("nan")}, "optimizer.eps=nan: 0 or more"),
        (optimizers.adamax, {"lr": 0.1, "eps": 0.0}, "optimizer.eps=0.0: above 0"),
        (optimizers.adamax, {"lr": 0.1, "eps": float("nan")}, "optimizer.eps=nan: above 0"),
        (optimizers.adamax, {"lr": 0.1, "betas": [1.0, 0.9]}, "optimizer.betas"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, settings, said):
    with pytest.raises(ConfigError, match=said):
        make(optimizers.parameter_groups(nn.Linear(2, 2)), **settings)
