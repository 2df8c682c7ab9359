"""Algorithm 3 of arXiv 1602.02830 against a plain transcription in float64, number by number."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.layers.normalization import ShiftBatchNorm, shifted
from qexp.models.mlp import MLP
from qexp.models.qnn import QNNMLP
from qexp.ops import VERSIONS, powers

from ..golden import check

FILE = Path(__file__).with_name("golden.json")


def ap2(x: float) -> float:
    return math.copysign(2.0 ** round(math.log2(abs(x))), x) if x else 0.0


def algorithm3(column: list[float], gain: float, shift: float, eps: float) -> tuple[list[float], float, float]:
    """One channel of a batch: the result, its mean and its variance."""
    mean = sum(column) / len(column)
    centred = [x - mean for x in column]
    variance = sum(c * ap2(c) for c in centred) / len(column)
    inverse = ap2(1 / math.sqrt(variance + eps))
    return [ap2(gain) * (c * inverse) + shift for c in centred], mean, variance


def backward(column: list[float], upstream: list[float], gain: float, eps: float) -> tuple[list[float], float]:
    """The gradients of one channel and of its gain: batch norm's with AP2 of C, of 1 / std and of x-hat in it."""
    n = len(column)
    _, mean, variance = algorithm3(column, gain, 0.0, eps)
    centred = [x - mean for x in column]
    inverse = ap2(1 / math.sqrt(variance + eps))
    inner = [g * ap2(gain) for g in upstream]
    mean_inner = sum(inner) / n
    product = sum(g * ap2(c) for g, c in zip(inner, centred, strict=True)) / n
    back = [
        inverse * (g - mean_inner - ap2(c) * inverse**2 * product) for g, c in zip(inner, centred, strict=True)
    ]
    return back, sum(g * ap2(c * inverse) for g, c in zip(upstream, centred, strict=True))


def made(authors: bool, spatial: bool) -> tuple[ShiftBatchNorm, Tensor]:
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(3, eps=1e-4) if spatial else nn.BatchNorm1d(3, eps=1e-4)
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    x = torch.randn(4, 3, 5, 2) if spatial else torch.randn(16, 3)
    return ShiftBatchNorm(norm, authors), 3 * x + 1


def columns(x: Tensor) -> list[list[float]]:
    return x.detach().double().movedim(1, 0).flatten(1).tolist()


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("authors", [False, True])
def test_forward_and_backward(authors: bool, spatial: bool) -> None:
    module, x = made(authors, spatial)
    eps = 1e-5 if authors else 1e-4
    x.requires_grad_()
    y, upstream = module(x), torch.randn(x.shape)
    y.backward(upstream)
    assert x.grad is not None
    for channel, column in enumerate(columns(x)):
        gain, shift = module.weight[channel].item(), module.bias[channel].item()
        expected, mean, variance = algorithm3(column, gain, shift, eps)
        torch.testing.assert_close(columns(y)[channel], expected, rtol=1e-5, atol=1e-5)
        back, gain_back = backward(column, columns(upstream)[channel], gain, eps)
        torch.testing.assert_close(columns(x.grad)[channel], back, rtol=1e-4, atol=1e-5)
        assert module.weight.grad[channel].item() == pytest.approx(gain_back, rel=1e-4, abs=1e-4)
        assert module.bias.grad[channel].item() == pytest.approx(
            sum(columns(upstream)[channel]), rel=1e-4, abs=1e-4
        )
        newest = 0.125 if authors else 0.1
        assert module.running_mean[channel].item() == pytest.approx(newest * mean, rel=1e-4, abs=1e-6)
        if authors:  # what is averaged is the inverse standard deviation
            inverse = (1 - newest) / math.sqrt(1 + eps) + newest / math.sqrt(variance + eps)
            spread = inverse**-2 - eps
        else:
            spread = 1 - newest + newest * variance
        assert module.running_var[channel].item() == pytest.approx(spread, rel=1e-4)


def in_the_papers_order(x: Tensor, gain: Tensor, shift: Tensor, upstream: Tensor, eps: float) -> list[Tensor]:
    """(N, channels): the result, and the gradients of x, gain and shift, each product where the paper has it."""
    mean = x.mean(0)
    centred = x - mean
    power = powers.ap2(centred)
    inverse = powers.ap2(((centred * power).mean(0) + eps).rsqrt())
    inner = upstream * powers.ap2(gain)
    back = inverse * (inner - inner.mean(0) - power * inverse.square() * (inner * power).mean(0))
    gain_back = (upstream * powers.ap2(centred * inverse)).sum(0)
    return [powers.ap2(gain) * (centred * inverse) + shift, back, gain_back, upstream.sum(0)]


