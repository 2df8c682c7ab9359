"""What one job of a sweep leaves behind for the next one in the same process, and loggers that go on."""

from __future__ import annotations

from pathlib import Path

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
