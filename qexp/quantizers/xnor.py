"""XNOR-Net: the sign of each weight times the mean magnitude of its filter; activations are signs.

Rastegari et al. 2016, "XNOR-Net", arXiv 1603.05279, the scale and its gradient from section 3.1. The second scale,
of each position's input (section 3.2), is left out: the paper finds the weights' to be the one that counts.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qexp.ops.binary import inside, sign
from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.ops.uniform import spread_axes
from qexp.quantizers.base import Quantizer, Rounding, Site
from qexp.quantizers.uniform import refuse_other


def mean_magnitude(weight: Tensor, channels: bool) -> Tensor:
    """Return mean |w| in float32: (out channels, 1, ...) or, over all weights, (1, 1, ...)."""
    return weight.detach().float().abs().mean(dim=spread_axes(weight, channels), keepdim=True)


class XNORWeight(Quantizer):
    """a sign(w) with a = mean |w|; the gradient of w is that of the output times 1/n + a where |w| <= 1, else 1/n.

    n is the number of weights that share the scale.

    Args:
        scope: `channel` (the paper's) or `layer`: which weights share a scale.

    Raises:
        ConfigError: another scope.
    """

    supported_bits: ClassVar[tuple[int, ...]] = (1, 32)
    rounds = False

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste, *, scope: str = "channel") -> None:
        super().__init__(bits, site, rounding)
        self.scope = scope
        refuse_other("scope", scope, ("layer", "channel"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled signs."""
        if self.bits == 32:
            return x
        scale = mean_magnitude(x, self.scope == "channel")
        share = scale.numel() / x.numel()
        passing = inside(x.float()) * scale + x.float() * share
        return ((sign(x).float() * scale).detach() + (passing - passing.detach())).to(x.dtype)

    def codes(self, x: Tensor) -> Codes:
        """Return 0 for -a and 1 for +a."""
        self.require_grid()
        scale = mean_magnitude(x, self.scope == "channel")
        return Codes((x.detach() >= 0).int(), torch.stack([-scale, scale]))
