"""The packed product on a GPU, in Triton: tiles of exclusive or and popcount over 64-bit words.

Importable without triton: `TritonProduct` says what is missing. Courbariaux et al. 2016, arXiv 1602.02830,
section 4, equation 7.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.xnor.packing import words_for
from qexp.xnor.product import Geometry, PackedWeight, TorchProduct

try:
    import triton
    import triton.language as tl
except ImportError:  # a torch without it: a CPU build, macOS
    triton = None

ROWS, COLUMNS = 128, 64
"""Of a tile of sums: with triton's four warps each thread holds 64 of them, which its registers have place for."""

PACKED_ROWS = 32
"""Rows whose next 64 values are packed at once."""

NO_FUSION = {"enable_fp_fusion": False}
"""There is no float arithmetic in a kernel; triton 3.9 warns where this is left to it."""


class TritonProduct(TorchProduct):
    """Products by the Triton kernel, on a GPU; with TRITON_INTERPRET=1 on a CPU, for tests.

    Raises:
        ConfigError: triton is not installed, or cannot run on that GPU.
    """

    name = "triton"

    def __init__(self, device: torch.device | str = "cuda") -> None:
        if triton is None:
            raise ConfigError("engine xnor on a GPU: triton is not installed; `pip install triton`.")
        self.device = torch.device(device)
        self._on_gpu = self.device.type == "cuda"
        self._popcount = self._on_gpu and torch.version.cuda is not None
        if self._on_gpu:
            self._try()

    def _try(self) -> None:
        """Launch once: triton builds its launcher then, for which it needs a C compiler and Python's headers."""
        try:
            self.signs(torch.zeros(1, 1, device=self.device))
        except Exception as error:  # of triton, its driver, the compiler it calls
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(f"engine xnor on a GPU: triton cannot run on {self.device}: {lines[0]}.") from error

    def _launching(self) -> contextlib.AbstractContextManager[object]:
        """Triton launches on the current device, whatever the operands' is."""
        return torch.cuda.device(self.device) if self._on_gpu else contextlib.nullcontext()

    def pack(self, codes: Tensor, planes: int) -> Tensor:
        """See `TorchProduct`."""
        return self._packed(codes, planes, signs=False)

    def signs(self, values: Tensor) -> Tensor:
        """See `TorchProduct`."""
        return self._packed(values, 1, signs=True)

    def _packed(self, values: Tensor, planes: int, *, signs: bool) -> Tensor:
        rows, count = values.shape
        words = words_for(count)
        _refuse(rows)
        result = values.new_empty(planes, rows, words, dtype=torch.int64)
        if result.numel():
            grid = (triton.cdiv(rows, PACKED_ROWS), words, planes)
            with self._launching():
                _pack[grid](values.contiguous(), result, rows, count, words, signs, PACKED_ROWS, **NO_FUSION)
        return result

    def sums(self, activations: Tensor, weight: PackedWeight, geometry: Geometry, base: Tensor) -> Tensor:
        """See `TorchProduct`.

        Raises:
            ConfigError: more pixels, or more rows of sums, than 31 bits count.
        """
        g = geometry
        planes, pixels, words = activations.shape
        rows = g.images * g.out_height * g.out_width
        _refuse(max(rows, pixels))
        result = base.new_empty(rows, weight.outputs)
        if result.numel():
            grid = (triton.cdiv(rows, ROWS), triton.cdiv(weight.outputs, COLUMNS))
            sides = (rows, weight.outputs, words, len(base), planes, len(weight.words), pixels)
            fixed = (self._popcount, ROWS, COLUMNS)
            with self._launching():
                _tile[grid](activations, weight.words, base, result, *sides, *g[1:], *fixed, **NO_FUSION)
        return result


def _refuse(rows: int) -> None:
    if rows + ROWS >= 2**31:
        raise ConfigError(f"engine xnor on a GPU: {rows} pixels at once; take a smaller batch.")


# No annotations but triton's own: its compiler reads them, and knows no other names.
def _tile_body(  # type: ignore[no-untyped-def]
    activations,
    weights,
    base,
    sums,
    rows,
    columns,
    words,
    base_rows,
    activation_planes,
    weight_planes,
    pixels,
    height,
    width,
    out_height,
    out_width,
    kernel_height,
    kernel_width,
    stride_height,
    stride_width,
    pad_top,
    pad_left,
    dilation_height,
    dilation_width,
    popcount: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
):
    """Compute one tile of sums (rows, columns): base[row % base_rows] - 2 mismatches, as `TorchProduct` has them.

    Pointers to activations (planes, pixels, words), weights (planes, columns, taps, words), base and sums.
    """
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    column = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    left = row % out_width * stride_width - pad_left
    top = row // out_width % out_height * stride_height - pad_top
    image = row // (out_width * out_height)
    taps = kernel_height * kernel_width
    mismatches = tl.zeros((tile_rows, tile_columns), dtype=tl.int32)
    for plane in range(activation_planes * weight_planes):
        here, there = plane // weight_planes, plane % weight_planes
        for tap in range(taps):
            y = top + tap // kernel_width * dilation_height
            x = left + tap % kernel_width * dilation_width
            inside = (row < rows) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            # 64 bits, as for the results' places below: of large operands they pass 32.
            pixel = here.to(tl.int64) * pixels + (image * height + y) * width + x
            filter_tap = (there.to(tl.int64) * columns + column) * taps + tap
            for word in range(words):
                one = tl.load(activations + pixel * words + word, inside, 0)
                other = tl.load(weights + filter_tap * words + word, column < columns, 0)
                mismatches += _set_bits(one[:, None] ^ other[None, :], popcount) << here + there
    known = (row[:, None] < rows) & (column[None, :] < columns)
    start = tl.load(base + (row % base_rows).to(tl.int64)[:, None] * columns + column[None, :], known, 0)
    tl.store(sums + row.to(tl.int64)[:, None] * columns + column[None, :], start - 2 * mismatches, known)


def _set_bits_body(x, popcount: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the bits set in each 64-bit word: by CUDA's instruction, or by sums of neighbours."""
    if popcount:
        return tl.inline_asm_elementwise("popc.b64 $0, $1;", "=r,l", [x], dtype=tl.int32, is_pure=True, pack=1)
    x = x.to(tl.uint64, bitcast=True)
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56).to(tl.int32)


def _pack_body(values, result, rows, count, words, signs: tl.constexpr, tile_rows: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pack 64 values of some rows into a word each: signs of floats, or one plane's bit of codes."""
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    word, plane = tl.program_id(1), tl.program_id(2)
    bit = tl.arange(0, 64)
    place = word * 64 + bit
    known = (row[:, None] < rows) & (place[None, :] < count)
    found = tl.load(values + row.to(tl.int64)[:, None] * count + place[None, :], known, 0)
    bits = found >= 0 if signs else (found.to(tl.int32) >> plane) & 1
    shifted = tl.where(known, bits.to(tl.int64), 0) << bit.to(tl.int64)[None, :]
    here = (plane.to(tl.int64) * rows + row) * words + word
    tl.store(result + here, tl.sum(shifted, 1), row < rows)  # no two terms share a bit


if triton is not None:
    _set_bits = triton.jit(_set_bits_body)
    _tile = triton.jit(_tile_body)
    _pack = triton.jit(_pack_body)
