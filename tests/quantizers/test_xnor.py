from __future__ import annotations

import pytest
import torch

from qexp.errors import ConfigError
from qexp.quantizers.base import Site
from qexp.quantizers.xnor import XNORWeight

SITE = Site("conv", "weight", (4, 3, 2, 2))


@pytest.mark.parametrize("scope", ["channel", "layer"])
def test_the_scale_is_the_best_one(scope: str) -> None:
    """Equation 6: a = mean |w| minimizes ||w - a sign(w)||; no other scale comes closer."""
    torch.manual_seed(0)
    weight = torch.randn(SITE.shape)
    quantized = XNORWeight(1, SITE, scope=scope)(weight)
    rows = 4 if scope == "channel" else 1
    for real, binary in zip(weight.reshape(rows, -1), quantized.reshape(rows, -1), strict=True):
        error = (real - binary).square().sum()
        assert binary.abs().unique().numel() == 1
        for factor in (0.98, 1.02):
            assert (real - factor * binary).square().sum() > error


@pytest.mark.parametrize("scope", ["channel", "layer"])
def test_the_gradient_is_the_papers(scope: str) -> None:
    weight = torch.randn(SITE.shape).mul(1.5).requires_grad_()
    upstream = torch.randn(SITE.shape)
    XNORWeight(1, SITE, scope=scope)(weight).backward(upstream)
    plain = weight.detach().double()
    axes, count = ((1, 2, 3), 12) if scope == "channel" else ((0, 1, 2, 3), 48)
    scale = plain.abs().mean(dim=axes, keepdim=True)
    expected = upstream.double() * (1 / count + scale * (plain.abs() <= 1))
    torch.testing.assert_close(weight.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_scopes_it_does_not_have() -> None:
    with pytest.raises(ConfigError, match="scope=element"):
        XNORWeight(1, SITE, scope="element")
