"""Learned rounding: against every choice there is, and in a network against the nearest."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from qexp.calibration import reconstruction
from qexp.calibration.fit import correct_weights, fit_activations, fit_weights
from qexp.calibration.observers import MinMax
from qexp.calibration.reconstruction import learn_roundings, search
from qexp.convert import quantize_model
from qexp.errors import ConfigError
from qexp.graph.plan import LayerPlan, make_plan
from qexp.graph.scheme import Method, Scheme, Widths
from qexp.graph.tracing import trace
from qexp.ops.soft_rounding import annealed, inverse, rectified_sigmoid, rounding_penalty
from qexp.quantizers.adaround import AdaRoundWeight
from qexp.quantizers.base import Site
from qexp.quantizers.uniform import UniformActivation

SHAPE = (3, 8, 8)


def correlated(samples: int, features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(features, features, generator=generator) + 1.0
    return torch.randn(samples, features, generator=generator) @ mixing


def test_the_relaxation():
    v = torch.linspace(-6, 6, 25)
    h = rectified_sigmoid(v)
    assert h.min() == 0 and h.max() == 1 and (h.diff() >= 0).all()
    inside = (h > 0) & (h < 1)
    torch.testing.assert_close(inverse(h[inside]), v[inside])
    # The sigmoid stretched from -0.1 to 1.1: 1.2 / (1 + 1/e) - 0.1 at 1.
    torch.testing.assert_close(rectified_sigmoid(torch.tensor(1.0)), torch.tensor(0.7772703))
    quarter = torch.tensor([0.25])  # 1 - |2 h - 1|^beta
    assert (float(rounding_penalty(quarter, 2.0)), float(rounding_penalty(quarter, 4.0))) == (0.75, 0.9375)
    assert rounding_penalty(torch.tensor([0.0, 1.0]), 2.0) == 0 and rounding_penalty(torch.tensor([0.5]), 2.0) == 1
    betas = [annealed(index / 10) for index in range(11)]
    assert betas == sorted(betas, reverse=True) and (betas[0], betas[-1]) == (20.0, 2.0)


def test_it_comes_near_the_best_of_all_choices():
    inputs, layer = correlated(256, 8), nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(1, 8, generator=torch.Generator().manual_seed(2)))
    weight, targets = layer.weight.detach(), layer(inputs).detach()
    quantizer = AdaRoundWeight(3, Site("fc", "weight", (1, 8)), iterations=600)
    quantizer.fit_weights(weight)

    def error(rounded: torch.Tensor) -> float:
        return float((inputs @ rounded.T - targets).square().mean())

    nearest = error(quantizer(weight))
    floor = (weight / quantizer.step).floor()
    every = [
        error((floor + torch.tensor([ups], dtype=torch.float32)).clamp(*quantizer.limits) * quantizer.step)
        for ups in itertools.product((0, 1), repeat=8)
    ]
    search(quantizer, layer, inputs, targets, lambda x: x, torch.Generator().manual_seed(0))
    found = error(quantizer(weight))
    assert min(every) <= found + 1e-6 and found < 0.7 * nearest
    assert sorted(every).index(pytest.approx(found, rel=1e-4)) < 10, "among the ten best of 256"
    off = (quantizer(weight) / quantizer.step - weight / quantizer.step).abs()
    assert (off[weight.abs() < quantizer.step * 3] < 1 + 1e-5).all(), "up or down, never further"
    assert torch.equal(quantizer.codes(weight).decode(), quantizer(weight))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*layers).eval()


def quantized(iterations: int) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Return the float network, the quantized one, and the images that were shown."""
    model = network()
    method = Method(
        "adaround", lambda **given: AdaRoundWeight(**given, iterations=iterations), UniformActivation, "input"
    )
    widths = Widths(3, 8)
    plan = make_plan(model, Scheme(method, widths, widths, widths, input_range=((-4.0,) * 3, (4.0,) * 3)), SHAPE)
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(1, *SHAPE, generator=generator)
    batches = [(base + 0.5 * torch.randn(16, *SHAPE, generator=generator), None) for _ in range(4)]
    before = copy.deepcopy(model.state_dict())
    list(fit_activations(model, plan, batches, MinMax))
    fit_weights(model, plan)
    learn_roundings(model, plan, batches, seed=0)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    reference = copy.deepcopy(model)
    return reference, quantize_model(plan).eval(), torch.cat([images for images, _ in batches])


