"""Packing loses nothing, and every path of the kernel gives the integer product, whatever the shape."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from qexp.quantizers.base import Site
from qexp.quantizers.image import ImageGrid
from qexp.xnor.extension import native
from qexp.xnor.kernel import _team
from qexp.xnor.packing import pack_bits, pack_planes, unpack_bits, unpack_planes
from qexp.xnor.product import Geometry, Limits, NativeProduct, TorchProduct, linear_geometry

SIDES = st.integers(1, 300)


@pytest.fixture(scope="module")
def kernel(compiler: bool):
    if not compiler:
        pytest.skip("no C++ compiler here")
    return native()


def products(kernel) -> list[TorchProduct]:
    """Torch's product, the kernel's best, and each of its paths that this processor runs."""
    return [TorchProduct(), *(NativeProduct(kernel, path) for path in range(-1, kernel.best_path + 1))]


def random_codes(seed: int, bits: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**bits, shape, generator=generator, dtype=torch.uint8)


@given(st.integers(1, 5), st.integers(1, 200), st.integers(1, 8), st.integers(0, 99))
def test_planes_come_back(rows: int, count: int, bits: int, seed: int) -> None:
    codes = random_codes(seed, bits, rows, count)
    words = pack_planes(codes, bits)
    assert words.shape == (bits, rows, -(-count // 64))
    assert torch.equal(unpack_planes(words, count), codes.int())


def test_a_word_by_hand() -> None:
    bits = torch.zeros(65, dtype=torch.uint8)
    bits[[0, 63, 64]] = 1
    assert pack_bits(bits).tolist() == [1 - 2**63, 1]
    assert torch.equal(unpack_bits(pack_bits(bits), 65), bits)


@given(rows=st.integers(1, 40), count=SIDES, bits=st.integers(1, 8), seed=st.integers(0, 99))
@settings(deadline=None)
def test_the_kernel_packs_as_torch_does(kernel, rows: int, count: int, bits: int, seed: int) -> None:
    codes = random_codes(seed, bits, rows, count)
    assert torch.equal(kernel.pack_codes(codes, bits), pack_planes(codes, bits))
    values = codes.float() - 1
    values[0, 0] = -0.0
    assert torch.equal(kernel.pack_signs(values), TorchProduct().signs(values))


@given(st.integers(1, 200), st.integers(1, 8), st.floats(-3, 3), st.floats(0.01, 2))
@settings(deadline=None)
def test_the_kernel_takes_an_images_codes_as_its_quantizer_does(kernel, count, bits, low, span) -> None:
    image = ImageGrid(bits, Site("image", "input", (1, 1, count)), lowest=(low,), highest=(low + span,)).eval()
    x = torch.randn(2, 1, 1, count)
    assert torch.equal(NativeProduct(kernel).image_codes(x, image), TorchProduct().image_codes(x, image))


def odd(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The odd numbers that planes of +1 and -1 stand for."""
    return 2 * codes.double() - (2**bits - 1)


def test_a_product_without_rows_has_none(kernel) -> None:
    right = random_codes(0, 2, 4, 70)
    for product in products(kernel):
        weight = product.weight(pack_planes(right.unsqueeze(1), 2), 70, 2)
        packed = product.pack(torch.empty(0, 70, dtype=torch.uint8), 2)
        base = torch.zeros(1, 4, dtype=torch.int32)
        assert product.sums(packed, weight, linear_geometry(0), base).shape == (0, 4)


