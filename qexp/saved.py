"""The configuration that a run's folder holds, for the commands that look at a run again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from qexp.build import check_targets
from qexp.errors import ConfigError
from qexp.paths import DATASET_PLACES

PLACES = (
    *(f"dataset.{key}" for key in DATASET_PLACES),
    "trainer.device",
    "trainer.threads",
)
"""What may be set beside a run's folder: where things are and what computes, never what decides its numbers."""


def saved_config(folder: Path, key: str) -> dict[str, Any]:
    """Return the configuration that a run's folder holds. Raises ConfigError, which names `key`, without one."""
    try:
        plain = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{key}={folder}: no run of qexp (there is no config.yaml in it); `qexp status` lists the runs."
        ) from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{key}={folder}: no run of qexp, its config.yaml cannot be read.") from error
    if not isinstance(plain, dict) or not isinstance(plain.get("experiment"), dict):
        raise ConfigError(f"{key}={folder}: its config.yaml is no configuration.")
    return plain


def check_place(key: str, shown: str) -> None:
    """Refuse a setting that a run has decided already.

    Args:
        key: dotted.
        shown: the setting as it was typed, for the error.

    Raises:
        ConfigError: it is none of `PLACES`.
    """
    if key not in PLACES:
        raise ConfigError(
            f"{shown}: the run's own config.yaml decides this; with a run one may set {', '.join(PLACES)}."
        )


def places_of(words: Iterable[str]) -> dict[str, Any]:
    """Return typed `key=value` words as a mapping.

    Raises:
        ConfigError: a word without `=`, or a key that the run has decided.
    """
    places = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"'{word}': one run at a time, and then key=value, such as dataset.root=FOLDER.")
        check_place(key, word)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        places[key] = value if value is None or isinstance(value, (bool, int, float)) else text
    return places


def run_config(folder: Path, key: str, places: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration with `places` set in it (keys of `PLACES`), past the same gate as a typed one.

    Args:
        folder: the run's.
        key: what named it, for the errors (`eval.run`).
        places: dotted key -> value.

    Raises:
        ConfigError: there is no run, or its configuration names what qexp does not build.
    """
    plain = saved_config(folder, key)
    for name, value in places.items():
        top, _, last = name.partition(".")
        if isinstance(plain.get(top), dict):
            plain[top][last] = value
    if isinstance(plain.get("model"), dict):
        plain["model"]["weights"] = None  # where the run began; its own checkpoint says where it ended
    check_targets(plain)
    return plain
