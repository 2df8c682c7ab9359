"""Numbers that are kept in a file by the version of their maths, and how such a file is written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

REWRITE = "QEXP_WRITE_GOLDEN"
"""Set, what a file lacks is added to it; what is there is never written again."""


def recorded(file: Path) -> dict[str, Any]:
    """What the file holds; nothing where it is not there yet."""
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return known


def asked() -> bool:
    return bool(os.environ.get(REWRITE))


def seven_digits(values: list[float]) -> list[float]:
    return [float(f"{value:.7g}") for value in values]


def write(file: Path, known: dict[str, Any]) -> None:
    """JSON with one line for each list of numbers."""
    text = json.dumps(known, indent=1, sort_keys=True)
    file.write_text(re.sub(r"\[[^]]*\]", lambda match: " ".join(match[0].split()), text) + "\n")


def check(file: Path, key: str, now: dict[str, list[float]], *, rel: float = 2e-5) -> None:
    """Hold `now` against the numbers kept under `key`, which names a version; add them where that is asked for."""
    known = recorded(file)
    if asked() and key not in known:
        known[key] = {name: seven_digits(values) for name, values in now.items()}
        write(file, known)
    assert key in known, f"{file} holds no numbers of {key}: {REWRITE}=1 python -m pytest {file.parent}"
    assert now.keys() == known[key].keys()
    for name, values in now.items():
        assert values == pytest.approx(known[key][name], rel=rel, abs=2e-6), (
            f"{key} moved. Finished runs carry this version in their identity: raise it, or find what changed."
        )
