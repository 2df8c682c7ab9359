"""One bit a value: codes to planes of 64-bit words and back, and the order in which the kernel reads weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WORD = 64
"""Bits of a word; bit e of word w is element 64 w + e of a row, and 0 behind its last element."""

BLOCK = 64
"""Columns of weights that the kernel takes at once."""


def words_for(count: int) -> int:
    """Return the words that `count` bits take.

    >>> words_for(64), words_for(65)
    (1, 2)
    """
    return -(-count // WORD)


def pack_bits(bits: Tensor) -> Tensor:
    """Pack zeros and ones (..., n) into words (..., words_for(n)), int64.

    >>> pack_bits(torch.tensor([1, 0, 1])).tolist()
    [5]
    """
    padded = F.pad(bits.to(torch.int64), (0, -bits.shape[-1] % WORD))
    places = torch.arange(WORD, device=bits.device)
    return (padded.unflatten(-1, (-1, WORD)) << places).sum(-1)  # bit 63 is the sign: no two terms share a bit


def unpack_bits(words: Tensor, count: int) -> Tensor:
    """Return the first `count` bits of words (..., w) as uint8 (..., count)."""
    places = torch.arange(WORD, device=words.device)
    return ((words.unsqueeze(-1) >> places) & 1).flatten(-2)[..., :count].to(torch.uint8)


def pack_planes(codes: Tensor, planes: int) -> Tensor:
    """Pack integers (..., n) from 0 to 2^planes - 1: plane j (first axis) holds their bits of weight 2^j."""
    integers = codes.to(torch.int64)
    return torch.stack([pack_bits(integers >> plane & 1) for plane in range(planes)])


def unpack_planes(words: Tensor, count: int) -> Tensor:
    """Return the integers (..., count), int32, that `pack_planes` packed."""
    bits = unpack_bits(words, count).to(torch.int32)
    weights = 2 ** torch.arange(len(bits), dtype=torch.int32, device=words.device)
    return (bits * weights.reshape(-1, *([1] * (bits.dim() - 1)))).sum(0, dtype=torch.int32)


def panels(words: Tensor) -> Tensor:
    """Bring weights (planes, out, words) into the kernel's order: (planes, blocks, 2, words, 32 columns)."""
    planes, columns, depth = words.shape
    padded = F.pad(words, (0, 0, 0, -columns % BLOCK))
    return padded.reshape(planes, -1, 2, 32, depth).transpose(3, 4).contiguous()


def byte_masks(bits: Tensor) -> Tensor:
    """Bring signs (out, n), 1 for +1, into the order of the kernel's byte products: (blocks, 4, quads).

    Bit 4 c + e of a mask is element e of a quad of column c of 16.
    """
    padded = F.pad(bits, (0, -bits.shape[1] % 4, 0, -bits.shape[0] % BLOCK))
    grouped = padded.reshape(-1, 4, 16, padded.shape[1] // 4, 4).transpose(2, 3)
    return pack_bits(grouped.flatten(3)).squeeze(-1).contiguous()
