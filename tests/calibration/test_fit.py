"""Fitting a plan: what each quantizer keeps, from images alone, and the correction of what rounding took."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from qexp.build import build, locate
from qexp.calibration.fit import correct_weights, fit_activations, fit_weights, fitted_weights
from qexp.calibration.observers import MinMax
from qexp.errors import ConfigError, DataError
from qexp.graph.plan import Plan, make_plan
from qexp.graph.scheme import Method, Scheme, Widths
from qexp.paths import config_dir
from qexp.quantizers.base import Site
from qexp.quantizers.corrected import CorrectedWeight, correction
from qexp.quantizers.dorefa import DoReFaWeight
from qexp.quantizers.pact import PACT
from qexp.quantizers.uniform import UniformActivation, UniformWeight

SHAPE = (3, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(128, 10)
    ).eval()  # fmt: skip


def planned(model: nn.Module, method: Method | None = None, bits: int = 4) -> Plan:
    method = method or Method("uniform", UniformWeight, UniformActivation, "input")
    widths = Widths(bits, 8)
    scheme = Scheme(method, widths, widths, widths, input_range=((-2.0,) * 3, (2.0,) * 3))
    return make_plan(model, scheme, SHAPE)


def batches(count: int = 3):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, *SHAPE, generator=generator), None) for _ in range(count)]


def test_each_input_gets_the_range_that_came_by():
    model, shown = network(), batches()
    plan = planned(model)
    found = list(fit_activations(model, plan, shown, MinMax))
    images = torch.cat([images for images, _ in shown])
    with torch.no_grad():
        inside = {"2": model[1](model[0](images)), "4": model[3](model[2](model[1](model[0](images))))}
    assert [each.layer for each in found] == ["2", "4"], "the image's own grid is fixed"
    for each in found:
        assert (each.kind, each.bits, each.error) == ("input", 8, None)
        assert float(each.values["high"]) == pytest.approx(float(inside[each.layer].max()), rel=1e-6)
        assert float(each.values["low"]) == pytest.approx(float(inside[each.layer].min()), rel=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_weights_keep_the_range_they_were_fitted_to():
    model = network()
    plan = planned(model)
    fit_weights(model, plan)
    errors = {each.layer: each for each in fitted_weights(model, plan)}
    assert errors.keys() == {"0", "2", "4"}
    layer = next(layer for layer in plan.layers if layer.name == "2")
    weight = model[2].weight.detach()
    once = layer.weight(weight)
    assert errors["2"].error == pytest.approx(float((once - weight).square().mean()))
    assert errors["2"].count == weight.numel()
    half = layer.weight(weight / 2)  # on the grid of the fitted weights, not on one of its own
    step = (weight.abs().amax((1, 2, 3), keepdim=True) * 2 / 15).expand_as(weight)
    assert (half / step - (half / step).round()).abs().max() < 1e-4


def test_the_correction_gives_back_mean_and_deviation():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 40, generator=generator) + 0.3
    rounded = (weight * 1.5).round() / 1.5
    shift, factor = correction(weight, rounded)
    corrected = (rounded + shift) * factor
    torch.testing.assert_close(corrected.std(1), weight.std(1))
    # Equation 13 multiplies the mean as well; so it comes back up to the factor.
    torch.testing.assert_close(corrected.mean(1), weight.mean(1) * factor.flatten())


def test_a_channel_that_became_constant_keeps_its_values():
    weight = torch.tensor([[0.1, 0.2, 0.15], [1.0, -1.0, 0.5]])
    shift, factor = correction(weight, torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 1.0]]))
    assert factor[0] == 1 and float(shift[0]) == pytest.approx(0.15)
    assert factor.isfinite().all()


def test_corrected_weights_are_closer_in_the_mean_of_the_layers_output():
    model = network()
    images = torch.cat([images for images, _ in batches(8)])
    expected = model[0](images).mean((0, 2, 3)).detach()
    distance = {}
    for correct in ("none", "channel"):
        plan = planned(copy.deepcopy(model), bits=2)
        correct_weights(plan, correct)
        fit_weights(model, plan)
        quantizer = plan.layers[0].weight
        assert isinstance(quantizer, CorrectedWeight) is (correct == "channel")
        weight = quantizer(model[0].weight).detach()
        assert torch.equal(quantizer.codes(model[0].weight).decode(), weight)
        output = nn.functional.conv2d(images, weight, model[0].bias.detach())
        distance[correct] = float((output.mean((0, 2, 3)) - expected).abs().mean())
    assert distance["channel"] < distance["none"]


def test_methods_for_training_are_refused():
    model = network()
    relus = planned(model, Method("pact", UniformWeight, PACT, "relu"))
    with pytest.raises(ConfigError, match="it replaces ReLUs"):
        list(fit_activations(model, relus, batches(), MinMax))
    learned = planned(model, Method("dorefa", DoReFaWeight, UniformActivation, "input"))
    with pytest.raises(ConfigError, match=r"0: DoReFaWeight is a method for training"):
        fit_weights(model, learned)


def test_nothing_to_observe_and_no_numbers_are_said():
    model = network()
    with pytest.raises(DataError, match="no samples"):
        list(fit_activations(model, planned(model), [], MinMax))
    with pytest.raises(ConfigError, match=r"2\.input"):
        list(fit_activations(model, planned(model), [(torch.full((1, *SHAPE), torch.nan), None)], MinMax))
    model[2].weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(ConfigError, match="no finite numbers"):
        fit_weights(model, planned(model))


AFTER_TRAINING = ("uniform", "aciq", "omse", "pwlq", "adaround")
ODD = {
    "constant": torch.full((3, 4), 0.7),
    "zeros": torch.zeros(3, 4),
    "one element": torch.tensor([[0.3]]),
    "one row of zeros": torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]]),
    "tiny": torch.full((2, 3), 1e-18),
    "huge": torch.tensor([[1e15, -1e15, 3e14]]),
    "heavy tail": torch.tensor([[1e-3, -2e-3, 3e-3, 1e3], [1e-3, 1e-3, -1e3, 2e-3]]),
}


def test_every_method_after_training_is_asked() -> None:
    found = set()
    for path in (config_dir() / "quantizer").glob("*.yaml"):
        node = yaml.safe_load(path.read_text())["weight"]
        if node is not None and "fit_weights" in vars(locate(node["_target_"])):
            found.add(node["_target_"])
    asked = {weights_of(name)["_target_"] for name in AFTER_TRAINING}
    assert found == asked


def weights_of(name: str) -> dict[str, Any]:
    node: dict[str, Any] = yaml.safe_load((config_dir() / "quantizer" / f"{name}.yaml").read_text())["weight"]
    return node


@pytest.mark.parametrize("corrected", [False, True], ids=["plain", "corrected"])
@pytest.mark.parametrize("scope", ["layer", "channel"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", AFTER_TRAINING)
def test_odd_weights_have_a_defined_result(name, odd, scope, corrected):
    values = ODD[odd]
    made = build(weights_of(name) | {"scope": scope}, bits=4, site=Site("fc", "weight", tuple(values.shape)))
    quantizer = CorrectedWeight(made) if corrected else made
    quantizer.eval()
    quantizer.fit_weights(values)
    y = quantizer(values)
    assert y.isfinite().all()
    assert (y - values).abs().max() <= values.abs().max() * 0.51 + 1e-37
    assert torch.equal(quantizer.codes(values).decode(), y)
    if odd in ("constant", "zeros", "one element") and not corrected:
        assert (y - values).abs().max() <= 0.7 / 15 + 1e-6


@pytest.mark.parametrize(("number", "why"), [(torch.nan, "no finite"), (-torch.inf, "no finite"), (1e20, "1e.15")])
@pytest.mark.parametrize("name", AFTER_TRAINING)
def test_weights_that_are_no_numbers_are_named(name, number, why):
    values = torch.tensor([[1.0, number], [0.0, 2.0]])
    quantizer = build(weights_of(name), bits=4, site=Site("fc", "weight", (2, 2)))
    with pytest.raises(ConfigError, match=rf"fc: its weights hold values .*{why}"):
        quantizer.fit_weights(values)


@pytest.mark.parametrize("scope", ["layer", "channel"])
def test_every_grid_has_a_defined_result(scope):
    for values in (ODD["constant"], ODD["zeros"], ODD["one element"]):
        for grid in ("full", "restricted", "asymmetric"):
            quantizer = UniformWeight(4, Site("fc", "weight", tuple(values.shape)), scope=scope, grid=grid)
            quantizer.fit_weights(values)
            y = quantizer(values)
            assert y.isfinite().all() and (y - values).abs().max() <= 0.7 / 15 + 1e-6
