"""How the loss depends on each clip level, one at a time, on a trained network.

PACT (arXiv 1805.06085) section 4.1, figure 3: the cross entropy of a full-precision forward pass, that of a
quantized one, and the latter with the penalty, against the alpha of one layer, all else fixed. The paper does not
say what its full-precision pass does with weights that were trained under quantization. Here nothing is rounded in
it, the weights neither, and all else stays: activations are clipped at alpha, and weights keep the scale that
their quantizer gives them (DoReFa's tanh and maximum), on which batch norm's statistics stand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qexp.data.batches import Batches
from qexp.errors import ConfigError
from qexp.graph.modes import evaluating
from qexp.lit.continuations import continuations
from qexp.lit.evaluate import float32
from qexp.lit.losses import penalized, penalty
from qexp.quantizers.base import Quantizer, Rounding, named_quantizers

FLOAT, QUANTIZED, PENALIZED = MODES = ("float", "quantized", "penalized")
"""The panels of the paper's figure: a, b and c."""

QUANTITIES = ("alpha", "step")
"""What is scanned, by its name in `Quantizer.learned`."""


@dataclass(frozen=True, eq=False)
class ClipLevel:
    """A learned tensor that decides where activations are clipped, and who clips with it.

    Attributes:
        site: where it stands; `network` for one that several sites share.
        quantity: one of `QUANTITIES`.
        parameter: the learned tensor.
        quantizers: those that use it.
    """

    site: str
    quantity: str
    parameter: nn.Parameter
    quantizers: tuple[Quantizer, ...]

    @property
    def value(self) -> float:
        """What it is now; the mean where there are many (scope `channel` or `element`)."""
        return float(self.parameter.detach().mean())


@dataclass(frozen=True)
class Point:
    """One measured loss: the mean cross entropy in nats (`penalized`: and the penalty) with `level` at `value`."""

    level: ClipLevel
    value: float
    loss: float
    mode: str


def clip_levels(network: nn.Module) -> list[ClipLevel]:
    """Return what activations are clipped with, learned alphas or else step sizes, each tensor once, by depth."""
    found: dict[int, tuple[str, nn.Parameter, list[Quantizer]]] = {}
    for _, quantizer in named_quantizers(network):
        learned = quantizer.learned() if quantizer.site.kind != "weight" else {}
        for quantity in [name for name in QUANTITIES if name in learned][:1]:
            tensor = learned[quantity]
            found.setdefault(id(tensor), (quantity, tensor, []))[2].append(quantizer)
    return [
        ClipLevel(users[0].site.name if len(users) == 1 else "network", quantity, tensor, tuple(users))
        for quantity, tensor, users in found.values()
    ]


def grid(level: ClipLevel, low: float, high: float, points: int, *, relative: bool) -> list[float]:
    """Return the values to try: `points` from `low` to `high`, evenly spaced by ratio, and the learned one.

    Args:
        level: whose value is the learned one; many alphas are scaled together, so that their mean is the value.
        low, high: the range, 0 < low < high.
        points: 2 or more.
        relative: `low` and `high` are multiples of the learned value.

    Raises:
        ConfigError: the learned value is no number; or it is not above 0 where values are multiples of it.
    """
    learned = level.value
    many = level.parameter.numel() > 1
    if learned != learned or ((relative or many) and learned <= 0):
        way = "" if many or learned != learned else "; without --relative it can be scanned"
        raise ConfigError(f"{level.site}: its learned {level.quantity} is {learned:.4g}, not above 0{way}.")
    unit = learned if relative else 1.0
    inner = [unit * low * (high / low) ** (index / (points - 1)) for index in range(points - 1)]
    return sorted({*inner, unit * high, learned})


