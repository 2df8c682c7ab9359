from __future__ import annotations

import pytest
import torch

from qexp.errors import ConfigError
from qexp.ops.discretisation import EWGS, Blend, MSEPull, none
from qexp.ops.rounding import ASR, DSQ, ste

X = torch.tensor([-1.3, -0.6, -0.2, 0.1, 0.4, 0.9, 2.45])
UPSTREAM = torch.tensor([1.0, -2.0, 0.5, -0.5, 3.0, 0.0, -1.0])


def gradient(rounding, x=X):
    x = x.clone().requires_grad_()
    y = rounding(x)
    (y * UPSTREAM).sum().backward()
    return y.detach(), x.grad


def test_none_is_the_rounding_itself():
    assert none(ste) is ste


def test_ewgs_is_the_published_formula():
    y, found = gradient(EWGS(ste, strength=0.2))
    expected = [
        g * (1 + 0.2 * ((g > 0) - (g < 0)) * (x - round(x)))
        for x, g in zip(X.tolist(), UPSTREAM.tolist(), strict=True)
    ]
    assert torch.equal(y, torch.round(X))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_ewgs_and_a_soft_rounding_multiply():
    slope = gradient(ASR(k=4.0))[1]
    expected = slope * (1 + 0.2 * UPSTREAM.sign() * (X - torch.round(X)))
    torch.testing.assert_close(gradient(EWGS(ASR(k=4.0), strength=0.2))[1], expected)


def test_the_pull_is_the_gradient_of_the_squared_error():
    x = X.double().requires_grad_()
    (0.5 * 0.3 * (x - torch.round(x).detach()).square()).sum().backward()
    y, found = gradient(MSEPull(ste, strength=0.3))
    assert torch.equal(y, torch.round(X))
    torch.testing.assert_close(found, UPSTREAM + x.grad.float())


def test_the_blend_ends_as_the_rounding():
    blend = Blend(ste, beta=0.5, until=0.8)
    for share, beta in ((0.0, 0.5), (0.4, 0.25), (0.8, 0.0), (1.0, 0.0)):
        blend.progress(share)
        y, found = gradient(blend)
        torch.testing.assert_close(y, torch.round(X) + beta * (X - torch.round(X)))
        torch.testing.assert_close(found, UPSTREAM)
    blend.progress(0.0)
    assert torch.equal(blend.eval()(X), torch.round(X))


def test_the_inner_rounding_is_trained_too_and_told_once():
    """The task tells every trained rounding among a network's modules; the outer one hands nothing on."""
    inner = DSQ()
    outer = EWGS(inner)
    assert outer.learned() == inner.learned() and list(outer.parameters()) == [inner.a]
    assert inner in list(outer.modules())
    with torch.no_grad():
        inner.a.fill_(7.0)
        outer.after_step()
        assert inner.a == 7
    annealed = ASR(k=1.0, k_end=3.0, mode="annealed")
    Blend(annealed).progress(1.0)
    assert float(annealed.sharpness()) == 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: EWGS(ste, strength=0.0),
        lambda: EWGS(ste, strength=2.5),
        lambda: MSEPull(ste, strength=-1.0),
        lambda: Blend(ste, beta=1.5),
        lambda: Blend(ste, until=0.0),
    ],
)
def test_strengths_have_a_range(make):
    with pytest.raises(ConfigError, match=r"discretisation\."):
        make()


def test_a_blends_gradient_is_the_mean_of_the_roundings_and_one():
    soft, found = gradient(ASR(k=4.0))[1], gradient(Blend(ASR(k=4.0), beta=0.5))[1]
    torch.testing.assert_close(found, 0.5 * soft + 0.5 * UPSTREAM)