@pytest.mark.parametrize("broken", ["", "input", "gain", "no spread"])
def test_where_the_powers_of_two_stand_changes_no_bit(broken: str) -> None:
    module, _ = made(authors=False, spatial=False)
    generator = torch.Generator().manual_seed(4)
    x, upstream = (torch.randn(64, 3, generator=generator) for _ in range(2))
    with torch.no_grad():
        module.weight[2] = 0.0
        if broken == "input":
            x[5, 1] = math.nan
            x[7, 2] = math.inf
        elif broken == "gain":
            module.weight[1] = math.nan
        elif broken:
            x[:, 1] = 0.3
    expected = in_the_papers_order(x, module.weight.detach(), module.bias.detach(), upstream, module.eps)
    x.requires_grad_()
    y = module(x)
    y.backward(upstream)
    found = [y.detach(), x.grad, module.weight.grad, module.bias.grad]
    for wanted, value in zip(expected, found, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_stay_in_their_layout(layout: torch.memory_format) -> None:
    module, x = made(authors=False, spatial=True)
    x = x.to(memory_format=layout).requires_grad_()
    y = module(x)
    y.backward(torch.randn_like(y))
    assert x.grad is not None
    assert y.is_contiguous(memory_format=layout) and x.grad.is_contiguous(memory_format=layout)
    assert module.eval()(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("authors", [False, True])
def test_evaluation_uses_the_running_statistics(authors: bool) -> None:
    module, x = made(authors, spatial=False)
    for _ in range(5):
        module(x)
    y = module.eval()(x)
    for channel, column in enumerate(columns(x)):
        inverse = ap2(1 / math.sqrt(module.running_var[channel].item() + (1e-5 if authors else 1e-4)))
        gain, shift, mean = (t[channel].item() for t in (module.weight, module.bias, module.running_mean))
        expected = [ap2(gain) * ((value - mean) * inverse) + shift for value in column]
        torch.testing.assert_close(columns(y)[channel], expected, rtol=1e-5, atol=1e-5)


def test_it_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    module, x = made(authors=False, spatial=True)
    compiled = torch.compile(module.eval(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


def test_which_norms_are_replaced() -> None:
    def norms(model: nn.Module) -> list[str]:
        return [type(m).__name__ for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    shape = {"input_shape": (1, 4, 4), "num_classes": 3, "hidden": (4, 4)}
    assert norms(shifted(MLP(**shape), "shift")) == ["ShiftBatchNorm"] * 2
    assert norms(shifted(MLP(**shape), "shift_authors")) == ["ShiftBatchNorm"] * 2, "its scores have none"
    assert norms(shifted(QNNMLP(**shape), "shift_authors")) == ["ShiftBatchNorm"] * 2 + ["BatchNorm1d"]
    before = MLP(**shape).state_dict()
    assert before.keys() == shifted(MLP(**shape), "shift").state_dict().keys()
    with pytest.raises(ConfigError, match="no batch norm to replace"):
        shifted(nn.Sequential(nn.Linear(2, 2)), "shift")


@pytest.mark.parametrize("authors", [False, True])
def test_without_a_momentum_the_statistics_are_plain_means(authors: bool) -> None:
    batches = torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0)) + 2

    def seen(*shown: Tensor) -> ShiftBatchNorm:
        norm = ShiftBatchNorm(nn.BatchNorm1d(3), authors).train()
        norm.reset_running_stats()
        norm.momentum = None
        for batch in shown:
            norm(batch)
        return norm

    norm, alone = seen(*batches), [seen(batch) for batch in batches]
    torch.testing.assert_close(norm.running_mean, batches.mean((0, 1)))
    variances = torch.stack([one.running_var for one in alone])
    expected = (variances + norm.eps).rsqrt().mean(0).pow(-2) - norm.eps if authors else variances.mean(0)
    torch.testing.assert_close(norm.running_var, expected)


@pytest.mark.parametrize("kind", ["shift", "shift_authors"])
def test_a_trained_batch_norm_is_taken_over(kind: str) -> None:
    """Normalized to a deviation of 1, up to the rounding of gain and deviation to powers of 2."""
    x = 40 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    trained = nn.Sequential(nn.BatchNorm1d(3, momentum=1.0), nn.Linear(3, 2)).train()
    trained(x)
    norm = shifted(trained, kind)[0].eval()
    assert isinstance(norm, ShiftBatchNorm)
    assert 0.7 < norm(x).std().item() < 1.5


@pytest.mark.parametrize("authors", [False, True])
def test_the_numbers_are_those_of_this_version(authors: bool) -> None:
    norm = nn.BatchNorm2d(3, eps=1e-3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.2, -0.3, 0.7]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, -2.0]))
    module = ShiftBatchNorm(norm, authors)
    places = torch.arange(36.0).reshape(4, 3, 3, 1)
    x = (3 * torch.sin(1.7 * places) + torch.tensor([0.0, 5.0, -1.0])[:, None, None]).requires_grad_()
    y = module(x)
    y.backward(torch.cos(0.9 * places))
    tensors = {
        "value": y.detach(), "x": x.grad, "gain": norm.weight.grad, "shift": norm.bias.grad,
        "mean": module.running_mean, "variance": module.running_var, "evaluation": module.eval()(x).detach(),
    }  # fmt: skip
    key = f"shift_norm@{VERSIONS['shift_norm']}, authors={authors}"
    check(FILE, key, {name: value.flatten().tolist() for name, value in tensors.items()})
