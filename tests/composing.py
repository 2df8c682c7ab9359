"""Composes configurations as the command line does, for the tests beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import version
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from qexp.composition import decode_layers, loader
from qexp.config import Config, parse


def compose(*overrides: str, command: str = "train", extra: Path | None = None) -> dict[str, Any]:
    """Return the composed configuration as plain containers, without Hydra's own part."""
    version.setbase("1.3")
    config = loader(extra).load_configuration(command, list(overrides), RunMode.RUN)
    with open_dict(config):
        del config["hydra"]
    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain["layers"] = decode_layers(plain["layers"])
    return dict(plain)


def parsed(*overrides: str, command: str = "train") -> Config:
    """Return the checked configuration of a command line."""
    return parse(compose(*overrides, command=command))
