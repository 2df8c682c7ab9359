"""The parser of a command's options: a mistake in them ends in one line, as every other one."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from qexp.errors import ConfigError, did_you_mean

MOST_LISTED = 10
"""Choices that an error lists; of more it names the nearest alone."""


class Parser(argparse.ArgumentParser):
    """Reports a mistake as every other one is reported: in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError, where argparse would print its usage and leave."""
        end = "" if message.endswith("?") else ";"
        raise ConfigError(f"{message}{end} `{self.prog} --help` shows what there is.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(action.choices or ())
        if len(choices) <= MOST_LISTED or value in choices:
            super()._check_value(action, value)
            return
        near = did_you_mean(value, choices)
        raise argparse.ArgumentError(action, f"invalid choice: '{value}'" + (f".{near}" if "?" in near else ""))
