"""Uniform, OMSE, ACIQ and PWLQ weights: each against a plain search or its equation, and what fitting keeps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.aciq import gauss_clip, laplace_clip
from qexp.quantizers.aciq import ACIQWeight, allocated_bits
from qexp.quantizers.adaround import AdaRoundWeight
from qexp.quantizers.base import Observed, Site
from qexp.quantizers.omse import OMSEWeight
from qexp.quantizers.pwlq import PWLQActivation, PWLQWeight
from qexp.quantizers.uniform import UniformActivation, UniformWeight


def weights(channels: int = 6, count: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-2, 0.5, channels).reshape(-1, 1)
    return scales * torch.randn(channels, count, generator=generator) + 0.1 * scales


def site(x: Tensor) -> Site:
    return Site("fc", "weight", tuple(x.shape))


def error(quantizer, x: Tensor) -> Tensor:
    quantizer.fit_weights(x)
    return (quantizer(x) - x).square().mean(1)


def total(quantizer, x: Tensor) -> float:
    return float(error(quantizer, x).mean())


def parts(x: Tensor, scope: str) -> Tensor:
    """Rows that have one range each."""
    return x if scope == "channel" else x.reshape(1, -1)


@pytest.mark.parametrize("scope", ["channel", "layer"])
@pytest.mark.parametrize(
    ("method", "bits"), [(OMSEWeight, 2), (OMSEWeight, 3), (OMSEWeight, 4), (AdaRoundWeight, 3)]
)
def test_the_scale_is_the_best_of_all(method, bits, scope):
    x = weights()
    quantizer = method(bits, site(x), scope=scope)
    quantizer.fit_weights(x)
    half = 2 ** (bits - 1)
    for row, y in zip(parts(x, scope), parts(quantizer(x), scope), strict=True):
        steps = torch.linspace(0.01, 1.3, 1000).reshape(-1, 1) * row.abs().max() / (half - 1)
        brute = ((row / steps).round().clamp(-half, half - 1) * steps - row).square().mean(1).min()
        assert float((y - row).square().mean()) <= float(brute) * 1.0005
    assert total(quantizer, x) <= total(UniformWeight(bits, site(x), range="mse", scope=scope), x) * 1.0005


@pytest.mark.parametrize("scope", ["channel", "layer"])
def test_a_second_tensor_takes_what_the_first_leaves_over(scope):
    x = weights()
    alone, dual = (OMSEWeight(3, site(x), scope=scope, dual_above=share) for share in (None, 0.0))
    for quantizer in (alone, dual):
        quantizer.fit_weights(x)
        quantizer.eval()
    rest = OMSEWeight(3, site(x), scope=scope)
    rest.fit_weights(x - alone(x))
    torch.testing.assert_close(dual(x), alone(x) + rest(x - alone(x)), rtol=0, atol=0)
    assert total(dual, x) < total(alone, x) / 4
    assert torch.equal(dual.codes(x).decode(), dual(x))
    assert (dual.codes(x).codebook.diff(dim=0) >= 0).all() and dual.codes(x).levels == 64
    assert (alone.stored_bits, dual.stored_bits) == (3, 6)


def test_only_a_layer_with_a_large_error_gets_a_second_tensor():
    x = weights()
    alone = OMSEWeight(3, site(x))
    alone.fit_weights(x)
    share = float((alone(x) - x).square().sum() / x.square().sum())
    for factor, bits in ((0.99, 6), (1.01, 3)):
        quantizer = OMSEWeight(3, site(x), dual_above=share * factor)
        quantizer.fit_weights(x)
        assert quantizer.stored_bits == bits
    assert torch.equal(quantizer(x), alone(x))
    for wrong in ({"bits": 5, "dual_above": 0.1}, {"bits": 4, "dual_above": -0.1}):
        with pytest.raises(ConfigError, match="dual_above"):
            OMSEWeight(site=site(x), **wrong)


def test_omse_per_layer_has_one_scale():
    x = weights()
    quantizer = OMSEWeight(4, site(x), scope="layer")
    quantizer.fit_weights(x)
    assert quantizer.step.shape == () and quantizer.step > 0


GRIDS = {  # of 4 bits over a range: the step, the lowest and the highest integer, and where 0 of them lies
    "full": lambda low, high: (2 * max(-low, high) / 15, -8, 7, 0.0),
    "restricted": lambda low, high: (max(-low, high) / 7, -7, 7, 0.0),
    "asymmetric": lambda low, high: ((high - low) / 15, 0, 15, low),
}


@pytest.mark.parametrize("scope", ["channel", "layer"])
@pytest.mark.parametrize("grid", GRIDS)
def test_clipping_by_squared_error_is_the_best_of_many_clips(grid, scope):
    x = weights()
    x[2, 0] = 1.0  # an outlier at ten deviations
    quantizer = UniformWeight(4, site(x), grid=grid, range="mse", scope=scope)
    quantizer.fit_weights(x)
    for row, y in zip(parts(x, scope), parts(quantizer(x), scope), strict=True):
        errors = []
        for share in torch.linspace(1, 0.2, 201).tolist():
            step, lowest, highest, offset = GRIDS[grid](float(row.min()) * share, float(row.max()) * share)
            rounded = ((row - offset) / step).round().clamp(lowest, highest) * step + offset
            errors.append(float((rounded - row).square().mean()))
        assert float((y - row).square().mean()) <= 1.01 * min(errors)
        if row.equal(x[2]):
            assert min(errors) < 0.9 * errors[0]


@pytest.mark.parametrize("scope", ["channel", "layer"])
def test_a_percentile_cuts_its_share_at_either_end(scope):
    x = weights()
    quantizer = UniformWeight(4, site(x), range="percentile", gamma=0.05, scope=scope)
    quantizer.fit_weights(x)
    below, above = (parts(out.float(), scope).mean(1) for out in (x < quantizer.low, x > quantizer.high))
    assert below.tolist() == above.tolist() == pytest.approx([0.05] * len(below))


@pytest.mark.parametrize("scope", ["channel", "layer"])
@pytest.mark.parametrize(("clip", "level"), [("laplace", laplace_clip), ("gauss", gauss_clip)])
def test_aciq_clips_about_the_mean(clip, level, scope):
    x = weights()
    quantizer = ACIQWeight(4, site(x), clip=clip, allocate=False, scope=scope)
    quantizer.fit_weights(x)
    over = {"dim": 1, "keepdim": True} if scope == "channel" else {}
    mean = x.mean(**over)
    scale = (x - mean).abs().mean(**over) if clip == "laplace" else x.std(correction=0, **over)
    low, high = x.amin(**over), x.amax(**over)
    torch.testing.assert_close(quantizer.high, torch.minimum(mean + level(4) * scale, high))
    torch.testing.assert_close(quantizer.low, torch.maximum(mean - level(4) * scale, low))


def test_equation_11_and_its_mean():
    reach = torch.rand(64, generator=torch.Generator().manual_seed(0)) * 3 + 0.05
    for bits in (2, 3, 4, 6):
        given = allocated_bits(reach, bits)
        assert given.min() >= 0 and given.max() <= 8
        assert abs(float(given.mean()) - bits) <= 1 / 32
        order = reach.argsort()
        assert (given[order].diff() >= 0).all(), "a wider range never gets fewer bits"
    for ratio in (8, 64):  # the bins go as the range to the power of 2/3
        wide, narrow = allocated_bits(torch.tensor([float(ratio), 1.0]), 4).tolist()
        assert wide - narrow == {8: 2, 64: 4}[ratio]


def test_allocation_lowers_the_error_at_the_same_mean():
    x = weights(32)
    plain, allocated = (ACIQWeight(4, site(x), allocate=choice) for choice in (False, "auto"))
    assert not ACIQWeight(4, site(x), scope="layer").allocate
    assert error(allocated, x).mean() < error(plain, x).mean()
    assert float(allocated.fitted()["bits"].mean()) == pytest.approx(4, abs=1 / 16)
    assert torch.equal(allocated.codes(x).decode(), allocated(x))
    per_channel = torch.tensor([len(row.unique()) for row in allocated(x)])
    assert (per_channel <= 2 ** allocated.fitted()["bits"].flatten()).all()


def test_a_channel_without_bits_is_its_middle():
    x = torch.tensor([[1e-9, 3e-9, 2e-9], [8.0, -8.0, 1.0]])
    quantizer = ACIQWeight(1, site(x), allocate=True)
    quantizer.fit_weights(x)
    assert quantizer.fitted()["bits"].flatten().tolist() == [0, 2]
    assert quantizer(x)[0].tolist() == pytest.approx([2e-9] * 3)


@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_pwlq_searches_agree_on_gaussian_weights_and_the_grid_is_never_worse(variant):
    x = torch.randn(8, 4000, generator=torch.Generator().manual_seed(0))
    made = {search: PWLQWeight(4, site(x), search=search, variant=variant)
            for search in ("gauss_fit", "gauss", "laplace_fit", "laplace", "grid")}  # fmt: skip
    errors = {search: error(quantizer, x).mean() for search, quantizer in made.items()}
    assert all(errors["grid"] <= each * 1.002 for each in errors.values())
    assert errors["gauss"] == pytest.approx(float(errors["gauss_fit"]), rel=0.01)
    assert errors["gauss"] < 1.02 * errors["grid"], "the assumption holds here"


def test_pwlq_edges_are_kept_and_reported():
    x = weights()
    quantizer = PWLQWeight(4, site(x), breakpoints=2, search="gauss")
    quantizer.fit_weights(x)
    kept = quantizer.fitted()
    assert list(kept) == ["p1", "p2", "m"]
    torch.testing.assert_close(kept["m"], x.abs().amax(1))
    once = quantizer(x)
    assert torch.equal(quantizer(once), once), "held, nothing moves twice"
    assert quantizer.stored_bits == 6 and PWLQWeight(4, site(x)).stored_bits == 5


@pytest.mark.parametrize("scope", ["channel", "layer"])
@pytest.mark.parametrize(
    ("breakpoints", "search"), [(1, "gauss_fit"), (1, "grid"), (1, "gauss"), (2, "gauss"), (3, "laplace")]
)
def test_pwlq_keeps_what_it_measured_in_either_scope(scope, breakpoints, search):
    x = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = PWLQWeight(4, site(x), scope=scope, breakpoints=breakpoints, search=search).eval()
    measured = quantizer(x)
    quantizer.fit_weights(x)
    assert torch.equal(quantizer(x), measured)
    counts = {len(value) for value in quantizer.fitted().values()}
    assert counts == {6 if scope == "channel" else 1}
    # A layer's values are those of its weights as one channel.
    flat = PWLQWeight(4, site(x.reshape(1, -1)), scope="channel", breakpoints=breakpoints, search=search).eval()
    flat.fit_weights(x.reshape(1, -1))
    if scope == "layer":
        torch.testing.assert_close(flat(x.reshape(1, -1)).reshape(x.shape), measured)


def test_a_perturbed_breakpoint_moves_by_its_share():
    x = weights(64)
    plain, moved = (PWLQWeight(4, site(x), perturbation=share, seed=3) for share in (0.0, 0.1))
    for quantizer in (plain, moved):
        quantizer.fit_weights(x)
    ratio = moved.fitted()["p1"] / plain.fitted()["p1"]
    assert set(ratio.mul(100).round().tolist()) == {90.0, 110.0}
    other = PWLQWeight(4, Site("other", "weight", tuple(x.shape)), perturbation=0.1, seed=3)
    other.fit_weights(x)
    assert not torch.equal(other.fitted()["p1"], moved.fitted()["p1"]), "each layer draws its own"


@pytest.mark.parametrize("signed", [False, True])
def test_activations_follow_what_was_seen(signed):
    where = Site("fc.input", "input", (8,), signed=signed)
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 2
    x = x if signed else x.relu()
    seen = Observed(x.min(), x.max(), x.mean(), x.std())
    for quantizer in (UniformActivation(4, where), PWLQActivation(4, where)):
        quantizer.fit_activations(seen)
        y = quantizer(x)
        assert torch.equal(quantizer.codes(x).decode(), y)
        assert quantizer(10 * x).abs().max() <= x.abs().max() * 1.08, "beyond the range it is clipped"
        assert len(y.unique()) <= 2**quantizer.stored_bits
    uniform, piecewise = (made(4, where) for made in (UniformActivation, PWLQActivation))
    for quantizer in (uniform, piecewise):
        quantizer.fit_activations(seen)
    assert (piecewise(x) - x).square().mean() < (uniform(x) - x).square().mean()


@pytest.mark.parametrize(
    ("search", "printed"),
    [
        ("gauss_fit", lambda m: math.log(0.8614 * m + 0.6079)),
        ("laplace_fit", lambda m: 0.8030 * math.sqrt(m) - 0.3167),
    ],
)
def test_an_inputs_breakpoint_is_the_printed_one_of_its_spread_about_zero(search, printed):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)) + 0.7
    quantizer = PWLQActivation(4, Site("fc.input", "input", (8,), signed=True), search=search)
    quantizer.fit_activations(Observed(x.min(), x.max(), x.mean(), x.std()))
    deviation = float(x.square().mean().sqrt())
    expected = deviation * printed(float(x.abs().max()) / deviation)
    assert float(quantizer.fitted()["p1"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda x: UniformWeight(4, site(x), grid="round"), "grid=round"),
        (lambda x: UniformWeight(4, site(x), range="best"), "range=best"),
        (lambda x: UniformWeight(4, site(x), scope="element"), "scope=element"),
        (lambda x: UniformWeight(4, site(x), gamma=0.5), "gamma=0.5"),
        (lambda x: ACIQWeight(4, site(x), scope="layer", allocate=True), "scope=layer"),
        (lambda x: ACIQWeight(4, site(x), allocate="some"), "allocate=some"),
        (lambda x: PWLQWeight(4, site(x), breakpoints=4), "breakpoints=4"),
        (lambda x: PWLQWeight(4, site(x), breakpoints=2, search="grid"), "search=grid is for one breakpoint"),
        (lambda x: PWLQWeight(4, site(x), breakpoints=2, search="gauss", overlap=True), "overlap=true"),
        (lambda x: PWLQWeight(4, site(x), overlap=True), "overlap=true search=gauss_fit"),
        (lambda x: PWLQWeight(4, site(x), perturbation=1.0), "perturbation=1.0"),
        (lambda x: PWLQActivation(4, site(x), search="grid"), "search=grid"),
    ],
)
def test_what_has_no_meaning_is_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make(weights())


@pytest.mark.parametrize("clip", ["laplace", "gauss"])
@pytest.mark.parametrize("bits", [3, 4])
def test_a_channel_with_its_own_bits_is_clipped_for_these(clip, bits):
    x = weights(32)
    quantizer = ACIQWeight(bits, site(x), clip=clip, allocate=True)
    quantizer.fit_weights(x)
    widths = quantizer.fitted()["bits"].flatten()
    assert len(widths.unique()) > 2
    for width in widths.unique().int().tolist():
        rows = x[widths == width]
        alone = ACIQWeight(max(width, 1), site(rows), clip=clip, allocate=False)
        alone.fit_weights(rows)
        if width:
            torch.testing.assert_close(quantizer(x)[widths == width], alone(rows))
        else:
            torch.testing.assert_close(quantizer(x)[widths == 0], rows.mean(1, keepdim=True).expand_as(rows))
    assert quantizer.stored_bits == pytest.approx(float(widths.mean()))


def test_an_input_without_anything_in_calibration_is_rounded_to_nothing_later():
    zero, x = torch.tensor(0.0), torch.rand(4, 6)
    seen = Observed(zero, zero, zero, zero)
    for quantizer in (UniformActivation(8, Site("x", "input", (6,))), PWLQActivation(4, Site("x", "input", (6,)))):
        quantizer.eval()
        assert (quantizer(x) - x).abs().max() < 0.1, "not fitted yet: over the range at hand"
        quantizer.fit_activations(seen)
        assert not quantizer(x).any(), "whatever else is in the batch"
        assert not quantizer.train()(x).any()
        again = type(quantizer)(quantizer.bits, quantizer.site)
        again.load_state_dict(quantizer.state_dict())
        assert not again.eval()(x).any()


def test_each_seed_moves_the_breakpoints_another_way():
    x, found = weights(64), []
    for seed in (3, 3, 4):
        quantizer = PWLQWeight(4, site(x), perturbation=0.1, seed=seed)
        quantizer.fit_weights(x)
        found.append(quantizer.fitted()["p1"])
    same, again, other = found
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
