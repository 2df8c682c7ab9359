"""The topics `xnor` and `kernels`: products on packed bits against torch's, beside what popcount alone can do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from qexp.benchmarks.measure import Measure, in_turns, milliseconds, ratios, spread
from qexp.benchmarks.steps import finishing
from qexp.convert import quantize_model
from qexp.errors import ConfigError
from qexp.graph.plan import make_plan
from qexp.graph.scheme import Method, Scheme, Widths
from qexp.layers.quantized import float_output
from qexp.models.qnn import QNNMLP, QNNConvNet
from qexp.published import Artefact, load_artefact
from qexp.quantizers.qnn_binary import BinaryActivation, BinaryWeight
from qexp.xnor.engine import Engine, make_engine
from qexp.xnor.extension import NoCompilerError, native
from qexp.xnor.layers import IntegerLayer
from qexp.xnor.packing import pack_planes
from qexp.xnor.product import NativeProduct, TorchProduct, linear_geometry
from qexp.xnor.triton_kernel import TritonProduct

SIDE, FIGURE_SIDE = 4096, 8192
"""Of the matrices of the topic `xnor`, and of the paper's figure."""
PRODUCT_RATIO, NETWORK_RATIO = 20.0, 12.0
BATCH, FIGURE_BATCH, CONVOLUTION_BATCH = 1000, 10_000, 50
HIDDEN = (4096, 4096, 4096)

Works = dict[str, Callable[[], object]]


def measures(rounds: int, *, gpu: bool) -> Iterator[Measure]:
    """Yield the measures of topic `xnor`: packed bits against float32, bfloat16 and int8, in turns.

    The CPU's come first; `gpu`: the GPU's, too.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        try:
            yield from _on_cpu(NativeProduct(native()), rounds)
        except NoCompilerError as error:
            yield Measure("xnor", f"{SIDE}^3 product, float32 / packed", None, PRODUCT_RATIO, basis=str(error))
        if gpu:
            yield from _on_gpu(SIDE, BATCH, rounds, "xnor")


def kernels(rounds: int, *, gpu: bool) -> Iterator[Measure]:
    """Yield the two ratios of the paper's kernel figure (`qnn/kernels`), float32 / packed, beside those printed.

    Theirs are of a GPU: cuBLAS / the XNOR kernel. Here torch's own product is what cuBLAS is there.
    `gpu`: those of a GPU, too.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        try:
            yield from _figure(NativeProduct(native()), rounds)
        except NoCompilerError as error:
            yield Measure("kernels", f"{FIGURE_SIDE}^3 product, float32 / packed", None, basis=str(error))
        if gpu:
            yield from _on_gpu(FIGURE_SIDE, FIGURE_BATCH, rounds, "kernels")


def _on_cpu(product: NativeProduct, rounds: int) -> Iterator[Measure]:
    yield from _limit(product, rounds)
    yield from _compared(f"{SIDE}^3 product", _product(product, SIDE), rounds, 2 * SIDE**3, PRODUCT_RATIO)
    yield from _compared(f"MNIST MLP, batch {BATCH}", _mlp(product, BATCH), rounds, None, NETWORK_RATIO)
    yield from _convnet(product, rounds)


def _figure(product: NativeProduct, rounds: int) -> Iterator[Measure]:
    figure = load_artefact("qnn/kernels")
    for column, operations, make in (
        ("8192^3 product", 2 * FIGURE_SIDE**3, lambda: _product(product, FIGURE_SIDE)),
        ("MNIST network", None, lambda: _mlp(product, FIGURE_BATCH)),
    ):
        works = {name: work for name, work in make().items() if name in ("packed", "float32")}
        (found,) = _compared(column, works, rounds, operations, topic="kernels")
        yield replace(found, basis=f"{found.basis}; published, on a GPU: {_published(figure, column):.2f}")


def _published(figure: Artefact, column: str) -> float:
    seconds = {cell.row: cell.value for cell in figure.cells if cell.column == column}
    return seconds["cuBLAS"] / seconds["XNOR kernel"]


def _limit(product: NativeProduct, rounds: int) -> Iterator[Measure]:
    rates = [2 * product.kernel.popcount_rate(0.1) / 1e12 for _ in range(rounds)]
    basis = "xor, popcount and add on words in the first cache, in 10^12 operations a second"
    yield Measure("xnor", "popcount limit", spread(rates), form="{:.2f}", basis=basis)


def _compared(
    what: str,
    works: Works,
    rounds: int,
    operations: int | None = None,
    limit: float | None = None,
    topic: str = "xnor",
    finish: Callable[[], object] = lambda: None,
) -> Iterator[Measure]:
    seconds = in_turns(works, rounds, warm_up=1, finish=finish)
    packed = statistics.median(seconds["packed"])
    rate = "" if operations is None else f", {operations / packed / 1e12:.2f} Tera-op/s"
    for name in (name for name in works if name != "packed"):
        basis = f"{milliseconds(seconds[name])} / {milliseconds(seconds['packed'])}{rate}"
        kept = limit if name == "float32" else None
        found = ratios(seconds[name], seconds["packed"])
        yield Measure(topic, f"{what}, {name} / packed", found, kept, "{:.1f}", at_least=True, basis=basis)


