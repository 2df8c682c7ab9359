"""The program `qexp`: a command's name to the command. Standard library only, so that --help is instant."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from qexp import __version__
from qexp.command_help import COMMANDS, HYDRA_COMMANDS, command_help, program_help
from qexp.errors import QexpError, did_you_mean
from qexp.streams import tolerant_output

_HELP = ("--help", "-h")
_COMPLETION = ("-sc", "--shell-completion")
_MODULES = {"list": "catalog"}
"""Commands whose module has another name: `list` is a word of Python."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (default: this process's arguments) names and return the exit code.

    0 done; 1 a bug, or a failed job of a sweep; 2 a user's mistake; 130 Ctrl-C; 143 SIGTERM.
    """
    with tolerant_output():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in (*_HELP, "help"):
        print(program_help())
        return 0
    if arguments[0] == "--version":
        print(f"qexp {__version__}")
        return 0
    if arguments[0] in _COMPLETION:
        return _complete(arguments)
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"qexp: unknown command '{command}'.{did_you_mean(command, COMMANDS)}", file=sys.stderr)
        return 2
    return _run(command, rest)


def _complete(arguments: list[str]) -> int:
    """Answer a shell: the commands' names, then what Hydra knows of the command on the shell's line.

    Hydra's own answer takes the first word for the whole program, so the command is taken out of the line.
    """
    if not any(argument.startswith("query=") for argument in arguments):
        return _run("train", arguments)
    program, _, typed = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    command, space, rest = typed.lstrip().partition(" ")
    if not space:
        print(" ".join(name for name in COMMANDS if name.startswith(command)))
    elif command in HYDRA_COMMANDS:
        *before, last = rest.split(" ")
        settings = [word for word in before if word and not word.startswith("-")]
        os.environ["COMP_LINE"] = " ".join([program, *settings, last])
        with contextlib.redirect_stderr(io.StringIO()):  # a shell shows errors in the middle of the line
            return _run(command, arguments)
    return 0


def _run(command: str, arguments: list[str]) -> int:
    try:
        if command not in HYDRA_COMMANDS:
            return int(
                importlib.import_module(f"qexp.commands.{_MODULES.get(command, command)}").main(arguments) or 0
            )
        if any(argument in _HELP for argument in arguments):
            print(command_help(command, arguments))
            return 0
        return int(importlib.import_module("qexp.hydra_app").main(command, arguments))
    except QexpError as error:
        print(f"qexp {command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
