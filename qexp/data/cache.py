"""The cache of decoded sets and of digests; a cache that cannot be read or written costs time, never a run."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from qexp.data.splits import Split, Splits
from qexp.errors import DataError
from qexp.files import atomic_stream
from qexp.paths import cache_folder

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the cache files; another number makes the old ones invisible."""

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,  # Python 3.10's word for the TypeError of an array where an archive is opened
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy raises for an archive that is missing, truncated or damaged."""


def content_digest(files: Sequence[Path], root: Path) -> str:
    """Return the sha256 over names (relative to `root`) and contents of `files`.

    Reading is saved where the listing (name, size, time, inode) is the one the digest was last taken from.

    Raises:
        DataError: a file cannot be read.
    """
    listing = hashlib.sha256()
    newest = 0.0
    try:
        for file in files:
            status = file.stat()
            newest = max(newest, status.st_mtime)
            stamp = (str(file.absolute()), _shown(file, root), status.st_size, status.st_mtime_ns, status.st_ino)
            listing.update(repr(stamp).encode())
        memo = cache_folder() / "digests" / f"{listing.hexdigest()}.json"
        known = _read_digest(memo)
        if known is None:
            known = _hash_files(files, root)
            # A file written this very moment can change again within the clock's resolution.
            if time.time() - newest > 2:
                write_atomically(memo, lambda stream: stream.write(json.dumps({"digest": known}).encode()))
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror or error}).") from error
    return known


def _hash_files(files: Sequence[Path], root: Path) -> str:
    total = hashlib.sha256()
    for file in files:
        content = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                content.update(block)
        total.update(f"{_shown(file, root)}\n{content.hexdigest()}\n".encode())
    return total.hexdigest()


def _shown(file: Path, root: Path) -> str:
    """Return the name by which a file counts in a digest."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _read_digest(memo: Path) -> str | None:
    try:
        digest = json.loads(memo.read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) and len(digest) == 64 else None


def decoded(name: str, content: str, decode: Callable[[], Splits]) -> Splits:
    """Return the splits from the cache, or decode them and leave them there.

    Args:
        name: of the data set, the first part of the file's name.
        content: everything the arrays depend on: the source's digest and how it is decoded.
        decode: reads the source; its errors are the caller's.
    """
    key = hashlib.sha256(f"{FORMAT}/{content}".encode()).hexdigest()
    file = cache_folder() / "arrays" / f"{name}-{key[:16]}.npz"
    if (cached := _held(file)) is not None:
        return cached
    splits = decode()
    store_splits(file, splits)
    return splits


def _held(file: Path) -> Splits | None:
    """Return what `load_splits` does, from memory where the file is the one that was read last.

    The jobs of a sweep have one data set between them, and each asks for it several times.
    """
    try:
        status = file.stat()
    except OSError:
        return None
    return _load_once(file.absolute(), status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=1)
def _load_once(file: Path, *stamp: int) -> Splits | None:
    return load_splits(file)


def splits_digest(splits: Splits) -> str:
    """Return the sha256 over names, shapes and numbers of all arrays."""
    total = hashlib.sha256()
    for name, split in sorted(splits.items()):
        for array in (split.images, split.labels):
            total.update(f"{name} {array.dtype} {array.shape}\n".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def text_digest(texts: Mapping[str, str]) -> str:
    """Return the sha256 over names and texts."""
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def load_splits(file: Path) -> Splits | None:
    """Read a cache file; None when it is not there, or (said in the log) when it is damaged."""
    try:
        # Opened here: numpy leaves a damaged file open that it opened itself.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            names = [key.removeprefix("x_") for key in archive.files if key.startswith("x_")]
            splits = {name: Split(archive[f"x_{name}"], archive[f"y_{name}"]) for name in names}
            digest = str(archive["digest"])
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        log.warning("%s: the cached copy cannot be read (%s); it is built again.", file, error)
        return None
    if digest != splits_digest(splits):
        log.warning("%s: the cached copy is damaged; it is built again.", file)
        return None
    return splits


def store_splits(file: Path, splits: Splits) -> None:
    """Write a cache file atomically; where that is not possible, say so in the log and go on."""
    arrays = {f"x_{name}": split.images for name, split in splits.items()}
    arrays |= {f"y_{name}": split.labels for name, split in splits.items()}
    arrays["digest"] = np.array(splits_digest(splits))
    write_atomically(file, lambda stream: np.savez(stream, allow_pickle=False, **arrays))


def write_atomically(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Swap in what `write` writes; where that is not possible, say so in the log and go on."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_stream(file) as stream:
            write(stream)
    except OSError as error:
        log.warning("%s: cannot be written (%s); going on without this cache.", file, error.strerror or error)