@given(SIDES, SIDES, SIDES, st.sampled_from([(1, 1), (1, 1), (1, 2), (2, 3), (1, 8)]), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_product_is_the_integers(kernel, rows: int, depth: int, columns: int, bits, seed: int) -> None:
    weight_bits, bits = bits
    left, right = random_codes(seed, bits, rows, depth), random_codes(seed + 1, weight_bits, columns, depth)
    wanted = odd(left, bits) @ odd(right, weight_bits).t()
    for product in products(kernel):
        weight = product.weight(pack_planes(right.unsqueeze(1), weight_bits), depth, bits)
        packed = left.unsqueeze(0) if weight.bytes else product.pack(left, bits)
        none = depth * (2**bits - 1) * (2**weight_bits - 1)
        base = torch.full((1, columns), none, dtype=torch.int32)
        if weight.bytes:
            base = (-(2**bits - 1) * odd(right, 1).sum(1)).to(torch.int32).unsqueeze(0)
        found = product.sums(packed, weight, linear_geometry(rows), base)
        assert torch.equal(found.double(), wanted)
        least = wanted.median(0).values.to(torch.int32)
        turned = torch.arange(columns) % 2 == 1
        bits_found = product.reached(packed, weight, linear_geometry(rows), base, Limits(least, turned))
        assert torch.equal(unpack_bits(bits_found[0], columns).bool(), (wanted >= least) ^ turned)


@given(
    *(st.integers(1, 3), st.integers(1, 130), st.integers(1, 70)),
    *(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
    *(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(0, 99)),
)
@settings(deadline=None, max_examples=60)
def test_a_convolution_is_the_integers_where_the_padding_is_corrected(
    kernel, images, channels, outputs, height, width, kh, kw, stride, pad, dilation, seed
) -> None:
    out_h = (height + 2 * pad - dilation * (kh - 1) - 1) // stride + 1
    out_w = (width + 2 * pad - dilation * (kw - 1) - 1) // stride + 1
    if out_h < 1 or out_w < 1:
        return
    shape = (images, height, width, out_h, out_w, kh, kw, stride, stride, pad, pad, dilation, dilation)
    geometry = Geometry(*shape)
    left = random_codes(seed, 1, images, channels, height, width)
    right = random_codes(seed + 1, 1, outputs, channels, kh, kw)
    signs = odd(right, 1)
    wanted = F.conv2d(odd(left, 1), signs, stride=stride, padding=pad, dilation=dilation)
    inside = F.conv2d(torch.ones_like(left[:1]).double(), signs, stride=stride, padding=pad, dilation=dilation)
    outside = signs.sum((1, 2, 3)).reshape(1, -1, 1, 1) - inside
    base = (channels * kh * kw + outside).flatten(2)[0].t().to(torch.int32).contiguous()
    for product in products(kernel):
        words = pack_planes(right.flatten(2).transpose(1, 2), 1)
        packed = product.pack(left.permute(0, 2, 3, 1).reshape(-1, channels), 1)
        found = product.sums(packed, product.weight(words, channels, 1), geometry, base)
        assert torch.equal(found.reshape(images, out_h, out_w, outputs).permute(0, 3, 1, 2).double(), wanted)


def test_a_work_of_few_parts_leaves_torchs_threads_alive(kernel) -> None:
    """A team of fewer would end the others, and torch's next work begin them anew."""
    if _team() is None or not Path("/proc/self/task").is_dir():
        pytest.skip("torch has no OpenMP here that tells where a team begins, or the system has no /proc")

    def known() -> set[str]:
        torch.randn(2**20).exp_()
        return {thread.name for thread in Path("/proc/self/task").iterdir()}

    values, threads = torch.randn(180, 2048), torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        before = known()
        kernel.pack_signs(values)  # 5760 words, in three parts
        assert known() == before
    finally:
        torch.set_num_threads(threads)


def test_the_threads_of_gnus_openmp_are_found() -> None:
    if sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("torch computes with other threads here")
    assert _team() is not None


@pytest.mark.parametrize("torchs", [True, False])
def test_threads_of_torch_and_its_own_share_a_product(kernel, torchs: bool) -> None:
    rows, depth, columns, threads = 301, 4100, 300, torch.get_num_threads()
    product, values = NativeProduct(kernel), torch.randn(rows, depth)
    right = random_codes(1, 1, columns, depth)
    weight = product.weight(pack_planes(right.unsqueeze(1), 1), depth, 1)
    base = torch.full((1, columns), depth, dtype=torch.int32)
    try:
        torch.set_num_threads(3)
        if not torchs:
            kernel._use_team(None)
        found = product.sums(product.signs(values), weight, linear_geometry(rows), base)
    finally:
        kernel._use_team(_team())
        torch.set_num_threads(threads)
    assert torch.equal(found.double(), odd((values >= 0).to(torch.uint8), 1) @ odd(right, 1).t())


def test_shapes_that_do_not_fit_are_refused_and_not_read(kernel) -> None:
    weight = NativeProduct(kernel).weight(pack_planes(random_codes(0, 1, 5, 1, 70), 1), 70, 1).prepared
    words, base, geometry = torch.zeros(1, 3, 2).long(), torch.zeros(1, 5).int(), linear_geometry(3)
    least, flips = torch.zeros(64).int(), torch.zeros(1).long()
    assert kernel.product(words, weight, 5, base, geometry, least, flips).shape == (3, 1)
    for wrong, name in (
        ((words[:, :, :1].contiguous(), weight, 5, base, geometry), "weights"),
        ((words[:, :2].contiguous(), weight, 5, base, geometry), "activations"),
        ((words[:, ::2], weight, 5, base, geometry), "activations"),
        ((words.int(), weight, 5, base, geometry), "activations"),
        ((words.to("meta"), weight, 5, base, geometry), "activations"),
        ((words, weight, 70, torch.zeros(1, 70).int(), geometry), "weights"),
        ((words, weight, 5, base[:0], geometry), "base"),
        ((words, weight, 5, base.long(), geometry), "base"),
        ((words, weight, 5, base, geometry[:12]), "geometry"),
        ((words, weight, 5, base, geometry._replace(stride_width=0)), "geometry"),
        ((words, weight, 5, base, geometry._replace(images=-3, out_height=-1)), "activations"),
        ((words, weight, 5, base, geometry, least[:5], flips), "thresholds"),
        ((words, weight, 5, base, geometry, least, flips[:0]), "flips"),
        ((words, weight, 5, base, geometry, None, None, kernel.best_path + 1), "path"),
    ):
        with pytest.raises(ValueError, match=name):
            kernel.product(*wrong)
    with pytest.raises(ValueError, match="values"):
        kernel.pack_signs(torch.zeros(3))
    with pytest.raises(ValueError, match="planes"):
        kernel.pack_codes(torch.zeros(1, 3, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="highest"):
        kernel.quantize(torch.zeros(3), 0.0, 1.0, 256)
