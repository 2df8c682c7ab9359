from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qexp import hydra_app
from qexp.config import Config
from qexp.errors import ConfigError, Interrupted
from qexp.jobs import job as jobs
from qexp.jobs import preflight
from qexp.jobs.composition import decode_overrides, encode_override

from .composing import compose


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """Commands only note what they were called with; the current folder is empty."""
    found: list[Config] = []

    def note(job: jobs.Job, config: Config) -> dict[str, Any]:
        found.append(config)
        if config.seed == 13:
            raise ConfigError("seed=13: brings bad luck.")
        if config.seed == 14:
            raise RuntimeError("a bug")
        if config.seed == 15:
            raise Interrupted(15)
        return {"status": "done", "run_id": f"run{len(found)}", "metrics": {"m": 0.5}, "primary_metric": "m"}

    monkeypatch.setattr(jobs, "_execute", note)
    monkeypatch.setattr(preflight, "planned_run", lambda config: None)
    monkeypatch.setattr(jobs, "_interrupted_by", [])
    monkeypatch.chdir(tmp_path)
    return found


def widths(configs: list[Config]) -> list[tuple[int, int]]:
    return [(config.bits.weight, config.bits.activation) for config in configs]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's own configurations, with integers where bits are chosen."""
    folder = tmp_path / "mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "quantizer").mkdir()
    header = "# @package _global_\n"
    (folder / "experiment" / "four.yaml").write_text(
        header + "defaults:\n  - override /bits: 3\n  - _self_\nexperiment: {name: mine/four}\n"
    )
    (folder / "experiment" / "sweep.yaml").write_text(
        header
        + "experiment: {name: sweep}\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      bits: 2,w4a8,8\n"
        + "      layers.'layers.*'.bits: 5\n"
    )
    (folder / "experiment" / "one.yaml").write_text(
        header + "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      bits: 6\n"
    )
    (folder / "quantizer" / "narrow.yaml").write_text(
        "defaults:\n  - pact\n  - override /bits@_global_.bits: 2\n  - _self_\nfirst_last: 8\n"
    )
    return folder


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("bits=4", (4, 4)),
        ("bits='4'", (4, 4)),
        ("bits=w4a8", (4, 8)),
        ("bits=32", (32, 32)),
        ("bits.weight=3", (3, 4)),
    ],
)
def test_bits_of_a_single_run(started: list[Config], typed: str, expected: tuple[int, int]) -> None:
    assert hydra_app.main("train", [typed]) == 0
    assert widths(started) == [expected]


def test_bits_of_a_sweep(started: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("train", ["-m", "bits=2,w4a8,32", "seed=0,1"]) == 0
    assert widths(started) == [(2, 2)] * 2 + [(4, 8)] * 2 + [(32, 32)] * 2
    assert "6 jobs" in capsys.readouterr().out


def test_a_sweep_over_what_a_glob_picks(started: list[Config], mine: Path) -> None:
    assert (
        hydra_app.main("train", ["-m", "--config-dir", str(mine), "quantizer=glob([pact*,narr*])", "bits=3"]) == 0
    )
    assert [config.names["quantizer"] for config in started] == ["narrow", "pact"]
    assert widths(started) == [(3, 3)] * 2


def test_bits_in_defaults_lists_of_ones_own(started: list[Config], mine: Path) -> None:
    assert hydra_app.main("train", ["--config-dir", str(mine), "experiment=four"]) == 0
    assert hydra_app.main("train", ["--config-dir", str(mine), "quantizer=narrow"]) == 0
    assert widths(started) == [(3, 3), (2, 2)]
    assert started[0].experiment.name == "mine/four"
    assert started[1].first_bits == (8, 8)


def test_an_experiment_brings_its_own_sweep(started: list[Config], mine: Path) -> None:
    assert hydra_app.main("train", ["--config-dir", str(mine), "experiment=sweep"]) == 0
    assert widths(started) == [(2, 2), (4, 8), (8, 8)]
    assert [config.layers[0].pattern for config in started] == ["layers.*"] * 3
    assert started[0].layers[0].bits == (5, 5)
    assert hydra_app.main("train", ["--config-dir", str(mine), "experiment=sweep", "bits=7"]) == 0
    assert widths(started[3:]) == [(7, 7)]
    assert hydra_app.main("train", ["--config-dir", str(mine), "experiment=one"]) == 0
    assert widths(started[4:]) == [(6, 6)]
    assert started[4].experiment.name == "one"


def test_a_sweep_over_layers_by_pattern(started: list[Config]) -> None:
    assert hydra_app.main("train", ["-m", "layers.'layers.*'.bits=2,3", "layers.last.scope=channel"]) == 0
    assert [config.layers[0].bits for config in started] == [(2, 2), (3, 3)]
    assert started[0].layers[1].pattern == "last"


def test_a_layers_quantizer_is_looked_up(started: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("train", ["layers.x.quantizer=dorefa"]) == 0
    setting = started[0].layers[0]
    assert setting.quantizer == "dorefa"
    assert setting.method is not None
    assert setting.method["weight"]["_target_"] == "qexp.quantizers.dorefa.DoReFaWeight"
    assert hydra_app.main("train", ["layers.x.quantizer=dorfa"]) == 2
    assert "Did you mean 'dorefa'" in capsys.readouterr().err


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run's folder as somebody else might send it."""
    folder = tmp_path / "a run, of=ours"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        yaml.safe_dump({**compose("bits=3"), "names": {"model": "mlp", "dataset": "digits", "quantizer": "pact"}})
    )
    return folder


@pytest.mark.parametrize("command", ["eval", "explain"])
def test_a_runs_folder_needs_no_key(started: list[Config], saved: Path, command: str) -> None:
    assert hydra_app.main(command, [str(saved)]) == 0
    assert hydra_app.main(command, [f"{command}.run='{saved}'", "dataset.root=elsewhere"]) == 0
    assert widths(started) == [(3, 3)] * 2
    assert [config.dataset["root"] for config in started] == ["", "elsewhere"]


def test_what_a_run_has_decided_cannot_be_typed(
    started: list[Config], saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hydra_app.main("eval", [str(saved), "bits=2"]) == 2
    assert "bits=2: the run's own config.yaml decides this" in capsys.readouterr().err
    # of a text, which the digits that are composed before the run is read do not have
    assert hydra_app.main("eval", [str(saved), "dataset.eval_lanes=1"]) == 2
    assert "dataset.eval_lanes=1: the run's own config.yaml decides this" in capsys.readouterr().err
    assert hydra_app.main("eval", ["nowhere"]) == 2
    assert "eval.run=nowhere: no run of qexp" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["-m"]])
