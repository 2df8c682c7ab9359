from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qexp.errors import ConfigError
from qexp.ops.rounding import DSQ
from qexp.quantizers.base import Site
from qexp.quantizers.lsq import FLOOR, LSQ

WEIGHT = Site("conv", "weight", (6, 4, 3, 3))
INPUT = Site("conv.input", "input", (4, 5, 5))


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or WEIGHT.shape), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_start_and_gradient_scale_are_the_papers(bits):
    w, x = weights(), torch.relu(weights(10, 4, 5, 5))
    weight, activation = LSQ(bits, WEIGHT), LSQ(bits, INPUT)
    for quantizer, values, largest, features in (
        (weight, w, 2 ** (bits - 1) - 1, 6 * 4 * 3 * 3),
        (activation, x, 2**bits - 1, 4 * 5 * 5),  # of one sample, however large the batch
    ):
        quantizer.calibrate(values)
        assert quantizer.step.item() == pytest.approx(2 * values.abs().mean().item() / math.sqrt(largest))
        assert quantizer.scale_for(values) == pytest.approx(1 / math.sqrt(features * largest))


@pytest.mark.parametrize(("scope", "features"), [("layer", 100), ("channel", 25), ("element", 1)])
def test_an_inputs_gradient_scale_counts_the_features_of_a_sample_that_share_a_step(scope, features):
    quantizer = LSQ(4, INPUT, scope=scope)
    assert quantizer.scale_for(torch.ones(10, 4, 5, 5)) == pytest.approx(1 / math.sqrt(features * 15))


def test_the_steps_gradient_is_scaled():
    w, upstream = weights(), torch.rand(WEIGHT.shape, generator=torch.Generator().manual_seed(1))
    found = {}
    for scale in ("features_and_levels", "features", "none"):
        quantizer = LSQ(3, WEIGHT, gradient_scale=scale, gradient_factor=10.0)
        quantizer.calibrate(w)
        (quantizer(w) * upstream).sum().backward()
        found[scale] = quantizer.step.grad.item()
    assert found["features_and_levels"] == pytest.approx(found["none"] / math.sqrt(216 * 3))
    assert found["features"] == pytest.approx(found["none"] / math.sqrt(216))


def test_channels_have_steps_of_their_own():
    w = weights() * torch.tensor([0.1, 1.0, 2.0, 5.0, 10.0, 0.0])[:, None, None, None]
    quantizer = LSQ(4, WEIGHT, scope="channel")
    quantizer.calibrate(w)
    assert quantizer.step.shape == (6, 1, 1, 1)
    alone = LSQ(4, Site("conv", "weight", (1, 4, 3, 3)))
    alone.calibrate(w[2:3])
    torch.testing.assert_close(quantizer.step[2].flatten()[0], alone.step.detach())
    torch.testing.assert_close(quantizer(w)[2:3], alone(w[2:3]))
    torch.testing.assert_close(quantizer.step[5], quantizer.step[:5].mean(0))  # a dead channel: as the others
    assert quantizer.scale_for(w) == pytest.approx(1 / math.sqrt(36 * 7))


def test_depthwise_means_channels_where_a_filter_sees_one():
    assert LSQ(4, Site("dw", "weight", (8, 1, 3, 3)), scope="depthwise").step.shape == (8, 1, 1, 1)
    assert LSQ(4, WEIGHT, scope="depthwise").step.shape == ()
    assert LSQ(4, Site("fc", "weight", (8, 1)), scope="depthwise").step.shape == ()
    with pytest.raises(ConfigError, match="for weights"):
        LSQ(4, INPUT, scope="depthwise")
    with pytest.raises(ConfigError, match="for activations"):
        LSQ(4, WEIGHT, scope="element")


def test_a_signed_input_has_a_signed_grid():
    signed = LSQ(3, Site("conv.input", "input", (4, 5, 5), signed=True))
    assert (signed.lowest, signed.highest) == (-4, 3)
    assert (LSQ(3, INPUT).lowest, LSQ(3, INPUT).highest) == (0, 7)


def test_steps_stay_positive():
    quantizer = LSQ(4, WEIGHT, scope="channel")
    quantizer.calibrate(weights())
    start = quantizer.step.detach().clone()
    with torch.no_grad():
        quantizer.step.copy_(torch.tensor([-1.0, 0.0, 1e-9, 0.5, 1.0, 2.0]).reshape(6, 1, 1, 1))
        quantizer.after_step()
    assert torch.equal(quantizer.step[:3], FLOOR * start[:3])
    assert quantizer.step[3:].flatten().tolist() == [0.5, 1.0, 2.0]


def test_the_floor_survives_a_checkpoint():
    quantizer, other = LSQ(4, WEIGHT), LSQ(4, WEIGHT)
    quantizer.calibrate(weights())
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.floor, FLOOR * quantizer.step)


def test_a_step_without_a_start_names_its_layer():
    with pytest.raises(ConfigError, match=r"conv\.input: zeros alone in its first batch.*layers\.'conv'\.bits=32"):
        LSQ(4, INPUT).calibrate(torch.zeros(2, 4, 5, 5))
    with pytest.raises(ConfigError, match=r"conv: no finite numbers in its weights"):
        LSQ(4, WEIGHT).calibrate(torch.full(WEIGHT.shape, float("nan")))


