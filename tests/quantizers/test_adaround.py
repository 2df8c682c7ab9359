"""AdaRound's weights beside those that it was fitted to."""

from __future__ import annotations

import torch

from qexp.quantizers.adaround import AdaRoundWeight
from qexp.quantizers.base import Site


def test_other_weights_of_that_shape_stay_on_the_grid() -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    quantizer = AdaRoundWeight(2, Site("fc", "weight", (6, 40))).eval()
    quantizer.fit_weights(weight)
    up = torch.floor(weight / quantizer.step) + 1
    quantizer.choose(weight, up)
    assert torch.equal(quantizer(weight), up.clamp(-2, 1) * quantizer.step), "of its own weights what was chosen"
    for factor in (3, -3):
        codes = quantizer.codes(factor * weight)
        assert codes.values.min() >= 0 and codes.values.max() < codes.levels
        assert torch.equal(codes.decode(), quantizer(factor * weight))
