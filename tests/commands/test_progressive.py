"""Progressive bits: a chain of runs, each from the weights of the one before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qexp import hydra_app
from qexp.commands import progressive, train
from qexp.config import Config, parse
from qexp.errors import ConfigError
from qexp.files import file_digest
from qexp.runs import Run, find_runs

from ..composing import compose

Make = Callable[..., Config]


@pytest.fixture
def config(tmp_path: Path) -> Make:
    """Make the configuration of a short LSQ run in tmp_path."""

    def make(*overrides: str) -> Config:
        small = ("epochs=1", "model.hidden=[16,16]", "trainer.threads=1", "logger=none", "quantizer=lsq")
        return parse(compose(*small, f"output_dir={tmp_path}", *overrides))

    return make


def run_of(record: dict[str, object]) -> Run:
    path = Path(str(record["path"]))
    return next(run for run in find_runs(path.parent) if run.path == path)


def test_each_stage_starts_from_the_weights_of_the_one_before(config: Make, tmp_path: Path) -> None:
    record = train.run(config("bits=2", "progressive=[32,w4a8,4]"))
    widths, weights = [], []
    run = run_of(record)
    for _ in range(4):
        bits, start = run.config["bits"], run.config["model"]["weights"]
        widths.append((bits["weight"], bits["activation"]))
        weights.append(start)
        if start is not None:
            identity = json.loads((run.path / "identity.json").read_text())
            assert identity["digests"]["weights"] == file_digest(Path(start, "last.ckpt"))
            run = run_of({"path": start})
    assert widths == [(2, 2), (4, 4), (4, 8), (32, 32)]
    assert weights[-1] is None
    assert len(find_runs(tmp_path / "train")) == 4


def test_the_last_run_is_the_one_that_its_own_command_makes(config: Make) -> None:
    chain = train.run(config("bits=3", "progressive=[4]"))
    before = str(run_of(chain).config["model"]["weights"])
    alone = train.run(config("bits=3", f"model.weights={before}"))
    assert (alone["status"], alone["run_id"]) == ("skipped", chain["run_id"])


def test_chains_share_their_stages_and_go_on_where_they_were(config: Make, tmp_path: Path) -> None:
    first, last = progressive.upcoming(config("bits=2", "progressive=[4,3]"))
    assert (first.bits.weight, last) == (4, False)
    train.run(config("bits=3", "progressive=[4]"))
    begun, last = progressive.upcoming(config("bits=2", "progressive=[4,3]"))
    assert (begun.bits.weight, last) == (2, True)
    train.run(config("bits=2", "progressive=[4,3]"))
    assert len(find_runs(tmp_path / "train")) == 3


def test_a_plan_says_which_run_comes_first(
    config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = train.run(config("bits=2", "progressive=[32,4]"), dry_run=True)
    assert record["status"] == "start"
    out = capsys.readouterr().out
    assert "first, as the runs after it start from its weights" in out
    assert "-none-s0" in out
    assert not find_runs(tmp_path / "train")


def test_jobs_whose_chains_begin_alike_are_all_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "quantizer=lsq", "bits=3,2", "progressive=[4]", "epochs=1", "model.hidden=[8]", "logger=none"]
    assert hydra_app.main("train", [*words, f"output_dir={tmp_path}"]) == 0
    out = capfd.readouterr().out
    assert "one run, made once" not in out
    assert sorted(run.config["bits"]["weight"] for run in find_runs(tmp_path / "train")) == [2, 3, 4]


def test_distillation_keeps_the_network_that_the_chain_began_with(config: Make) -> None:
    float_run = train.run(config("quantizer=none"))["path"]
    chain = config("bits=2", "progressive=[4]", "task=distillation", f"model.weights={float_run}")
    last = run_of(train.run(chain))
    assert last.config["task"]["teacher"] == float_run
    assert last.config["model"]["weights"] != float_run


def test_a_float_stage_is_the_float_networks_run(config: Make) -> None:
    chain = config("bits=3", "progressive=[32]", "rounding=asr", "discretisation=ewgs", "first_last=8")
    alone, _ = progressive.upcoming(chain)
    assert train.plan(alone).run_id.split("-")[-1] == train.plan(config("quantizer=none")).run_id.split("-")[-1]
    assert run_of(train.run(chain)).config["rounding"] == chain.plain["rounding"]


def test_the_decay_of_a_recipe_follows_the_bits_of_every_stage(config: Make) -> None:
    by_bits = "{w2:1e-5,w3:2e-5,w4:3e-5,w32:4e-5}"
    words = ("model.weights=some", f"++decay_by_bits={by_bits}")
    chain = config("bits=2", "progressive=[32,4,3]", "optimizer.weight_decay=1e-5", *words)
    pairs = ((32, 32), (4, 4), (3, 3), (2, 2))
    found = [progressive._stage(chain, pair, None).optimizer["weight_decay"] for pair in pairs]
    assert found == [4e-5, 3e-5, 2e-5, 1e-5]
    typed = config("bits=2", "progressive=[4,3]", "optimizer.weight_decay=7e-5", *words)
    assert progressive._stage(typed, (4, 4), None).optimizer["weight_decay"] == 7e-5


def test_what_a_later_stage_cannot_do_is_said_before_the_first(config: Make, tmp_path: Path) -> None:
    for dry_run in (False, True):
        with pytest.raises(ConfigError, match="bits=1 is not supported"):
            train.run(config("bits=1", "progressive=[4]"), dry_run=dry_run)
    assert not find_runs(tmp_path / "train")


def test_a_float_network_has_no_bits_to_lower(config: Make) -> None:
    with pytest.raises(ConfigError, match="progressive: without a quantizer"):
        train.run(config("quantizer=none", "progressive=[8]"))


@pytest.mark.parametrize("widths", ["[3,4]", "[4,2]", "[w4a2]", "[4,4,3]"])
def test_widths_have_to_come_down(config: Make, widths: str) -> None:
    with pytest.raises(ConfigError, match="widths come down"):
        config("bits=w2a3" if widths == "[w4a2]" else "bits=2", f"progressive={widths}")


@pytest.mark.parametrize("value", ["4", "four", "[9]", "{a:1}"])
def test_what_is_no_list_of_widths_is_refused(config: Make, value: str) -> None:
    with pytest.raises(ConfigError, match="progressive"):
        config("bits=2", f"progressive={value}")
