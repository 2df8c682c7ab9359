"""PACT: the ReLU becomes a clip at a learned level alpha, and what is left is rounded on a uniform grid.

Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks", arXiv 1805.06085v2,
equations 1 to 3. The signed form (layer inputs that can be negative) and the scope `network` are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.ops.clip import clip_codes, clip_round, clipped_share
from qexp.ops.clip_search import squared_error_level
from qexp.ops.codes import Codes
from qexp.ops.numbers import is_positive
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding, Site, clip_steps, grid_steps, scope_shape


def pact(x: Tensor, alpha: Tensor, bits: int, rounding: Rounding = ste) -> Tensor:
    """Clip `x` to [0, alpha] and round to 2^bits levels; 32 bits clip only (equations 1 and 2).

    The gradient of alpha is 1 where x >= alpha, else 0 (equation 3).

    >>> alpha = torch.tensor(3.0, requires_grad=True)
    >>> y = pact(torch.tensor([-1.0, 0.4, 1.6, 5.0]), alpha, bits=2)
    >>> y.tolist()
    [0.0, 0.0, 2.0, 3.0]
    >>> y.sum().backward()
    >>> alpha.grad.item()
    1.0
    """
    return clip_round(x, alpha, None if bits == 32 else 2**bits - 1, rounding)


ALPHA = 10.0
"""Where alpha starts in the paper's figure 2."""

SEARCHED = 2**20
"""Of how many values, about, `alpha=mse` seeks the best clip level."""


class PACT(Quantizer):
    """The activation quantizer of PACT; the learned tensor is `alpha`.

    Args:
        alpha: start value of every alpha, above 0 (the paper's figure 2 starts at 10), or `mse`: the clip level of
            the least squared error on the first batch, at 32 bits its largest value (ours). A trained network's
            activations may be far smaller than 10, and a short fine-tuning hardly moves alpha.
        scope: one alpha per `layer` (the paper's choice), `channel`, `element` (of one sample), or one for the
            whole `network`.

    Raises:
        ConfigError: alpha not above 0; a scope that needs a shape where none is known; a signed site at 1 bit;
            from `calibrate`, a first batch that is not finite.
    """

    special_versions: ClassVar[Mapping[str, int]] = {"soft": 2}  # since alpha has the gradient 1 then
    acts_at_32: ClassVar[bool] = True

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        alpha: float | Literal["mse"] = ALPHA,
        scope: Literal["layer", "channel", "element", "network"] = "layer",
    ) -> None:
        super().__init__(bits, site, rounding)
        self._from_data = alpha == "mse"
        start = ALPHA if alpha == "mse" else alpha
        if not is_positive(start):
            raise ConfigError(
                f"alpha={alpha} does not fit: the clip level starts at a number above 0 (the paper's 10), or"
                " at mse, where the first batch has its least error."
            )
        self.steps = clip_steps(bits, site)
        self.scope = scope
        self.alpha = nn.Parameter(torch.full(scope_shape(scope, site), float(start)))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` clipped at alpha and rounded, in x's dtype."""
        # Axes before the site's own count the samples, and the positions of what a linear layer reads.
        own = x.shape[-self.alpha.dim() :]
        if self.scope == "element" and own != self.alpha.shape:
            raise ConfigError(
                f"{self.site.name}: alpha.scope=element was made for inputs of {tuple(self.alpha.shape)}, "
                f"got {tuple(own)}; train at the size you run at, or take scope=channel."
            )
        return clip_round(x, self.alpha, self.steps, self.rounding, self.site.signed)

    @property
    def starts_from_data(self) -> bool:
        """Whether `alpha` is `mse`, and its own; or a subclass starts something."""
        return self._from_data or type(self).calibrate is not PACT.calibrate

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """With `alpha=mse` start every alpha from `x`, or from its first samples where it is large."""
        if not self._from_data:
            return
        samples = max(1, SEARCHED * len(x) // x.numel())
        x = x[:samples].float()
        values = x if self.site.signed else x.clamp(0.0, self.site.end)
        level = squared_error_level(values, self.alpha, self.steps, self.site.signed)
        if not bool(level.isfinite().all()):
            raise ConfigError(f"{self.site.name}: no finite numbers in its first batch, so alpha has no start.")
        self.alpha.copy_(torch.where(level > 0, level, ALPHA))  # a dead channel's level says nothing

    def share(self, other: Quantizer) -> None:
        """Take over the alpha of `other`, which starts it."""
        super().share(other)
        self._from_data = False

    def codes(self, x: Tensor) -> Codes:
        """Return which of the levels each element takes."""
        return clip_codes(x, self.alpha, grid_steps(self.require_grid(), self.site), self.site.signed)

    def learned(self) -> dict[str, nn.Parameter]:
        """Return `alpha`."""
        return {"alpha": self.alpha}

    def penalized(self) -> dict[str, nn.Parameter]:
        """Return `alpha`: the paper's L2 term on the clip levels (section 4)."""
        return self.learned()

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of elements at or beyond alpha."""
        return clipped_share(x, self.alpha, self.site.signed)
