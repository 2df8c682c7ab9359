"""Sweeps as a user types them, under every launcher: what is started, shared, skipped, stopped and lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from qexp import hydra_app
from qexp.jobs import launchers
from qexp.runs import Run, find_runs

NAMES = ["joblib", "submitit_local", "ray"]
PLUGINS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}


@pytest.fixture
def launcher(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    module = f"hydra_plugins.hydra_{PLUGINS[name]}_launcher"
    if find_spec("hydra_plugins") is None or find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'qexp[launchers]'")
    return name


under = pytest.mark.parametrize(
    "launcher",
    ["joblib", *(pytest.param(name, marks=pytest.mark.long) for name in ("submitit_local", "ray"))],
    indirect=True,
)
"""The first in every run of the tests; the others, a minute each, where they are asked for by hand (-m long)."""


def typed(launcher: str, *words: str) -> list[str]:
    small = ["model.hidden=[8]", "trainer.progress=false"]
    limits = {"joblib": ["hydra.launcher.n_jobs=2"], "ray": ["hydra.launcher.ray.init.num_cpus=2"]}
    limits["submitit_local"] = ["hydra.sweeper.max_batch_size=2"]
    return ["-m", f"hydra/launcher={launcher}", *words, *small, *limits.get(launcher, [])]


def start(folder: Path, launcher: str, *words: str, **options: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, "-m", "qexp", "train", *typed(launcher, *words)],
        cwd=folder,
        env={**environment, **options.pop("env", {})},  # type: ignore[dict-item]
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def sweep(folder: Path, launcher: str, *words: str, **options: object) -> tuple[int, str, str]:
    process = start(folder, launcher, *words, **options)
    printed, errors = process.communicate(timeout=400)
    assert "Traceback" not in errors, errors
    return process.returncode, printed, errors


def counts(printed: str) -> set[str]:
    (title,) = (line for line in printed.splitlines() if " jobs of " in line)
    return set(title.rpartition(": ")[2].split(", "))


def wait_for(folder: Path, pattern: str, seconds: float = 200) -> list[Path]:
    deadline = time.monotonic() + seconds
    while not (found := list(folder.glob(pattern))):
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.05)
    return found


def only_run(folder: Path) -> Run:
    (run,) = find_runs(folder)
    return run


@pytest.mark.slow
@under
def test_a_sweep_with_twins_and_failures_typed_twice(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Jobs 1 and 2 are one run: the cadence of checkpoints decides no result. Jobs 3 and 4 have no meaning.
    words = ["epochs=1", "bits=2,9", "trainer.checkpoint_minutes=5,6", "layers.'fc*1'.quantizer=dorefa"]
    code, printed, errors = sweep(tmp_path, launcher, *words)
    assert code == 1, errors
    assert {"1 done", "2 failed"} == counts(printed)
    assert printed.count("one run, made once: ") == 1
    assert "bits=9: a width is 1 to 8" in printed
    run = only_run(tmp_path)
    assert run.status == "done"
    assert run.config["layers"]["fc*1"]["quantizer"]["name"] == "dorefa"
    assert run.environment["command"].startswith(f"qexp train -m hydra/launcher={launcher}")
    assert run.environment["threads"] == max(1, launchers.cores() // 2) or launcher == "ray"
    before = (run.path / "result.json").stat().st_mtime_ns

    monkeypatch.chdir(tmp_path)
    assert hydra_app.main("train", typed(launcher, *words)) == 1
    assert {"1 skipped", "2 failed"} == counts(capsys.readouterr().out)
    assert (run.path / "result.json").stat().st_mtime_ns == before


# Under Ray, on a busy machine, the summary lacked the signal once in two.
@pytest.mark.slow
@under
def test_ctrl_c_leaves_checkpoints_that_go_on(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["epochs=2000", "seed=0,1,2", "trainer.compile=false"]
    process = start(tmp_path, launcher, *words, start_new_session=True)
    wait_for(tmp_path, "outputs/train/*/metrics.csv")
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the launcher's processes too
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted by Ctrl-C" in printed
    assert "missing" in printed
    stopped = [run for run in find_runs(tmp_path) if (run.path / "last.ckpt").exists()]
    assert stopped
    assert {run.status for run in find_runs(tmp_path)} == {"interrupted"}
    monkeypatch.chdir(tmp_path)
    assert hydra_app.main("train", typed("basic", *words, "--dry-run")) == 0
    assert capsys.readouterr().out.count("resume  outputs") == len(stopped)
    assert not list(tmp_path.glob("outputs/.sweep-*"))


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib"], indirect=True)
def test_a_signal_to_the_whole_group_is_nothing_to_a_worker_that_waits(launcher: str, tmp_path: Path) -> None:
    process = start(tmp_path, launcher, "epochs=1,2000", "trainer.compile=false", start_new_session=True)
    wait_for(tmp_path, "outputs/train/*/result.json")
    wait_for(tmp_path, "outputs/train/*/metrics.csv")
    time.sleep(1)  # the worker of the short run takes its way back to the queue
    os.killpg(process.pid, signal.SIGTERM)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert {"1 done", "1 interrupted"} == counts(printed)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["submitit_local"], indirect=True)
def test_a_scheduler_that_needs_the_machine_gets_a_checkpoint_and_the_job_back(
    launcher: str, tmp_path: Path
) -> None:
    process = start(tmp_path, launcher, "epochs=150", "trainer.compile=false")
    (log,) = wait_for(tmp_path, "outputs/.sweep-*/jobs/*/*_0_log.out")
    wait_for(tmp_path, "outputs/train/*/metrics.csv")
    owner = (only_run(tmp_path).path / ".claim").read_text().split()[0]
    os.kill(int(owner), signal.SIGUSR2)
    seen = ""
    while process.poll() is None:
        seen = log.read_text() if log.exists() else seen
        time.sleep(0.05)
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "1 done" in printed
    assert "going on with" in seen
    assert only_run(tmp_path).status == "done"


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib"], indirect=True)
def test_a_worker_that_is_killed_is_no_riddle(launcher: str, tmp_path: Path) -> None:
    process = start(tmp_path, launcher, "epochs=2000", "seed=0,1,2", "trainer.compile=false")
    wait_for(tmp_path, "outputs/train/*/metrics.csv")
    owner = next(iter(wait_for(tmp_path, "outputs/train/*/.claim"))).read_text().split()[0]
    os.kill(int(owner), signal.SIGKILL)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "hydra/launcher=joblib gave up" in errors
    assert "its process ended without a word" in printed


SBATCH = """#!{python}
import os, re, subprocess, sys
script = sys.argv[1]
last = int(re.search(r"--array=0-(\\d+)", open(script).read())[1])
open(os.environ["SEEN"], "w").write(open(script).read())
for task in range(last + 1):
    names = {{"SLURM_JOB_ID": str(100 + task), "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(task),
             "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0",
             "SLURM_LOCALID": "0", "SLURM_CPUS_PER_TASK": "1"}}
    subprocess.Popen(["sh", script], env={{**os.environ, **names}}, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
print("Submitted batch job 77")
"""
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do case $1 in --unbuffered) shift ;; *) shift 2 ;; esac; done
exec "$@"
"""


@pytest.mark.long  # three processes, one after the other: half a minute
@pytest.mark.parametrize("launcher", ["submitit_slurm"], indirect=True)
def test_what_slurm_would_be_given(launcher: str, tmp_path: Path) -> None:
    """No Slurm is needed: stand-ins run the script that it would get, with the variables that it would set."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH.format(python=sys.executable)), ("srun", SRUN), ("sacct", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    seen = tmp_path / "seen"
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    settings = ["partition=gpu", "account=lab", "gpus_per_node=1", "timeout_min=30", "array_parallelism=1"]
    words = ["epochs=1", "bits=2,9", "seed=0,1", *(f"hydra.launcher.{setting}" for setting in settings)]
    code, printed, errors = sweep(tmp_path, launcher, *words, env={"PATH": path, "SEEN": str(seen)})
    assert code == 1, errors
    assert {"2 done", "2 failed"} == counts(printed)
    lines = [line.removeprefix("#SBATCH ") for line in seen.read_text().splitlines()]
    wanted = ["--partition=gpu", "--account=lab", "--gpus-per-node=1", "--time=30", "--array=0-1%1"]
    assert set(wanted) <= set(lines)
    assert "--signal=USR2@120" in lines
    runs = find_runs(tmp_path)
    assert [(run.status, run.environment["threads"]) for run in runs] == [("done", 1)] * 2


def test_an_extra_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    for name in [*NAMES, "submitit_slurm"]:
        assert hydra_app.main("train", ["-m", f"hydra/launcher={name}", "seed=0,1"]) == 2
        needs = f"qexp train: hydra/launcher={name}: needs the extra: pip install 'qexp[launchers]'\n"
        assert capsys.readouterr().err == needs


@pytest.mark.parametrize("launcher", ["submitit_slurm"], indirect=True)
def test_slurm_is_missed_before_anything_starts(
    launcher: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert hydra_app.main("train", ["-m", f"hydra/launcher={launcher}", "seed=0,1"]) == 2
    assert "there is no Slurm here" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["ray"], indirect=True)
def test_only_the_environment_chooses_a_running_ray(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    given: list[dict[str, object]] = []
    monkeypatch.setattr(ray, "init", lambda **settings: given.append(settings))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(launchers, "_reach_ray", lambda address: None)
    chosen = launchers.Launcher(launcher, {"ray": {"init": {"address": None, "num_cpus": 1}}})
    for address in ("", "head:6379"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with chosen.environment(None):
            pass
    assert [settings["address"] for settings in given] == ["local", None]


@pytest.mark.parametrize("launcher", ["ray"], indirect=True)
def test_a_ray_that_does_not_answer_is_one_line(
    launcher: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    words = ["-m", f"hydra/launcher={launcher}", "epochs=1", "seed=0,1", f"output_dir={tmp_path}/runs"]
    assert hydra_app.main("train", words) == 2
    said = capsys.readouterr().err
    assert said.startswith("qexp train: RAY_ADDRESS=127.0.0.1:1: no Ray answers there")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("launcher", "word"),
    [
        ("joblib", "hydra.launcher.n_jobs=many"),
        ("submitit_slurm", "hydra.launcher.timeout_min=soon"),
        ("submitit_local", "hydra.launcher.partition=gpu"),
    ],
    indirect=["launcher"],
)
def test_a_setting_of_the_wrong_kind_is_one_line(
    launcher: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hydra_app.main("train", ["-m", f"hydra/launcher={launcher}", word, "seed=0,1"]) == 2
    said = capsys.readouterr().err
    assert word.split("=")[0].rpartition(".")[2] in said
    assert said.count("\n") == 1


def test_every_launcher_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("train", ["hydra/launcher=jobilb"]) == 2
    assert "Did you mean 'joblib'" in capsys.readouterr().err


def test_a_run_that_another_process_has_does_not_fail_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qexp.commands import train

    held = []
    real = train._own

    def busy(planned: train.Planned) -> bool:
        if planned.config.seed == 1:
            planned.run.path.mkdir(parents=True)
            lock = planned.run.lock()
            lock.__enter__()
            held.append(lock)
        return real(planned)

    monkeypatch.setattr(train, "_own", busy)
    words = ["-m", "epochs=1", "seed=0,1", "model.hidden=[8]", f"output_dir={tmp_path}", "trainer.threads=1"]
    assert hydra_app.main("train", words) == 0
    printed = capsys.readouterr().out
    assert "1 done, 1 running" in printed
    assert "another process has 1 of these" in printed
    held[0].__exit__(None, None, None)
