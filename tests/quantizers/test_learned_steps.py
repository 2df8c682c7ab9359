"""LSQ+, LLSQ and LG-LSQ: what each has beyond LSQ."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from qexp.errors import ConfigError
from qexp.lit.alphas import Seen
from qexp.lit.watchdog import findings
from qexp.ops.simulated import rounding_errors, scaled_simulated_gradient, simulated_gradient
from qexp.quantizers.base import Site
from qexp.quantizers.lglsq import LGLSQ
from qexp.quantizers.llsq import LLSQ
from qexp.quantizers.lsq import LSQ
from qexp.quantizers.lsq_plus import LSQPlusActivation, LSQPlusWeight

WEIGHT = Site("conv", "weight", (6, 4, 3, 3))
INPUT = Site("conv.input", "input", (4, 5, 5))
SIGNED = Site("conv.input", "input", (4, 5, 5), signed=True)


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or WEIGHT.shape), generator=torch.Generator().manual_seed(0))


def test_lsq_plus_starts_weights_from_three_deviations():
    w = values() + 0.3
    quantizer = LSQPlusWeight(4, WEIGHT)
    quantizer.calibrate(w)
    mean, std = w.mean(), w.std(unbiased=False)
    assert quantizer.step.item() == pytest.approx(float((mean + 3 * std).abs()) / 8, rel=1e-5)


@pytest.mark.parametrize("form", ["unsigned_offset", "signed_offset"])
def test_the_offsets_gradient_is_one_outside_and_zero_inside(form):
    quantizer = LSQPlusActivation(2, SIGNED, form=form)
    with torch.no_grad():
        quantizer.step.fill_(1.0)
        quantizer.offset.fill_(0.25)
    low, high = quantizer.lowest + 0.25, quantizer.highest + 0.25
    for value, expected in ((low - 2, 1.0), (low + 0.6, 0.0), (high - 0.6, 0.0), (high + 2, 1.0)):
        x = torch.tensor([[[[value]]]], requires_grad=True)
        quantizer.zero_grad()
        quantizer(x).sum().backward()
        assert quantizer.offset.grad.item() == pytest.approx(expected * quantizer.scale_for(x))
        assert x.grad.item() == 1.0 - expected


def test_lsq_plus_starts_near_the_least_error():
    x = torch.nn.functional.silu(2 * values(8, 4, 5, 5))
    found = {}
    for form in ("unsigned_offset", "signed_offset", "signed"):
        quantizer = LSQPlusActivation(3, SIGNED, form=form)
        quantizer.calibrate(x)
        found[form] = float((quantizer(x) - x).square().mean().detach())
    lsq = LSQ(3, SIGNED)
    lsq.calibrate(x)
    assert found["unsigned_offset"] < found["signed"] <= float((lsq(x) - x).square().mean().detach())
    assert found["unsigned_offset"] == pytest.approx(found["signed_offset"], rel=1e-4), (
        "one grid, counted from elsewhere"
    )
    low, high = float(x.min()), float(x.max())
    best = float("inf")
    for below, above in itertools.product(torch.linspace(0, 1, 41).tolist(), torch.linspace(0.05, 1, 40).tolist()):
        step = (above * high - below * low) / 7
        y = torch.round((x - below * low) / step).clamp(0, 7) * step + below * low
        best = min(best, float((y - x).square().mean()))
    assert found["unsigned_offset"] <= 1.05 * best


@pytest.mark.parametrize(("form", "site"), [("signed", SIGNED), ("unsigned", INPUT)])
def test_without_an_offset_the_start_is_a_twentieth_of_the_range_bit_for_bit(form, site):
    for seed in range(5):
        x = torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
        x = x if site.signed else x.relu()
        quantizer = LSQPlusActivation(3, site, form=form)
        quantizer.calibrate(x)
        largest = x.abs().max() / (3 if site.signed else 7)
        assert quantizer.step.item() in [(part / 20 * largest).item() for part in range(1, 21)], (
            "runs with version 2 had such a start"
        )


GATES = {
    "sigmoid": lambda x: torch.sigmoid(2 * x),
    "far above zero": lambda x: 20 + x,
    "far below zero": lambda x: x - 20,
    "relu": torch.relu,
    "hardswish": lambda x: torch.nn.functional.hardswish(2 * x),
    "gauss": lambda x: x,
}


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", GATES)
def test_lsq_plus_starts_near_the_best_of_all_ranges_whatever_the_signs(kind, bits):
    x = GATES[kind](torch.randn(4000, generator=torch.Generator().manual_seed(1)))
    quantizer = LSQPlusActivation(bits, Site("x", "input", (4000,), signed=bool(x.min() < 0)))
    quantizer.calibrate(x)
    top, low, width = 2**bits - 1, x.min(), x.max() - x.min()
    best = float("inf")
    for below in torch.linspace(0, 0.95, 39):
        start = low + below * width
        step = (torch.linspace(0.025, 1, 40)[:, None] * (low + width - start)) / top
        y = torch.round((x - start) / step).clamp(0, top) * step + start
        best = min(best, float((y - x).square().mean(1).min()))
    assert float((quantizer(x) - x).detach().square().mean()) <= 1.03 * best


def test_lsq_plus_starts_many_values_from_a_fair_part_of_them():
    """More than the search looks at, most of the first ones close to 0: in any order the start is the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100_000, generator=generator)
    x[:70_000] *= 1e-3
    starts = []
    for shown in (x, x[torch.randperm(100_000, generator=generator)]):
        quantizer = LSQPlusActivation(3, Site("x", "input", (100_000,), signed=True))
        quantizer.calibrate(shown.unsqueeze(0))
        starts.append([quantizer.step.item(), quantizer.offset.item()])
    assert starts[0] == pytest.approx(starts[1], rel=0.05) and starts[0][0] > 0.1


