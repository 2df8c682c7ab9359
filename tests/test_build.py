from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from qexp import build as module
from qexp.build import add_plugin, build, check_targets, locate
from qexp.errors import ConfigError


def test_builds_with_the_nodes_arguments_and_the_callers() -> None:
    schedule = build({"_target_": "qexp.lit.schedules.step", "every": 1}, of=2)
    assert schedule(0.6) == pytest.approx(0.1)


def test_partial_waits_for_the_rest() -> None:
    waiting = build({"_target_": "qexp.lit.schedules.step", "_partial_": True, "every": 1})
    assert isinstance(waiting, partial)
    assert waiting(of=2)(0.0) == 1.0


def test_an_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"takes no 'evry'\. Did you mean 'every'"):
        build({"_target_": "qexp.lit.schedules.step", "evry": 1, "of": 2})


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(ConfigError, match="needs of"):
        build({"_target_": "qexp.lit.schedules.step", "every": 1})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.hub.load",
        "builtins.eval",
        "subprocess.Popen",
        "qexp.data.os.system",
        "qexp.models.mlp.torch.hub.load",
        "qexp.build.add_plugin",
        "qexp.build.importlib.import_module",
        "qexp.runs.atomic_write",
        "qexp.cli.main",
        "qexpevil.models.Model",
        "qexp",
        "qexp.models",
        "qexp.models.mlp.__builtins__",
        "qexp.models.mlp.MLP.__init__",
        "qexp.models..mlp",
        ".qexp.models",
        "",
        None,
        3,
    ],
)
def test_other_targets_are_refused(target: object) -> None:
    with pytest.raises(ConfigError, match="_target_="):
        build({"_target_": target})


@pytest.mark.parametrize("target", ["qexp.models.mlp.nn", "qexp.models.mlp.Tensor", "qexp.lit.schedules.Schedule"])
def test_what_is_only_imported_there_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="refused"):
        locate(target)


def test_a_class_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'MLP'"):
        locate("qexp.models.mlp.MLPP")


def test_a_key_builds_only_what_it_is_for() -> None:
    check_targets({"model": {"_target_": "qexp.models.mlp.MLP"}})
    check_targets({"observer": {"_target_": "qexp.calibration.observers.TopK"}})
    with pytest.raises(ConfigError, match=r"qexp\.models is built here"):
        check_targets({"model": {"_target_": "qexp.lit.optimizers.sgd"}})
    with pytest.raises(ConfigError, match=r"qexp\.calibration is built here"):
        check_targets({"observer": {"_target_": "qexp.models.mlp.MLP"}})
    with pytest.raises(ConfigError, match="refused"):
        check_targets({"trainer": {"deep": [{"_target_": "qexp.models.mlp.MLP"}]}})


def test_a_plugin_that_the_user_named_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text("from os import getcwd\nclass Mine: ...\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv(module.PLUGINS_VARIABLE, "")
    with pytest.raises(ConfigError, match="refused"):
        locate("my_methods.Mine")
    add_plugin("my_methods", [tmp_path])
    assert locate("my_methods.Mine").__name__ == "Mine"
    with pytest.raises(ConfigError, match="refused"):
        locate("my_methods.getcwd")


@pytest.mark.parametrize("name", ["os", "builtins", "subprocess", "no_such_package", "a.b", "../x", ""])
def test_other_plugins_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--plugin"):
        add_plugin(name)
