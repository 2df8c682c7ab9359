"""PWLQ: a dense grid around zero and a coarser one for the tails, with the breakpoint that minimizes the error.

Fang et al. 2020, "Post-Training Piecewise Linear Quantization for Deep Neural Networks", arXiv 2002.00104, section
3; several breakpoints and the search from its supplement, sections 1.2 and 1.3.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.breakpoints import Shape, one_shot, optimal_edges, overlapping_edges, search_ratio
from qexp.ops.codes import Codes
from qexp.ops.piecewise import VARIANTS, PiecewiseGrid, Variant
from qexp.ops.rounding import ste
from qexp.ops.uniform import extremes, spread_axes
from qexp.quantizers.base import Observed, Quantizer, Rounding, Site
from qexp.quantizers.uniform import range_shape, refuse_no_numbers, refuse_other

SEARCHES = ("gauss_fit", "laplace_fit", "gauss", "laplace", "grid")

Search = Literal["gauss_fit", "laplace_fit", "gauss", "laplace", "grid"]


class PWLQWeight(Quantizer):
    """Rounds weights piece by piece up to their largest magnitude, which is never clipped.

    `bits` is the width of the multiplier, sign included; which piece a weight is in is stored beside it.

    Args:
        scope: one range and one set of breakpoints per `layer` or per output `channel`.
        breakpoints: 1, 2 or 3.
        search: `gauss_fit` and `laplace_fit` by the paper's formulas, for one breakpoint; `gauss` and `laplace` by
            solving the optimality condition; `grid`, by trying out which has the least squared error, for one.
        variant: `paper` (equation 3) or `authors`, their code's denser centre.
        overlap: tails whose grid reaches back to zero; for one breakpoint, which has another optimum then, and no
            formula.
        perturbation: moves each breakpoint up or down by this share of itself, at random with `seed` (figure 2).

    Raises:
        ConfigError: a value that is none of these.
    """

    version: ClassVar[int] = 2  # since overlapping regions have a breakpoint of their own
    special_versions: ClassVar[Mapping[str, int]] = {"perturbed": 2}  # since the draw follows `seed`
    supported_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 32)
    edges: Tensor

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        scope: Literal["layer", "channel"] = "channel",
        breakpoints: int = 1,
        search: Search = "gauss_fit",
        variant: Variant = "paper",
        overlap: bool = False,
        perturbation: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(bits, site, rounding)
        self.scope, self.breakpoints, self.search = scope, breakpoints, search
        self.variant, self.overlap = variant, overlap
        self.perturbation, self.seed = perturbation, seed
        shape = range_shape(scope, site)
        self._check()
        # Two dimensions: with five a buffer could not follow the network into channels-last order.
        self.register_buffer("edges", torch.full((breakpoints + 2, math.prod(shape)), torch.nan))

    def _check(self) -> None:
        refuse_other("search", self.search, SEARCHES)
        refuse_other("variant", self.variant, VARIANTS)
        if isinstance(self.breakpoints, bool) or self.breakpoints not in (1, 2, 3):
            raise ConfigError(f"breakpoints={self.breakpoints}: 1, 2 or 3.")
        if self.breakpoints > 1 and (self.overlap or self.search not in ("gauss", "laplace")):
            wrong = "overlap=true" if self.overlap else f"search={self.search}"
            raise ConfigError(
                f"{wrong} is for one breakpoint; with {self.breakpoints} take search=gauss or laplace."
            )
        if self.overlap and self.search.endswith("_fit"):
            raise ConfigError(
                f"overlap=true search={self.search}: the formulas are for tails that begin at the breakpoint; take"
                " search=gauss, laplace or grid."
            )
        if not 0 <= self.perturbation < 1:
            raise ConfigError(f"perturbation={self.perturbation}: a share of the breakpoint, 0 to below 1.")

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized weights; until they were fitted, with the edges that belong to them now."""
        return x if self.bits == 32 else self._grid(x).round(x, self.rounding)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the values each weight takes."""
        self.require_grid()
        return self._grid(x).codes(x)

    @property
    def stored_bits(self) -> int:
        """The width, and the bits that say which piece: 1, or 2 for more than one breakpoint."""
        return self.bits if self.bits == 32 else self.bits + self.breakpoints.bit_length()

    @torch.no_grad()
    def fit_weights(self, weight: Tensor) -> None:
        """Keep range and breakpoints of `weight`."""
        refuse_no_numbers(self.site, weight)
        self.edges.copy_(self._measured(weight).reshape_as(self.edges))

    def fitted(self) -> dict[str, Tensor]:
        """Return the breakpoints `p1` ... and the largest magnitude `m`."""
        names = [f"p{index}" for index in range(1, self.breakpoints + 1)]
        return dict(zip([*names, "m"], self.edges[1:], strict=True))

    def _grid(self, x: Tensor) -> PiecewiseGrid:
        shape = (-1, *range_shape(self.scope, self.site))
        edges = kept = self.edges.reshape(shape)
        if not self.holds(kept):
            edges = torch.where(kept.isnan(), self._measured(x.detach()), kept)
        return PiecewiseGrid(edges, self.bits, self.variant, overlap=self.overlap)

    @torch.no_grad()
    def _measured(self, x: Tensor) -> Tensor:
        """Return the edges for `x`, float32 (breakpoints + 2, ...), shaped to broadcast."""
        channels = self.scope == "channel"
        low, high = extremes(x, channels)
        largest = torch.maximum(-low, high)
        if self.search == "grid":
            edges = self._searched(x.float(), largest)
        else:
            deviation = spread(x, channels)
            edges = analytic_edges(largest, deviation, self.breakpoints, self.search, overlap=self.overlap)
        return self._perturbed(edges)

    def _searched(self, x: Tensor, largest: Tensor) -> Tensor:
        axes = spread_axes(x, largest.dim() > 0)

        def edges(share: Tensor) -> Tensor:
            return torch.stack([torch.zeros_like(largest), share * largest, largest])

        def error(share: Tensor) -> Tensor:
            grid = PiecewiseGrid(edges(share), self.bits, self.variant, overlap=self.overlap)
            squares = (grid.round(x) - x).square()
            return squares.sum(axes, keepdim=True) if largest.dim() else squares.sum()

        return edges(search_ratio(error, largest))

    def _perturbed(self, edges: Tensor) -> Tensor:
        if not self.perturbation:
            return edges
        # Of 32 bits: torch's CPU generator ignores those above.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{self.site.name}".encode()))
        up = torch.rand(edges[1:-1].shape, generator=generator) < 0.5
        factor = torch.where(up, 1 + self.perturbation, 1 - self.perturbation).to(edges.device)
        moved = torch.minimum(edges[1:-1] * factor, edges[-1])
        return torch.cat([edges[:1], moved.sort(dim=0).values, edges[-1:]])


class PWLQActivation(Quantizer):
    """PWLQ for a layer's input, over the range that calibration found; what lies beyond it is clipped.

    Where values are never negative the sign's bit is free: each piece then has 2^bits values, and the values above
    zero count as half of a density about zero, since a ReLU's zeros cost nothing on this grid. The paper does not
    say what it does there (supplement, section 2.2); both are ours.

    Args:
        search: `gauss_fit`, `laplace_fit`, `gauss` or `laplace`, from the standard deviation that calibration saw;
            about zero, as the paper has it for weights.
    """

    version: ClassVar[int] = 2  # since a ReLU's zeros do not count in the spread
    supported_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 32)
    needs_moments: ClassVar[bool] = True
    edges: Tensor

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste, *, search: Search = "gauss_fit") -> None:
        super().__init__(bits, site, rounding)
        refuse_other("search", search, SEARCHES[:-1])
        self.search = search
        self.register_buffer("edges", torch.full((3,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized values, in x's dtype."""
        if self.bits == 32:
            return x
        return self._grid(x).round(x, self.rounding)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the values each element takes."""
        self.require_grid()
        return self._grid(x).codes(x)

    @property
    def stored_bits(self) -> int:
        """The width, and one bit that says which piece."""
        return self.bits if self.bits == 32 else self.bits + 1

    @torch.no_grad()
    def fit_activations(self, seen: Observed) -> None:
        """Keep the observed range, and the breakpoint for the observed spread."""
        largest = torch.maximum(seen.low.abs(), seen.high.abs()) if self.site.signed else seen.high.clamp(min=0)
        assert seen.mean is not None and seen.std is not None  # `needs_moments`
        self.edges.copy_(analytic_edges(largest, torch.hypot(seen.std, seen.mean), 1, self.search))

    def fitted(self) -> dict[str, Tensor]:
        """Return the breakpoint `p1` and the end of the range `m`."""
        return {"p1": self.edges[1], "m": self.edges[2]}

    def _grid(self, x: Tensor) -> PiecewiseGrid:
        return PiecewiseGrid(self._edges(x.detach().float()), self.bits, signed=self.site.signed)

    def _edges(self, x: Tensor) -> Tensor:
        if self.holds(self.edges):
            return self.edges
        reach = x if self.site.signed else x.clamp(min=0)
        count = x.numel() if self.site.signed else reach.sign().sum().clamp(min=1)
        measured = analytic_edges(reach.abs().amax(), (reach.square().sum() / count).sqrt(), 1, self.search)
        return torch.where(self.edges.isnan(), measured, self.edges)


def spread(x: Tensor, channels: bool) -> Tensor:
    """Return the standard deviation of weights (unbiased; 0 for a single one), shaped to broadcast."""
    axes = spread_axes(x, channels)
    if not axes:
        return torch.zeros_like(x, dtype=torch.float32)
    count = x.numel() // (x.shape[0] if channels else 1)
    # Not torch.std, which takes six times as long on a CPU.
    rows = x.float().reshape(-1, count)
    centred = rows - rows.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=1) / max(count - 1, 1) ** 0.5
    return deviation.reshape(-1, *([1] * len(axes))) if channels else deviation.reshape(())


def analytic_edges(
    largest: Tensor, deviation: Tensor, breakpoints: int, search: str, *, overlap: bool = False
) -> Tensor:
    """Return the edges for a density of the given standard deviation, cut at `largest`; float32.

    Without any spread or range, where no density is meant, the breakpoints divide the range evenly.

    Args:
        largest, deviation: of one shape.
        search: a density (`gauss`, `laplace`), or with `_fit` its formula.
        overlap: the tail's grid reaches back to zero; for one breakpoint, by a density.
    """
    shape: Shape = "laplace" if search.startswith("laplace") else "gauss"
    flat = (deviation.double() <= largest.double() * 1e-6) | (largest == 0)
    m = torch.where(flat, 1.0, largest.double() / torch.where(flat, 1.0, deviation.double()))
    if search.endswith("_fit"):
        edges = torch.stack([torch.zeros_like(m), one_shot(m, shape), m])
    else:
        edges = overlapping_edges(m, shape) if overlap else optimal_edges(m, breakpoints, shape)
    even = torch.arange(breakpoints + 2, dtype=torch.float64, device=m.device) / (breakpoints + 1)
    shares = torch.where(flat, even.reshape(-1, *([1] * m.dim())), edges / m)
    return (shares * largest.double()).float()
