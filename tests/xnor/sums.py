"""Sums of a product beside torch's, and small networks, for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qexp.graph.scheme import Method
from qexp.quantizers.qnn_binary import BinaryActivation, BinaryWeight
from qexp.quantizers.qnn_linear import LinearActivation, LinearWeight
from qexp.xnor.packing import pack_planes
from qexp.xnor.product import Geometry, TorchProduct

from .test_engine import mlp, network


def draws(*shape: int, planes: int) -> Tensor:
    return torch.randint(2**planes, shape, dtype=torch.uint8)


def assert_same_sums(
    product: TorchProduct, geometry: Geometry, channels: int, outputs: int, planes: tuple[int, int]
):
    """Compare with torch's sums: the same activations, weights and base."""
    g, plain = geometry, TorchProduct()
    weights = pack_planes(draws(outputs, g.kernel_height * g.kernel_width, channels, planes=planes[0]), planes[0])
    codes = draws(g.images * g.height * g.width, channels, planes=planes[1])
    base = torch.randint(-1000, 1000, (g.out_height * g.out_width, outputs), dtype=torch.int32)
    wanted = plain.sums(plain.pack(codes, planes[1]), plain.weight(weights, channels, planes[1]), g, base)
    place = product.device
    weight = product.weight(weights.to(place), channels, planes[1])
    found = product.sums(product.pack(codes.to(place), planes[1]), weight, g, base.to(place))
    assert torch.equal(found.cpu(), wanted)


def convolution(images, height, width, kernel, stride, pad, dilation) -> Geometry:
    sides = zip((height, width), kernel, stride, pad, dilation, strict=True)
    out = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides]
    return Geometry(images, height, width, *out, *kernel, *stride, *pad, *dilation)


def convolutions(method: Method, bits: int) -> nn.Module:
    """Two convolutions, the second with strides, and what tells classes apart."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(45, 10)),
    )
    return network(model, method, (bits, bits), (3, 8, 8), first=(bits, 3))


NETWORKS = {
    "mlp": (mlp, (1, 8, 8)),
    "w1 a1": (lambda: convolutions(Method("b", BinaryWeight, BinaryActivation), 1), (3, 8, 8)),
    "w2 a2": (lambda: convolutions(Method("l", LinearWeight, LinearActivation), 2), (3, 8, 8)),
}
"""By name: what makes one, and the shape of its images."""
