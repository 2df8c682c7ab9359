"""What quantization after training costs: rounding the weights of a network, and observing its activations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qexp.benchmarks.measure import Measure, in_turns, ratios
from qexp.benchmarks.steps import finishing
from qexp.build import build
from qexp.calibration.fit import fit_activations
from qexp.calibration.folding import fold_batch_norm
from qexp.graph.plan import make_plan
from qexp.graph.scheme import Method, Scheme, Widths
from qexp.models.torchvision_models import classifier
from qexp.quantizers.base import Quantizer, Site
from qexp.quantizers.pwlq import PWLQWeight
from qexp.quantizers.uniform import UniformActivation, UniformWeight

NETWORK = "resnet50"
SHAPE = (3, 224, 224)
BATCH = 4
BATCHES = 8
"""So that what an observer does with every batch outweighs its choice of a range at the end, which takes the same
time after 512 images."""

ONE_SHOT = 3.0
"""Limit of one-shot PWLQ over uniform min-max, on the same tensors."""

OBSERVERS = {
    "minmax": ("qexp.calibration.observers.MinMax", 1.3),
    "moving_average": ("qexp.calibration.observers.MovingAverage", 1.3),
    "top_k": ("qexp.calibration.observers.TopK", 1.3),
    "percentile": ("qexp.calibration.observers.Percentile", 2.5),
    "kl": ("qexp.calibration.clipping.KL", 2.5),
    "mse": ("qexp.calibration.clipping.MSE", 2.5),
    "aciq": ("qexp.calibration.clipping.ACIQ", 2.5),
}
"""Option -> its class, and the limit of a forward pass that it watches over one without."""


def measures(rounds: int, device: torch.device) -> Iterator[Measure]:
    """Yield the measures of topic `ptq`, on ResNet50 with random weights."""
    torch.manual_seed(0)
    model = classifier(input_shape=SHAPE, num_classes=1000, architecture=NETWORK).eval().to(device)
    folded = fold_batch_norm(model).model
    yield from _weights(folded, rounds, device)
    yield from _observers(folded, rounds, device)


def _weights(model: nn.Module, rounds: int, device: torch.device) -> Iterator[Measure]:
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    makers: dict[str, Callable[[Site], Quantizer]] = {
        "uniform": lambda site: UniformWeight(4, site),
        "one-shot": lambda site: PWLQWeight(4, site),
        "grid search": lambda site: PWLQWeight(4, site, search="grid"),
    }
    works = {name: _rounding(make, weights) for name, make in makers.items()}
    slow = works.pop("grid search")
    found = in_turns(works, rounds, warm_up=1, finish=finishing(device))
    found |= in_turns({"grid search": slow}, 1, finish=finishing(device))
    uniform = statistics.median(found["uniform"])
    basis = f"{sum(map(torch.numel, weights)) / 1e6:.1f}M weights, uniform {1000 * uniform:.0f} ms"
    spread = ratios(found["one-shot"], found["uniform"])
    yield Measure("ptq", "PWLQ one-shot / uniform min-max", spread, limit=ONE_SHOT, basis=basis)
    searched = ratios(found["grid search"], [uniform])
    yield Measure("ptq", "PWLQ grid search / uniform min-max", searched, basis=basis)


def _rounding(make: Callable[[Site], Quantizer], weights: list[Tensor]) -> Callable[[], object]:
    """Return what fits a quantizer to each tensor, channel by channel, and rounds it."""

    @torch.no_grad()
    def work() -> None:
        for weight in weights:
            quantizer = make(Site("layer", "weight", tuple(weight.shape))).to(weight.device).eval()
            quantizer.fit_weights(weight)
            quantizer(weight)

    return work


def _observers(model: nn.Module, rounds: int, device: torch.device) -> Iterator[Measure]:
    images = torch.randn(BATCHES, BATCH, *SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    method = Method("uniform", None, UniformActivation, "input")
    widths = Widths(32, 8)
    scheme = Scheme(method, widths, widths, widths, input_range=((-3.0,) * 3, (3.0,) * 3))
    plan = make_plan(model, scheme, SHAPE)

    def watched(target: str) -> Callable[[], object]:
        def observer(bits: int, site: Site) -> Any:
            return build({"_target_": target}, bits=bits, site=site)

        return lambda: list(fit_activations(model, plan, [(batch, None) for batch in images], observer))

    @torch.no_grad()
    def forward() -> None:
        for batch in images:
            model(batch)

    works = {"forward": forward, **{name: watched(target) for name, (target, _) in OBSERVERS.items()}}
    found = in_turns(works, rounds, warm_up=1, finish=finishing(device))
    basis = f"{BATCHES} x {BATCH} images, forward {1000 * statistics.median(found['forward']):.0f} ms"
    for name, (_, limit) in OBSERVERS.items():
        spread = ratios(found[name], found["forward"])
        yield Measure("ptq", f"forward with observer {name} / forward", spread, limit=limit, basis=basis)