@torch.no_grad()
def scan(
    network: nn.Module,
    batches: Batches,
    grids: Mapping[ClipLevel, Sequence[float]],
    lambda_alpha: float,
    device: torch.device,
    advance: Callable[[], Any] = lambda: None,
) -> list[Point]:
    """Measure the loss of `network` for every value of every clip level, the others as they were learned.

    The loss is the evaluation's: float32, evaluation mode, no label smoothing; what quantizers add to the training
    loss by themselves is left out. The network is left as it was found. Each value costs 2 passes over the samples
    (the penalty needs none), each from the clip level on.

    Args:
        network: on `device`.
        batches: of the training split, not augmented.
        grids: the values of each clip level.
        lambda_alpha: the penalty is (lambda_alpha / 2) * sum of alpha^2, over all that the run penalized.
        device: where batches come.
        advance: called after each pass.

    Returns:
        Points by clip level, then mode (`MODES`), then value.
    """
    sums = {(level, mode): [0.0] * len(values) for level, values in grids.items() for mode in (FLOAT, QUANTIZED)}
    samples = 0
    with evaluating(network), float32(device):
        for images, labels in batches:
            samples += labels.shape[0]
            for mode in (FLOAT, QUANTIZED):
                with unrounded(network) if mode == FLOAT else contextlib.nullcontext():
                    for level, index, loss in _losses(network, images, labels, grids):
                        sums[level, mode][index] += loss
                        advance()
    points = []
    for level, values in grids.items():
        means = {mode: [total / samples for total in sums[level, mode]] for mode in (FLOAT, QUANTIZED)}
        penalties = _penalties(network, level, values, lambda_alpha)
        means[PENALIZED] = [loss + extra for loss, extra in zip(means[QUANTIZED], penalties, strict=True)]
        for mode in MODES:
            points += [Point(level, *pair, mode) for pair in zip(values, means[mode], strict=True)]
    return points


def _losses(
    network: nn.Module, images: Tensor, labels: Tensor, grids: Mapping[ClipLevel, Sequence[float]]
) -> Iterator[tuple[ClipLevel, int, float]]:
    """Yield the cross entropy, summed over one batch, with each clip level at each of its values."""
    users = {quantizer: level for level in grids for quantizer in level.quantizers}
    reached = set()
    for quantizer, run in continuations(network, images, users):
        level = users[quantizer]
        if level not in reached:
            reached.add(level)
            for index, value in enumerate(grids[level]):
                with moved(level, value):
                    logits = run()
                yield level, index, float(F.cross_entropy(logits.double(), labels, reduction="sum"))


def _penalties(network: nn.Module, level: ClipLevel, values: Sequence[float], factor: float) -> Iterator[float]:
    """Yield the penalty of the whole network with `level` at each of `values`."""
    parameters = penalized(network)
    for value in values:
        with moved(level, value):
            yield float(penalty(parameters, factor))


@contextlib.contextmanager
def moved(level: ClipLevel, value: float) -> Iterator[None]:
    """The clip level is `value` inside, many of them scaled together to that mean; outside what it was before."""
    learned, mean = level.parameter.detach().clone(), level.value
    try:
        level.parameter.mul_(value / mean) if learned.numel() > 1 else level.parameter.fill_(value)
        yield
    finally:
        level.parameter.copy_(learned)


@contextlib.contextmanager
def unrounded(network: nn.Module) -> Iterator[None]:
    """Every quantizer clips, scales and transforms inside as it always does, but does not round.

    One that rounds by other means than its `rounding` (a sign, for one bit) goes on doing so.
    """
    before = {quantizer: quantizer.rounding for _, quantizer in named_quantizers(network)}
    try:
        for quantizer in before:
            _set_rounding(quantizer, _identity)
        yield
    finally:
        for quantizer, rounding in before.items():
            _set_rounding(quantizer, rounding)


def _set_rounding(quantizer: Quantizer, rounding: Rounding) -> None:
    del quantizer.rounding  # a module and a function are not kept in the same place
    quantizer.rounding = rounding


def _identity(x: Tensor) -> Tensor:
    return x
