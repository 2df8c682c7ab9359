"""Observers against exact answers over all the data at once: brute force, torch.quantile, torch.topk, scipy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from qexp.build import build
from qexp.calibration.clipping import ACIQ, KL, MSE
from qexp.calibration.extremes import BLOCK, extreme, flat
from qexp.calibration.observers import MinMax, MovingAverage, Observer, Percentile, TopK
from qexp.errors import ConfigError
from qexp.ops.aciq import gauss_clip, laplace_clip
from qexp.ops.clip_levels import divergences, squared_errors
from qexp.ops.uniform import make_grid
from qexp.paths import config_dir
from qexp.quantizers.base import Site

RELU = Site("relu", "activation")
SIGNED = Site("conv.input", "input", signed=True)
SITES = [pytest.param(RELU, id="relu"), pytest.param(SIGNED, id="signed")]
NAMES = sorted(path.stem for path in (config_dir() / "observer").glob("*.yaml"))
ORDERLESS = [name for name in NAMES if name != "moving_average"]
BATCHLESS = ["aciq", "kl", "minmax", "mse", "percentile"]
CLIPPING = ["aciq", "kl", "mse"]


def make(name: str, site: Site = SIGNED, bits: int = 4, **extra: Any) -> Observer:
    node = yaml.safe_load((config_dir() / "observer" / f"{name}.yaml").read_text())
    observer: Observer = build({**node, **extra}, bits=bits, site=site)
    return observer


def seen(observer: Observer, *batches: Tensor) -> tuple[float, float]:
    for batch in batches:
        observer.observe(batch)
    low, high = observer.range()
    assert low.dtype == high.dtype == torch.float32 and low.shape == high.shape == ()
    assert low <= high
    return low.item(), high.item()


def sample(name: str, count: int = 20_000, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    made = {
        "gauss": random.normal,
        "laplace": random.laplace,
        "cauchy": random.standard_cauchy,
        "uniform": random.uniform,
    }[name.removeprefix("relu-")](size=count)
    return torch.tensor(np.maximum(made, 0) if name.startswith("relu-") else made, dtype=torch.float32)


# Every observer that configs/observer has, on every odd kind of data.

BOTH_SITES = pytest.mark.parametrize("site", SITES)
EVERY = pytest.mark.parametrize("name", NAMES)


def test_each_file_builds_its_class() -> None:
    built = {type(make(name)) for name in NAMES}
    assert built == {MinMax, MovingAverage, Percentile, TopK, KL, MSE, ACIQ}


@EVERY
@BOTH_SITES
@pytest.mark.parametrize("bits", [1, 2, 8, 32])
def test_every_width_gives_a_range_within_the_values(name: str, site: Site, bits: int) -> None:
    if bits == 1 and site.signed and name in ("kl", "mse"):
        with pytest.raises(ConfigError, match="1 bit leaves no level"):
            make(name, site, bits)
        return
    x = sample("gauss") if site.signed else sample("relu-gauss")
    low, high = seen(make(name, site, bits), x)
    reach = x.abs().max().item()
    assert 0 < high <= reach and -reach <= low <= 0
    if bits == 32 and name in CLIPPING:
        assert high == pytest.approx(x.abs().max() if name != "aciq" else x.max())


@EVERY
@BOTH_SITES
@pytest.mark.parametrize("value", [0.3, 1.0, 1e30, 1e-30])
@pytest.mark.parametrize("count", [1, 5000])
def test_a_constant(name: str, site: Site, value: float, count: int) -> None:
    x = torch.full((count,), value)
    low, high = seen(make(name, site), x, x)
    assert high == pytest.approx(x[0].item())
    around_zero = -x[0].item() if site.signed else 0.0
    from_zero = name in ("kl", "mse") or (name == "aciq" and not site.signed)
    assert low == pytest.approx(around_zero if from_zero else x[0].item())


@EVERY
@BOTH_SITES
def test_all_zeros(name: str, site: Site) -> None:
    assert seen(make(name, site), torch.zeros(4, 100), torch.zeros(1)) == (0.0, 0.0)


@EVERY
@BOTH_SITES
def test_zeros_first_hide_nothing(name: str, site: Site) -> None:
    _, high = seen(make(name, site), torch.zeros(50), torch.full((5000,), 3.0))
    assert high == pytest.approx(0.3 if name == "moving_average" else 1.5 if name == "top_k" else 3.0)


@EVERY
@BOTH_SITES
def test_only_negative_values(name: str, site: Site) -> None:
    x = -1 - sample("uniform")
    low, high = seen(make(name, site), x)
    if name in ("kl", "mse"):
        assert (low, high) == ((-high, high) if site.signed else (0.0, 0.0))
        assert high == 0 or 1.0 < high <= 2.0
    elif name == "aciq" and not site.signed:
        assert (low, high) == (0.0, 0.0)
    else:
        assert -2.0 <= low < -1.7 and -1.3 < high <= -1.0


@EVERY
@BOTH_SITES
def test_heavy_tails(name: str, site: Site) -> None:
    x = sample("cauchy") if site.signed else sample("relu-cauchy")
    low, high = seen(make(name, site), x)
    assert math.isfinite(low) and 0 < high <= x.abs().max()
    if name in ("aciq", "kl", "percentile", "top_k"):
        assert high < x.max().item() / 2


@EVERY
@BOTH_SITES
def test_huge_values_beside_small_ones(name: str, site: Site) -> None:
    small, huge = sample("relu-gauss"), torch.tensor([1e30, 3e38])
    low, high = seen(make(name, site), small, huge, small)
    assert math.isfinite(low) and math.isfinite(high)
    if site.signed:
        low, high = seen(make(name, site), huge, -huge, small)
        assert math.isfinite(low) and math.isfinite(high)


@EVERY
@BOTH_SITES
def test_an_empty_batch_changes_nothing(name: str, site: Site) -> None:
    x, empty = sample("relu-laplace").reshape(4, 50, 100), torch.empty(0, 50, 100)
    assert seen(make(name, site), empty, x, empty, 2 * x) == seen(make(name, site), x, 2 * x)


@EVERY
def test_nothing_observed_is_an_error(name: str) -> None:
    observer = make(name)
    observer.observe(torch.empty(0))
    with pytest.raises(ConfigError, match=r"conv\.input: no batch was observed"):
        observer.range()


@EVERY
@BOTH_SITES
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", [10, 20_000])
def test_what_is_no_number_is_refused_and_named(name: str, site: Site, bad: float, count: int) -> None:
    x = sample("gauss", count)
    x[count // 2] = bad
    with pytest.raises(ConfigError, match=f"^{site.name}: NaN or infinity.*weights.$"):
        make(name, site).observe(x)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_count_as_float32(name: str, dtype: torch.dtype) -> None:
    x = sample("gauss").to(dtype)
    assert seen(make(name), x) == seen(make(name), x.float())


@EVERY
def test_layout_and_gradient_do_not_matter(name: str) -> None:
    x = sample("laplace", 2 * 8 * 20 * 20).reshape(2, 8, 20, 20)
    expected = seen(make(name), x)
    wide = torch.stack([x, torch.full_like(x, 100.0)], dim=-1)
    for other in (x.to(memory_format=torch.channels_last), x.transpose(1, 3), wide[..., 0], x.requires_grad_()):
        assert seen(make(name), other) == pytest.approx(expected, rel=1e-6)
    assert seen(make(name), torch.tensor(2.0))[1] == 2.0


def test_channels_last_is_not_copied() -> None:
    x = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    assert flat(x).data_ptr() == x.data_ptr()
    assert torch.equal(flat(x).sort().values, x.flatten().sort().values)


def numbers(state: object) -> int:
    """Count the numbers held in an object's attributes, its tensors' elements included."""
    if isinstance(state, Tensor):
        return state.untyped_storage().nbytes() // state.element_size()
    if isinstance(state, (list, tuple)):
        return sum(map(numbers, state))
    return sum(map(numbers, vars(state).values())) if hasattr(state, "__dict__") else 1


@EVERY
def test_memory_does_not_grow(name: str) -> None:
    observer = make(name)
    observer.observe(sample("gauss", 500))
    before = numbers(observer)
    for seed in range(50):
        observer.observe(sample("laplace", 500, seed) * 1.2**seed)
    assert numbers(observer) == before


# Neither the order of batches nor how the data is cut into them.

values = st.lists(
    st.one_of(
        st.floats(-1e3, 1e3, width=32, allow_subnormal=False), st.sampled_from([0.0, 1.0, -1.0, 65504.0, 1e-6])
    ),
    min_size=1,
    max_size=12,
)


def small(name: str, site: Site) -> Observer:
    """Like `make`, with a histogram that has soon too few cells."""
    return make(name, site, **({"bins": 64} if name in ("kl", "mse", "percentile") else {}))


def close(found: Sequence[float], expected: Sequence[float], name: str) -> None:
    # The histograms do not depend on it at all; means do, by rounding.
    exact = name not in ("aciq", "top_k")
    assert found == (tuple(expected) if exact else pytest.approx(tuple(expected), rel=1e-5, abs=1e-5))


@pytest.mark.parametrize("name", ORDERLESS)
@BOTH_SITES
@given(st.lists(values, min_size=2, max_size=5))
@settings(max_examples=40)
def test_the_order_of_batches_does_not_matter(name: str, site: Site, batches: list[list[float]]) -> None:
    tensors = [torch.tensor(batch) for batch in batches]
    close(seen(small(name, site), *tensors), seen(small(name, site), *reversed(tensors)), name)


@pytest.mark.parametrize("name", BATCHLESS)
@BOTH_SITES
@given(st.lists(values, min_size=2, max_size=5))
@settings(max_examples=40)
def test_batches_are_as_good_as_one(name: str, site: Site, batches: list[list[float]]) -> None:
    tensors = [torch.tensor(batch) for batch in batches]
    close(seen(small(name, site), *tensors), seen(small(name, site), torch.cat(tensors)), name)


@pytest.mark.parametrize("name", BATCHLESS)
def test_batches_of_growing_range_are_as_good_as_one(name: str) -> None:
    x = sample("laplace").chunk(20)
    growing = [batch * 1.3**place for place, batch in enumerate(x)]
    close(seen(make(name), *growing), seen(make(name), torch.cat(growing)), name)


# Each method against its own definition.


def test_min_max() -> None:
    assert seen(MinMax(4, SIGNED), torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.0])) == (-3.0, 2.0)


def test_a_moving_average_by_hand() -> None:
    batches = [torch.tensor([0.0, 10.0]), torch.tensor([-1.0, 20.0]), torch.tensor([-2.0, 0.0])]
    low, high = seen(MovingAverage(4, SIGNED, momentum=0.25), *batches)
    assert (low, high) == pytest.approx((-0.25 * 0.75 - 0.5, (10 + 2.5) * 0.75))
    assert seen(MovingAverage(4, SIGNED, momentum=1.0), *batches) == (-2.0, 0.0)


@pytest.mark.parametrize("gamma", [0.0, 1e-4, 0.001, 0.0123, 0.1, 0.49])
@pytest.mark.parametrize("kind", ["gauss", "relu-gauss", "uniform", "cauchy"])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_a_percentile_is_within_a_cell_of_the_exact_quantile(gamma: float, kind: str, shift: float) -> None:
    x = (sample(kind, 5003) + shift).double()
    exact = torch.quantile(x, torch.tensor([gamma, 1 - gamma], dtype=torch.float64)).tolist()
    observer = Percentile(4, SIGNED, gamma=gamma, bins=256)
    low, high = seen(observer, *x.split(700))
    width = observer.histogram.width
    assert width <= 2 * (x.max() - x.min()).item() / 255
    assert 0 <= exact[0] - low <= width and 0 <= high - exact[1] <= width


def test_a_percentile_cuts_a_fraction_not_a_percent() -> None:
    low, high = seen(Percentile(8, SIGNED, gamma=0.1), torch.linspace(0, 1, 100_001))
    assert (low, high) == pytest.approx((0.1, 0.9), abs=3e-4)
    assert seen(Percentile(8, RELU, gamma=0.001), sample("relu-gauss"))[0] == 0.0


def medians(x: Tensor, k: int) -> tuple[float, float]:
    ordered = sorted(x.flatten().tolist())
    lowest, highest = ordered[:k], ordered[-k:]
    middle = (len(lowest) - 1) // 2
    return lowest[middle], highest[middle]


@pytest.mark.parametrize("k", [1, 2, 5, 10, 20])
@pytest.mark.parametrize("count", [1, 3, 10, 511, 5121, 20_480, 20_000])
def test_top_k_is_the_lower_median_of_a_sort(k: int, count: int) -> None:
    batches = [sample("gauss", count, seed) for seed in range(3)]
    expected = np.mean([medians(batch, k) for batch in batches], axis=0)
    assert seen(TopK(4, SIGNED, k=k), *batches) == pytest.approx(tuple(expected), rel=1e-6)


@given(st.integers(1, 12), st.integers(1, 14 * BLOCK), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_search_in_blocks_finds_what_a_search_of_everything_finds(
    k: int, count: int, different: int, seed: int
) -> None:
    # Few different values make ties, some of them across the border of what is searched.
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(-different, different + 1, (count,), generator=random).float()
    x[torch.randint(0, count, (1,), generator=random)] += 1000
    for largest in (True, False):
        expected = x.topk(min(k, count), largest=largest).values
        assert torch.equal(extreme(x, k, largest=largest).sort(descending=largest).values, expected)


def test_extremes_beside_each_other_and_in_the_last_partial_block() -> None:
    for start in (0, 1000, 20 * BLOCK - 5, 20 * BLOCK + 7):
        x = torch.zeros(20 * BLOCK + 17)
        x[start : start + 10] = torch.arange(1.0, 11.0)
        assert sorted(extreme(x, 10, largest=True).tolist()) == list(range(1, 11))
        assert sorted(extreme(-x, 10, largest=False).tolist()) == list(range(-10, 0))


def raw_error(x: np.ndarray, level: float, steps: int) -> float:
    clipped = np.clip(x, 0, level)
    return float(np.square(x - np.round(clipped * (steps / level)) * (level / steps)).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", ["gauss", "laplace", "relu-gauss", "relu-laplace"])
def test_mse_is_within_a_candidate_of_brute_force_on_the_samples(bits: int, kind: str) -> None:
    x = sample(kind)
    site = RELU if kind.startswith("relu") else SIGNED
    low, high = seen(MSE(bits, site), *x.split(3000))
    magnitudes = x.double().abs().numpy()
    candidates = magnitudes.max() * np.arange(1, 101) / 100

    def error(level: float) -> float:
        if not site.signed:
            return raw_error(magnitudes, level, 2**bits - 1)
        grid = make_grid("full", bits, torch.tensor(-level), torch.tensor(level))
        both = torch.cat([x, -x])
        return float((grid.round(both) - both).double().square().sum())

    best = candidates[np.argmin([error(level) for level in candidates])]
    assert high == pytest.approx(best, abs=magnitudes.max() * 0.0101)
    assert low == (-high if site.signed else 0.0)
    if bits <= 4:
        assert high < magnitudes.max() * 0.9


def test_a_relus_zeros_do_not_move_the_level() -> None:
    x = sample("relu-laplace")
    for name in ("mse", "kl"):
        assert seen(make(name, RELU, 8), x, torch.zeros(500_000)) == seen(make(name, RELU, 8), x)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any),
    st.floats(0.05, 40),
    st.integers(1, 255),
)
def test_the_squared_error_of_a_histogram_is_that_of_evenly_spread_values(
    counts: list[int], level: float, steps: int
) -> None:
    width, fine = 0.5, 4000
    found = squared_errors(
        torch.tensor(counts, dtype=torch.float64), width, torch.tensor([level], dtype=torch.float64), steps
    )
    x = (np.arange(len(counts) * fine) + 0.5) * (width / fine)
    clipped = np.clip(x, 0, level)
    error = np.square(x - np.round(clipped * (steps / level)) * (level / steps))
    expected = (error.reshape(len(counts), fine).mean(axis=1) * counts).sum()
    assert found.item() == pytest.approx(expected, rel=2e-3, abs=1e-6)


def divergence_by_hand(counts: list[int], kept: int, levels: int) -> float:
    """The search's measure for one clip level, cell by cell, the way its descriptions have it."""
    reference = np.array(counts[:kept], dtype=float)
    reference[-1] += sum(counts[kept:])
    spread = np.zeros(kept)
    for level in range(levels):
        cells = range(level * kept // levels, (level + 1) * kept // levels)
        filled = [cell for cell in cells if counts[cell] > 0]
        for cell in filled:
            spread[cell] = sum(counts[each] for each in cells) / len(filled)
    if not spread.any():
        return math.inf
    return float(stats.entropy(reference, spread))


@given(st.lists(st.integers(0, 6), min_size=8, max_size=40), st.integers(2, 8))
def test_divergences_are_those_computed_cell_by_cell(counts: list[int], levels: int) -> None:
    counts = [*counts, 1]
    found = divergences(torch.tensor(counts, dtype=torch.float64), levels)
    expected = [divergence_by_hand(counts, kept, levels) for kept in range(levels, len(counts) + 1)]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("bits", [2, 5])
@BOTH_SITES
def test_kl_takes_the_level_of_least_divergence(bits: int, site: Site) -> None:
    x = sample("laplace") if site.signed else sample("relu-laplace")
    observer = KL(bits, site, bins=256)
    low, high = seen(observer, *x.split(3000))
    magnitudes = x.abs().double()
    largest = magnitudes.max().item()
    width = 2.0 ** math.ceil(math.log2(largest) - 8)
    cells = np.bincount((magnitudes[magnitudes > 0] / width).long().numpy()).tolist()
    levels = 2 ** (bits - site.signed)
    kept = range(levels, len(cells) + 1)
    best = kept[int(np.argmin([divergence_by_hand(cells, each, levels) for each in kept]))]
    assert high == pytest.approx(min(best * width, largest))
    assert low == (-high if site.signed else 0.0)


@BOTH_SITES
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_kl_keeps_values_that_stay_away_from_zero(bits: int, site: Site) -> None:
    if bits - site.signed < 2:
        pytest.skip("one step above zero")
    x = 0.5 + sample("uniform") / 2
    for values in (x, sample("uniform", 100) + 0.3, torch.sigmoid(2 + sample("gauss"))):
        observed = torch.cat([values, -values]) if site.signed else values
        assert seen(KL(bits, site), observed)[1] >= values.median()


def test_kl_clips_a_tail_at_few_bits_and_keeps_a_uniform_whole() -> None:
    x = sample("laplace", 100_000)
    levels = [seen(KL(bits, SIGNED), x)[1] for bits in (3, 4, 8)]
    assert levels == sorted(levels) and levels[0] < 0.6 * x.abs().max()
    even = torch.linspace(0, 1, 100_001)
    assert seen(KL(4, RELU), even)[1] > 0.95


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_aciq_by_its_formula(bits: int) -> None:
    laplace, gauss = sample("laplace", 400_000), sample("gauss", 400_000)
    # b = 1, sigma = 1, mean = 0
    low, high = seen(ACIQ(bits, SIGNED, distribution="laplace"), *(laplace + 7).split(50_000))
    assert (low, high) == pytest.approx((7 - laplace_clip(bits), 7 + laplace_clip(bits)), abs=0.06)
    low, high = seen(ACIQ(bits, SIGNED, distribution="gauss"), *(gauss - 2).split(50_000))
    assert (low, high) == pytest.approx((-2 - gauss_clip(bits), -2 + gauss_clip(bits)), abs=0.03)
    # Behind a ReLU those of the density in front of it, from what is left above zero; one more bit.
    low, high = seen(ACIQ(bits, RELU, distribution="laplace"), *laplace.clamp(min=0).split(50_000))
    assert low == 0 and high == pytest.approx(laplace_clip(bits + 1), rel=0.01)
    low, high = seen(ACIQ(bits, RELU, distribution="gauss"), *(2 * gauss).clamp(min=0).split(50_000))
    assert low == 0 and high == pytest.approx(2 * gauss_clip(bits + 1), rel=0.01)


@pytest.mark.parametrize("distribution", ["right", "auto"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("kind", "mean"), [("laplace", 0.0), ("laplace", -1.0), ("gauss", 0.0)])
def test_behind_a_relu_aciq_is_near_the_best_clip_level(
    kind: str, mean: float, bits: int, distribution: str
) -> None:
    x = (sample(kind, 100_000) + mean).clamp(min=0)
    _, level = seen(ACIQ(bits, RELU, distribution=kind if distribution == "right" else distribution), x)
    values = x.double().numpy()
    levels = values.max() * np.linspace(0.02, 1, 100)
    best = min(raw_error(values, each, 2**bits - 1) for each in levels)
    assert raw_error(values, level, 2**bits - 1) < 1.06 * best


def test_zeros_do_not_move_aciqs_level_and_without_more_there_is_none() -> None:
    x = sample("relu-laplace")
    for distribution in ("laplace", "gauss"):
        arguments = {"distribution": distribution}
        sparse = seen(make("aciq", RELU, **arguments), torch.zeros(1000), x, torch.full((500,), -0.0))
        assert sparse == seen(make("aciq", RELU, **arguments), x)
        assert seen(make("aciq", RELU, **arguments), torch.zeros(1000)) == (0.0, 0.0)


def test_aciq_ends_at_the_values_observed() -> None:
    x = sample("uniform")
    assert seen(ACIQ(8, SIGNED), x) == (x.min().item(), x.max().item())
    assert seen(ACIQ(8, RELU), x) == (0.0, x.max().item())


@pytest.mark.parametrize("kind", ["laplace", "gauss"])
def test_aciq_tells_the_two_distributions_apart(kind: str) -> None:
    x = sample(kind)
    chosen = seen(ACIQ(4, SIGNED, distribution="auto"), x)
    assert chosen == seen(ACIQ(4, SIGNED, distribution=kind), x)
    other = "gauss" if kind == "laplace" else "laplace"
    assert chosen != seen(ACIQ(4, SIGNED, distribution=other), x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: MovingAverage(4, SIGNED, momentum=0.0), "momentum=0.0"),
        (lambda: MovingAverage(4, SIGNED, momentum=1.5), "momentum=1.5"),
        (lambda: Percentile(4, SIGNED, gamma=0.5), "gamma=0.5"),
        (lambda: Percentile(4, SIGNED, gamma=-0.1), "gamma=-0.1"),
        (lambda: Percentile(4, SIGNED, bins=8), "bins=8"),
        (lambda: TopK(4, SIGNED, k=0), "k=0"),
        (lambda: KL(8, RELU, bins=512), "at least 1024"),
        (lambda: MSE(8, RELU, candidates=0), "candidates=0"),
        (lambda: ACIQ(8, RELU, distribution="cauchy"), "distribution=cauchy"),
        (lambda: MinMax(9, RELU), "bits=9"),
    ],
)
def test_arguments_without_meaning_are_refused(wrong: Callable[[], Observer], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()
