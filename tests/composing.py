"""Composes configurations as the command line does, for the tests beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qexp.config import Config, parse
from qexp.jobs import composition
from qexp.paths import config_dir


def compose(*overrides: str, command: str = "train", extra: Path | None = None) -> dict[str, Any]:
    """Return the composed configuration as plain containers, without Hydra's own part."""
    plain = composition.compose(command, overrides, extra)
    del plain["names"]  # as an older run's
    return plain


def parsed(*overrides: str, command: str = "train") -> Config:
    """Return the checked configuration of a command line."""
    return parse(compose(*overrides, command=command))


def configured(*overrides: str, command: str = "train") -> Config:
    """Return the checked configuration with its choices' names, and methods for their names in `layers`."""
    plain = compose(*overrides, command=command)
    for settings in plain["layers"].values():
        if "quantizer" in settings:
            name = settings["quantizer"]
            text = (config_dir() / "quantizer" / f"{name}.yaml").read_text()
            settings["quantizer"] = {"name": name, **yaml.safe_load(text)}
    given = dict(override.split("=", 1) for override in overrides)
    usual = {"model": "mlp", "dataset": "digits", "quantizer": "pact"}
    plain["names"] = {key: given.get(key, default) for key, default in usual.items()}
    return parse(plain)