def test_lsq_plus_starts_from_values_that_are_all_alike():
    for value in (3.0, -3.0):
        quantizer = LSQPlusActivation(4, SIGNED)
        quantizer.calibrate(torch.full((2, 4, 5, 5), value))
        assert float(quantizer.step.detach()) > 0
        assert float(quantizer(torch.tensor([[value]])).detach()) == pytest.approx(value)


def test_lsq_plus_refuses_what_has_no_meaning():
    with pytest.raises(ConfigError, match="no level below 0"):
        LSQPlusActivation(4, SIGNED, form="unsigned")
    with pytest.raises(ConfigError, match="form="):
        LSQPlusActivation(4, INPUT, form="both")


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_llsq_starts_as_its_code(bits):
    w, x = values(), torch.relu(values(3, 4, 5, 5))
    highest = 2 ** (bits - 1) - 1
    layer, channel, activation = LLSQ(bits, WEIGHT), LLSQ(bits, WEIGHT, scope="channel"), LLSQ(bits, INPUT)
    for quantizer, data in ((layer, w), (channel, w), (activation, x)):
        quantizer.calibrate(data)
    assert layer.step.item() == pytest.approx(w.abs().max().item() / 2 ** (bits - 1))
    torch.testing.assert_close(channel.step.flatten(), w.abs().flatten(1).amax(1) / highest)
    spread = 2**bits if bits >= 4 else 2 * (2**bits - 1)
    assert activation.step.item() == pytest.approx(x.max().item() / spread)


@pytest.mark.parametrize("scope", ["layer", "channel"])
def test_llsqs_step_does_not_hear_the_loss(scope):
    w = values()
    found = []
    for upstream in (1.0, -1e6):
        quantizer = LLSQ(3, WEIGHT, scope=scope, masked=False)
        quantizer.calibrate(w)
        x = w.clone().requires_grad_()
        (upstream * quantizer(x)).sum().backward()
        found.append(quantizer.step.grad)
        assert torch.equal(x.grad, torch.full_like(w, upstream)), "weights keep their gradient everywhere"
    step = quantizer.step.detach()
    expected = simulated_gradient(step, *rounding_errors(w, step, -4, 3))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], expected)


def test_lglsqs_switch_is_what_it_says():
    w, upstream = values(), torch.rand(WEIGHT.shape)
    gradients = {}
    for name, arguments in (
        ("lsq", {"scale_gradient": "lsq"}),
        ("ssg", {"scale_gradient": "ssg"}),
        ("hybrid", {"scale_gradient": "hybrid", "mixed_in": 0.25}),
    ):
        quantizer = LGLSQ(3, WEIGHT, **arguments)
        with torch.no_grad():
            quantizer.step.fill_(0.1)  # far too small: the error says so
        (quantizer(w) * upstream).sum().backward()
        gradients[name] = quantizer.step.grad.item()
    lsq = LSQ(3, WEIGHT)
    with torch.no_grad():
        lsq.step.copy_(quantizer.step)
    (lsq(w) * upstream).sum().backward()
    step = quantizer.step.detach()
    simulated = scaled_simulated_gradient(step, *rounding_errors(w, step, -4, 3)).item()
    assert gradients["lsq"] == pytest.approx(lsq.step.grad.item())
    assert gradients["ssg"] == pytest.approx(simulated) and simulated != 0
    assert gradients["hybrid"] == pytest.approx(gradients["lsq"] + 0.25 * simulated)


