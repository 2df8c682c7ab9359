from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from scipy.special import ndtr

from qexp.commands.cost_weights import published_ratios
from qexp.hardware.narrow_weights import (
    RATE,
    REST,
    SCHEMES,
    TAIL,
    fit,
    left_out,
    picojoules,
    piecewise,
    ratios,
    seconds,
    uniform,
)
from qexp.hardware.system import Layer

LayersOf = Callable[[str], list[Layer]]


@pytest.fixture(scope="module")
def resnet50(layers_of: LayersOf) -> list[Layer]:
    return layers_of("resnet50")


def test_the_stored_constants_are_the_fitted_ones(resnet50: list[Layer]) -> None:
    rate, rest = fit(resnet50, published_ratios())
    assert rate == pytest.approx(RATE, rel=2e-3) and rest == pytest.approx(REST, rel=2e-3)


def test_the_papers_six_ratios_within_two_percent(resnet50: list[Layer]) -> None:
    published = published_ratios()
    assert len(published) == 9 and sum(value == 1 for value in published.values()) == 3
    for cell, value in ratios(resnet50, list(published), RATE, REST).items():
        assert value == pytest.approx(published[cell], rel=0.02), cell


def test_each_left_out_of_its_fit_is_still_near(resnet50: list[Layer]) -> None:
    published = published_ratios()
    found = left_out(resnet50, published)
    assert len(found) == 6
    for cell, value in found.items():
        assert value == pytest.approx(published[cell], rel=0.03), cell


def test_a_layer_by_hand() -> None:
    layer = Layer("fc", macs=1000, weights=800, inputs=1, outputs=1, weight_shape=(1, 800))
    # 1000 MACs at 1e6 a second take 1 ms; 800 weights of 4 bits at 1e5 bytes a second 4 ms.
    assert seconds([layer], uniform(4), bandwidth=1e5, rate=1e6) == pytest.approx(4e-3)
    assert seconds([layer], uniform(4), bandwidth=1e9, rate=1e6) == pytest.approx(1e-3)
    # Products of half the width cost half: 1000 (0.1 + 0.1 + 0.5) pJ, and 400 bytes of 162.5 pJ.
    assert picojoules([layer], uniform(4), rest=0.5) == pytest.approx(700 + 400 * 162.5)
    assert picojoules([layer], piecewise(4), rest=0.5) == pytest.approx(1000 * (0.7 + 0.1 * TAIL) + 500 * 162.5)


def test_the_share_of_tails_is_that_of_the_papers_breakpoint() -> None:
    breakpoint = math.log(0.8614 * 4 + 0.6079)
    assert 2 * (1 - ndtr(breakpoint)) == pytest.approx(TAIL, abs=0.005)


@pytest.mark.parametrize("model", ["resnet50", "mobilenet_v2", "alexnet"])
def test_more_bandwidth_and_fewer_bits_never_cost_more(layers_of: LayersOf, model: str) -> None:
    layers = layers_of(model)
    for scheme in SCHEMES:
        times = [seconds(layers, scheme, bandwidth) for bandwidth in (1e9, 8e9, 16e9, 1e12, math.inf)]
        assert times == sorted(times, reverse=True)
        assert times[-1] == pytest.approx(sum(layer.macs for layer in layers) / RATE)
    eight, four, pwlq = SCHEMES
    for cost in (lambda scheme: seconds(layers, scheme, 8e9), lambda scheme: picojoules(layers, scheme)):
        assert cost(four) < cost(pwlq) < cost(eight)
    assert seconds(layers, eight, 1e6) / seconds(layers, four, 1e6) == pytest.approx(2), "memory alone"


def test_a_ratio_does_not_move_its_own_prediction() -> None:
    cells = [("4-bit uniform", 8.0), ("4-bit PWLQ", 8.0), ("4-bit uniform", None), ("4-bit PWLQ", None)]
    layers = [
        Layer("conv", 10**9, 10**6, 1, 1, (64, 64, 3, 3)),
        Layer("fc", 4096**2, 4096**2, 4096, 4096, (4096, 4096)),
    ]
    told = dict(ratios(layers, cells, 3e12, 0.9))
    found, wrong = left_out(layers, told), left_out(layers, {**told, cells[2]: 3 * told[cells[2]]})
    assert wrong[cells[2]] == pytest.approx(found[cells[2]])
