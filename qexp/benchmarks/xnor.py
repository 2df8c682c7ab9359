"""The topic `xnor`: products on packed bits against torch's, beside what popcount alone can do here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from qexp.benchmarks.measure import Measure, in_turns, milliseconds, ratios, spread
from qexp.convert import quantize_model
from qexp.graph.plan import make_plan
from qexp.graph.scheme import Method, Scheme, Widths
from qexp.layers.quantized import QuantConv2d
from qexp.models.qnn import QNNMLP
from qexp.quantizers.base import Site
from qexp.quantizers.qnn_binary import BinaryActivation, BinaryWeight
from qexp.xnor.engine import make_engine
from qexp.xnor.extension import NoCompilerError, native
from qexp.xnor.fusion import FusedMLP
from qexp.xnor.grids import Grid
from qexp.xnor.layers import IntegerLayer
from qexp.xnor.packing import pack_planes
from qexp.xnor.product import NativeProduct, linear_geometry

SIDE = 4096
PRODUCT_RATIO, NETWORK_RATIO = 20.0, 12.0
BATCH = 1000
HIDDEN = (4096, 4096, 4096)
CONVOLUTIONS = ((128, 128, 32), (128, 256, 16), (256, 256, 16), (256, 512, 8), (512, 512, 8))
"""Channels in and out and side of the CIFAR-10 ConvNet's binary convolutions, 3 x 3."""
CONVOLUTION_BATCH = 50

SIGNS = Grid(bits=1, levels=2, half_step=torch.tensor(1.0), shift=0)
Works = dict[str, Callable[[], object]]


def measures(rounds: int) -> Iterator[Measure]:
    """Yield the measures of topic `xnor`: packed bits against float32, bfloat16 and int8, in turns."""
    try:
        product = NativeProduct(native())
    except NoCompilerError as error:
        yield Measure("xnor", f"{SIDE}^3 product, float32 / packed", None, PRODUCT_RATIO, basis=str(error))
        return
    torch.manual_seed(0)
    with torch.no_grad():
        yield from _limit(product, rounds)
        yield from _compared(f"{SIDE}^3 product", _large(product), rounds, 2 * SIDE**3, PRODUCT_RATIO)
        yield from _compared(f"MNIST MLP, batch {BATCH}", _network(product), rounds, None, NETWORK_RATIO)
        for inputs, outputs, side in CONVOLUTIONS:
            operations = 2 * 9 * inputs * outputs * side**2 * CONVOLUTION_BATCH
            works = _convolution(product, inputs, outputs, side)
            yield from _compared(f"3x3 {inputs}-{outputs} at {side}x{side}", works, rounds, operations, None)


def _limit(product: NativeProduct, rounds: int) -> Iterator[Measure]:
    rates = [2 * product.kernel.popcount_rate(0.1) / 1e12 for _ in range(rounds)]
    basis = "xor, popcount and add on words in the first cache, in 10^12 operations a second"
    yield Measure("xnor", "popcount limit", spread(rates), form="{:.2f}", basis=basis)


def _compared(
    what: str, works: Works, rounds: int, operations: int | None, limit: float | None
) -> Iterator[Measure]:
    seconds = in_turns(works, rounds, warm_up=1)
    packed = statistics.median(seconds["packed"])
    rate = "" if operations is None else f", {operations / packed / 1e12:.2f} Tera-op/s"
    for name in (name for name in works if name != "packed"):
        basis = f"{milliseconds(seconds[name])} / {milliseconds(seconds['packed'])}{rate}"
        kept = limit if name == "float32" else None
        found = ratios(seconds[name], seconds["packed"])
        yield Measure("xnor", f"{what}, {name} / packed", found, kept, "{:.1f}", at_least=True, basis=basis)


def _large(product: NativeProduct) -> Works:
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    weight = product.weight(pack_planes((right >= 0).unsqueeze(1), 1), SIDE, 1)
    base = torch.full((1, SIDE), SIDE, dtype=torch.int32)
    geometry = linear_geometry(SIDE)
    turned, half = right.t().contiguous(), (left.bfloat16(), right.t().contiguous().bfloat16())
    signs = [torch.where(side >= 0, 1, -1).to(torch.int8) for side in (left, turned)]
    return {
        "packed": lambda: product.sums(product.signs(left), weight, geometry, base),
        "float32": lambda: left @ turned,
        "bfloat16": lambda: half[0] @ half[1],
        "int8": lambda: torch._int_mm(*signs),
    }


def _network(product: NativeProduct) -> Works:
    """The whole network: codes of the image, packing, four layers, batch norms, signs."""
    shape = (1, 28, 28)

    def network() -> nn.Module:
        return QNNMLP(input_shape=shape, num_classes=10, hidden=HIDDEN).eval()

    images = torch.randint(256, (BATCH, *shape)) / 127.5 - 1
    model, half, half_images = network(), network().bfloat16(), images.bfloat16()
    one, method = Widths(1, 1), Method("qnn_binary", BinaryWeight, BinaryActivation)
    scheme = Scheme(method, one, Widths(1, 8), one, input_range=((-1.0,), (1.0,)))
    fake = quantize_model(make_plan(network(), scheme, shape)).eval()
    fused = FusedMLP(make_engine(fake, product).network, len(HIDDEN))
    return {
        "packed": lambda: fused(images),
        "float32": lambda: model(images),
        "bfloat16": lambda: half(half_images),
    }


def _convolution(product: NativeProduct, inputs: int, outputs: int, side: int) -> Works:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    x = torch.randn(CONVOLUTION_BATCH, inputs, side, side).contiguous(memory_format=torch.channels_last)
    weight = BinaryWeight(1, Site("layer", "weight", tuple(layer.weight.shape)))
    packed = IntegerLayer("layer", QuantConv2d(layer, weight, None), SIGNS, product)
    geometry = packed.geometry(x)
    rows = x.permute(0, 2, 3, 1).reshape(-1, inputs)
    layer = layer.to(memory_format=torch.channels_last)
    half, half_x = layer.weight.bfloat16(), x.bfloat16()
    return {
        "packed": lambda: product.sums(product.signs(rows), packed.weight, geometry, packed.base(geometry)),
        "float32": lambda: F.conv2d(x, layer.weight, padding=1),
        "bfloat16": lambda: F.conv2d(half_x, half, padding=1),
    }
