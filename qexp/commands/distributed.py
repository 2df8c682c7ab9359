"""One run in several processes: started torchrun-style, each with an internal command that runs this one job.

Lightning's own relaunch types the command line again, which under a sweep starts the whole sweep on every process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from qexp.build import check_targets
from qexp.config import Config, parse
from qexp.errors import Interrupted, QexpError, TrainingError

GRACE = 15.0
"""Seconds that the other processes get to end by themselves once one has failed."""

_REPORT = "QEXP_WORKER_REPORT"
_POLL = 0.05


def rank() -> int:
    """Return this process's number in its job; 0 when it is alone. Process 0 alone locks and writes."""
    return int(os.environ.get("RANK", "0"))


def wants_launch(config: Config) -> bool:
    """Return whether this process has to start the job's processes (and is none of them)."""
    return config.trainer.devices > 1 and "RANK" not in os.environ


def launch(config: Config) -> None:
    """Run `config` in `trainer.devices` processes and wait for them; a failing one ends the others.

    Raises:
        QexpError: the message of the process that failed first.
        Interrupted: a signal, which was passed on; process 0 has written a checkpoint.
    """
    count = config.trainer.devices
    with tempfile.TemporaryDirectory(prefix="qexp-job-") as folder:
        reports = [Path(folder) / f"{index}.json" for index in range(count)]
        port = _free_port()
        children = [_start(config, index, count, port, reports[index]) for index in range(count)]
        try:
            with _passing_signals_on(children):
                failed = _wait(children)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()
                if child.stdin is not None:
                    child.stdin.close()
        if failed is not None:
            raise _failure(failed, children[failed].returncode, reports[failed])


def _start(config: Config, index: int, count: int, port: int, report: Path) -> subprocess.Popen[bytes]:
    environment = dict(
        os.environ,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(count),
        RANK=str(index),
        LOCAL_RANK=str(index),
        NODE_RANK="0",
        **{_REPORT: str(report)},
    )
    # A session of its own: Ctrl-C reaches it once, passed on by the parent.
    child = subprocess.Popen(
        [sys.executable, "-m", "qexp.commands.distributed"],
        env=environment,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(config.plain).encode() + b"\n")
    child.stdin.flush()
    return child


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return the index of the child that failed first, once all have ended or their grace is over."""
    failed, deadline = None, float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        if failed is None:
            failed = next((index for index, child in enumerate(children) if child.poll()), None)
            deadline = float("inf") if failed is None else time.monotonic() + GRACE
        time.sleep(_POLL)
    return failed if failed is not None else next((i for i, child in enumerate(children) if child.poll()), None)


@contextmanager
def _passing_signals_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failure(index: int, code: int, report: Path) -> Exception:
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return TrainingError(f"process {index} of the job ended {reason}; its own output says more.")
    if found["signal"]:
        return Interrupted(found["signal"])
    error = QexpError(found["message"])
    error.exit_code = found["exit_code"]
    return error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Run one process of a job: its configuration comes on the first line of stdin."""
    plain = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from qexp.commands import train

    try:
        check_targets(plain)
        train.run(parse(plain))
    except Interrupted as stop:
        return _report(str(stop), stop.exit_code, stop.signal)
    except QexpError as error:
        return _report(str(error), error.exit_code)
    except Exception as error:
        traceback.print_exc()
        return _report(f"{type(error).__name__}: {error}", 1)
    return 0


def _report(message: str, exit_code: int, number: int = 0) -> int:
    content = {"message": message, "exit_code": exit_code, "signal": number}
    Path(os.environ[_REPORT]).write_text(json.dumps(content), encoding="utf-8")
    return exit_code


def _end_with_parent() -> None:
    """The parent holds the other end of stdin; when it is gone, even by SIGKILL, so is this process."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without waiting for the process group: the others may be gone, and its destructor would wait for them.
    os._exit(code)
