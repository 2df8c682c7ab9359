"""Where qexp's own files are, where it keeps what can be made again, and which settings say where data are."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

DATASET_PLACES = ("root", "file", "val_list", "download", "workers", "eval_batch_size")
"""Keys of a data set that say where it is and how it is read, never what a run computes on."""


def config_dir() -> Path:
    """Return the folder of the shipped configurations: inside the package in a wheel, beside it in a checkout."""
    packaged = PACKAGE / "configs"
    return packaged if packaged.is_dir() else PACKAGE.parent / "configs"


def from_home(path: str) -> str:
    """Return a path with `~` as the shell reads it; as it is where there is no such user."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path


def cache_folder() -> Path:
    """Return $QEXP_CACHE, else qexp/ in $XDG_CACHE_HOME or ~/.cache; the folder may not exist yet."""
    if given := os.environ.get("QEXP_CACHE"):
        return Path(given)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "qexp"
    try:
        return Path.home() / ".cache" / "qexp"
    except RuntimeError:  # a user without a home folder
        return Path(tempfile.gettempdir()) / f"qexp-cache-{os.getuid()}"
