"""The C++ kernel: compiled on first use, a few seconds, and kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from qexp.errors import ConfigError
from qexp.paths import cache_folder
from qexp.xnor.kernel import Kernel

SOURCE = Path(__file__).parent / "kernel.cpp"
FLAGS = ("-O3", "-std=c++17", "-fwrapv", "-fPIC", "-shared", "-pthread")
"""`-fwrapv`: on the way to a sum that fits 32 bits, doubled mismatches may pass them, and wrap around."""


class NoCompilerError(ConfigError):
    """The kernel cannot be built here; the message says what is missing."""


def library() -> Path:
    """Return where the built kernel is kept: one file for each source, compiler and kind of machine."""
    content = SOURCE.read_bytes() + f"{FLAGS} {_named()} {sys.platform} {platform.machine()}".encode()
    return cache_folder() / f"xnor-{hashlib.sha256(content).hexdigest()[:12]}.so"


def native() -> Kernel:
    """Return the kernel; the first call of all builds it.

    Raises:
        NoCompilerError: no C++ compiler here, or it fails.
    """
    found = built()
    if isinstance(found, NoCompilerError):
        raise found
    return found


@functools.cache
def built() -> Kernel | NoCompilerError:
    """Return the kernel, or the error why there is none: a second attempt would end in the same."""
    file = library()
    try:
        _refuse_foreign(file.parent)
        if file.exists():
            # Damaged, or built against another system's libraries: a build takes its place. It is not deleted
            # before, another process may have put a good one there by now.
            with contextlib.suppress(OSError):
                return Kernel(file)
        _build(file)
        return Kernel(file)
    except NoCompilerError as error:
        return error
    except OSError as error:
        return NoCompilerError(f"engine xnor: the kernel cannot be kept in {file.parent} or loaded: {error}")


def _refuse_foreign(folder: Path) -> None:
    """Refuse a library that somebody else may have put there, unless the user named the folder."""
    if "QEXP_CACHE" not in os.environ and folder.exists() and folder.stat().st_uid not in (os.getuid(), 0):
        raise NoCompilerError(
            f"engine xnor: {folder} belongs to another user; name a folder of yours in QEXP_CACHE."
        )


def _named() -> str:
    return os.environ.get("CXX") or "c++"


def _compiler() -> list[str]:
    """Return the words of the command that CXX names."""
    try:
        words = shlex.split(_named())
    except ValueError:  # a quotation mark that nothing closes
        words = []
    if not words:
        raise NoCompilerError(
            f"engine xnor: CXX={os.environ['CXX']!r} names no C++ compiler; set it to g++ or clang++, or leave it"
            " out. Without one products are taken by torch: the same numbers, slowly."
        )
    return words


def _build(file: Path) -> None:
    compiler = _compiler()
    if shutil.which(compiler[0]) is None:
        raise NoCompilerError(
            f"engine xnor: no C++ compiler here ({compiler[0]}); install g++ or clang, or name one in CXX."
            " Without it products are taken by torch: the same numbers, slowly."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place and then moved there: of two processes that build at once, neither loads half a file.
    with tempfile.TemporaryDirectory(prefix=f".{file.stem}-", dir=file.parent) as folder:
        made = Path(folder) / file.name
        line = [*compiler, *FLAGS, str(SOURCE), "-o", str(made)]
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            said = done.stderr.splitlines() or [f"it ended with {done.returncode}"]
            why = next((words for words in said if "error" in words.lower()), said[0])
            raise NoCompilerError(f"engine xnor: {compiler[0]} cannot build the kernel: {why[:200]}")
        made.replace(file)
