"""A trained network on the packed engine: which layers can run on it, and the proof that it computes the same."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qexp.convert import TwoModes
from qexp.errors import ConfigError
from qexp.graph.tracing import keeps_levels, sources
from qexp.layers.quantized import QuantLayer, QuantRecurrence
from qexp.quantizers.base import Quantizer
from qexp.xnor.extension import NoCompilerError, native
from qexp.xnor.fusion import called, fused
from qexp.xnor.grids import Grid, grid_of, one_step
from qexp.xnor.layers import IntegerLayer, IntegerRecurrence, Mode, read_and_made
from qexp.xnor.product import NativeProduct, TorchProduct
from qexp.xnor.triton_kernel import TritonProduct


@dataclass
class Engine:
    """A network with its layers on integers.

    Attributes:
        network: layer by layer; its `IntegerLayer`s take their sums as their `mode` says.
        fused: the same with signs packed from one linear layer to the next, where they can be; it evaluates.
        layers: those on integers.
        product: takes the sums on bits.
        left: (name, why) of the layers that stay as they are.
    """

    network: fx.GraphModule
    fused: fx.GraphModule
    layers: list[IntegerLayer]
    product: TorchProduct
    left: list[tuple[str, str]] = field(default_factory=list)

    def set_mode(self, mode: Mode) -> None:
        """Say how all layers take their sums."""
        for layer in self.layers:
            layer.mode = mode


def products(say: Callable[[str], None], device: torch.device | None = None) -> TorchProduct:
    """Return the products for a device: on a GPU the Triton kernel's, else the C++ kernel's, else torch's.

    The last two are on the CPU, whatever the device. Why it is not the first that fits is said.
    """
    if device is not None and device.type == "cuda":
        try:
            return TritonProduct(device)
        except ConfigError as error:
            say(f"{error} Here products are taken on the CPU.")
    try:
        return NativeProduct(native())
    except NoCompilerError as error:
        say(str(error))
        return TorchProduct()


def make_engine(
    network: nn.Module, product: TorchProduct, weights: Mapping[str, tuple[Grid, Tensor]] | None = None
) -> Engine:
    """Return a copy of a quantized network, on the product's device, with every layer that can be on integers.

    Args:
        weights: grids and codes by layer, of a packed checkpoint; None: the network's own.

    Raises:
        ConfigError: the network has no graph (nothing of it is quantized).
    """
    graph = _evaluated(network).to(product.device)
    engine = Engine(graph, graph, [], product)
    for node, layer in _layers(graph):
        name = str(node.target)
        try:
            if not isinstance(layer, QuantLayer):
                raise ConfigError("its weights are float")
            grid = _input_grid(graph, node, layer)
            packed = None if weights is None else _placed(weights.get(name), product.device)
            made = IntegerLayer(name, layer, grid, product, packed)
        except ConfigError as error:
            engine.left.append((name, str(error)))
            continue
        _replace(graph, name, IntegerRecurrence(layer, made) if isinstance(layer, QuantRecurrence) else made)
        engine.layers.append(made)
    engine.fused = fused(graph)
    return engine


def _placed(weight: tuple[Grid, Tensor] | None, device: torch.device) -> tuple[Grid, Tensor] | None:
    if weight is None:
        return None
    grid, codes = weight
    return replace(grid, half_step=grid.half_step.to(device)), codes.to(device)


def _evaluated(network: nn.Module) -> fx.GraphModule:
    """Return a copy in evaluation mode, its graph to be read and rewritten."""
    if isinstance(network, TwoModes):
        network = network.evaluation()
    if not isinstance(network, fx.GraphModule):
        raise ConfigError("engine xnor: nothing of this network is quantized; it runs networks of few bits.")
    return copy.deepcopy(network).eval().float()


def _layers(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, nn.Conv2d | nn.Linear]]:
    seen = set()
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target not in seen:
            seen.add(node.target)
            module = graph.get_submodule(str(node.target))
            if isinstance(module, nn.Conv2d | nn.Linear):
                yield node, module


def _input_grid(graph: fx.GraphModule, node: fx.Node, layer: QuantLayer) -> Grid:
    """Return the grid of the values that a layer is called with, or raise ConfigError with the reason."""
    if layer.input_quantizer is not None:
        found: set[Quantizer | None] = {layer.input_quantizer}
    elif isinstance(layer, QuantRecurrence):  # it reads its own output, and is called with something else
        raise ConfigError("its input is float")
    else:
        calls = [call for call in graph.graph.nodes if call.target == node.target]
        found = {_quantizer(graph, made) for call in calls for made in sources(graph, call, _keeps_levels)}
    quantizers = [quantizer for quantizer in found if quantizer is not None]
    if len(quantizers) < len(found):
        raise ConfigError("its input does not come from quantizers alone")
    if any(quantizer.bits == 32 for quantizer in quantizers):
        raise ConfigError("its input is float")
    place = layer.weight.device
    zeros = [torch.zeros(1, *each.site.shape, device=place) for each in quantizers]
    first, *others = [one_step(each.codes(x).codebook) for each, x in zip(quantizers, zeros, strict=True)]
    if not all(torch.equal(first, other) for other in others):
        raise ConfigError(f"its input comes from {len(quantizers)} quantizers whose levels differ")
    grid = grid_of(first)
    if isinstance(grid, str):
        raise ConfigError(f"the codes of its input: {grid}")
    if grid.half_step.dim():
        raise ConfigError("its input has more scales than one (an image's channels need one mean and deviation)")
    return grid


def _quantizer(graph: fx.GraphModule, node: fx.Node) -> Quantizer | None:
    module = called(graph, node)
    return module if isinstance(module, Quantizer) else None


def _keeps_levels(graph: fx.GraphModule, node: fx.Node) -> bool:
    """As `keeps_levels`, but for a padding, whose zeros need not be a level (of signs they are none)."""
    return node.target is not F.pad and keeps_levels(graph, node)


def _replace(graph: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(graph.get_submodule(parent), last, module.eval())


@dataclass(frozen=True)
class Proof:
    """What running a network both ways found.

    Attributes:
        accumulators: (layer, compared, different) for each layer.
        weights: of each layer, how many integers times scale are not its quantizer's; None without a network.
        outputs: of each layer, how many for the float network's own input are not that network's, beyond what
            float32 rounds; None without a network.
        samples: how many were run.
        logits: whether all scores are the same, bit by bit.
        fused: whether those of the fused network are, too.
        predictions: samples whose predicted class is the same, that of every pixel where there are several.
        plain: samples whose class the float layers of the fake-quantized network give too; they add rounded
            products, in another order, so that a sum on a threshold may fall to its other side.
    """

    accumulators: list[tuple[str, int, int]]
    weights: list[int] | None
    outputs: list[int] | None
    samples: int
    logits: bool
    fused: bool
    predictions: int
    plain: int | None

    @property
    def broken(self) -> list[str]:
        """Names of the layers that are not the fake-quantized ones."""
        none = [0] * len(self.accumulators)
        found = zip(self.accumulators, self.weights or none, self.outputs or none, strict=True)
        return [name for (name, _, different), *others in found if different or any(others)]

    @property
    def holds(self) -> bool:
        """Whether packed and fake-quantized evaluation are the same."""
        return self.logits and self.fused and self.predictions == self.samples and not self.broken


@torch.no_grad()
def prove(
    engine: Engine, network: nn.Module | None, batches: Iterable[tuple[Tensor, Tensor]], *, text: bool = False
) -> Proof:
    """Run `engine` on bits, fused too, and on integers by float convolutions, and `network` as it is; compare.

    With `network` also layer by layer on the same input: there no sum falls to another side of a threshold.

    Args:
        network: the fake-quantized network that `engine` was made from, in evaluation mode; None: it is not there.
        batches: of (images, labels), on the engine's device, as `network` is.
        text: the batches are successive windows of a text, which networks read with a state; a sample is a token.

    Raises:
        ConfigError: the network answers with anything but scores (N, classes, ...); an input is off its grid.
    """
    samples = same = plain = 0
    logits = same_fused = True
    outputs = dict.fromkeys((layer.name for layer in engine.layers), 0)
    on_bits, on_integers, as_fused, by_floats = (_Answers(text) for _ in range(4))
    for images, _ in batches:
        engine.set_mode("prove")
        packed = on_bits(engine.network, images)
        engine.set_mode("reference")
        fake = on_integers(engine.network, images)
        if not isinstance(fake, Tensor) or fake.dim() < 2:
            raise ConfigError(
                f"engine xnor: the network answers with a {type(fake).__name__}; it runs networks that answer with"
                " one tensor, a score for each class, not yet those that detect objects."
            )
        logits = logits and torch.equal(packed, fake)
        samples += len(fake)
        same += _same_classes(packed, fake)
        engine.set_mode("packed")
        same_fused = same_fused and torch.equal(as_fused(engine.fused, images), packed)
        if network is not None:
            with _looking(engine.layers, network, outputs):
                plain += _same_classes(packed, by_floats(network, images))
    found = [(layer.name, layer.compared, layer.different) for layer in engine.layers]
    if network is None:  # what the weights were before they were packed is not known
        return Proof(found, None, None, samples, logits, same_fused, same, None)
    weights = [layer.weights_off() for layer in engine.layers]
    return Proof(found, weights, list(outputs.values()), samples, logits, same_fused, same, plain)


class _Answers:
    """What one network answers to batch after batch: scores (N, classes, ...).

    Reading a `text` it answers with those of each token (N, T, classes), and with the state that it goes on from.
    """

    def __init__(self, text: bool) -> None:
        self.text = text
        self.state: Tensor | None = None

    def __call__(self, network: nn.Module, batch: Tensor) -> Any:
        if not self.text:
            return network(batch)
        scores, self.state = network(batch, self.state)
        return scores.flatten(0, 1)


@contextlib.contextmanager
def _looking(layers: list[IntegerLayer], network: nn.Module, outputs: dict[str, int]) -> Iterator[None]:
    """While `network` runs, count into `outputs`, by layer, what `layers` make otherwise of the same input."""

    def count(layer: IntegerLayer, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs[layer.name] += layer.outputs_off(*read_and_made(module, inputs, output))

    handles = [
        network.get_submodule(layer.name).register_forward_hook(functools.partial(count, layer))
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _same_classes(scores: Tensor, others: Tensor) -> int:
    """Return the samples whose class is the same in both (N, classes, ...), at every place of an image."""
    return int((scores.argmax(1) == others.argmax(1)).unsqueeze(1).flatten(1).all(1).sum())