def test_one_step_for_the_whole_network_is_started_once():
    first, second = LSQ(4, INPUT, scope="network"), LSQ(4, Site("b.input", "input", (4, 5, 5)), scope="network")
    second.share(first)
    first.calibrate(torch.rand(2, 4, 5, 5))
    start = first.step.item()
    second.calibrate(100 * torch.rand(2, 4, 5, 5))
    second.after_step()
    assert second.step is first.step and first.step.item() == start


def test_the_watchdog_hears_of_a_shared_step_from_its_owner():
    first, second = (LSQ(8, Site(name, "weight", WEIGHT.shape), scope="network") for name in "ab")
    second.share(first)
    for quantizer in (first, second):
        quantizer.calibrate(0.02 * weights())
        assert quantizer.complaint() is None
    with torch.no_grad():
        first.step.mul_(1e-3)
    assert "fallen" in (first.complaint() or "") and second.complaint() is None


def test_in_the_place_of_a_relu6_the_step_starts_from_what_that_lets_pass():
    x = 10 * weights(8, 4)
    quantizer, cut = LSQ(8, Site("act", "activation", (4,), end=6.0)), LSQ(8, Site("act.input", "input", (4,)))
    quantizer.calibrate(x)
    cut.calibrate(torch.nn.functional.relu6(x))
    assert x.max() > 6 and quantizer.step.item() == cut.step.item()


def test_bits_and_factors_are_checked():
    wrong = ({"gradient_factor": 0.0}, {"lr_factor": -1.0}, {"gradient_scale": "some"}, {"weight_decay": -0.5})
    for arguments in wrong:
        with pytest.raises(ConfigError):
            LSQ(4, WEIGHT, **arguments)
    with pytest.raises(ConfigError, match="bits=1"):
        LSQ(1, WEIGHT)
    with pytest.raises(ConfigError, match="needs the input's shape"):
        LSQ(4, Site("x.input", "input"), scope="channel")


def test_groups_hold_the_step_at_its_own_rate_and_what_the_rounding_learns_once():
    quantizer = LSQ(4, WEIGHT, DSQ(), lr_factor=0.1, weight_decay=1e-4)
    steps, others = quantizer.parameter_groups()
    assert steps.parameters == (quantizer.step,) and (steps.lr_factor, steps.weight_decay) == (0.1, 1e-4)
    assert others.parameters == (quantizer.rounding.a,) and others.lr_factor == 1.0
    assert {id(p) for p in quantizer.parameters()} == {id(quantizer.step), id(quantizer.rounding.a)}


def test_32_bits_change_nothing():
    quantizer = LSQ(32, WEIGHT)
    assert quantizer(weights()) is not None and torch.equal(quantizer(weights()), weights())
    assert quantizer.learned() == {}


def test_the_step_moves_to_less_error():
    """Descent on the squared error alone, by LSQ's gradient, ends near the best step of a search."""
    w, target = weights(2000), Site("fc", "weight", (2000,))
    quantizer = LSQ(3, target, gradient_scale="none")
    quantizer.calibrate(w)
    optimizer = torch.optim.SGD([nn.Parameter(w.clone()), quantizer.step], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(w) - w).square().mean().backward()
        optimizer.step()

    def error(step: float) -> float:
        return float(((torch.round(w / step).clamp(-4, 3) * step) - w).square().mean())

    best = min((error(s / 1000), s / 1000) for s in range(100, 1500))
    assert error(quantizer.step.item()) == pytest.approx(best[0], rel=0.02)


def test_a_shared_steps_weights_begin_to_oscillate_from_where_they_are():
    sites = [Site(name, "weight", (5, 5)) for name in "ab"]
    owner, other = (LSQ(3, site, scope="network", freeze_above=0.1) for site in sites)
    other.share(owner)
    x = torch.linspace(-1, 1, 25).reshape(5, 5)
    owner.calibrate(x)
    step = owner.step.item()
    other.calibrate(x / 2)
    assert owner.step.item() == step, "the first one's"
    assert torch.equal(other.oscillation.integers.float(), torch.round(x / 2 / step).clamp(-4, 3))


@pytest.mark.parametrize("gradient", [False, True])
def test_a_batch_without_samples(gradient):
    quantizer = LSQ(4, INPUT, scope="channel")
    with torch.set_grad_enabled(gradient):
        assert quantizer(torch.zeros(0, 4, 5, 5)).shape == (0, 4, 5, 5)
    assert quantizer.scale_for(torch.zeros(0, 4, 5, 5)) == quantizer.scale_for(torch.zeros(7, 4, 5, 5))


def test_an_unsigned_grid_clips_what_is_half_a_step_above_it_and_nothing_below():
    quantizer = LSQ(4, Site("act", "activation", (4,)))
    with torch.no_grad():
        quantizer.step.fill_(1.0)
    shares = quantizer.describe(torch.tensor([[-5.0, 0.5, 15.4, 15.6]])).shares
    assert shares["clipped"].item() == 0.25
