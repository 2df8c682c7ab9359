from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from qexp.hardware import figure6
from qexp.hardware.figure6 import fit, left_out, points, published, throughput
from qexp.hardware.system import USABLE_MEMORY, Layer, Machine, estimate

LayersOf = Callable[[str], list[Layer]]


@pytest.fixture(scope="module")
def resnet50(layers_of: LayersOf) -> list[Layer]:
    return layers_of("resnet50")


def test_the_throughputs_are_those_of_the_figure() -> None:
    # 16, 8, 4 and 2 bits at no limit, 64 and 32 GB/s, typed once more.
    typed = {
        math.inf: [1008, 2006, 3672, 6215],
        64: [813, 1838, 3625, 6136],
        32: [561, 1384, 3432, 6051],
    }
    assert published() == [
        (bits, limit, each) for limit, row in typed.items() for bits, each in zip((16, 8, 4, 2), row, strict=True)
    ]


def test_the_stored_constant_is_the_fitted_one(resnet50: list[Layer]) -> None:
    assert fit(resnet50) == pytest.approx(USABLE_MEMORY, abs=1e-3)


def test_the_twelve_throughputs_within_a_tenth(resnet50: list[Layer]) -> None:
    found = points(resnet50)
    assert len(found) == 12
    assert max(abs(point.error) for point in found) < 0.06


def test_what_the_text_says_of_64_gb_per_second(resnet50: list[Layer]) -> None:
    # "4x peak, 4.5x performance" from 16 to 4 bits: more than linear, because the data begin to fit on the chip.
    gain = throughput(resnet50, 4, 64) / throughput(resnet50, 16, 64)
    assert gain == pytest.approx(4.5, rel=0.03)


def test_each_row_left_out(resnet50: list[Layer]) -> None:
    rows, constants = left_out(resnet50)
    assert len(rows) == 12 and len(constants) == 12 + 4 + 3
    for row in rows:
        assert max(map(abs, (row.without_point, row.without_bits, row.without_bandwidth))) < 0.06
    # A point that the constant does not move has the same error under every fit.
    still = [row for row in rows if row.point.bandwidth == math.inf]
    assert all(row.without_point == row.without_bandwidth == row.point.error for row in still)


def test_the_fit_finds_a_constant_it_is_shown(resnet50: list[Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = 0.45
    made = [
        (bits, limit, throughput(resnet50, bits, limit, Machine(usable=wanted))) for bits, limit, _ in published()
    ]
    monkeypatch.setattr("qexp.hardware.figure6.published", lambda: made)
    assert fit(resnet50) == pytest.approx(wanted, abs=1e-3)


def test_a_fit_without_points_is_refused(resnet50: list[Layer]) -> None:
    with pytest.raises(ValueError, match="no point left"):
        fit(resnet50, lambda point: False)


def test_larger_batches_miss_the_figure(resnet50: list[Layer]) -> None:
    """Images go one by one: with two at a time 16 bits at 32 GB/s lose far less than the paper's do."""
    for usable in (0.3, 0.5, 0.7, 1.0):
        two = estimate(resnet50, (16, 16), bandwidth=32e9, batch=2, machine=Machine(usable=usable))
        assert two.throughput > 1.15 * 561


def test_the_original_resnet50_closes_the_gap_at_16_bits(resnet50: list[Layer]) -> None:
    """The paper does not say which ResNet50 it ran; with the stride in the 1x1 convolutions nothing is missing."""
    strided = {f"layer{stage}.0.conv1" for stage in (2, 3, 4)}
    original = [
        replace(layer, macs=layer.macs // 4, outputs=layer.outputs // 4) if layer.name in strided else layer
        for layer in resnet50
    ]
    assert sum(layer.macs for layer in original) / 1e9 == pytest.approx(3.86, abs=0.005)
    assert throughput(original, 16, math.inf) / 1008 - 1 == pytest.approx(0.002, abs=0.001)
    assert throughput(resnet50, 16, math.inf) / 1008 - 1 == pytest.approx(-0.052, abs=0.001)


def test_a_fit_that_leaves_out_does_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that answers with the share of points it was given, and a model that answers with the fit."""
    layers = [
        Layer("fc", inputs * outputs, inputs * outputs, inputs, outputs, (outputs, inputs))
        for inputs, outputs in ((4096, 4096), (4096, 1000), (1000, 1000))
    ]
    monkeypatch.setattr(figure6, "fit", lambda layers, keep: sum(map(keep, figure6.points(layers))) / 12)
    monkeypatch.setattr(figure6, "throughput", lambda layers, bits, bandwidth, machine: machine.usable)
    for row in left_out(layers)[0]:
        errors = (row.without_point, row.without_bits, row.without_bandwidth)
        # Of twelve points one, the three of its bits, the four of its bandwidth.
        assert [round(12 * (error + 1) * row.point.published) for error in errors] == [11, 9, 8]
