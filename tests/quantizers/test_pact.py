"""PACT against an independent transcription of the paper's equations in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.errors import ConfigError
from qexp.quantizers.base import Site
from qexp.quantizers.pact import PACT, pact

BITS = (1, 2, 3, 4, 5, 6, 7, 8, 32)
ACTIVATION = Site("act", "activation", (3, 4, 4))


def transcribed(x: np.ndarray, alpha: float, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equations 1 and 2, and equation 3's two derivatives, from the paper."""
    x = x.astype(np.float64)
    clipped = 0.5 * (np.abs(x) - np.abs(x - alpha) + alpha)
    levels = 2.0**bits - 1
    quantized = clipped if bits == 32 else np.round(clipped * levels / alpha) * alpha / levels
    by_alpha = np.where(x < alpha, 0.0, 1.0)
    by_x = np.where((x >= 0) & (x < alpha), 1.0, 0.0)
    return quantized, by_x, by_alpha


numbers = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40)


@given(numbers, st.floats(0.03125, 20, width=32), st.sampled_from(BITS))
def test_equations_one_to_three(values: list[float], alpha: float, bits: int) -> None:
    x = torch.tensor([*values, 0.0, alpha], requires_grad=True)
    learned = torch.tensor(alpha, requires_grad=True)
    y = pact(x, learned, bits)
    y.sum().backward()
    quantized, by_x, by_alpha = transcribed(x.detach().numpy(), alpha, bits)
    step = alpha if bits == 32 else alpha / (2.0**bits - 1)
    difference = np.abs(y.detach().numpy() - quantized)
    # In float32 a value may fall on the other side of a tie, which is one step away from it; nothing else may.
    at_tie = np.abs(np.clip(x.detach().numpy().astype(np.float64), 0, alpha) / step % 1 - 0.5) < 1e-4
    assert np.all(difference <= np.where(at_tie & (bits != 32), 1.0001 * step, 1e-5 * alpha))
    assert x.grad.tolist() == by_x.tolist()
    assert learned.grad.item() == by_alpha.sum()


@given(numbers, st.floats(0.03125, 20, width=32), st.sampled_from(BITS[:-1]))
def test_few_levels_zero_and_alpha_among_them_and_idempotent(values: list[float], alpha: float, bits: int) -> None:
    x, learned = torch.tensor([*values, -1.0, 2 * alpha]), torch.tensor(alpha)
    y = pact(x, learned, bits)
    assert y.unique().numel() <= 2**bits
    assert y[-2] == 0
    assert y[-1].item() == pytest.approx(alpha, rel=1e-6)
    assert y.min() >= 0
    torch.testing.assert_close(pact(y, learned, bits), y, rtol=1e-6, atol=0)


def test_published_levels_of_two_bits() -> None:
    # Equation 2 with k = 2 and alpha = 6: 0, 2, 4, 6.
    y = pact(torch.linspace(-3, 9, 1000), torch.tensor(6.0), bits=2)
    assert y.unique().tolist() == [0.0, 2.0, 4.0, 6.0]


def test_all_levels_are_reached() -> None:
    for bits in BITS[:-1]:
        assert pact(torch.linspace(-1, 12, 20_000), torch.tensor(10.0), bits).unique().numel() == 2**bits


def test_thirty_two_bits_clip_and_do_not_round() -> None:
    x = torch.randn(100) * 5
    assert torch.equal(pact(x, torch.tensor(3.0), 32), x.clip(0, 3))


def test_with_a_large_alpha_it_is_the_relu() -> None:
    # Section 4: PACT contains the ReLU as the case of an alpha above every activation.
    x = torch.randn(100, requires_grad=True)
    alpha = torch.tensor(1e4, requires_grad=True)
    y = pact(x, alpha, 32)
    y.sum().backward()
    assert torch.equal(y, x.relu())
    assert alpha.grad.item() == 0
    assert torch.equal(x.grad, (x > 0).float())


@pytest.mark.parametrize(
    ("scope", "shape"), [("layer", ()), ("network", ()), ("channel", (3, 1, 1)), ("element", (3, 4, 4))]
)
def test_each_scope_has_its_own_number_of_alphas(scope: str, shape: tuple[int, ...]) -> None:
    quantizer = PACT(4, ACTIVATION, alpha=2.0, scope=scope)
    assert quantizer.alpha.shape == shape
    assert torch.all(quantizer.alpha == 2.0)
    x = 3 * torch.randn(5, 3, 4, 4)
    upstream = torch.randn_like(x)
    (quantizer(x) * upstream).sum().backward()
    per_element = (upstream.double() * (x >= 2.0)).sum(0)  # summed over the batch
    expected = {"channel": per_element.sum((1, 2), keepdim=True), "element": per_element}.get(
        scope, per_element.sum()
    )
    torch.testing.assert_close(quantizer.alpha.grad.double(), expected, rtol=1e-5, atol=1e-5)


def test_one_alpha_per_feature_of_a_linear_layer() -> None:
    quantizer = PACT(4, Site("act", "activation", (6,)), scope="channel")
    assert quantizer.alpha.shape == (6,)
    assert quantizer(torch.randn(2, 6)).shape == (2, 6)


def test_alphas_of_elements_belong_to_one_input_size() -> None:
    quantizer = PACT(4, ACTIVATION, scope="element")
    with pytest.raises(
        ConfigError, match=r"act: alpha.scope=element was made for inputs of \(3, 4, 4\), got \(3, 8, 8\)"
    ):
        quantizer(torch.randn(2, 3, 8, 8))


