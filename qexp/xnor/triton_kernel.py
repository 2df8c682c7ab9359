"""The packed product on a GPU, in Triton: tiles of exclusive or and popcount over 32-bit words.

Importable without triton; what calls it says what is missing. Courbariaux et al. 2016, arXiv 1602.02830,
section 4, equation 7: there, too, 32 values share a word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.errors import ConfigError

try:
    import triton
    import triton.language as tl
except ImportError:  # a torch without it: a CPU build, macOS
    triton = None

ROWS, COLUMNS, WORDS = 64, 64, 8
"""Of a tile; WORDS words of 32 bits of each row and column are compared at once."""


def product(left: Tensor, right: Tensor, count: int) -> Tensor:
    """Return the product of signs, int32 (rows, columns): count - 2 popcount(left ^ right) for each pair.

    Args:
        left: bits (rows, words) and `right` (columns, words), int64 on one CUDA device, as `pack_bits` makes them.
        count: bits in use of each row.

    Raises:
        ConfigError: no triton, no CUDA device, or shapes that do not belong together.
    """
    if triton is None:
        raise ConfigError("engine xnor on a GPU: triton is not installed; `pip install triton`, or take the CPU.")
    if not (left.is_cuda and right.is_cuda):
        raise ConfigError("engine xnor on a GPU: both operands have to be on a CUDA device.")
    if left.shape[1] != right.shape[1] or not 0 < count <= 64 * left.shape[1]:
        raise ConfigError(f"engine xnor on a GPU: {count} bits in {left.shape[1]} and {right.shape[1]} words.")
    return tiles(left, right, count)


def tiles(left: Tensor, right: Tensor, count: int) -> Tensor:
    """Return `product` of operands that were looked at; with TRITON_INTERPRET=1 on a CPU, too, for tests."""
    left, right = (side.contiguous().view(torch.int32) for side in (left, right))
    rows, columns = len(left), len(right)
    result = torch.empty(rows, columns, dtype=torch.int32, device=left.device)
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))
    _tile[grid](left, right, result, rows, columns, left.shape[1], count, ROWS, COLUMNS, WORDS)
    return result


# No annotations but triton's own: its compiler reads them, and knows no other names.
def _tile_body(  # type: ignore[no-untyped-def]
    left,
    right,
    result,
    rows,
    columns,
    words,
    count,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    tile_words: tl.constexpr,
):
    """Compute one tile: pointers to packed rows (rows, words), packed columns (columns, words), and the result."""
    # 64 bits: of two large operands the result's places pass 32.
    row = (tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)).to(tl.int64)
    column = (tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)).to(tl.int64)
    word = tl.arange(0, tile_words)
    mismatches = tl.zeros((tile_rows, tile_columns), dtype=tl.int32)
    for start in range(0, words, tile_words):
        here = start + word
        row_mask = (row[:, None] < rows) & (here[None, :] < words)
        column_mask = (column[:, None] < columns) & (here[None, :] < words)
        row_words = tl.load(left + row[:, None] * words + here[None, :], row_mask, 0)
        column_words = tl.load(right + column[:, None] * words + here[None, :], column_mask, 0)
        different = row_words[:, None, :] ^ column_words[None, :, :]
        mismatches += tl.sum(_popcount(different), 2)
    place = result + row[:, None] * columns + column[None, :]
    tl.store(place, count - 2 * mismatches, (row[:, None] < rows) & (column[None, :] < columns))


def _popcount_body(x):  # type: ignore[no-untyped-def]
    """Return the bits set in each 32-bit word, by sums of neighbours (no intrinsic of one vendor)."""
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


if triton is not None:
    _popcount = triton.jit(_popcount_body)
    _tile = triton.jit(_tile_body)
