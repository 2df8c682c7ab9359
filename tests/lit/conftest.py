from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def small_run() -> SimpleNamespace:
    """The names of small_run.py; test folders are no packages."""
    path = Path(__file__).with_name("small_run.py")
    return SimpleNamespace(path=path, **runpy.run_path(str(path), run_name="small_run"))
