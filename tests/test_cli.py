from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qexp import __version__, cli
from qexp.command_help import COMMANDS, HYDRA_COMMANDS, command_help
from qexp.paths import config_dir


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_has_a_line_for_each_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name in COMMANDS:
        assert any(words[:1] == [name] and len(words) > 3 for words in lines)


def test_help_imports_little() -> None:
    code = (
        "import sys; from qexp.cli import main; main(['--help']); main(['train', '--help'])\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'numpy', 'yaml', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


TRAINING = {
    "alpha_regularization",
    "optimizer",
    "schedule",
    "recipe",
    "rounding",
    "discretisation",
    "task",
    "logger",
    "budget",
}
OF_OTHERS = {
    "train": {"observer", "engine"},
    "explain": {"observer", "engine"},
    "eval": {"observer"},
    "ptq": {*TRAINING, "engine"},
}
"""Groups that a command has no use for."""


@pytest.mark.parametrize("command", HYDRA_COMMANDS)
def test_a_commands_help_lists_every_option(command: str) -> None:
    text = command_help(command)
    for file in config_dir().glob("*/*.yaml"):
        group = file.parent.name
        assert (f"\n  {group} " in text) == (group not in OF_OTHERS[command])
        if group not in OF_OTHERS[command]:
            assert file.stem in text


def test_a_commands_help_lists_the_experiments_that_it_can_make(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nexperiment:\n  command: ptq\n")
    own = ["--config-dir", str(tmp_path)]
    train, ptq = command_help("train", own), command_help("ptq", own)
    assert "pact/table1" in train and "pwlq/table1" not in train and "mine" not in train
    assert "pwlq/table1" in ptq and "pact/table1" not in ptq and "mine" in ptq


def test_a_commands_help_lists_ones_own_options(tmp_path: Path) -> None:
    (tmp_path / "quantizer").mkdir()
    (tmp_path / "quantizer" / "mine_only.yaml").write_text("{}\n")
    assert "mine_only" in command_help("train", ["--config-dir", str(tmp_path)])
    assert "mine_only" not in command_help("train")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"qexp {__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "qexp: unknown command 'trian'. Did you mean 'train'?\n"


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "qexp", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"qexp {__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_completion_can_be_installed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "--shell-completion"], ["-sc"]):
        assert cli.main([*words, f"install={shell}"]) == 0
        assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qexp tr", "train"),
        ("qexp train quan", "quantizer. quantizer="),
        ("qexp train -m epochs=3 quantizer=pa", "quantizer=pact"),
        ("qexp train bits=w3a3", "bits=w3a3 bits=w3a32"),
        ("qexp eval eval.r", "eval.run="),
        ("qexp train trainer.preci", "trainer.precision="),
        ("qexp list mo", ""),
        ("qexp train no=where qu[", ""),
    ],
)
def test_completion(
    line: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    cli.main(["-sc", "query=bash"])
    printed = capsys.readouterr()
    assert printed.out.split() == expected.split()
    assert printed.err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table", "--foo"], "unrecognized arguments: --foo; `qexp table --help`"),
        (["status", "--foo"], "unrecognized arguments: --foo; `qexp status --help`"),
        (["list", "--foo"], "unrecognized arguments: --foo; `qexp list --help`"),
        (["scan", "RUN", "--points", "x"], "invalid int value: 'x'; `qexp scan --help`"),
        (["bench", "--rounds", "0"], "'0' is no whole number above 0; `qexp bench --help`"),
        (["plot", "bogus"], "argument FIGURE: invalid choice: 'bogus'; `qexp plot --help`"),
        (["plot", "alpah"], "invalid choice: 'alpah'. Did you mean 'alpha'? `qexp plot --help`"),
        (["plot", "alpha"], "required: RUN; `qexp plot alpha --help`"),
    ],
)
def test_a_mistake_in_an_option_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == "" and printed.err.count("\n") == 1 and len(printed.err) < 150


@pytest.mark.slow
def test_completion_in_a_real_bash(tmp_path: Path) -> None:
    program = tmp_path / "qexp"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom qexp.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    script = """
        eval "$(qexp -sc install=bash)"
        COMP_LINE="qexp train quantizer=do" COMP_WORDS=(qexp train quantizer=do) COMP_CWORD=2
        hydra_bash_completion
        echo "${COMPREPLY[*]}"
    """
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("quantizer=dorefa\n", "")
