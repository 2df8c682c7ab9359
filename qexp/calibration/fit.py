"""From a float network and its plan to fitted quantizers: activations seen batch by batch, then the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qexp.calibration.moments import Half, Moments
from qexp.calibration.observers import Observer
from qexp.errors import ConfigError, DataError
from qexp.graph.plan import LayerPlan, Plan
from qexp.quantizers.adaround import AdaRoundWeight
from qexp.quantizers.base import Observed, Quantizer, Site
from qexp.quantizers.corrected import CorrectedWeight
from qexp.quantizers.image import ImageGrid


@dataclass(frozen=True)
class Fitted:
    """What was found for one layer's weights or input.

    Attributes:
        values: what its quantizer kept, by name.
        error: mean squared error of the weights; None for an input.
        count: of the weights.
        stored_bits: that each of them takes in memory; scales and ranges are not counted.
    """

    layer: str
    kind: Literal["weight", "input"]
    bits: int
    values: dict[str, Tensor]
    error: float | None = None
    count: int = 0
    stored_bits: float = 0


def correct_weights(plan: Plan, correction: str) -> None:
    """With `channel` put bias correction behind every weight quantizer of `plan`, before anything is fitted.

    Raises:
        ConfigError: a method that learns its roundings from the layer's output, which holds the bias already.
    """
    if correction == "none":
        return
    for layer in plan.layers:
        if layer.weight is None or layer.weight.bits == 32:
            continue
        if isinstance(layer.weight, AdaRoundWeight):
            raise ConfigError(
                f"calibration.bias_correction={correction}: {layer.name} learns its roundings from its output,"
                " nothing is left to correct; take calibration.bias_correction=none."
            )
        if correction == "channel":
            layer.weight = CorrectedWeight(layer.weight)


@torch.no_grad()
def fit_weights(model: nn.Module, plan: Plan) -> None:
    """Fit every weight quantizer of `plan` to the weights of `model`.

    Raises:
        ConfigError: a method for training, or weights that hold no numbers.
    """
    for layer in plan.layers:
        if layer.weight is not None:
            layer.weight.fit_weights(_tensor(model, layer))


@torch.no_grad()
def fitted_weights(model: nn.Module, plan: Plan) -> Iterator[Fitted]:
    """Yield what every weight quantizer of `plan` kept, and its error on the weights of `model`."""
    for layer in plan.layers:
        if layer.weight is not None:
            weight = _tensor(model, layer)
            error = float((layer.weight(weight) - weight).double().square().mean())
            found = layer.weight.fitted()
            yield Fitted(
                layer.name, "weight", layer.weight.bits, found, error, weight.numel(), layer.weight.stored_bits
            )


@torch.no_grad()
def fit_activations(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    observer: Callable[[int, Site], Observer],
) -> Iterator[Fitted]:
    """Run `model` on `batches` and fit the quantizer of every layer's input to what came by; yield what each kept.

    The network runs in float, in the mode it is in; memory does not grow with the number of batches. The image's
    own grid is fixed and sees nothing.

    Args:
        batches: of (images, labels); labels are not looked at.
        observer: makes the observer of one site from its bits and the site.

    Raises:
        ConfigError: quantizers that replace ReLUs, which only training knows; an input that holds no numbers.
        DataError: there is no batch.
    """
    if any(site.quantizer is not None for site in plan.sites):
        raise ConfigError(
            "quantizer: it replaces ReLUs, and after training only the inputs of layers are quantized; choose a"
            " method with placement: input, such as quantizer=uniform or pwlq."
        )
    watched = {layer.name: _Watch(layer.input, observer) for layer in plan.layers if _is_observed(layer.input)}
    seen = 0
    with _watching(model, watched):
        for images, _ in batches:
            model(images)
            seen += len(images)
    if watched and not seen:
        raise DataError("calibration: there are no samples to observe activations on.")
    for name, watch in watched.items():
        watch.quantizer.fit_activations(watch.observed())
        yield Fitted(name, "input", watch.quantizer.bits, watch.quantizer.fitted())


def _is_observed(quantizer: Quantizer | None) -> bool:
    return quantizer is not None and quantizer.bits < 32 and not isinstance(quantizer, ImageGrid)


class _Watch:
    """The observer of one layer's input, and what its quantizer wants besides a range."""

    def __init__(self, quantizer: Any, observer: Callable[[int, Site], Observer]) -> None:
        self.quantizer: Quantizer = quantizer
        self.observer = observer(quantizer.bits, quantizer.site)
        moments = Moments if quantizer.site.signed else Half
        self.moments = moments(quantizer.site) if quantizer.needs_moments else None

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.observer.observe(inputs[0])
        if self.moments is not None:
            self.moments.observe(inputs[0])

    def observed(self) -> Observed:
        low, high = self.observer.range()
        if self.moments is None:
            return Observed(low, high)
        return Observed(low, high, torch.tensor(self.moments.mean), torch.tensor(self.moments.std))


@contextlib.contextmanager
def _watching(model: nn.Module, watched: dict[str, _Watch]) -> Iterator[None]:
    handles = [model.get_submodule(name).register_forward_pre_hook(watch.see) for name, watch in watched.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor(model: nn.Module, layer: LayerPlan) -> Tensor:
    weight: Any = model.get_submodule(layer.name).weight
    return weight.detach()