def test_places_are_those_of_the_runs_data_set(
    started: list[Config], saved: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """The embedded digits, which Hydra composes before the run is read, have neither workers nor a list."""
    plain = yaml.safe_load((saved / "config.yaml").read_text())
    plain["dataset"] = {**compose("dataset=imagenet", "model=resnet18")["dataset"], "root": "before"}
    (saved / "config.yaml").write_text(yaml.safe_dump(plain))
    typed = ["dataset.workers=2", "dataset.val_list=list.txt", "dataset.root=here"]
    assert hydra_app.main("eval", [*words, f"eval.run='{saved}'", *typed]) == 0
    assert started[0].dataset == {**plain["dataset"], "workers": 2, "val_list": "list.txt", "root": "here"}
    assert "+" not in capsys.readouterr().out


@pytest.mark.parametrize("word", ["~dataset.root", "~dataset.workers", "~bits", "~eval.split"])
def test_of_a_run_nothing_is_left_out(
    started: list[Config], saved: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert hydra_app.main("eval", [str(saved), word]) == 2
    assert capsys.readouterr().err.startswith(f"qexp eval: {word}: the run's own config.yaml decides this")


def test_the_printed_configuration_of_a_run_is_its_own(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("eval", [str(saved), "trainer.threads=2", "--cfg", "job"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["bits"]["weight"], printed["trainer"]["threads"], printed["eval"]["run"]) == (3, 2, str(saved))
    for words in (["nowhere", "--cfg=job"], [str(saved), "--cfg=all"], [str(saved), "bits=2", "--cfg=job"]):
        assert hydra_app.main("eval", words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "experiment", "line"),
    [
        ("train", "pwlq/table2", "qexp ptq experiment=pwlq/table2"),
        ("eval", "pwlq/table2", "qexp ptq experiment=pwlq/table2"),
        ("explain", "pwlq/table2", "qexp ptq experiment=pwlq/table2"),
        ("ptq", "pact/table1", "qexp train experiment=pact/table1"),
    ],
)
@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"]])
def test_an_experiment_of_another_command_names_it(
    started: list[Config],
    capsys: pytest.CaptureFixture[str],
    command: str,
    experiment: str,
    line: str,
    words: list[str],
) -> None:
    assert hydra_app.main(command, [f"experiment={experiment}", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"qexp {command}: experiment={experiment}: its runs are not made by qexp {command}; type `{line}`."
    ]
    assert printed.out == ""
    assert started == []


def test_an_experiment_of_another_command_fails_alone_in_a_sweep_over_experiments(
    started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert hydra_app.main("train", ["-m", "experiment=pwlq/s_table6,none"]) == 1
    assert "type `qexp ptq experiment=pwlq/s_table6`" in capsys.readouterr().err
    assert [config.experiment.name for config in started] == ["train"]


def test_an_experiment_of_qexp_ptq_runs_under_it(
    started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert hydra_app.main("ptq", ["experiment=pwlq/s_table6", "model.weights=x"]) == 0
    assert widths(started) == [(8, 8), (4, 8), (4, 8)]
    for config in started:
        assert config.experiment.name == "pwlq/s_table6"
        assert config.plain["names"]["observer"] == "top_k"
        assert set(config.plain["experiment"]) == {"name"}
    assert hydra_app.main("ptq", ["experiment=pwlq/s_table6", "experiment.command=eval"]) == 2
    assert "experiment.command=eval: null, or one of train, ptq." in capsys.readouterr().err
    assert hydra_app.main("ptq", ["observer=kl"]) == 0  # no experiment: any command's
    assert started[-1].plain["names"]["observer"] == "kl"
    assert hydra_app.main("train", []) == 0
    assert "observer" not in started[-1].plain["names"]


def test_hydra_leaves_nothing_behind(started: list[Config], tmp_path: Path) -> None:
    assert hydra_app.main("train", ["bits=2"]) == 0
    assert hydra_app.main("train", ["-m", "bits=2,3"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == tmp_path


def test_a_failed_job_does_not_end_the_others(started: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("train", ["-m", "seed=13,14,0"]) == 1
    assert [config.seed for config in started] == [13, 14, 0]
    printed = capsys.readouterr()
    assert "brings bad luck" in printed.out
    assert "RuntimeError: a bug" in printed.out
    assert "3 jobs: 2 failed, 1 done" in printed.out


def test_a_job_that_cannot_be_composed_fails_alone(
    started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert hydra_app.main("train", ["-m", "bits=2,9", "quantizer=pact,pcat"]) == 1
    assert widths(started) == [(2, 2)]
    printed = capsys.readouterr()
    assert "Did you mean 'pact'?" in printed.err
    assert "Traceback" not in printed.err


def test_exit_codes_of_a_single_run(started: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("train", ["seed=13"]) == 2
    assert capsys.readouterr().err == "qexp train: seed=13: brings bad luck.\n"
    assert hydra_app.main("train", ["seed=14"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert hydra_app.main("train", ["seed=15"]) == 143
    assert capsys.readouterr().err == (
        "qexp train: interrupted by SIGTERM; type the same command again and it goes on where it stopped\n"
    )


def test_a_signal_ends_the_sweep(started: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("train", ["-m", "seed=0,15,1,2"]) == 143
    assert [config.seed for config in started] == [0, 15]
    assert "4 jobs: 1 done, 1 interrupted, 2 missing" in capsys.readouterr().out


def test_the_printed_configuration_names_layers_by_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("train", ["--cfg", "job", "layers.'a.*'.bits=2"]) == 0
    printed = capsys.readouterr().out
    assert "a.*:" in printed
    assert "hydra" not in printed


@pytest.fixture
def kept_log() -> Iterator[None]:
    """What --info prints goes through the root logger, which Hydra leaves changed."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("kept_log")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cfg", "job", "--resolve", "seed=7", "output_dir='${seed}'"], "output_dir: 7"),
        (["--cfg", "job", "seed=7", "output_dir='${seed}'"], "output_dir: ${seed}"),
        (["--cfg", "job", "--package", "bits"], "# @package bits\nweight: 4"),
        (["--info", "defaults"], "Defaults List\n"),
        (["--info"], "Installed Hydra Plugins\n"),
    ],
)
def test_hydras_own_options_print_and_start_nothing(
    started: list[Config], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert hydra_app.main("train", words) == 0
    assert said in capsys.readouterr().out
    assert started == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resolve"], "--resolve and --package say how --cfg prints; add --cfg job, or leave them out."),
        (["--package", "bits"], "--resolve and --package say how --cfg prints; add --cfg job, or leave them out."),
        (["--cfg", "job", "--package", "bitz"], "package 'bitz' not found in config"),
        (["--info", "bits"], "invalid choice: 'bits' (choose from"),
    ],
)
def test_hydras_own_options_are_refused_in_one_line(
    started: list[Config], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert hydra_app.main("train", words) == 2
    printed = capsys.readouterr()
    assert said in printed.err and len(printed.err.splitlines()) == 1
    assert printed.out == "" and started == []


@pytest.mark.parametrize("override", ["seed=3", "bits=w4a8", "bits=2,4", "model.hidden=[1,2]", "bits.weight=4"])
def test_other_overrides_stay_as_typed(override: str) -> None:
    assert encode_override(override) == override


@pytest.mark.parametrize("override", ["bits=4", "layers.layer1.*.bits=4", "layers.a-b.conv[12].quantizer=pact"])
def test_encoded_overrides_are_shown_as_typed(override: str) -> None:
    assert decode_overrides([encode_override(override)]) == override
    assert encode_override(encode_override(override)) == encode_override(override)


def test_eval_and_explain_compose_the_same_tree() -> None:
    assert compose("bits=2", command="explain")["explain"] == {"run": None, "format": "text", "fold": False}
    assert compose("bits=2", command="eval")["eval"] == {"run": None, "split": "test"}


@pytest.mark.long  # tests/jobs/test_launchers.py runs a sweep under the same launcher each time
def test_a_sweep_in_parallel_processes(tmp_path: Path, mine: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra `launchers` is not installed")
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "bits=2,9,w4a8", "quantizer=narrow,dorefa"]
    done = subprocess.run(
        [sys.executable, "-m", "qexp", "train", "-m", "--dry-run", "--config-dir", str(mine), *words],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("start ") >= 4
    assert "2 failed" in done.stdout
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
