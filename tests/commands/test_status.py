from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path

import pytest
import yaml

from qexp.commands import status
from qexp.errors import ConfigError


def make_run(root: Path, seed: int, **files: str) -> Path:
    path = root / f"mlp-digits-pact-w4a4-s{seed}-0000000{seed}"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"epochs": 40, "seed": seed}))
    (path / "metrics.csv").write_text("epoch,step,name,value\n0,0,alpha/a,9.0\n1,9,lr,0.1\n2,18,lr,0.1\n")
    for name, content in files.items():
        (path / f"{name}.json").write_text(content)
    return path


def test_each_state_with_its_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(
        tmp_path, 0, result=json.dumps({"metrics": {"test_accuracy": 0.975}, "primary_metric": "test_accuracy"})
    )
    make_run(
        tmp_path, 1, failure=json.dumps({"status": "failed", "message": "alpha of relu1\nis NaN", "exit_code": 1})
    )
    make_run(tmp_path, 2)
    running = make_run(tmp_path, 3)
    with (running / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert status.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "4 runs: 1 running, 1 failed, 1 interrupted, 1 done"
    rows = [line.split() for line in out.splitlines() if "mlp-digits" in line]
    assert [row[0] for row in rows] == ["running", "failed", "interrupted", "done"]
    assert rows[0][2:6] == ["epoch", "2", "of", "40"]
    assert "alpha of relu1 is NaN" in out
    assert "97.50%" in out


def test_a_damaged_record_is_shown_and_not_fatal(tmp_path: Path) -> None:
    path = make_run(tmp_path, 0, result='{"metrics": ')
    (path / "config.yaml").write_text("{ broken")
    run = status.collect([tmp_path])[0]
    (row,) = status.status_table([run]).rows
    assert row["status"] == "failed"
    assert "result.json: not readable" in row["why"]
    assert row["progress"] == "epoch 2 of ?"


def test_a_sweeps_words_ask_the_command_that_makes_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    class Done:
        returncode = 0

    monkeypatch.setattr(status.subprocess, "run", lambda command, **_: seen.append(command) or Done)
    assert status.main(["experiment=pact/fig8", "seed=0,1"]) == 0
    assert status.main(["seed=0,1", "experiment=pwlq/table2", "model.weights=FILE"]) == 0
    expected = [
        ["train", "--multirun", "--dry-run", "experiment=pact/fig8", "seed=0,1"],
        ["ptq", "--multirun", "--dry-run", "seed=0,1", "experiment=pwlq/table2", "model.weights=FILE"],
    ]
    assert seen == [[sys.executable, "-m", "qexp", *words] for words in expected]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ask for one of the two"):
        status.main([str(tmp_path), "seed=0,1"])
    with pytest.raises(ConfigError, match="no runs in"):
        status.main([str(tmp_path)])
