"""The Triton kernel against torch's sums, each of its statements run by triton's interpreter on the CPU.

Run by `test_triton_kernel.py`, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from qexp.xnor.engine import make_engine, prove
from qexp.xnor.packing import pack_planes
from qexp.xnor.product import Limits, TorchProduct, linear_geometry
from qexp.xnor.triton_kernel import TritonProduct

from .sums import NETWORKS, assert_same_sums, convolution, draws
from .test_engine import batches


@pytest.fixture(scope="module")
def interpreted() -> TritonProduct:
    return TritonProduct("cpu")


@given(
    *(st.integers(1, 2), st.integers(4, 8), st.integers(4, 8), st.integers(1, 130), st.integers(1, 70)),
    *(st.tuples(*(st.integers(low, high) for _ in range(2))) for low, high in ((1, 3), (1, 3), (0, 2), (1, 2))),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
)
@settings(deadline=None, max_examples=10, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes here
def test_a_convolution_of_any_planes_and_geometry_is_torchs(
    interpreted, images, height, width, channels, outputs, kernel, stride, pad, dilation, planes
) -> None:
    geometry = convolution(images, height + 1, width + 1, kernel, stride, pad, dilation)
    assert_same_sums(interpreted, geometry, channels, outputs, planes)


@pytest.mark.parametrize("rows", [0, 1, 129])
@pytest.mark.parametrize("count", [1, 64, 300])
def test_a_linear_layer_of_any_size_is_torchs(interpreted: TritonProduct, rows: int, count: int) -> None:
    for outputs in (1, 64, 65):
        assert_same_sums(interpreted, linear_geometry(rows), count, outputs, (1, 1))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_packing_is_torchs(interpreted: TritonProduct, count: int) -> None:
    plain, values = TorchProduct(), torch.randn(37, count)
    values[:3, 0] = torch.tensor([-0.0, float("nan"), float("-inf")])
    assert torch.equal(interpreted.signs(values), plain.signs(values))
    turned = values.t().contiguous().t()  # another order in memory
    assert torch.equal(interpreted.signs(turned), plain.signs(values))
    codes = draws(37, count, planes=8)
    assert torch.equal(interpreted.pack(codes, 8), plain.pack(codes, 8))


def test_limits_are_torchs(interpreted: TritonProduct) -> None:
    words = pack_planes(draws(70, 1, 100, planes=1), 1)
    activations = pack_planes(draws(9, 100, planes=1), 1)
    base = torch.full((1, 70), 100, dtype=torch.int32)
    limits = Limits(torch.randint(-20, 20, (70,), dtype=torch.int32), torch.rand(70) < 0.5)
    plain = TorchProduct()
    wanted = plain.reached(activations, plain.weight(words, 100, 1), linear_geometry(9), base, limits)
    weight = interpreted.weight(words, 100, 1)
    assert torch.equal(interpreted.reached(activations, weight, linear_geometry(9), base, limits), wanted)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_prove_themselves(name: str, interpreted: TritonProduct) -> None:
    make, shape = NETWORKS[name]
    fake = make()
    engine = make_engine(fake, interpreted)
    assert engine.layers and not engine.left
    assert prove(engine, fake, batches(shape, 2)).holds
