"""Bias correction of weights: each output channel gets back the mean and the deviation that rounding took.

Banner et al. 2019, "Post Training 4-bit Quantization of Convolutional Networks for Rapid-Deployment", arXiv
1810.05723, equations 12 and 13, as PWLQ (arXiv 2002.00104, section 5.1) uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.ops.codes import Codes
from qexp.quantizers.base import Description, Quantizer


def correction(weight: Tensor, quantized: Tensor) -> tuple[Tensor, Tensor]:
    """Return (shift, factor) of each channel: factor * (quantized + shift) has the deviation of `weight`.

    shift = E(w) - E(w_q), factor = ||w - E(w)|| / ||w_q - E(w_q)||. A channel whose values all became one keeps
    factor 1 (the equation has no value there).

    Args:
        weight, quantized: (channels, ...).

    Returns:
        Float32 (channels, 1, ...).
    """
    rows, rounded = weight.detach().double().flatten(1), quantized.detach().double().flatten(1)
    shift = rows.mean(1) - rounded.mean(1)
    before, after = rows.std(1, correction=0), rounded.std(1, correction=0)
    flat = after <= 1e-9 * rounded.abs().amax(1)
    factor = torch.where(flat, 1.0, before / torch.where(flat, 1.0, after))
    shape = (-1, *([1] * (weight.dim() - 1)))
    return shift.reshape(shape).float(), factor.reshape(shape).float()


class CorrectedWeight(Quantizer):
    """Another weight quantizer, then a shift and a factor for each channel, which a layer's scale can absorb.

    Args:
        inner: the quantizer to correct; fitted or not.
    """

    shift: Tensor
    factor: Tensor

    def __init__(self, inner: Quantizer) -> None:
        super().__init__(inner.bits, inner.site, inner.rounding)
        self.inner = inner
        shape = (inner.site.shape[0], *([1] * (len(inner.site.shape) - 1)))
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("factor", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the corrected values."""
        return ((self.inner(x).float() + self.shift) * self.factor).to(x.dtype)

    def codes(self, x: Tensor) -> Codes:
        """Return the inner quantizer's integers with the corrected values that they stand for."""
        codes = self.inner.codes(x)
        table = codes.codebook
        if table.dim() == 1:
            table = table.reshape(-1, *([1] * x.dim()))
        return Codes(codes.values, (table + self.shift) * self.factor)

    @torch.no_grad()
    def fit_weights(self, weight: Tensor) -> None:
        """Fit the inner quantizer, then the correction of what it leaves."""
        self.inner.fit_weights(weight)
        shift, factor = correction(weight, self.inner(weight))
        self.shift.copy_(shift)
        self.factor.copy_(factor)

    def fitted(self) -> dict[str, Tensor]:
        """Return what the inner quantizer kept, and the correction."""
        return {**self.inner.fitted(), "shift": self.shift, "factor": self.factor}

    def describe(self, x: Tensor | None = None) -> Description:
        """Return what the inner quantizer says of itself."""
        return self.inner.describe(x)

    @property
    def stored_bits(self) -> float:
        """The inner quantizer's."""
        return self.inner.stored_bits

    @property
    def products(self) -> int:
        """The inner quantizer's."""
        return self.inner.products
