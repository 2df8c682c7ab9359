"""Configurations that try to run code: none may get as far as touching a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qexp import hydra_app
from qexp.errors import ConfigError
from qexp.jobs import security
from qexp.jobs.security import check_hydra, check_interpolations, check_overrides

GLOBAL = "# @package _global_\n"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that an attack would make."""
    return tmp_path / "mark"


def run(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run with an experiment file of `text` and return what was said; it has to end as a user's mistake."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True, exist_ok=True)
    (tmp_path / "mine" / "experiment" / "evil.yaml").write_text(GLOBAL + text)
    code = hydra_app.main("train", ["--config-dir", str(tmp_path / "mine"), "experiment=evil", *words])
    printed = capsys.readouterr()
    assert code == 2, printed
    assert "Traceback" not in printed.err
    return printed.err


@pytest.mark.parametrize(
    "text",
    [
        "hydra: {callbacks: {x: {_target_: os.system, command: touch MARK}}}",
        "hydra: {callbacks: {x: {_target_: torch.hub.load, repo_or_dir: MARK}}}",
        "hydra: {job_logging: {root: {handlers: [x]}, handlers: {x: {(): os.system, command: touch MARK}}}}",
        "hydra: {hydra_logging: {version: 1, root: {handlers: [x]}, handlers: {x: {(): os.mkdir, path: MARK}}}}",
        "hydra: {job_logging: {root: {handlers: [x]}, handlers: {x: {class: logging.FileHandler, mode: MARK}}}}",
        "hydra: {job_logging: {formatters: {x: {format: 'ext://os.sep'}}}}",
        "hydra: {launcher: {_target_: os.system, command: touch MARK}}",
        "hydra: {sweeper: {_target_: os.system, command: touch MARK}}",
        "hydra: {sweeper: {sampler: {_target_: os.system}}}",
        "hydra: {launcher: {setup: [touch MARK]}}",
        "hydra: {launcher: {teardown: [touch MARK]}}",
        "hydra: {job: {env_set: {QEXP_PLUGINS: os}}}\nmodel: {_target_: os.mkdir, path: MARK}",
        "hydra: {searchpath: [pkg://antigravity]}",
        "model: {_target_: os.mkdir, path: MARK}",
        "rounding: {_target_: qexp.runs.atomic_write, path: MARK, content: x}",
        "rounding: {_target_: qexp.build.add_plugin, name: os}",
        "layers: {x: {quantizer: {name: x, weight: {_target_: os.mkdir, path: MARK}, activation: null}}}",
        "logger: {x: {_target_: qexp.build.os.mkdir, path: MARK}}",
        "seed: ${evil:MARK}",
    ],
)
@pytest.mark.filterwarnings("ignore:provider=hydra.searchpath")
def test_a_file_that_would_run_code_is_refused(
    text: str, tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(tmp_path, text.replace("MARK", str(mark)), capsys)
    # Hydra's own schema refuses some of them first: a key that its launcher or sweeper does not have.
    assert any(word in said for word in ("refused", "unknown", "not in 'Basic", "only supported from")), said
    assert not mark.exists()


@pytest.mark.parametrize(
    "word",
    [
        "hydra.callbacks.x._target_=os.system",
        "+hydra.callbacks.x._target_=os.system",
        "++hydra.callbacks={x:{_target_:os.system}}",
        "hydra/callbacks=x",
        "+hydra/callbacks@hydra.callbacks.y=x",
        "++hydra.job_logging.handlers.x.class=os.system",
        "hydra.hydra_logging={root:{},handlers:{x:{(): os.system}}}",
        "hydra/job_logging=default",
        "++hydra.launcher._target_=os.system",
        "hydra.sweeper._target_=os.system",
        "hydra.launcher={_target_:os.system}",
        "++hydra={callbacks:{x:{_target_:os.system}}}",
        "hydra.searchpath=[pkg://os]",
        "++hydra.job.env_set.QEXP_PLUGINS=os",
        "model._target_=os.system",
        "model={_target_:os.system}",
        "++quantizer.weight._target_=torch.hub.load",
    ],
)
def test_a_typed_override_that_would_run_code_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("train", [word]) == 2
    said = capsys.readouterr().err
    assert "refused" in said or "cannot read" in said, said
    assert "Traceback" not in said


def test_in_a_sweep_the_evil_job_fails_alone(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        text = f"{GLOBAL}hydra: {{callbacks: {{x: {{_target_: os.mkdir, path: {mark}}}}}}}\n"
        (folder / f"{name}.yaml").write_text(text)
    words = ["-m", "--dry-run", "--config-dir", str(tmp_path / "mine"), "experiment=a,b"]
    assert hydra_app.main("train", words) == 1
    printed = capsys.readouterr().err
    assert "cannot run 2 jobs" in printed
    assert "hydra.callbacks: refused" in printed
    assert not mark.exists()


def test_a_saved_configuration_passes_the_same_gate(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"model: {{_target_: os.mkdir, path: {mark}}}\nexperiment: {{name: train}}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert hydra_app.main("eval", [f"eval.run={tmp_path}"]) == 2
    assert "_target_=os.mkdir: refused" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text(f"!!python/object/apply:os.mkdir [{mark}]\n")
    assert hydra_app.main("eval", [f"eval.run={tmp_path}"]) == 2
    assert not mark.exists()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"comment": "a\ntouch MARK"}, "comment"),  # sbatch's script: the second line is a command
        ({"name": "${oc.env:NAME}"}, "name"),
        ({"additional_parameters": {"comment=a\ntouch MARK": 1}}, "additional_parameters"),
        ({"additional_parameters": {"export": "ALL,BASH_ENV=MARK"}}, "additional_parameters: 'export'"),
        ({"teardown": ["touch MARK"]}, "teardown"),
        ({"srun_args": ["--prolog=MARK"]}, "srun_args"),
        ({"python": "sh MARK"}, "python"),
        ({"ray": {"init": {"runtime_env": {"py_executable": "sh MARK"}}}}, "ray.init: 'runtime_env'"),
        ({"ray": {"init": {"address": "ray://elsewhere:10001"}}}, "ray.init: 'address'"),
        ({"ray": {"remote": {"runtime_env": {"pip": ["evil"]}}}}, "ray.remote: 'runtime_env'"),
    ],
)
def test_a_launchers_setting_that_would_run_code_is_refused(settings: dict[str, Any], key: str) -> None:
    target = sorted(security.LAUNCHERS)[-1]
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{key}.*refused") as caught:
        check_hydra({"launcher": {"_target_": target, **settings}})
    assert "\n" not in str(caught.value)


def test_what_is_shipped_passes() -> None:
    check_overrides(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra/job_logging=none", "seed=3"])
    check_hydra(
        {
            "callbacks": {},
            "job_logging": {"version": 1, "root": None},
            "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
            "sweeper": {
                "_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
                "params": {"bits": "2"},
            },
        }
    )
    check_interpolations({"a": "${b.c}", "d": "${oc.env:QEXP_DATA,data}/x", "e": "${hydra:job.num}"})


def test_a_resolver_of_someone_elses_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"config\.a="):
        check_interpolations({"a": "x${evil:1}"})