def test_a_network_keeps_its_output_better_than_with_the_nearest():
    errors = []
    for iterations in (0, 200):
        reference, made, images = quantized(iterations)
        with torch.no_grad():
            errors.append(float((made(images) - reference(images)).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_the_same_seed_gives_the_same_roundings():
    first, second = (quantized(30)[1].state_dict() for _ in range(2))
    assert all(torch.equal(second[name], value) for name, value in first.items())


@pytest.mark.parametrize(
    ("activation", "values"),
    [
        (nn.ReLU(), [0.0, 0.0, 3.0, 9.0]),
        (nn.ReLU6(inplace=True), [0.0, 0.0, 3.0, 6.0]),
        (nn.Hardswish(inplace=True), [0.0, -1 / 3, 3.0, 9.0]),
        (nn.MaxPool2d(1), [-9.0, -1.0, 3.0, 9.0]),
    ],
)
def test_outputs_are_compared_behind_the_activation_that_follows(activation, values):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), activation).eval()
    act = reconstruction._activation(trace(model)[-1], "0")
    x = torch.tensor([-9.0, -1.0, 3.0, 9.0])
    torch.testing.assert_close(act(x), torch.tensor(values))
    assert x[0] == -9, "targets are left as they are"


def test_what_a_relu6_cuts_off_does_not_count():
    # Of two channels one always ends above 6: whatever its roundings, its output is 6.
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(2, 64, generator=generator)
    layer = nn.Linear(64, 2)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.tensor([100.0, 0.0]))
    inputs = torch.rand(64, 64, generator=generator)
    moved = []
    for act in (torch.relu, nn.functional.relu6):
        quantizer = AdaRoundWeight(2, Site("fc", "weight", (2, 64)), iterations=200, penalty=0.0)
        quantizer.fit_weights(weight)
        targets = act(layer(inputs)).detach()
        search(quantizer, layer, inputs, targets, act, torch.Generator().manual_seed(0))
        moved.append(quantizer(weight)[0])
    floor = (weight[0] / quantizer.step[0]).floor()
    nearest = floor + ((weight[0] / quantizer.step[0] - floor) >= 0.5)
    assert not torch.equal(moved[0], moved[1]), "a ReLU would count it"
    torch.testing.assert_close(moved[1], nearest.clamp(*quantizer.limits) * quantizer.step[0])


def test_memory_holds_as_many_images_as_it_may(monkeypatch):
    shapes = []
    found = reconstruction.search

    def noted(quantizer, module, inputs, targets, act, generator):
        shapes.append((len(inputs), len(targets)))
        return found(quantizer, module, inputs, targets, act, generator)

    monkeypatch.setattr(reconstruction, "search", noted)
    all_images, few = [], []
    quantized(2)
    all_images, shapes = shapes, few
    # The first layer's inputs and outputs: 3 * 8 * 8 + 6 * 6 * 6 float32 an image.
    monkeypatch.setattr(reconstruction, "KEPT_BYTES", 40 * 4 * (192 + 216))
    quantized(2)
    assert all_images == [(64, 64)] * 3
    assert few[0] == (40, 40) and few[-1] == (64, 64)
    monkeypatch.setattr(reconstruction, "KEPT_BYTES", 1)
    few.clear()
    quantized(2)
    assert few == [(32, 32)] * 3, "never fewer than an iteration needs"


def test_a_layer_learns_from_the_quantized_networks_input_what_the_float_one_makes_of_its_own(monkeypatch):
    seen = []
    found = reconstruction.search

    def noted(quantizer, module, inputs, targets, act, generator):
        seen.append((inputs, targets))
        return found(quantizer, module, inputs, targets, act, generator)

    monkeypatch.setattr(reconstruction, "search", noted)
    reference, made, images = quantized(2)
    second = made.get_submodule("2")
    with torch.no_grad():
        inputs = second.input_quantizer(made.get_submodule("0")(images).relu())
        targets = reference[2](reference[0](images).relu())
    torch.testing.assert_close(seen[1][1], targets)
    moved = (seen[1][0] - inputs).abs() > 1e-5  # sums in another order may round to the level beside
    assert moved.float().mean() < 0.01


def test_bias_correction_beside_it_is_refused():
    method = Method("adaround", AdaRoundWeight, None, "input")
    plan = make_plan(network(), Scheme(method, *[Widths(4, 32)] * 3), SHAPE)
    with pytest.raises(ConfigError, match=r"0 learns its roundings from .*bias_correction=none"):
        correct_weights(plan, "channel")


@pytest.mark.parametrize(
    "wrong", [{"iterations": -1}, {"samples": 0}, {"learning_rate": 0.0}, {"penalty": -1.0}, {"warmup": 1.0}]
)
def test_what_has_no_meaning_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AdaRoundWeight(4, Site("fc", "weight", (2, 3)), **wrong)