def test_a_scope_needs_a_known_shape_and_a_known_name() -> None:
    with pytest.raises(ConfigError, match="act: scope=channel needs the input's shape"):
        PACT(4, Site("act", "activation"), scope="channel")
    with pytest.raises(ConfigError, match="scope=block is not one of layer, channel, element, network"):
        PACT(4, ACTIVATION, scope="block")


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), "ten", True])
def test_alpha_starts_above_zero(alpha: object) -> None:
    with pytest.raises(ConfigError, match=f"alpha={alpha} does not fit"):
        PACT(4, ACTIVATION, alpha=alpha)


def test_a_signed_site_has_zero_and_as_many_levels_on_each_side() -> None:
    quantizer = PACT(3, Site("conv.input", "input", signed=True), alpha=3.0)
    levels = quantizer(torch.linspace(-5, 5, 1000)).unique().tolist()
    assert levels == [-3, -2, -1, 0, 1, 2, 3]


def test_one_bit_at_a_signed_site_is_an_error_that_names_the_layer() -> None:
    with pytest.raises(ConfigError, match=r"layers\.'conv'\.bits=2 or more"):
        PACT(1, Site("conv.input", "input", signed=True))


def test_what_it_says_of_itself() -> None:
    quantizer = PACT(2, ACTIVATION, alpha=3.0)
    description = quantizer.describe(torch.tensor([-1.0, 0.2, 1.1, 3.0, 4.0]))
    assert {name: value.item() for name, value in description.learned.items()} == {"alpha": 3.0}
    assert description.shares["clipped"].item() == pytest.approx(0.4)
    assert description.levels == 3
    assert quantizer.describe().shares == {}
    assert list(quantizer.penalized()) == ["alpha"]


def test_sharing_makes_one_parameter() -> None:
    one, other = PACT(4, ACTIVATION, scope="network"), PACT(2, Site("b", "activation"), alpha=3.0, scope="network")
    other.share(one)
    assert other.alpha is one.alpha
    assert [name for name, _ in other.named_parameters()] == ["alpha"]


def errors_of(x: torch.Tensor, alphas: torch.Tensor, bits: int, signed: bool) -> torch.Tensor:
    """Mean squared errors of a 1-d tensor at each clip level, in float64."""
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    x, levels = x.double(), alphas.double().reshape(-1, 1)
    lowest = -levels if signed else torch.zeros_like(levels)
    clipped = torch.minimum(torch.maximum(x, lowest), levels)
    return ((clipped * steps / levels).round() * levels / steps - x).square().mean(1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("power", [1, 3])
def test_alpha_can_start_where_the_first_batch_has_its_least_error(bits, signed, power):
    x = 0.7 * torch.randn(16, 3, 8, 8) ** power  # the third power has a long tail
    quantizer = PACT(bits, Site("act", "input", (3, 8, 8), signed=signed), alpha="mse")
    quantizer.calibrate(x)
    wanted = (x if signed else x.relu()).flatten()
    tried = torch.linspace(0.01, 1.0, 400) * wanted.abs().max()
    found = errors_of(wanted, quantizer.alpha.detach(), bits, signed)
    assert found <= 1.02 * errors_of(wanted, tried, bits, signed).min()


def test_each_channels_alpha_starts_from_its_own_values():
    x = torch.randn(8, 3, 10, 10).abs()
    x[:, 1] *= 100.0
    x[:, 2] = -1.0  # never above 0
    quantizer = PACT(4, Site("act", "activation", (3, 10, 10)), alpha="mse", scope="channel")
    quantizer.calibrate(x)
    for channel in (0, 1):
        alone = PACT(4, Site("act", "activation", (1, 10, 10)), alpha="mse")
        alone.calibrate(x[:, channel : channel + 1])
        assert quantizer.alpha[channel].item() == pytest.approx(alone.alpha.item())
    assert quantizer.alpha[2].item() == 10.0


def test_what_starts_alpha_is_what_the_nonlinearity_lets_through():
    x = 10 * torch.rand(4, 3, 4, 4)
    alphas = []
    for values in (x, x.clamp(max=6.0)):
        quantizer = PACT(4, Site("act", "activation", (3, 4, 4), end=6.0), alpha="mse")
        quantizer.calibrate(values)
        alphas.append(quantizer.alpha.item())
    assert 5.5 < alphas[0] == alphas[1] < 6.5  # with 6 as the last level, or as the last but one: 6 * 15 / 14
    unrounded = PACT(32, ACTIVATION, alpha="mse")
    unrounded.calibrate(x)
    assert unrounded.alpha.item() == x.max()


def test_a_number_and_a_shared_alpha_stay_as_they_are():
    for quantizer in (PACT(4, ACTIVATION), PACT(4, ACTIVATION, alpha=3.0)):
        assert not quantizer.starts_from_data
        before = quantizer.alpha.item()
        quantizer.calibrate(torch.rand(2, 3, 4, 4))
        assert quantizer.alpha.item() == before
    first, second = (PACT(4, ACTIVATION, alpha="mse", scope="network") for _ in range(2))
    second.share(first)
    assert (first.starts_from_data, second.starts_from_data) == (True, False)
    first.calibrate(torch.rand(2, 3, 4, 4))
    started = first.alpha.item()
    second.calibrate(50 * torch.rand(2, 3, 4, 4))
    assert first.alpha.item() == second.alpha.item() == started < 1.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_first_batch_that_is_not_finite_starts_no_alpha(value):
    with pytest.raises(ConfigError, match="act: no finite numbers in its first batch"):
        PACT(4, ACTIVATION, alpha="mse").calibrate(torch.full((2, 3, 4, 4), value))


def test_alpha_starts_at_a_number_or_at_mse():
    with pytest.raises(ConfigError, match="alpha=max does not fit"):
        PACT(4, ACTIVATION, alpha="max")
