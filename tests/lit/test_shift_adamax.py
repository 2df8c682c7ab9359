"""Shift-based AdaMax against a plain transcription in float64; the scale of updates; the squared hinge."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from qexp.errors import ConfigError
from qexp.lit import optimizers
from qexp.lit.losses import refuse_smoothing, squared_hinge
from qexp.ops import VERSIONS, powers

from ..golden import check

FILE = Path(__file__).with_name("golden.json")


def ap2(x: float) -> float:
    return math.copysign(2.0 ** round(math.log2(abs(x))), x) if x else 0.0


def transcribed(
    variant: str, start: float, gradients: list[float], lr: float, betas: tuple[float, float]
) -> float:
    """Return where one number is after those gradients."""
    (first, second), m, v, w, eps = betas, 0.0, 0.0, start, 2.0**-27
    for t, g in enumerate(gradients, start=1):
        m = first * m + (1 - first) * g
        v = max(second * v, abs(g))
        if variant == "paper":
            w -= lr * ap2(1 - first) * m * ap2(1 / v) if v else 0.0
        else:
            v = ap2(v) + eps
            w -= ap2(lr / (1 - first**t)) * m / v
    return w


@pytest.mark.parametrize(
    ("variant", "betas"), [("paper", (1 - 2**-3, 1 - 2**-10)), ("paper", (0.8, 0.99)), ("authors", (0.9, 0.999))]
)
def test_against_the_transcription(variant: str, betas: tuple[float, float]) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 1))
    gradients = torch.randn(30, 6) * 10.0 ** torch.arange(-4.0, 2.0)
    gradients[:, 5] = 0.0
    gradients[:7, 4] = 0.0
    expected = [
        transcribed(variant, start, column, 2**-6, betas)
        for start, column in zip(weight.flatten().tolist(), gradients.T.double().tolist(), strict=True)
    ]
    optimizer = optimizers.shift_adamax(
        [optimizers.Group("weights", (weight,))],
        lr=2**-6,
        betas=betas,
        variant=variant,  # type: ignore[arg-type]
    )
    for gradient in gradients:
        weight.grad = gradient[:, None].clone()
        optimizer.step()
    torch.testing.assert_close(weight.flatten().tolist(), expected, rtol=1e-5, atol=1e-6)


def former_step(
    variant: str, weight: torch.Tensor, m: torch.Tensor, v: torch.Tensor, factor: float, tiny: float = 2.0**-126
) -> None:
    """One update as it was first written, each operation by itself: what recorded runs have."""
    if variant == "paper":
        inverse = powers.ap2(1 / v.clamp(min=tiny))
        weight.sub_(factor * m * torch.where(v > 0, inverse, 0.0))
    else:
        v.copy_(powers.ap2(v)).add_(2.0**-27)
        weight.addcdiv_(m, v, value=-factor)


@pytest.mark.parametrize(
    ("variant", "betas"),
    [("paper", (1 - 2**-3, 1 - 2**-10)), ("paper", (0.9, 0.999)), ("paper", (0.9, 0.3)), ("paper", (0.5, 0.5)),
     ("authors", (0.9, 0.999)), ("authors", (0.9, 0.3))],
)  # fmt: skip
@pytest.mark.parametrize("scale", [1.0, 37.04])
def test_in_few_passes_it_is_bit_for_bit_the_plain_formula(
    variant: str, betas: tuple[float, float], scale: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.randn(50, 60, generator=generator) * 10.0 ** torch.arange(-40.0, 10.0)[:, None])
    expected = weight.detach().clone()
    m, v, (first, second) = torch.zeros_like(expected), torch.zeros_like(expected), betas
    optimizer = optimizers.shift_adamax(
        [optimizers.Group("weights", (weight,), scale)],
        lr=2**-6,
        betas=betas,
        variant=variant,  # type: ignore[arg-type]
    )
    sizes = 10.0 ** torch.linspace(-46.0, 30.0, 60)
    for step in range(1, 121):
        gradient = torch.randn(50, 60, generator=generator) * sizes
        gradient *= (torch.rand(50, 60, generator=generator) > 0.3) * (step < 20)  # then v may decay to 0
        if step == 10:
            gradient[0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
        weight.grad = gradient.clone()
        optimizer.step()
        m.mul_(first).add_(gradient, alpha=1 - first)
        torch.maximum(v.mul_(second), gradient.abs(), out=v)
        rate = 2.0**-6 * ap2(1 - first) if variant == "paper" else ap2(2**-6 / (1 - first**step))
        former_step(variant, expected, m, v, scale * rate)
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_the_numbers_are_those_of_this_version(variant: str) -> None:
    weight = nn.Parameter(torch.linspace(-1.0, 1.0, 6).reshape(2, 3))
    optimizer = optimizers.shift_adamax([optimizers.Group("weights", (weight,))], lr=2**-4, variant=variant)  # type: ignore[arg-type]
    now = {}
    for step in range(1, 6):
        weight.grad = torch.tensor([[0.3, -2.1, 0.0], [1e-3, 5.3, -0.7]]) * (1 - 0.3 * step)
        optimizer.step()
        now[f"step {step}"] = weight.flatten().tolist()
    check(FILE, f"shift_adamax@{VERSIONS['shift_adamax']}, {variant}", now)


def test_updates_are_powers_of_two_of_the_mean() -> None:
    """What shifts are for: with beta1 = 7/8 and lr = 2^-10, w moves by m times a power of two."""
    weight = nn.Parameter(torch.zeros(3, 1))
    optimizer = optimizers.shift_adamax([optimizers.Group("weights", (weight,))])
    weight.grad = torch.tensor([[0.3], [1.7], [-20.0]])
    optimizer.step()
    factor = (weight / (0.125 * weight.grad)).abs().log2()
    assert torch.equal(factor, factor.round())


@pytest.mark.parametrize("variant", ["paper", "authors"])
@pytest.mark.parametrize("scale", ["none", "fan_power_of_two"])
def test_whatever_the_schedule_says_an_update_is_a_shift(variant: str, scale: str) -> None:
    weight = nn.Parameter(torch.zeros(3, 5))
    groups = [optimizers.Group("weights", (weight,))]
    small = {"eps": 2.0**-126} if variant == "authors" else {}
    optimizer = optimizers.shift_adamax(groups, variant=variant, update_scale=scale, **small)  # type: ignore[arg-type]
    optimizer.param_groups[0]["lr"] = 0.0123
    weight.grad = torch.randn(3, 5)
    optimizer.step()
    factor = (weight / (0.125 * weight.grad)).abs().log2()
    torch.testing.assert_close(factor, factor.round(), rtol=0, atol=1e-5)


def test_the_authors_scale_stands_behind_the_power_of_two() -> None:
    """Their code: stepSize = AP2(lr / (1 - beta1^t)), then times each layer's factor."""
    weight = nn.Parameter(torch.zeros(10, 2048))
    optimizer = optimizers.shift_adamax(
        [optimizers.Group("weights", (weight,))],
        lr=2**-6,
        betas=(0.9, 0.999),
        variant="authors",
        update_scale="fan",
    )
    weight.grad = torch.ones(10, 2048)
    optimizer.step()
    expected = ap2(2**-6 / (1 - 0.9)) * math.sqrt(2058 / 1.5) * 0.1 / (1 + 2**-27)
    torch.testing.assert_close(weight, torch.full_like(weight, -expected))


