"""Ternary weight networks: each weight is -a, 0 or +a; activations stay as they are.

Li and Liu 2016, "Ternary Weight Networks", arXiv 1605.04711: threshold 0.7 E|w|, a the mean magnitude of the
weights beyond it (the approximate solution). The choice among ternary methods is ours: this one learns no scale.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qexp.ops.binary import windowed
from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.ops.uniform import spread_axes
from qexp.quantizers.base import Quantizer, Rounding, Site
from qexp.quantizers.uniform import refuse_other

THRESHOLD = 0.7
"""Of the mean magnitude, as the paper rounds what it derives for uniform (2/3) and normal (0.75) weights."""


def ternarize(weight: Tensor, channels: bool = False) -> tuple[Tensor, Tensor]:
    """Return (-1, 0 or +1 for each weight, the scale), float32; the scale broadcasts, (channels or 1, 1, ...).

    A scale that no weight lies beyond is 0.

    >>> signs, scale = ternarize(torch.tensor([[-2.0, 0.1, 1.0]]))
    >>> signs.tolist(), scale.tolist()
    ([[-1.0, 0.0, 1.0]], [[1.5]])
    """
    axes = spread_axes(weight, channels)
    magnitude = weight.detach().float().abs()
    beyond = magnitude > THRESHOLD * magnitude.mean(dim=axes, keepdim=True)
    scale = (magnitude * beyond).sum(dim=axes, keepdim=True) / beyond.sum(dim=axes, keepdim=True).clamp(min=1)
    return torch.sign(weight.detach().float()) * beyond, scale


class TernaryWeight(Quantizer):
    """Ternary weights; the gradient passes straight through to the real ones.

    Args:
        scope: `layer` (the paper's) or `channel`: which weights share threshold and scale.

    Raises:
        ConfigError: another scope.
    """

    supported_bits: ClassVar[tuple[int, ...]] = (2, 32)
    rounds = False

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste, *, scope: str = "layer") -> None:
        super().__init__(bits, site, rounding)
        self.scope = scope
        refuse_other("scope", scope, ("layer", "channel"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled ternary values."""
        if self.bits == 32:
            return x
        signs, scale = ternarize(x, self.scope == "channel")
        return windowed((signs * scale).to(x.dtype), x, None)

    def codes(self, x: Tensor) -> Codes:
        """Return 0, 1, 2 for -a, 0, +a."""
        self.require_grid()
        signs, scale = ternarize(x, self.scope == "channel")
        return Codes((signs + 1).int(), torch.stack([-scale, torch.zeros_like(scale), scale]))
