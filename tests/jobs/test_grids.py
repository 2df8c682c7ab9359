from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexp.errors import ConfigError
from qexp.jobs.composition import loader
from qexp.jobs.grids import Grid, expand, narrowed, sweep, union

TABLE = ["quantizer=none", "quantizer=pact,dorefa bits=2,4"]


def test_the_union_of_grids_holds_each_job_once() -> None:
    jobs = expand([*TABLE, "bits=4 quantizer=none", "quantizer=none"], {"seed": "0,1"}, [])
    assert len(jobs) == 2 * (1 + 4 + 1)
    assert jobs[:2] == [["seed=0", "quantizer=none"], ["seed=1", "quantizer=none"]]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["bits=4"], ["quantizer=none", "quantizer=pact bits=4", "quantizer=dorefa bits=4"]),
        (["bits='4'"], ["quantizer=none", "quantizer=pact bits=4", "quantizer=dorefa bits=4"]),
        (["quantizer=none"], ["quantizer=none"]),
        (["quantizer=pact"], ["quantizer=pact bits=2", "quantizer=pact bits=4"]),
        # What no grid lists is run beside what was picked, or in place of what was listed.
        (["quantizer=dorefa,lsq", "bits=4"], ["quantizer=dorefa bits=4", "quantizer=lsq bits=4"]),
        (["bits=7"], ["quantizer=none", "quantizer=pact bits=7", "quantizer=dorefa bits=7"]),
        (["quantizer=none", "seed=0,1"], ["quantizer=none seed=0", "quantizer=none seed=1"]),
    ],
)
def test_the_command_line_picks_from_the_grids(typed: list[str], expected: list[str]) -> None:
    assert [" ".join(job) for job in expand(TABLE, {}, typed)] == expected


def test_without_grids_a_sweep_is_hydras_product() -> None:
    assert expand([], {"bits": "2,4"}, ["seed=0,1"]) == [
        [f"bits={bits}", f"seed={seed}"] for bits, seed in itertools.product("24", "01")
    ]
    assert expand([], {}, []) == [[]]


@pytest.mark.parametrize(
    ("grid", "message"), [("pact", "'pact' in 'pact' is no key=value"), ("seed=0 seed=1", "a key stands twice")]
)
def test_a_grid_that_cannot_be_read_says_why(grid: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand([grid], {}, [])


def test_an_interval_is_no_list() -> None:
    with pytest.raises(ConfigError, match="list them with commas"):
        expand([], {}, ["optimizer.lr=interval(0,1)"])


def test_a_glob_picks_from_the_options_of_its_group() -> None:
    jobs = expand([], {}, ["quantizer=glob([lsq*,pwlq*],exclude=[*_both,*_activation])", "bits=4"], loader())
    assert [" ".join(job) for job in jobs] == [f"quantizer={name} bits=4" for name in ("lsq", "lsq_plus", "pwlq")]
    widths = [f"bits=w8a{width}" for width in (*range(1, 9), 32)]
    found = expand(["bits=glob(w8a*)", "bits=4"], {"quantizer": "glob(pact*)"}, [], loader())
    assert sorted(found) == sorted(["quantizer=pact", bits] for bits in [*widths, "bits=4"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("discretisation=glob(pcat*)", r"no option of the group 'discretisation' fits. Known: blend,"),
        ("seed=glob(*)", r"seed=glob\(\*\): .* 'seed' is no group; list its values with commas"),
    ],
)
def test_a_glob_that_picks_nothing_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand([], {}, [word], loader())


VALUES = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True)
GRIDS = st.lists(st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3), min_size=1, max_size=3)


@given(GRIDS, st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=2))
def test_no_job_has_a_value_that_was_not_typed_for_a_typed_key(grids: list[Grid], typed: Grid) -> None:
    jobs = union(narrowed(grids, typed))
    assert len({tuple(job) for job in jobs}) == len(jobs)
    for job in jobs:
        for key, value in (word.split("=") for word in job):
            assert value in typed.get(key, "abcd")
    for key, wanted in typed.items():
        listed = {value for grid in grids for value in grid.get(key, ())}
        if len(typed) == 1 and not listed:
            assert {f"{key}={value}" for value in wanted} <= {word for job in jobs for word in job}


def test_batches_are_launched_one_after_the_other() -> None:
    seen: list[tuple[int, int]] = []

    def launch(batch: list[list[str]], number: int) -> list[str]:
        seen.append((len(batch), number))
        return [word for (word,) in batch]

    jobs = [[f"seed={seed}"] for seed in range(5)]
    assert sweep(jobs, launch, 2) == [f"seed={seed}" for seed in range(5)]
    assert seen == [(2, 0), (2, 2), (1, 4)]
    assert sweep([], launch, None) == []
    with pytest.raises(ConfigError, match="max_batch_size=0"):
        sweep(jobs, launch, 0)
