"""Bias correction of outputs: the clipped normal by sampling, and channel means that come back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qexp.calibration.bias import clipped_mean, correct_biases, expected_inputs, give_biases, measured_inputs
from qexp.calibration.fit import fit_weights
from qexp.calibration.folding import fold_batch_norm
from qexp.convert import quantize_model
from qexp.graph.plan import make_plan
from qexp.graph.scheme import Method, Scheme, Widths
from qexp.quantizers.uniform import UniformWeight

SHAPE = (3, 12, 12)


@pytest.mark.parametrize("highest", [math.inf, 6.0])
def test_the_mean_of_a_clipped_normal(highest):
    mean, deviation = torch.tensor([-2.0, 0.0, 1.0, 5.0, 9.0]), torch.tensor([1.0, 2.0, 0.5, 2.0, 3.0])
    z = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampled = (mean + deviation * z).clamp(0, highest).mean(0)
    assert (clipped_mean(mean, deviation, highest) - sampled).abs().max() < 0.01
    assert clipped_mean(torch.tensor([3.0, -3.0]), torch.zeros(2)).tolist() == pytest.approx([3.0, 0.0], abs=1e-9)


def network() -> nn.Sequential:
    """Convolutions without a border, trained batch norms in so far as their statistics are those of the images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    )  # fmt: skip
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.3, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(60):
            model(images(64))
    return model.eval()


def images(count: int, seed: int | None = None) -> torch.Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("how", ["analytic", "empirical"])
def test_the_mean_of_each_output_comes_back(how):
    folding = fold_batch_norm(network())
    shown = images(512, seed=1)
    expected = folding.model(shown).mean(0)
    distance = {}
    for correct in (False, True):
        folding = fold_batch_norm(network())
        method = Method("uniform", lambda **given: UniformWeight(**given, scope="layer"), None, "input")
        plan = make_plan(folding.model, Scheme(method, *[Widths(3, 32)] * 3), SHAPE)
        give_biases(folding.model, plan)
        fit_weights(folding.model, plan)
        if correct:
            known = expected_inputs(folding.model, folding.statistics)
            assert known.keys() == {"3", "6"}, "the image and the pooled features have no statistics"
            means = known if how == "analytic" else measured_inputs(folding.model, plan, [(shown, None)])
            left = correct_biases(folding.model, plan, means)
            assert left == (("0", "11") if how == "analytic" else ())
        made = quantize_model(plan).eval()
        distance[correct] = float((made(shown).mean(0) - expected).abs().mean())
    assert distance[True] < distance[False]
    if how == "empirical":
        assert distance[True] < 0.5 * distance[False]


@torch.no_grad()
def test_a_bias_loses_what_the_rounding_adds_to_the_mean_of_its_channel():
    """By hand: each input is a normal density with the batch norm's shift and scale, cut off below 0."""
    model = network()
    norm = model[4]
    folding = fold_batch_norm(model)
    scheme = Scheme(Method("uniform", UniformWeight, None, "input"), *[Widths(3, 32)] * 3)
    plan = make_plan(folding.model, scheme, SHAPE)
    fit_weights(folding.model, plan)
    layer = folding.model.get_submodule("6")
    (quantizer,) = [each.weight for each in plan.layers if each.name == "6"]
    added = (quantizer(layer.weight) - layer.weight)[0].sum((1, 2))  # to the weights of the first channel's inputs
    expected = float(layer.bias[0])
    for error, beta, gamma in zip(*(values.tolist() for values in (added, norm.bias, norm.weight)), strict=True):
        z = beta / gamma
        density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        expected -= error * (gamma * density + beta * (1 + math.erf(z / math.sqrt(2))) / 2)
    correct_biases(folding.model, plan, expected_inputs(folding.model, folding.statistics))
    assert float(layer.bias[0]) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_expected_inputs_are_those_that_are_measured():
    folding = fold_batch_norm(network())
    method = Method("uniform", UniformWeight, None, "input")
    plan = make_plan(folding.model, Scheme(method, *[Widths(3, 32)] * 3), SHAPE)
    measured = measured_inputs(folding.model, plan, [(images(256, seed=2), None), (images(256, seed=3), None)])
    for name, mean in expected_inputs(folding.model, folding.statistics).items():
        torch.testing.assert_close(mean.double(), measured[name], rtol=0.1, atol=0.05)


class Tokens(nn.Module):
    """A linear layer on every step of a sequence, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.again, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(input=self.again(self.again(self.up(x)).relu()))


@torch.no_grad()
def test_a_linear_layers_channels_are_its_last_axis_and_calls_by_name_count():
    """As many steps as features, so that the wrong axis would fit too."""
    torch.manual_seed(0)
    model = Tokens().eval()
    tokens = torch.randn(20, 6, 6) + torch.arange(6.0)
    method = Method("uniform", UniformWeight, None, "input")
    plan = make_plan(model, Scheme(method, *[Widths(3, 32)] * 3), (6, 6))
    graph = plan.graphs[-1]
    means = measured_inputs(graph, plan, [(tokens[:12], None), (tokens[12:], None)])
    torch.testing.assert_close(means["up"].float(), tokens.mean((0, 1)))
    inner = model.again(model.up(tokens)).relu()
    both = torch.stack([model.up(tokens), inner])
    torch.testing.assert_close(means["again"].float(), both.mean((0, 1, 2)))
    torch.testing.assert_close(means["out"].float(), model.again(inner).mean((0, 1)))
    known = {"up": (torch.zeros(6), torch.ones(6)), "again": (torch.zeros(6), torch.ones(6))}
    assert set(expected_inputs(graph, known)) == {"out"}, "what reads two places has no one mean"
