"""Files that a crash cannot damage: swapped in whole, or appended in whole lines."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from qexp.errors import CheckpointError


def is_there(text: str | Path) -> bool:
    """Say whether a file or a folder has this name; a text that is too long for one names nothing."""
    return holds(Path(text).exists)


def holds(look: Callable[[], bool]) -> bool:
    """Return what a look at a file says (`path.is_symlink`); False where one may not look."""
    try:
        return look()
    except OSError:
        return False


@contextlib.contextmanager
def atomic_stream(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path`; leaving without an error syncs it and swaps it in.

    `path` holds its old content or all of the new, whatever happens; TMPDIR plays no part.

    Raises:
        OSError: the disk is full or the folder may not be written; the old content is intact.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes a private file; a run is shared like any other file of its owner.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` to `path`, as `atomic_stream` does."""
    with atomic_stream(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_output(path: Path, content: bytes | str) -> None:
    """Write what a user asked for: through links, and straight into what is no file (a pipe, a device)."""
    # /dev/stdout is the file that a shell sent it to, which is written on and not replaced.
    if (path.exists() and not path.is_file()) or path.absolute().parts[1:2] in (("dev",), ("proc",)):
        with path.open("ab") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
    else:
        atomic_write(path.resolve(), content)


def remove_parts(folder: Path) -> None:
    """Delete what killed writers left in `folder`; only for the one who holds its lock."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content; read once per version of the file in a process.

    Raises:
        CheckpointError: there is no such file.
    """
    try:
        found = path.stat()
        return _digest(str(path), found.st_size, found.st_mtime_ns, found.st_ino)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error


@functools.lru_cache(maxsize=64)
def _digest(path: str, size: int, modified: int, inode: int) -> str:
    with Path(path).open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class MetricsFile:
    """`metrics.csv`: rows `epoch,step,name,value`, appended per epoch, cut back on resume."""

    header = ("epoch", "step", "name", "value")

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Append one row per value, all in one write, on the disk when this returns."""
        lines = [f"{epoch},{step},{name},{value!r}\n" for name, value in values.items()]
        if not self.path.exists():
            lines.insert(0, ",".join(self.header) + "\n")
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
            stream.flush()
            os.fsync(stream.fileno())

    def rows(self) -> list[tuple[int, int, str, float]]:
        """Return the whole rows in order; a last row cut short by a crash, and what is damaged, is left out."""
        return [row for row in self._parsed() if row is not None]

    def damaged(self) -> int:
        """Return how many lines hold no row, though they are whole."""
        return sum(row is None for row in self._parsed())

    def _parsed(self) -> Iterator[tuple[int, int, str, float] | None]:
        """Yield the row of each whole line behind the header, None for what is none."""
        if not holds(self.path.is_file):
            return
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except OSError:  # it is there and tells nothing: one damaged line
            yield None
            return
        for line in lines:
            if not line.endswith("\n") or line.rstrip("\n") == ",".join(self.header):
                continue
            try:
                epoch, step, name, value = line.rstrip("\n").split(",")
                yield int(epoch), int(step), name, float(value)
            except ValueError:
                yield None

    def truncate(self, step: int) -> None:
        """Keep the rows up to optimizer step `step`, without the final `test_*`; a negative step keeps none."""
        if not self.path.exists():
            return
        self.path.open("rb").close()  # what cannot be read is not cut to nothing
        kept = [row for row in self.rows() if row[1] <= step and not row[2].startswith("test_")]
        lines = [",".join(self.header)] + [f"{e},{s},{name},{value!r}" for e, s, name, value in kept]
        atomic_write(self.path, "\n".join(lines) + "\n")

    def last(self) -> dict[str, float]:
        """Return the newest value of each name."""
        return {name: value for _, _, name, value in self.rows()}
