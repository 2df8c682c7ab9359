"""What one job of a sweep leaves behind for the next one in the same process, and loggers that go on."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from qexp.lit import loggers
from qexp.lit.trainer import make_trainer

from .small_run import config


def test_a_job_computes_deterministically_only_where_it_asks_for_it() -> None:
    for wanted in (True, False):
        make_trainer(config(trainer_deterministic=wanted), torch.device("cpu"), [], [])
        assert torch.are_deterministic_algorithms_enabled() is wanted


def test_a_resumed_run_leaves_the_csv_of_its_beginning(tmp_path: Path) -> None:
    folders = [Path(loggers.csv(directory=tmp_path, name="run", purge_step=step).log_dir) for step in (0, 5)]
    assert folders == [tmp_path / "csv", tmp_path / "csv" / "from_5"]


class Server:
    """Stands for a logger of Lightning's: it notes how it was made, and names a new record when it is asked."""

    made: list[dict[str, Any]]

    def __init__(self, run_id: str | None = None, **given: Any) -> None:
        self.made.append(given | {"run_id": run_id})
        self._run_id = run_id

    @property
    def experiment(self) -> str:
        self._run_id = self._run_id or f"record{len(self.made)}"
        return self._run_id


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How the loggers of packages that need not be installed are made."""
    Server.made = []
    for name in ("WandbLogger", "MLFlowLogger"):
        monkeypatch.setattr(f"pytorch_lightning.loggers.{name}", Server)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")  # and is put back as it was
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    return Server.made


def test_a_resumed_run_goes_on_in_its_record_at_mlflow(made: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = str(tmp_path / "mlruns")
    told = {"experiment_name": "qexp", "run_name": "run", "tracking_uri": None, "save_dir": folder}
    loggers.mlflow(directory=tmp_path, name="run")  # as a run's settings are checked: nothing is written
    assert not list(tmp_path.iterdir())
    assert os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true", "without it newer ones refuse a folder"
    for step, record in ((0, "record2"), (0, "record3"), (5, "record3"), (9, "record3")):
        assert loggers.mlflow(directory=tmp_path, name="run", purge_step=step).experiment == record
    ids = [given.pop("run_id") for given in made]
    assert ids == [None, None, None, "record3", "record3"]
    assert made == [told] * 5
    (tmp_path / "mlflow_run.txt").unlink()  # of a run that began with another logger
    loggers.mlflow(directory=tmp_path, name="run", purge_step=5, uri="https://server", project="mine")
    there = {"run_id": None, "tracking_uri": "https://server", "experiment_name": "mine"}
    assert made[-1] == told | there


def test_a_resumed_run_goes_on_in_its_record_at_weights_and_biases(
    made: list[dict[str, Any]], tmp_path: Path
) -> None:
    for step in (0, 5):
        loggers.wandb(directory=tmp_path, name="run", purge_step=step, project="mine", offline=True)
    told = {"save_dir": tmp_path, "name": "run", "project": "mine", "offline": True}
    assert made == [told | {"id": "run", "resume": "allow", "run_id": None}] * 2
