"""Runs as a user types them, in processes of their own: several processes a run, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qexp import hydra_app
from qexp.runs import find_runs

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


DDP = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.device=cpu", "trainer.progress=false")


def command(tmp_path: Path, *overrides: str) -> list[str]:
    words = ["epochs=2", f"output_dir={tmp_path}", "model.hidden=[32]", "trainer.threads=1", *overrides]
    return [sys.executable, "-m", "qexp", "train", *words]


@pytest.mark.long
def test_a_sweep_of_two_process_runs_whose_first_job_fails_and_is_typed_again(tmp_path):
    line = [*command(tmp_path, "optimizer.lr=1e20,0.1", "epochs=1", *DDP), "-m"]
    first = subprocess.run(line, capture_output=True, text=True, check=False)
    assert first.returncode == 1, first.stderr
    runs = {run.config["optimizer"]["lr"]: run for run in find_runs(tmp_path)}
    assert {lr: run.status for lr, run in runs.items()} == {0.1: "done", 1e20: "failed"}
    assert "not a number" in runs[1e20].failure
    result = runs[0.1].path / "result.json"
    written = result.stat().st_mtime_ns
    again = subprocess.run(line, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "done already: 1 of 2 runs" in again.stdout
    assert result.stat().st_mtime_ns == written


@pytest.mark.long
def test_two_process_runs_of_a_parallel_sweep_take_turns(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra `joblib` is not installed")
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "epochs=1", "seed=0,1", *DDP, "-m"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # the locks of this test alone
    done = subprocess.run(
        command(tmp_path / "out", *words), capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    runs = find_runs(tmp_path / "out")
    assert [run.status for run in runs] == ["done", "done"]
    spans = sorted(
        [(run.path / name).stat().st_mtime_ns for name in ("config.yaml", "result.json")] for run in runs
    )
    assert spans[0][1] <= spans[1][0], "the second began before the first had ended"


def test_a_signal_to_a_two_process_run_leaves_a_checkpoint_that_goes_on(tmp_path):
    words = command(tmp_path, "epochs=300", *DDP)
    job = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_rows(tmp_path)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 143, errors
    (run,) = find_runs(tmp_path)
    assert run.status == "interrupted"
    assert (run.path / "last.ckpt").exists()
    assert "Traceback" not in errors


def test_ctrl_c_during_a_sweep_and_typing_it_again(tmp_path, capsys):
    line = [*command(tmp_path, "epochs=30", "seed=0,1", "trainer.progress=false"), "-m"]
    job = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
        start_new_session=True,
    )
    wait_for_rows(tmp_path)
    os.killpg(job.pid, signal.SIGINT)
    out, errors = job.communicate(timeout=60)
    assert job.returncode == 130, errors
    assert "2 jobs" in out
    assert "1 interrupted, 1 missing" in out
    assert "type the same command again" in out
    assert "Traceback" not in errors
    (run,) = find_runs(tmp_path)
    assert (run.status, (run.path / "last.ckpt").exists()) == ("interrupted", True)
    assert hydra_app.main("train", line[line.index("train") + 1 :]) == 0
    assert "going on with" in capsys.readouterr().out
    assert [run.status for run in find_runs(tmp_path)] == ["done", "done"]


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it


def wait_for_rows(root: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if any(path.read_text().count("train_loss") > 1 for path in root.rglob("metrics.csv")):
            return
        time.sleep(0.1)
    pytest.fail("no epoch was recorded in 90 s")
