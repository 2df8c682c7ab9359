"""Weights that stay real while they are trained, in [-1, 1]: what the quantizers of the QNN paper have in common.

Courbariaux et al. 2016, arXiv 1602.02830, section 1 and algorithm 1: without the bound they would grow without
changing the quantized weights.
"""

from __future__ import annotations

from qexp.quantizers.base import Quantizer


class BoundedWeight(Quantizer):
    """A weight quantizer whose layer's weights are clipped to [-1, 1] after each optimizer step."""

    def after_step(self) -> None:
        """Clip them."""
        for weight in self.real:
            weight.clamp_(-1.0, 1.0)
