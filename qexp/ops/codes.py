"""The integers behind quantized values, and the table that turns them back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """Quantized values as indices into a codebook.

    A codebook covers every kind of grid (uniform, piecewise-linear, powers of two, binary), and stays small:
    at most 256 values for each scale there is.

    Attributes:
        values: int32, any shape, each from 0 to levels - 1.
        codebook: float32 (levels, ...), ascending along the first axis; the other axes broadcast against
            `values` and are absent when one scale serves the whole tensor.
    """

    values: Tensor
    codebook: Tensor

    @property
    def levels(self) -> int:
        """The number of values the codebook offers."""
        return self.codebook.shape[0]

    def decode(self) -> Tensor:
        """Return the float32 values that the integers stand for, in the shape of `values`.

        >>> Codes(torch.tensor([0, 2], dtype=torch.int32), torch.tensor([-1.0, 0.0, 1.0])).decode().tolist()
        [-1.0, 1.0]
        """
        if self.codebook.dim() == 1:
            return self.codebook[self.values.long()]
        missing = self.values.dim() + 1 - self.codebook.dim()
        shape = (self.levels, *([1] * missing), *self.codebook.shape[1:])
        table = self.codebook.reshape(shape).expand(self.levels, *self.values.shape)
        return table.gather(0, self.values.long().unsqueeze(0)).squeeze(0)


def ascending(entries: Tensor, table: Tensor) -> Codes:
    """Return codes over a table that is sorted first.

    Args:
        entries: integers, which entry of `table` each element takes.
        table: as a codebook, in any order.
    """
    order = table.argsort(dim=0, stable=True)
    ranks = Codes(entries.int(), order.argsort(dim=0).float()).decode()
    return Codes(ranks.int(), table.gather(0, order))


def uniform_codebook(lowest: int, highest: int, step: Tensor) -> Tensor:
    """Return `step` times every integer from `lowest` to `highest`: (levels,) or (levels, *step.shape)."""
    integers = torch.arange(lowest, highest + 1, dtype=torch.float32, device=step.device)
    return integers.reshape(-1, *([1] * step.dim())) * step.float()