def test_it_resumes() -> None:
    def run(weight: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: torch.Tensor) -> None:
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()

    gradients = torch.randn(6, 2, 2)
    whole, parts = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    make = lambda w: optimizers.shift_adamax([optimizers.Group("weights", (w,))], variant="authors")  # noqa: E731
    run(whole, make(whole), gradients)
    first = make(parts)
    run(parts, first, gradients[:3])
    second = make(parts)
    second.load_state_dict(first.state_dict())
    run(parts, second, gradients[3:])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(
    ("scale", "linear", "convolution"),
    # sqrt((6 + 4) / 1.5) = 2.582, sqrt((3 * 25 + 8 * 25) / 1.5) = 13.540
    [("none", 1.0, 1.0), ("fan", 2.58199, 13.5401), ("fan_power_of_two", 2.0, 16.0)],
)
def test_the_scale_by_fan(scale: str, linear: float, convolution: float) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(6, 4))
    groups = optimizers.parameter_groups(network)
    settings = optimizers.adam(groups, lr=0.1, update_scale=scale).param_groups  # type: ignore[arg-type]
    rates = {id(p): group["lr"] / 0.1 for group in settings for p in group["params"]}
    assert rates[id(network[3].weight)] == pytest.approx(linear, rel=1e-5)
    assert rates[id(network[0].weight)] == pytest.approx(convolution, rel=1e-5)
    assert rates[id(network[0].bias)] == rates[id(network[1].weight)] == pytest.approx(1.0)
    assert len(rates) == len(list(network.parameters()))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"variant": "code"}, "variant=code"), ({"eps": 0.0}, "eps=0"), ({"eps": math.nan}, "eps=nan"),
     ({"eps": 1e-3, "variant": "paper"}, r"eps=0\.001: variant=paper has none"),
     ({"betas": (1.0, 0.9)}, "betas="), ({"lr": 0.0}, "lr=0"),
     ({"update_scale": "glorot"}, "update_scale=glorot")],
)  # fmt: skip
def test_refused(changes: dict, named: str) -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ConfigError, match=named):
        optimizers.shift_adamax([optimizers.Group("weights", (weight,))], **changes)


def test_the_squared_hinge_by_hand() -> None:
    scores = torch.tensor([[2.0, 0.5, -1.0], [0.0, -3.0, 1.0]], requires_grad=True)
    # Sample 1, label 0: 0, 1.5^2, 0. Sample 2, label 2: 1, 0, 0. Their mean over 6 is 3.25 / 6.
    loss = squared_hinge(scores, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(3.25 / 6)
    loss.backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[0.0, 3.0, 0.0], [2.0, 0.0, 0.0]]) / 6)
    with pytest.raises(ConfigError, match="label_smoothing"):
        refuse_smoothing("squared_hinge", 0.1)


@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_the_decay_is_a_gradient_towards_zero(variant: str) -> None:
    found = []
    for decay, gradient in ((0.25, 0.5), (0.0, 0.5 + 0.25 * 2.0)):
        weight = nn.Parameter(torch.tensor([[2.0]]))
        groups = [optimizers.Group("weights", (weight,))]
        optimizer = optimizers.shift_adamax(groups, variant=variant, weight_decay=decay)
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        found.append(weight.item())
    assert found[0] == found[1]
