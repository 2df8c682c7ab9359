"""A layer's output from integers alone: what hardware would accumulate, for uniform and piecewise-linear weights.

Fang et al. 2020, "Post-Training Piecewise Linear Quantization for Deep Neural Networks", equations 11 to 13. It is
a reference to check fake quantization against, not a fast kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qexp.ops.piecewise import PiecewiseGrid
from qexp.ops.uniform import Grid

Product = Callable[[Tensor, Tensor], Tensor]
"""The layer's linear map of (input, weight), without bias, zeros around the image."""


@dataclass(frozen=True)
class Accumulated:
    """The result of integer accumulation.

    Attributes:
        output: float64, as the layer's own without bias.
        accumulators: each a sum of products of integers, whole numbers in float64: first that of the centre (of a
            uniform grid, its only one), then two for every further piece, of its integers and of its signs.
    """

    output: Tensor
    accumulators: list[Tensor]


def accumulate(
    integers: Tensor, step: Tensor, offset: Tensor, weight: Tensor, grid: Grid | PiecewiseGrid, product: Product
) -> Accumulated:
    """Return the output for the input step * integers + offset and the weights as `grid` quantizes them.

    A uniform grid needs one accumulator, C0 <X_q, W_q> + C1 (equation 11), and of piecewise ones so does the
    centre (equation 12); a piece that begins at p > 0 needs two, C4 <X_q, W_q2> + C5 <X_q, I> + C6 (equation 13),
    I the signs of its weights, and so does a uniform grid with an offset, I then all ones. C1, C3 and C6 come from
    the input's offset, which does not depend on the data. Sums of whole numbers below 2^53 are exact in float64.

    Args:
        integers: of the input, any integer dtype, (N, ...).
        step: of the input's grid, a scalar.
        offset: of the input's grid, a scalar, or values that broadcast against it.
        weight: real, (channels, ...).
        grid: of the weights, with one range for each channel or for all.
        product: see `Product`.

    Raises:
        ValueError: more steps than one, which cannot be taken out of a sum over the inputs.
    """
    if step.numel() != 1:
        raise ValueError(f"step: {tuple(step.shape)}; one for the whole input can be taken out of its sums")
    x = integers.double()
    shift = offset.double().expand_as(x) if bool((offset != 0).any()) else None
    accumulators: list[Tensor] = []
    output: Tensor | None = None
    for whole, unit in _parts(weight, grid):
        scale = _per_channel(unit.double(), weight, x)
        accumulators.append(product(x, whole))
        term = accumulators[-1] * step.double() * scale
        if shift is not None:
            term = term + product(shift, whole) * scale
        output = term if output is None else output + term
    assert output is not None  # a grid has a piece
    return Accumulated(output, accumulators)


def _parts(weight: Tensor, grid: Grid | PiecewiseGrid) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield whole numbers in float64 and their units by channel; together they add up to the weights."""
    if isinstance(grid, Grid):
        yield grid.codes(weight).values.double() + grid.lowest, grid.step
        if grid.offset is not None:
            yield torch.ones_like(weight, dtype=torch.float64), grid.offset
        return
    for index, (values, signs) in enumerate(grid.signed_integers(weight)):
        yield values, grid.width[index].double() / grid.steps[index]
        if index > 0 and bool((grid.low[index] != 0).any()):
            yield signs, grid.low[index]


def _per_channel(value: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """Return one value for each output channel so that it broadcasts against (N, channels, ...)."""
    flat = value.expand(weight.shape[0], *([1] * (weight.dim() - 1))).reshape(-1) if value.dim() else value
    return flat.reshape(-1, *([1] * (x.dim() - 2))) if value.dim() else flat