def _product(product: TorchProduct, side: int) -> Works:
    left, right = torch.randn(2, side, side, device=product.device)
    weight = product.weight(pack_planes((right >= 0).unsqueeze(1), 1), side, 1)
    base = torch.full((1, side), side, dtype=torch.int32, device=product.device)
    geometry = linear_geometry(side)
    turned, half = right.t().contiguous(), (left.bfloat16(), right.t().contiguous().bfloat16())
    signs = [torch.where(each >= 0, 1, -1).to(torch.int8) for each in (left, turned)]
    return {
        "packed": lambda: product.sums(product.signs(left), weight, geometry, base),
        "float32": lambda: left @ turned,
        "bfloat16": lambda: half[0] @ half[1],
        "int8": lambda: torch._int_mm(*signs),
    }


def _on_gpu(side: int, batch: int, rounds: int, topic: str, device: str = "cuda") -> Iterator[Measure]:
    """The Triton kernel beside the GPU's own products, the packing of activations included."""
    what = f"{side}^3 product on the GPU"
    try:
        product = TritonProduct(device)
    except ConfigError as error:
        yield Measure(topic, f"{what}, float32 / packed", None, basis=str(error))
        return
    finish = finishing(product.device)
    yield from _compared(what, _product(product, side), rounds, 2 * side**3, topic=topic, finish=finish)
    what = f"MNIST MLP on the GPU, batch {batch}"
    yield from _compared(what, _mlp(product, batch), rounds, topic=topic, finish=finish)


def _binary(network: nn.Module, shape: tuple[int, int, int], product: TorchProduct) -> Engine:
    """Return a network with binary weights and activations, 8-bit images, on packed bits."""
    one, method = Widths(1, 1), Method("qnn_binary", BinaryWeight, BinaryActivation)
    scheme = Scheme(method, one, Widths(1, 8), one, input_range=((-1.0,), (1.0,)))
    return make_engine(quantize_model(make_plan(network, scheme, shape)).eval(), product)


def _mlp(product: TorchProduct, batch: int) -> Works:
    """The whole network as `qexp eval engine=xnor` runs it, from images to scores."""
    shape = (1, 28, 28)

    def network() -> nn.Module:
        return QNNMLP(input_shape=shape, num_classes=10, hidden=HIDDEN).eval()

    images = _images(batch, shape).to(product.device)
    return _against(_binary(network(), shape, product).fused, network, images)


def _convnet(product: NativeProduct, rounds: int) -> Iterator[Measure]:
    """The CIFAR-10 network, layer by layer and as `qexp eval engine=xnor` runs it."""
    shape = (3, 32, 32)

    def network() -> nn.Module:
        return QNNConvNet(input_shape=shape, num_classes=10).eval()

    engine, images = _binary(network(), shape, product), _images(CONVOLUTION_BATCH, shape)
    seen: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs: seen.update({module.name: inputs[0]}))
        for layer in engine.layers
    ]
    engine.network(images)
    for handle in handles:
        handle.remove()
    for layer in engine.layers:
        x = seen[layer.name]
        works, geometry = _layer(layer, x), layer.geometry(x)
        sums = geometry.images * geometry.out_height * geometry.out_width * layer.weight.outputs
        yield from _compared(_shape(layer, x), works, rounds, 2 * sums * layer.codes[0].numel())
    whole = _against(engine.fused, network, images)
    yield from _compared(f"CIFAR-10 ConvNet, batch {CONVOLUTION_BATCH}", whole, rounds)


def _shape(layer: IntegerLayer, x: Tensor) -> str:
    bits = "" if layer.grid.bits == 1 else f" of {layer.grid.bits} bits"
    inputs, outputs = layer.codes.shape[1], layer.weight.outputs
    if x.dim() == 2:
        return f"linear {inputs}{bits}-{outputs}"
    height, width = layer.kernel
    return f"{height}x{width} {inputs}{bits}-{outputs} at {x.shape[2]}x{x.shape[3]}"


def _layer(layer: IntegerLayer, x: Tensor) -> Works:
    """One layer, from float values to sums; signs are taken of rows, an image's codes of its pixels."""
    geometry, product, weight = layer.geometry(x), layer.product, layer.layer.weight
    base = layer.base(geometry)
    if x.dim() == 4:
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
    half, half_x = weight.bfloat16(), x.bfloat16()
    return {
        "packed": lambda: product.sums(layer.packed_input(x), layer.weight, geometry, base),
        "float32": lambda: float_output(layer.layer, x, weight),
        "bfloat16": lambda: float_output(layer.layer, half_x, half),
    }


def _against(packed: Callable[[Tensor], Tensor], network: Callable[[], nn.Module], images: Tensor) -> Works:
    model, half = network().to(images.device), network().to(images.device).bfloat16()
    half_images = images.bfloat16()
    return {
        "packed": lambda: packed(images),
        "float32": lambda: model(images),
        "bfloat16": lambda: half(half_images),
    }


def _images(batch: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(256, (batch, *shape)) / 127.5 - 1
