"""One distributed run at a time on a device: two that share it would each be slower, or run out of memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from qexp.config import Config
from qexp.errors import OutputError


def devices_of(config: Config) -> list[str]:
    """Return the devices that a run of `trainer.devices` processes takes, as this machine counts them.

    All processors are one device: `cpu`. Of the GPUs those that CUDA_VISIBLE_DEVICES names, else the first ones.
    """
    from qexp.lit.evaluate import device_of

    if device_of(config).type != "cuda":
        return ["cpu"]
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    return [f"cuda:{each}" for each in (visible or map(str, range(config.trainer.devices)))][
        : config.trainer.devices
    ]


@contextlib.contextmanager
def occupied(devices: Sequence[str]) -> Iterator[None]:
    """Hold `devices` of this machine against this user's other distributed runs; wait while one is taken.

    Each device has a lock of its own, so that runs on different sets of devices that overlap exclude each other,
    too; the locks are taken in one order, so that no two runs wait for each other. A lock ends with its process.

    Raises:
        OutputError: the locks' files cannot be written.
    """
    with contextlib.ExitStack() as locks:
        said = False
        for device in sorted(set(devices)):
            handle = _open(lock_file(device))
            locks.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not said:
                    owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                    print(f"waiting for {device}: the distributed run of process {owner} is on it", flush=True)
                    said = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield


def lock_file(device: str) -> Path:
    """Return the file whose lock stands for `device` of this machine and user."""
    name = re.sub(r"[^\w.-]+", "_", f"{socket.gethostname()}-{device}")
    return Path(tempfile.gettempdir()) / f"qexp-{os.getuid()}-{name}.lock"


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OutputError(
            f"{file}: cannot be opened ({error.strerror}), and without it two distributed runs could share a"
            " device; set TMPDIR to a folder of yours."
        ) from error
