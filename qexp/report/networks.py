"""What a run's network has otherwise than its option: at a quarter of the width it is another network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import yaml

from qexp.paths import config_dir
from qexp.report.facts import Facts

_PREFIX = "model."
_CLASS = "model._target_"


def changed(one: Facts) -> dict[str, Any]:
    """Return the settings `model.*` of a run that are not its option's own; none for a user's own network."""
    usual = _own(one.model)
    if not usual or one.recipe.get(_CLASS) != usual.get("_target_"):
        return {}
    asked = {key: value for key, value in one.recipe.items() if key.startswith(_PREFIX) and key != _CLASS}
    return {key: value for key, value in asked.items() if not same(value, usual.get(key.removeprefix(_PREFIX)))}


def changed_in_any(runs: Iterable[Facts]) -> list[str]:
    """Return the settings `model.*` in which any of these runs has another network than its option's."""
    return list(dict.fromkeys(key for one in runs for key in changed(one)))


def network_text(one: Facts) -> str:
    """Return a run's network, with its changed settings: `qnn_mlp (model.width=0.25)`."""
    settings = ", ".join(f"{key}={value}" for key, value in changed(one).items())
    return f"{one.model} ({settings})" if settings else one.model


def same(value: Any, wanted: Any) -> bool:
    """Compare two settings; 1e-4 and "0.0001" are one number, also within lists.

    >>> same([0, 0.5], [0.0, "0.5"]), same("adam", "sgd"), same(None, 1)
    (True, False, False)
    """
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(same, value, wanted))
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return str(value) == str(wanted)


@cache
def _own(model: str) -> Mapping[str, Any]:
    """Return the settings of a shipped option, over those of the one that it builds on; empty if there is none."""
    file = config_dir() / "model" / f"{model}.yaml"
    if not file.is_file():
        return {}
    plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for base in plain.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            found |= _own(base)
    return found | plain