class Repeated(nn.Module):
    """A layer that is called three times, once on a smaller image, and another that has its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.twin = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.twin.weight = self.shared.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(self.shared(x))
        return self.twin(self.shared(nn.functional.avg_pool2d(x, 2)))


def test_every_call_of_a_layer_is_seen_and_a_tied_one_keeps_its_weights():
    torch.manual_seed(0)
    model = Repeated().eval()
    method = Method("adaround", lambda **given: AdaRoundWeight(**given, iterations=5), UniformActivation, "input")
    widths = Widths(3, 8)
    plan = make_plan(model, Scheme(method, widths, widths, widths, input_range=((-4.0,) * 3, (4.0,) * 3)), SHAPE)
    images = torch.randn(8, *SHAPE)
    list(fit_activations(model, plan, [(images, None)], MinMax))
    fit_weights(model, plan)
    shared = next(layer for layer in plan.layers if layer.name == "shared")
    seen = reconstruction._seen(model, shared, 3, images)
    with torch.no_grad():
        reached = [images, model.shared(images)]
        torch.testing.assert_close(seen, torch.cat([shared.input(x) for x in reached]))
        outputs = reconstruction._outputs(model, shared, 3, images)
        torch.testing.assert_close(outputs, torch.cat([model.shared(x) for x in reached]))
    learn_roundings(model, plan, [(images, None)], seed=0)
    twin = next(layer for layer in plan.layers if layer.name == "twin")
    whole = twin.weight.step * (model.twin.weight / twin.weight.step).floor()
    moved = (twin.weight(model.twin.weight) - whole) / twin.weight.step
    assert (moved.round() - moved).abs().max() < 1e-5
    assert moved.min() > -0.5 and moved.max() < 1.5, "up or down from the float weights"


def test_what_follows_a_call_writes_into_no_target():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 1), nn.Hardswish(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.conv(self.act(self.conv(x))))

    model, images = Twice().eval(), torch.randn(8, *SHAPE)
    layer = LayerPlan("conv", "Conv2d", (3, 3, 1, 1), [(SHAPE, SHAPE)])
    with torch.no_grad():
        first = model.conv(images)
        targets = reconstruction._outputs(model, layer, 2, images)
        torch.testing.assert_close(targets, torch.cat([first, model.conv(nn.functional.hardswish(first))]))


def first_gradient(monkeypatch, layer, inputs, targets, act, **settings):
    """What the search of 3-bit roundings hands its optimizer in the first iteration, over all the inputs."""
    quantizer = AdaRoundWeight(3, Site("l", "weight", tuple(layer.weight.shape)), iterations=1, **settings)
    quantizer.fit_weights(layer.weight.detach())
    gradients = []
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: gradients.append(self.param_groups[0]["params"][0].grad)
    )
    monkeypatch.setattr(torch, "randint", lambda most, size, generator: torch.arange(most))
    search(quantizer, layer, inputs, targets, act, torch.Generator())
    return gradients[0], quantizer


@pytest.mark.parametrize("layer", [nn.Linear(8, 3), nn.Conv2d(8, 3, 3)])
def test_the_search_follows_the_mean_squared_error_summed_over_channels(layer, monkeypatch):
    inputs = torch.rand(16, 8) if isinstance(layer, nn.Linear) else torch.rand(16, 8, 5, 5)
    targets = torch.rand_like(layer(inputs))
    gradient, quantizer = first_gradient(monkeypatch, layer, inputs, targets, torch.relu, warmup=0.0, penalty=0.1)

    scaled = layer.weight.detach() / quantizer.step
    v = inverse(scaled - scaled.floor()).requires_grad_()
    h = rectified_sigmoid(v)
    soft = (scaled.floor() + h).clamp(*quantizer.limits) * quantizer.step
    error = torch.relu(reconstruction.float_output(layer, inputs, soft)) - targets
    loss = error.square().sum(1).mean() + 0.1 * rounding_penalty(h, annealed(0.0))
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, v)[0])


def test_a_linear_layers_error_is_summed_over_its_channels(monkeypatch):
    """Twice as many steps of the same numbers are the same problem."""
    inputs, layer = correlated(16, 8), nn.Linear(8, 3, bias=False)
    gradients = []
    for steps in (1, 2):
        x = inputs.unsqueeze(1).expand(-1, steps, -1)
        targets = layer(x).detach() + 1
        gradients.append(first_gradient(monkeypatch, layer, x, targets, lambda y: y, penalty=0.0)[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert gradients[0].abs().max() > 0.01


def test_the_penaltys_annealing_begins_after_the_warmup_and_takes_the_rest(monkeypatch):
    shown = []
    monkeypatch.setattr(reconstruction, "annealed", lambda share: shown.append(share) or annealed(share))
    layer, x = nn.Linear(4, 2, bias=False), torch.randn(8, 4)
    quantizer = AdaRoundWeight(3, Site("fc", "weight", (2, 4)), iterations=10, warmup=0.2)
    quantizer.fit_weights(layer.weight.detach())
    search(quantizer, layer, x, layer(x).detach(), lambda y: y, torch.Generator().manual_seed(0))
    assert shown == pytest.approx([step / 8 for step in range(8)])
