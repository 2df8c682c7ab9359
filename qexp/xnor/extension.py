"""The C++ kernel: built by torch's extension loader on first use, kept in the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import torch

from qexp.errors import ConfigError
from qexp.paths import cache_folder

SOURCES = ("kernel.cpp", "binding.cpp")
_FOLDER = Path(__file__).parent


class NoCompilerError(ConfigError):
    """The kernel cannot be built here; the message says what is missing."""


def build_folder() -> Path:
    """Return where this kernel's build is kept: one folder for each version of its sources and of torch."""
    content = b"".join((_FOLDER / name).read_bytes() for name in ("kernel.h", *SOURCES))
    version = hashlib.sha256(content + torch.__version__.encode()).hexdigest()[:12]
    return cache_folder() / f"xnor-{version}"


def native() -> Any:
    """Return the built kernel's module; the first call builds it, half a minute or so.

    Raises:
        NoCompilerError: no C++ compiler or no ninja here, or the compiler fails.
    """
    found = built()
    if isinstance(found, NoCompilerError):
        raise found
    return found


@functools.cache
def built() -> Any:
    """Return the kernel's module, or the error why there is none: a second attempt would end in the same."""
    try:
        return _build()
    except NoCompilerError as error:
        return error


def _build() -> Any:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise NoCompilerError(
            f"engine xnor: no C++ compiler here ({compiler}); install g++ or clang, or name one in CXX. Without it"
            " products are taken by torch: the same numbers, slowly."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's loader, about compilers it has not tried
        return _load(build_folder())


def _load(folder: Path) -> Any:
    # The import warns of a CUDA toolkit without a GPU, which nothing here needs.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import cpp_extension

    _let_ninja_be_found()
    if not cpp_extension.is_ninja_available():
        raise NoCompilerError("engine xnor: no ninja here, which builds the kernel; `pip install ninja`.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return cpp_extension.load(
            "qexp_xnor",
            [str(_FOLDER / name) for name in SOURCES],
            extra_cflags=["-O3"],
            extra_ldflags=["-pthread"],
            build_directory=str(folder),
        )
    except (OSError, RuntimeError, ImportError) as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()] or str(error).splitlines()
        raise NoCompilerError(f"engine xnor: the kernel cannot be built in {folder}: {lines[0][:200]}") from error


def _let_ninja_be_found() -> None:
    """Put this environment's programs on the path, ninja among them: an environment need not be activated."""
    scripts, path = sysconfig.get_path("scripts"), os.environ.get("PATH", "")
    if scripts not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([path, scripts])
