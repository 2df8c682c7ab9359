"""Calibration streams: what is kept does not grow with the number of images."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from qexp.build import build
from qexp.calibration.bias import measured_inputs
from qexp.calibration.fit import fit_activations
from qexp.calibration.observers import Observer
from qexp.graph.plan import Plan, make_plan
from qexp.graph.scheme import Method, Scheme, Widths
from qexp.paths import config_dir
from qexp.quantizers.base import Site
from qexp.quantizers.pwlq import PWLQActivation
from qexp.quantizers.uniform import UniformWeight

SHAPE = (3, 16, 16)
BATCHES = 40
OBSERVERS = sorted((config_dir() / "observer").glob("*.yaml"))
Make = Callable[[int, Site], Observer]


class Keeper(Observer):
    """Keeps all it sees: what an observer must not do."""

    def __init__(self, bits: int, site: Site) -> None:
        super().__init__(bits, site)
        self.kept: list[Tensor] = []

    def _take(self, values: Tensor) -> None:
        self.kept.append(values.clone())

    def _range(self) -> tuple[float, float]:
        return float(min(x.min() for x in self.kept)), float(max(x.max() for x in self.kept))


@pytest.fixture(autouse=True)
def only_what_is_new() -> Iterator[None]:
    """Leave what was there before out of the search, which would take seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def live_bytes() -> int:
    """Return the bytes of all new tensors that Python can reach, each storage once."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), Tensor)]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def watched(sizes: list[int]) -> Iterator[tuple[Tensor, None]]:
    """Yield batches, and note after five of them and before the last what is alive."""
    generator = torch.Generator().manual_seed(0)
    for number in range(BATCHES):
        if number in (5, BATCHES - 1):
            sizes.append(live_bytes())
        yield torch.randn(8, *SHAPE, generator=generator), None


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def planned(model: nn.Module) -> Plan:
    widths = Widths(4, 4)
    method = Method("pwlq_both", UniformWeight, PWLQActivation, "input")  # it asks for moments as well
    return make_plan(model, Scheme(method, *[widths] * 3, input_range=((-4.0,) * 3, (4.0,) * 3)), SHAPE)


def growth(observer: Make) -> int:
    """Return the bytes that 34 of 40 batches added."""
    sizes: list[int] = []
    model = network()
    list(fit_activations(model, planned(model), watched(sizes), observer))
    first, last = sizes
    return last - first


@pytest.mark.parametrize("path", OBSERVERS, ids=lambda path: path.stem)
def test_no_observer_keeps_more_after_forty_batches_than_after_five(path: Path) -> None:
    node: dict[str, Any] = yaml.safe_load(path.read_text())
    assert growth(lambda bits, site: build(node, bits=bits, site=site)) <= 1024, "a few numbers a batch at most"


def test_one_that_keeps_everything_is_found_out() -> None:
    a_batch = 8 * 4 * (8 * 14 * 14 + 8 * 12 * 12)
    assert growth(Keeper) == (BATCHES - 6) * a_batch


def test_neither_do_the_means_of_bias_correction() -> None:
    sizes: list[int] = []
    model = network()
    measured_inputs(model, planned(model), watched(sizes))
    first, last = sizes
    assert last - first <= 1024
