from __future__ import annotations

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


@pytest.mark.parametrize("command", HYDRA_COMMANDS)
def test_a_commands_help_lists_every_option(command: str) -> None:
    text = command_help(command)
    for file in config_dir().glob("*/*.yaml"):
        assert file.parent.name in text
        assert file.stem in text


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
    assert cli.main(["train", "--shell-completion", f"install={shell}"]) == 0
    assert "complete" in capsys.readouterr().out
