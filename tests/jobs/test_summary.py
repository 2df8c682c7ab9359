from __future__ import annotations

import re
from pathlib import Path

import pytest

from qexp.jobs.job import Record
from qexp.jobs.summary import print_summary, settled
from qexp.runs import RunDirectory

LONG = "resnet20_v1-cifar10-pact-w4a4-s0-1a2b3c4d"


def job(number: int, status: str = "done", **fields: object) -> Record:
    overrides = f"model=resnet20_v1 quantizer=pact bits={number} layers.layer1.*.bits=8 seed=0"
    return Record(overrides, status, **{"run_id": LONG, "metric": 0.5, "metric_name": "test_accuracy", **fields})  # type: ignore[arg-type]


def test_a_runs_name_is_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_summary([job(2), job(4, run_id="x" * 60)])
    printed = capsys.readouterr().out
    assert f"{LONG}" in printed
    assert "x" * 60 in printed


def test_a_narrow_terminal_folds_the_jobs_and_not_the_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    print_summary([job(2), Record("model=mlp " + "word " * 20, "done", run_id=LONG)])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert sum(LONG in line for line in lines) == 2
    assert max(len(line.rstrip()) for line in lines[1:]) <= 80


def test_reasons_stand_below_whole_and_the_signal_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "a reason " * 30
    records = [
        job(2),
        job(3, "failed", message=f"{reason}\nmore", metric=None, run_id=""),
        job(4, "interrupted", message="interrupted by Ctrl-C; type the same command again", metric=None),
        job(8, "missing", message="not started", metric=None),
    ]
    print_summary(records)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": 1 done, 1 failed, 1 interrupted, 1 missing")
    assert "model=resnet20_v1" in lines[0]
    assert f"failed bits=3: {reason.rstrip()}" in [line.rstrip() for line in lines]
    assert lines[-1] == "interrupted by Ctrl-C; type the same command again"


def test_all_that_is_wrong_with_a_configuration_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = {"message": "epochs=0: too few.\nbatch_size=0: too few.", "exit_code": 2, "metric": None}
    bug = {"message": "KeyError: a\nb", "exit_code": 1, "metric": None}
    print_summary([job(2, "failed", **mistakes), job(3, "failed", **bug), job(4, "failed", **mistakes)])
    *_, first, second, last = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert (first, second) == ("failed bits=2; bits=4: epochs=0: too few.", "  batch_size=0: too few.")
    assert last == "failed bits=3: KeyError: a"


def test_a_run_that_ends_while_one_looks_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    status = RunDirectory.status

    def late(self: RunDirectory) -> str:
        found = status(self)
        run.write_result({"metrics": {}, "run_id": "x", "primary_metric": "test_accuracy"})
        return found

    monkeypatch.setattr(RunDirectory, "status", late)
    assert settled(Record("seed=0", "running", path=str(tmp_path))).status == "skipped"


def test_jobs_without_a_metric_have_no_column_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary([job(2, "start", metric=None)])
    assert "accuracy" not in capsys.readouterr().out


def test_different_metrics_are_named_where_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    records = [job(2, metric=0.91), job(4, metric=114.2, metric_name="test_perplexity"), job(8, metric=None)]
    print_summary(records)
    _, _, header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["job", "status", "result", "run"]
    assert "test accuracy 0.9100" in lines[0]
    assert "test perplexity 114.2000" in lines[1]
    print_summary(records[::2])
    _, _, header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["job", "status", "test", "accuracy", "run"]
    assert "0.9100" in lines[0] and "accuracy" not in lines[0]
