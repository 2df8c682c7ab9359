"""The loss against each clip level, checked against plain evaluations of networks with that level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qexp.build import build
from qexp.commands.network import build_network
from qexp.data.digits import Digits
from qexp.errors import ConfigError
from qexp.lit.evaluate import measure
from qexp.lit.scan import MODES, ClipLevel, Point, clip_levels, grid, moved, scan, unrounded
from qexp.quantizers.base import Quantizer, Site, named_quantizers
from qexp.quantizers.pact import PACT

from ..composing import configured

CPU = torch.device("cpu")


def network(*overrides: str, alpha: float = 2.0) -> nn.Module:
    """A small network whose alphas differ from site to site; its weights are drawn, not trained."""
    config = configured("model.hidden=[16,16]", *overrides)
    net = build_network(config, build(config.dataset)).eval()
    with torch.no_grad():
        for place, level in enumerate(clip_levels(net)):
            level.parameter.copy_(
                torch.linspace(0.5, 1.5, level.parameter.numel()).view_as(level.parameter) * alpha
            )
            level.parameter.add_(0.25 * place)
    return net


def batches(count: int = 60) -> object:
    return Digits().training_samples(count, 25, CPU)


def losses(points: Sequence[Point], level: ClipLevel, mode: str) -> dict[float, float]:
    return {point.value: point.loss for point in points if point.level is level and point.mode == mode}


@pytest.mark.parametrize("scope", ["layer", "channel", "element", "network"])
def test_every_point_is_a_plain_evaluation_with_that_level(scope: str) -> None:
    net = network(f"quantizer.activation.scope={scope}")
    levels = clip_levels(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    roundings = {q: q.rounding for _, q in named_quantizers(net)}
    grids = {level: grid(level, 0.4, 8.0, 3, relative=False) for level in levels}
    taken: list[None] = []
    points = scan(net.train(), batches(), grids, 0.01, CPU, lambda: taken.append(None))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {q: q.rounding for _, q in named_quantizers(net)} == roundings
    assert len(taken) == 2 * 3 * sum(map(len, grids.values()))  # 60 samples are 3 batches
    assert len(points) == 3 * sum(map(len, grids.values()))
    for level, values in grids.items():
        learned = level.parameter.detach().clone()
        found = {mode: losses(points, level, mode) for mode in MODES}
        assert found["quantized"][level.value] == measure(net, batches(), CPU)["loss"]
        for value in values:
            level.parameter.data = learned * (value / float(learned.mean()))
            assert found["quantized"][value] == pytest.approx(measure(net, batches(), CPU)["loss"], rel=1e-5)
            with unrounded(net):
                assert found["float"][value] == pytest.approx(measure(net, batches(), CPU)["loss"], rel=1e-5)
            squares = sum(float(p.detach().square().sum()) for p in {one.parameter for one in levels})
            assert found["penalized"][value] - found["quantized"][value] == pytest.approx(
                0.005 * squares, rel=1e-5
            )
        level.parameter.data = learned


def test_without_a_penalty_both_losses_are_one() -> None:
    net = network()
    level = clip_levels(net)[0]
    points = scan(net, batches(), {level: [1.0, level.value]}, 0.0, CPU)
    assert losses(points, level, "penalized") == losses(points, level, "quantized")


def test_the_float_pass_with_huge_alphas_is_the_relu_network() -> None:
    net, plain = network("bits=w32a2", alpha=1e6), network("quantizer=none")
    levels = clip_levels(net)
    points = scan(net, batches(), {level: [level.value, 1e30] for level in levels}, 0.0, CPU)
    expected = measure(plain, batches(), CPU)["loss"]
    for level in levels:
        assert list(losses(points, level, "float").values()) == pytest.approx([expected, expected], rel=1e-5)
        assert losses(points, level, "quantized")[1e30] != pytest.approx(expected, rel=1e-3)


def test_unrounded_weights_keep_the_scale_that_dorefa_gives_them() -> None:
    net = network("bits=2")
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    layer = net.get_submodule("fc2")
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: seen.extend((inputs[0], output)))
    with torch.no_grad(), unrounded(net):
        net(images)
    squashed = torch.tanh(layer.weight.detach())
    torch.testing.assert_close(seen[1], F.linear(seen[0], squashed / squashed.abs().max(), layer.bias))


def test_many_alphas_move_together_and_come_back() -> None:
    quantizer = PACT(4, Site("a", "activation", (3, 2, 2)), scope="channel")
    start = torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1)
    quantizer.alpha.data.copy_(start)
    (level,) = clip_levels(quantizer)
    with torch.no_grad(), pytest.raises(RuntimeError), moved(level, 6.0):
        assert quantizer.alpha.flatten().tolist() == [2.0, 4.0, 12.0]
        raise RuntimeError
    assert torch.equal(quantizer.alpha, start)


def test_what_is_scanned() -> None:
    assert [level.site for level in clip_levels(network("model.hidden=[8,8,8]"))] == ["act1", "act2", "act3"]
    assert [level.site for level in clip_levels(network("quantizer.activation.scope=network"))] == ["network"]
    assert clip_levels(network("quantizer=dorefa")) == []
    assert clip_levels(network("quantizer=none")) == []


class Steps(Quantizer):
    """A method that learns steps, as LSQ does."""

    def __init__(self, site: Site, step: float) -> None:
        super().__init__(4, site)
        self.step = nn.Parameter(torch.tensor(step))

    def learned(self) -> dict[str, nn.Parameter]:
        return {"step": self.step}


def test_steps_of_activations_are_scanned_where_there_is_no_alpha() -> None:
    sites = [Site("conv", "weight"), Site("conv.input", "input"), Site("fc.input", "input")]
    net = nn.Sequential(*(Steps(site, 0.25) for site in sites), PACT(4, Site("act", "activation")))
    found = [(level.site, level.quantity, level.value) for level in clip_levels(net)]
    assert found == [("conv.input", "step", 0.25), ("fc.input", "step", 0.25), ("act", "alpha", 10.0)]


@given(
    learned=st.floats(0.015625, 50, width=32),
    low=st.floats(0.01, 1),
    ratio=st.floats(1.5, 1000),
    points=st.integers(2, 40),
    relative=st.booleans(),
)
def test_values_are_evenly_spaced_by_ratio_and_hold_the_learned_one(
    learned: float, low: float, ratio: float, points: int, relative: bool
) -> None:
    quantizer = PACT(4, Site("a", "activation"), alpha=learned)
    (level,) = clip_levels(quantizer)
    high = low * ratio
    values = grid(level, low, high, points, relative=relative)
    assert level.value in values
    assert values == sorted(values)
    assert len(values) in (points, points + 1)
    unit = level.value if relative else 1.0
    assert {unit * low, unit * high} <= set(values)
    inner = [value for value in values if value != level.value]
    steps = [math.log(b / a) for a, b in itertools.pairwise(inner)]
    if len(inner) == points:
        assert steps == pytest.approx([math.log(ratio) / (points - 1)] * (points - 1))


def test_a_learned_value_that_cannot_be_scanned() -> None:
    one, many = PACT(4, Site("one", "activation")), PACT(4, Site("many", "activation", (2, 1, 1)), scope="channel")
    for quantizer in (one, many):
        quantizer.alpha.data.fill_(-0.5)
    assert grid(clip_levels(one)[0], 0.5, 2.0, 2, relative=False) == [-0.5, 0.5, 2.0]
    with pytest.raises(ConfigError, match=r"one: its learned alpha is -0\.5, not above 0; without --relative"):
        grid(clip_levels(one)[0], 0.5, 2.0, 2, relative=True)
    with pytest.raises(ConfigError, match=r"many: its learned alpha is -0\.5, not above 0"):
        grid(clip_levels(many)[0], 0.5, 2.0, 2, relative=False)
    one.alpha.data.fill_(math.nan)
    with pytest.raises(ConfigError, match="one: its learned alpha is nan"):
        grid(clip_levels(one)[0], 0.5, 2.0, 2, relative=False)
