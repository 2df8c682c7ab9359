"""What a sweep says before its first job starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from qexp import hydra_app
from qexp.commands.planning import Planned
from qexp.config import Config
from qexp.errors import ConfigError
from qexp.jobs import preflight
from qexp.runs import find_runs

from ..composing import configured

QUICK = ["epochs=1", "batch_size=512", "trainer.progress=false", "logger=none"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QEXP_DATA", raising=False)
    return tmp_path


def train(*words: str) -> int:
    return hydra_app.main("train", ["-m", *QUICK, *words])


def test_what_a_method_does_not_support_is_listed_before_anything_is_trained(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["bits=4,1", "layers.fc2.quantizer=dorefa", "dataset.augment=none,crops", "--dry-run"]
    assert train(*words) == 1
    out, err = capfd.readouterr()
    assert "cannot run 2 jobs" in err
    assert "dataset.augment=crops" in err
    assert "starting" not in err
    assert out.count("start   outputs") == 2
    assert not (here / "outputs").exists()


def test_a_missing_data_set_is_said_once_and_nothing_starts(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train("experiment=pact/table1", "recipe=pact/cifar10_resnet20") == 1
    out, err = capfd.readouterr()
    assert err.count("cannot run") == 1
    assert "no CIFAR10 there" in err
    assert "QEXP_DATA" in err
    assert "9 failed" in out
    assert not (here / "outputs").exists()


def test_an_experiment_of_trained_networks_asks_for_their_weights(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert hydra_app.main("ptq", ["experiment=pwlq/s_table6"]) == 1
    out, err = capfd.readouterr()
    assert err.count("cannot run 3 jobs") == len(err.splitlines()) == 1
    assert "model.weights: qexp ptq starts from a trained network, a random one is never quantized" in err
    assert "3 failed" in out
    assert not (here / "outputs").exists()


def test_jobs_that_mean_one_run_make_it_once(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train("quantizer=none", "bits=2,4,8", "--dry-run") == 0
    out, _ = capfd.readouterr()
    assert "one run, made once: " in out
    assert out.count("start   outputs") == 1


@pytest.mark.slow
def test_a_finished_sweep_starts_no_job_and_keeps_its_order(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train("seed=1,2") == 0
    capfd.readouterr()
    assert train("seed=3,2,1") == 0
    out, _ = capfd.readouterr()
    assert "done already: 2 of 3 runs" in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("[")] == ["seed=3"]
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith(" seed=")]
    assert rows == [["seed=3", "done"], ["seed=2", "skipped"], ["seed=1", "skipped"]]


@pytest.mark.slow
def test_a_run_of_another_experiment_is_linked_and_not_trained_again(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train("experiment.name=one") == 0
    (made,) = (here / "outputs" / "one").iterdir()
    capfd.readouterr()
    before = (made / "result.json").stat().st_mtime_ns
    assert train("experiment.name=two/three", "seed=0,1") == 0
    out, _ = capfd.readouterr()
    assert "done already: 1 of 2 runs" in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("[")] == ["seed=1"]
    linked = here / "outputs" / "two" / "three" / made.name
    assert linked.is_symlink()
    assert linked.resolve() == made.resolve()
    assert (made / "result.json").stat().st_mtime_ns == before
    assert len(find_runs(here / "outputs" / "two")) == 2
    for file in made.rglob("*"):
        if file.is_file():
            file.unlink()
    for folder in sorted(made.rglob("*"), reverse=True):
        folder.rmdir()
    made.rmdir()
    assert linked.is_symlink()
    assert train("experiment.name=two/three") == 0  # the link points at nothing: the run is made here
    assert not linked.is_symlink()


def test_a_bug_in_one_jobs_planning_is_that_jobs_alone(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = preflight.planned_run

    def buggy(config: Config, **named: bool) -> Planned | None:
        if config.seed == 0:
            raise ZeroDivisionError
        return real(config, **named)

    monkeypatch.setattr(preflight, "planned_run", buggy)
    assert train("seed=0,1", "--dry-run") == 0
    assert capfd.readouterr().out.count("start   outputs") == 2


def test_a_job_for_another_machine_is_not_refused_for_this_ones_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = configured("trainer.device=cuda")
    with pytest.raises(ConfigError, match="no CUDA device here"):
        preflight.planned_run(config)
    there = preflight.planned_run(config, here=False)
    assert there is not None and not there.exact  # whether it is compiled, which its name says, is decided there
    eager = preflight.planned_run(configured("trainer.device=cuda", "trainer.compile=false"), here=False)
    assert eager is not None and eager.exact
