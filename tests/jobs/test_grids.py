from __future__ import annotations

import itertools
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qexp.errors import ConfigError
from qexp.jobs.composition import loader
from qexp.jobs.grids import Grid, expand, left_out, narrowed, sweep, union
from qexp.paths import config_dir

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


def shipped(name: str) -> list[str]:
    node = yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())
    return list(node["experiment"].get("grids") or [])


@pytest.mark.parametrize(
    ("experiment", "word", "told"),
    [
        ("lsq/table1", "model.weights=RUN", ["model.weights=RUN: not in 1 of 5 jobs, of model.weights=null"]),
        ("lsq/table1", "epochs=30", []),
        ("lsq/gradient_scale", "optimizer.lr=0.02", []),
        ("lglsq/ablation", "quantizer.weight.lr_factor=0.1", []),
        ("compare/cifar10_resnet20", "alpha_regularization=none", []),
        ("qnn/table1", "model.dropout=[0,0.5]", []),
        # Not of these options, and no setting of them.
        (
            "lglsq/sharpness",
            "rounding.k=2",
            [f"rounding.k=2: not in 1 of 5 jobs, of rounding={name}" for name in ("ste", "dsq", "soft_round")],
        ),
    ],
)
def test_a_typed_setting_is_in_every_job_or_it_is_told(experiment: str, word: str, told: list[str]) -> None:
    jobs = expand(shipped(experiment), {}, [word], loader())
    without = [job for job in jobs if word not in job and "quantizer=none" not in job]
    assert left_out(jobs, [word], loader()) == told
    assert len(without) == sum("of rounding=" in line for line in told)


def test_what_is_typed_with_its_option_is_of_it() -> None:
    typed = ["quantizer.weight.lr_factor=0.1", "quantizer=lsq", "bits=4"]
    (job,) = expand(shipped("compare/cifar10_resnet20"), {}, typed, loader())
    assert set(typed) <= set(job)


def test_the_command_on_top_of_each_experiment_is_for_all_of_its_jobs() -> None:
    told = []
    for file in (config_dir() / "experiment").glob("*/*.yaml"):
        name = f"{file.parent.name}/{file.stem}"
        (command,) = re.findall(
            rf"^# qexp (?:train|ptq) experiment={name}(?: ([^,\n]*))?", file.read_text(), re.M
        )[:1]
        typed = command.replace('"', "").split()
        jobs = expand(shipped(name), {}, typed, loader())
        assert jobs, name
        told += left_out(jobs, typed, loader())
    assert told == ["model.weights=RUN: not in 1 of 5 jobs, of model.weights=null"]


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
        assert set(typed) <= {word.split("=")[0] for word in job}
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