def test_switches_without_a_meaning_are_refused():
    with pytest.raises(ConfigError, match=r"mixed_in=0\.5: scale_gradient=ssg mixes nothing"):
        LGLSQ(3, WEIGHT, scale_gradient="ssg", mixed_in=0.5)
    with pytest.raises(ConfigError, match="power=1: scale_gradient=lsq has no rounding error"):
        LGLSQ(3, WEIGHT, scale_gradient="lsq", power=1)
    with pytest.raises(ConfigError, match="mixed_in=0"):
        LGLSQ(3, WEIGHT, mixed_in=0.0)
    with pytest.raises(ConfigError, match="scale_gradient=both"):
        LGLSQ(3, WEIGHT, scale_gradient="both")
    with pytest.raises(ConfigError, match="power=3"):
        LLSQ(3, WEIGHT, power=3)


@pytest.mark.parametrize("form", ["unsigned_offset", "signed_offset", "signed"])
@pytest.mark.parametrize("mean", [0.0, 2.0, -3.0])
def test_lsq_plus_counts_what_it_clips_from_its_offset(form, mean):
    x = mean + 0.3 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    quantizer = LSQPlusActivation(4, Site("x", "input", (4000,), signed=True), form=form)
    quantizer.calibrate(x)
    with torch.no_grad():
        error = (quantizer(x) - x).abs()
    clipped = (error > 0.5001 * quantizer.step).float().mean()
    assert float(quantizer.describe(x).shares["clipped"]) == pytest.approx(float(clipped), abs=1e-3)


@pytest.mark.parametrize("method", [LSQ, LLSQ, LGLSQ, functools.partial(LSQPlusActivation, form="unsigned")])
def test_in_place_of_a_relu_a_step_starts_and_moves_as_behind_it(method):
    x = values(8, 4, 5, 5) - 0.5
    found = []
    for site, seen in ((Site("act", "activation", (4, 5, 5)), x), (INPUT, x.relu())):
        quantizer = method(3, site)
        quantizer.calibrate(seen)
        quantizer(seen).square().mean().backward()
        found.append((quantizer.step.item(), quantizer.step.grad.item()))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize("form", ["unsigned_offset", "signed_offset", "signed"])
def test_lsq_plus_takes_no_relus_place_with_levels_below_zero(form):
    with pytest.raises(ConfigError, match=rf"act: form={form} .*placement=input"):
        LSQPlusActivation(4, Site("act", "activation", (4, 5, 5)), form=form)


@pytest.mark.parametrize(("lr", "lost"), [(0.01, True), (2e-4, False)])
def test_a_step_that_momentum_throws_to_the_floor_is_told(lr, lost):
    """The simulated gradient is step^2 however far the step has come; 2e-4 is the rate of LLSQ's authors."""
    x = 0.3 * values(8, 4, 5, 5).relu()
    quantizer = LLSQ(2, INPUT)
    quantizer.calibrate(x)
    with torch.no_grad():
        quantizer.floor.mul_(1.9 / quantizer.step)
        quantizer.step.fill_(1.9)
    optimizer = torch.optim.SGD([quantizer.step], lr=lr, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        quantizer(x).sum().backward()
        optimizer.step()
        with torch.no_grad():
            quantizer.after_step()
    told = quantizer.complaint()
    assert bool(told) == lost
    if lost:
        assert "its step has fallen below a hundredth" in told and "quantizer.activation.lr_factor" in told
        assert ("lost", told) in list(findings(Seen("conv.input", {}, complaint=told)))


@pytest.mark.parametrize("bits", [2, 4])
def test_llsqs_one_step_for_the_network_starts_as_one_for_the_layer(bits):
    layer, network = (LLSQ(bits, WEIGHT, scope=scope) for scope in ("layer", "network"))
    for quantizer in (layer, network):
        quantizer.calibrate(values())
    assert network.step.item() == layer.step.item() == pytest.approx(values().abs().max().item() / 2 ** (bits - 1))


@pytest.mark.parametrize("mean", [0.3, -0.3])
def test_lsq_plus_starts_weights_from_the_distance_of_their_mean_to_zero(mean):
    w, quantizer = values() + mean, LSQPlusWeight(4, WEIGHT)
    quantizer.calibrate(w)
    expected = (w.mean().abs() + 3 * w.std(correction=0)) / 8
    assert quantizer.step.item() == pytest.approx(float(expected), rel=1e-5)


def test_llsqs_errors_may_be_absolute_ones():
    w, quantizer = values(), LLSQ(3, WEIGHT, power=1)
    quantizer.calibrate(w)
    expected = rounding_errors(w, quantizer.step.detach(), -4, 3, power=1)
    assert all(torch.equal(*pair) for pair in zip(quantizer.errors(w), expected, strict=True))
