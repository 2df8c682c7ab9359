from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qexp.errors import CheckpointError
from qexp.files import MetricsFile
from qexp.lit import checkpoint
from qexp.lit.checkpoint import read_checkpoint


def other_file_system() -> str | None:
    """A folder on another file system than /tmp, to be TMPDIR: os.replace cannot cross from there."""
    shm = Path("/dev/shm")
    return str(shm) if shm.is_dir() and os.access(shm, os.W_OK) else None


@pytest.fixture(scope="module")
def killed(small_run, tmp_path_factory):
    """Folders of runs that died by SIGKILL, by the name of the point."""
    root = tmp_path_factory.mktemp("killed")
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if (elsewhere := other_file_system()) is not None:
        environment["TMPDIR"] = elsewhere
    done = subprocess.run(
        [sys.executable, str(small_run.path), str(root)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def whole(small_run, tmp_path_factory):
    """The same run, never interrupted and without checkpoints in mid-epoch."""
    folder = tmp_path_factory.mktemp("whole")
    network, metrics = small_run.train(folder)
    return folder, network.state_dict(), metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["mid_epoch", "before_any_checkpoint", "in_a_checkpoint_write", "after_metrics", "after_the_swap"]
)
def test_a_killed_run_goes_on_bit_for_bit(point, killed, whole, small_run):
    folder, state, metrics = whole
    torch.manual_seed(123)  # whatever drew numbers before must not matter
    network, resumed = small_run.train(killed / point, trainer_checkpoint_steps=4)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    timeless = {name: value for name, value in metrics.items() if name != "train_seconds"}
    assert {name: resumed[name] for name in timeless} == timeless
    assert MetricsFile(killed / point / "metrics.csv").rows() == MetricsFile(folder / "metrics.csv").rows()
    ours, theirs = (read_checkpoint(path / "last.ckpt") for path in (folder, killed / point))
    assert ours["global_step"] == theirs["global_step"] == 33
    assert ours["lr_schedulers"][0]["last_epoch"] == theirs["lr_schedulers"][0]["last_epoch"]
    for index, buffers in ours["optimizer_states"][0]["state"].items():
        assert torch.equal(
            buffers["momentum_buffer"], theirs["optimizer_states"][0]["state"][index]["momentum_buffer"]
        )
    assert torch.equal(ours["qexp"]["random"][0]["torch"], theirs["qexp"]["random"][0]["torch"])


def test_a_finished_training_is_not_trained_again(whole, small_run, monkeypatch):
    folder, state, metrics = whole
    clock = SimpleNamespace(monotonic=itertools.count().__next__)  # a second passes with each look at it
    monkeypatch.setattr(checkpoint, "time", clock)
    network, again = small_run.train(folder)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert again["train_loss"] == metrics["train_loss"]
    spent = read_checkpoint(folder / "last.ckpt")["qexp"]["train_seconds"]
    assert spent > 0
    assert again["train_seconds"] == pytest.approx(spent + 1)  # loading it is all that came on top


def test_a_truncated_checkpoint_is_named(small_run, tmp_path):
    small_run.train(tmp_path, epochs=1)
    path = tmp_path / "last.ckpt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        small_run.train(tmp_path, epochs=2)


def test_a_checkpoint_holds_tensors_and_primitives_only(small_run, tmp_path):
    small_run.train(tmp_path, epochs=1)
    torch.load(tmp_path / "last.ckpt", weights_only=True)
