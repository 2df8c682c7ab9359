"""The mistakes a user can make; each ends in one line that names the value, the rule and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QexpError(Exception):
    """A user's mistake: shown as one line, without a traceback, and ends the program with `exit_code`."""

    exit_code = 2


class ConfigError(QexpError):
    """A configuration that has no meaning, or asks for what does not exist."""


class DataError(QexpError):
    """A data set that is missing, damaged or of another shape than promised."""


class CheckpointError(QexpError):
    """A checkpoint that is missing, truncated, foreign, or made for another model."""


class OutputError(QexpError):
    """A run's folder that cannot be written any more: a full disk, a mount that turned read-only."""


class TrainingError(QexpError):
    """A run that went wrong while it ran (a loss or an alpha that is not a number); exit code 1."""

    exit_code = 1


class Interrupted(BaseException):
    """A run that a signal ended after its checkpoint was written; typed again, it goes on.

    The user asked for it, so it is no error; and like KeyboardInterrupt it is no Exception, since a signal comes
    anywhere, even inside libraries that turn every Exception into one of their own.

    `signal` is the signal's number, `exit_code` what a shell expects of it (130 for Ctrl-C, 143 for SIGTERM).
    """

    def __init__(self, signal: int) -> None:
        name = {2: "Ctrl-C", 15: "SIGTERM"}.get(int(signal), f"signal {int(signal)}")
        super().__init__(f"interrupted by {name}; type the same command again and it goes on where it stopped")
        self.signal = int(signal)
        self.exit_code = 128 + int(signal)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest of `known`, or the sorted list of all when none is near.

    >>> did_you_mean("pcat", ["pact", "dorefa"])
    " Did you mean 'pact'?"
    >>> did_you_mean("zzz", ["pact", "dorefa"])
    ' Known: dorefa, pact.'
    """
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(options)}." if options else ""
