"""DoReFa: weights squashed by tanh into [-1, 1], activations clipped to [0, 1], both on a uniform grid.

Zhou et al. 2016, "DoReFa-Net", arXiv 1606.06160; the formulas are those of the authors' published code, so no
equation numbers are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding, Site
from qexp.quantizers.clip import FixedClip


def dorefa_weight(weight: Tensor, bits: int, rounding: Rounding = ste) -> Tensor:
    """Quantize a layer's weights to 2^bits levels from -1 to 1, equally spaced, none of them zero.

    w_q = 2 round(n u) / n - 1 with u = tanh(w) / (2 max |tanh(w)|) + 1/2 and n = 2^bits - 1; the gradient runs
    through tanh and the maximum. One bit is sign(w) E|w| with the mean held constant and sign(0) = 1.

    >>> dorefa_weight(torch.tensor([-2.0, -0.1, 0.1, 2.0]), bits=2).mul(3).round().tolist()
    [-3.0, -1.0, 1.0, 3.0]
    >>> dorefa_weight(torch.tensor([-2.0, 0.0, 4.0]), bits=1).tolist()
    [-2.0, 2.0, 2.0]
    """
    if bits == 32:
        return weight
    if bits == 1:
        signs = torch.where(weight < 0, -1.0, 1.0) * weight.detach().float().abs().mean()
        return signs.to(weight.dtype) + (weight - weight.detach())  # adds an exact zero that carries the gradient
    steps = 2**bits - 1
    # (2r - n) / n instead of 2 (r / n) - 1: one rounding of the float instead of two, and odd integers at once.
    return ((2 * rounding(_unit(weight) * steps) - steps) / steps).to(weight.dtype)


def _unit(weight: Tensor) -> Tensor:
    """Map weights to [0, 1] by tanh and the largest magnitude; all-zero weights go to 1/2, with gradient 1/2."""
    squashed = torch.tanh(weight.float())
    largest = squashed.abs().amax()
    largest = torch.where(largest < torch.finfo(torch.float32).tiny, 1.0, largest)
    return squashed / (2 * largest) + 0.5


class DoReFaWeight(Quantizer):
    """The weight quantizer of DoReFa, which PACT uses too. One scale per layer; nothing is learned."""

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste) -> None:
        super().__init__(bits, site, rounding)
        self.rounds = bits > 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized weights."""
        return dorefa_weight(x, self.bits, self.rounding)

    def codes(self, x: Tensor) -> Codes:
        """Return which of the 2^bits levels each weight takes."""
        steps = 2 ** self.require_grid() - 1
        x = x.detach()
        if self.bits == 1:
            scale = x.float().abs().mean()
            return Codes((x >= 0).int(), torch.stack([-scale, scale]))
        odd = torch.arange(-steps, steps + 1, 2, dtype=torch.float32, device=x.device)
        return Codes(torch.round(_unit(x) * steps).int(), odd / steps)


class DoReFaActivation(FixedClip):
    """The activation quantizer of DoReFa: clip to [0, 1] (signed sites: [-1, 1], ours), then round.

    At 32 bits it clips and does not round, as the authors' code does before a last layer left in float; where the
    network's inner activations have 32 bits the ReLU stays, as there.
    """

    only_beside_fewer: ClassVar[bool] = True
    special_versions: ClassVar[Mapping[str, int]] = {"float_activations": 2}  # since the ReLU stays then

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste) -> None:
        super().__init__(bits, site, rounding, level=1.0)
