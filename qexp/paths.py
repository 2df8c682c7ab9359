"""Where qexp's own files are, and where it keeps what can be made again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """Return the folder of the shipped configurations: inside the package in a wheel, beside it in a checkout."""
    packaged = PACKAGE / "configs"
    return packaged if packaged.is_dir() else PACKAGE.parent / "configs"


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
