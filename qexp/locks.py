"""One worker per folder: a lock that a crash releases, and a claim that other machines see.

`flock` is enough on one machine, and on the network file systems that pass it on. Some do not (NFS mounted with
local locks, Lustre without them), so the holder also keeps a claim: a file made with O_EXCL that names its process
and is touched every few seconds. Another machine's claim that nobody touches any more is taken over; one of the
same running system needs no waiting, because there the lock says whether its process lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from qexp.errors import ConfigError

log = logging.getLogger(__name__)

PATIENCE = 0.5
"""Seconds that a locked folder is tried again for: who looks at it (`held`) locks it for a moment."""

HEARTBEAT = 10.0
"""Seconds between two touches of a claim."""

SUSPECT = 30.0
"""Seconds after which a claim may be a dead worker's: one waits to see."""

STALE = 120.0
"""Seconds after which it is. More than a network file system keeps a file's time in its cache (NFS: 60)."""

_LOCK, _CLAIM = ".lock", ".claim"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class InUseError(ConfigError):
    """A folder that another worker holds."""

    def __init__(self, folder: Path, owner: str) -> None:
        who = owner or "an unknown process"
        super().__init__(f"{folder} is in use by {who}; wait for it, or end it and type the command again.")
        self.folder = folder


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process.

    Raises:
        InUseError: another process holds it, here or on another machine; the message names it.
        OSError: the folder cannot be written.
    """
    with _locked(folder) as works, _claimed(folder, lock_works=works):
        yield


def held(folder: Path) -> bool:
    """Return whether a process holds `folder` now."""
    return _is_locked(folder / _LOCK) or _is_alive(folder / _CLAIM)


def owner(folder: Path) -> str:
    """Return who holds `folder`, or held it last: `process 12 on host`; "" if nobody did."""
    return _name(_read(folder / _CLAIM) or _read(folder / _LOCK))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock the folder on this machine; yields whether its file system has locks at all."""
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    works = True
    try:
        try:
            _flock(handle)
        except BlockingIOError:
            raise InUseError(folder, _name(os.read(handle, 200).decode(errors="replace"))) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            works = False
        os.ftruncate(handle, 0)
        os.write(handle, _myself().encode())
        yield works
    finally:
        os.close(handle)


def _flock(handle: int) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.02)


@contextlib.contextmanager
def _claimed(folder: Path, *, lock_works: bool) -> Iterator[None]:
    claim = folder / _CLAIM
    while True:
        try:
            handle = os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            break
        except FileExistsError:
            _wait_for_an_end(claim, lock_works=lock_works)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(mine := _myself())
    except BaseException:
        claim.unlink(missing_ok=True)
        raise
    try:
        with _beating(claim, mine):
            yield
    finally:
        if _read(claim) == mine:  # one that slept for minutes may have lost it to another
            claim.unlink(missing_ok=True)


@contextlib.contextmanager
def _beating(claim: Path, mine: str) -> Iterator[None]:
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(claim, mine, over), daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()


def _beat(claim: Path, mine: str, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            if _read(claim) in (mine, ""):  # or it cannot be read for a moment
                os.utime(claim)


def _wait_for_an_end(claim: Path, *, lock_works: bool) -> None:
    """Remove the claim of a worker that is dead. Raises InUseError when it lives."""
    told = False
    while (age := _age(claim)) is not None:
        text = _read(claim)
        if age > STALE or (lock_works and text and _is_here(text)):  # here, and yet the lock was free
            _remove(claim, text)
            return
        if age <= SUSPECT:
            raise InUseError(claim.parent, _name(text))
        if not told:
            log.warning(f"{claim.parent}: no sign of life from {_name(text)} for {age:.0f} s, waiting for another")
            told = True
        time.sleep(1.0)


def _remove(claim: Path, text: str) -> None:
    """Remove a claim that holds `text`; two that try at once remove one, and never the other's new one."""
    aside = claim.with_name(f"{_CLAIM}.{socket.gethostname()}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        claim.rename(aside)
        if _read(aside) != text:
            with contextlib.suppress(FileExistsError):
                os.link(aside, claim)
        aside.unlink()


def _is_locked(lock: Path) -> bool:
    try:
        handle = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
    finally:
        os.close(handle)
    return False


def _is_alive(claim: Path) -> bool:
    age, text = _age(claim), _read(claim)
    return age is not None and age <= STALE and bool(text) and not _is_here(text)


def _age(claim: Path) -> float | None:
    """Return the seconds since the last touch; None where there is no claim."""
    try:
        return time.time() - claim.stat().st_mtime
    except FileNotFoundError:
        return None


def _read(claim: Path) -> str:
    try:
        return claim.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _myself() -> str:
    return f"{os.getpid()} {socket.gethostname()} {_boot()}\n"


def _name(text: str) -> str:
    pid, host, *_ = [*text.split(), "", ""]
    return f"process {pid} on {host}" if pid else ""


def _is_here(text: str) -> bool:
    """Return whether a claim is of this running system (containers too); by name where one has no number."""
    _, host, boot, *_ = [*text.split(), "", "", ""]
    return boot == _boot() if boot and _boot() else host == socket.gethostname()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
