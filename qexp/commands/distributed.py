"""One run in several processes: torchrun's environment, and each process runs this one job and nothing else.

Lightning's own relaunch types the command line again, which under a sweep starts the whole sweep on every process.
The processes are forked from a server that has imported everything and computed nothing, so that a sweep of
distributed runs pays for its imports once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from qexp.build import check_targets
from qexp.config import Config, parse
from qexp.errors import Interrupted, QexpError, TrainingError

GRACE = 15.0
"""Seconds that the other processes get to end by themselves once one has failed."""

_PRELOADED = ["qexp.commands.train", "qexp.commands.network", "qexp.lit.fit", "qexp.report.plots"]
_POLL = 0.05
_ABRUPT = "ended without a word"


def rank() -> int:
    """Return this process's number in its job; 0 when it is alone. Process 0 alone locks and writes."""
    return int(os.environ.get("RANK", "0"))


def wants_launch(config: Config) -> bool:
    """Return whether this process has to start the job's processes (and is none of them)."""
    return config.trainer.devices > 1 and "RANK" not in os.environ


class Worker:
    """One process of a job, and the pipe on which it says how it ended."""

    def __init__(self, plain: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(dict(plain), dict(environment), theirs))
        self.process.start()
        theirs.close()

    def failure(self) -> Exception:
        """Return what the process reported, as this process would have raised it."""
        try:
            message, exit_code, number = self.pipe.recv() if self.pipe.poll() else (_ABRUPT, 1, 0)
        except (EOFError, OSError):
            message, exit_code, number = _ABRUPT, 1, 0
        if message == _ABRUPT:
            code = self.process.exitcode or 0
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            return TrainingError(f"a process of the job ended {how}, without a word: out of memory, or killed?")
        if number:
            return Interrupted(number)
        error = QexpError(message)
        error.exit_code = exit_code
        return error

    def end(self) -> None:
        """End it, if it still runs."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


def launch(config: Config) -> None:
    """Run `config` in `trainer.devices` processes and wait for them; a failing one ends the others.

    Raises:
        QexpError: the message of the process that failed first.
        Interrupted: a signal, which was passed on; process 0 has written a checkpoint.
    """
    count = config.trainer.devices
    job = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "NODE_RANK": "0",
        "QEXP_COMMAND": " ".join(["qexp", *sys.argv[1:]]),
    }
    ranks = [{"RANK": str(index), "LOCAL_RANK": str(index)} for index in range(count)]
    workers = [Worker(config.plain, {**os.environ, **job, **names}) for names in ranks]
    try:
        with _passing_signals_on(workers):
            failed = _wait(workers)
        if failed is not None:
            raise failed.failure()
    finally:
        for worker in workers:
            worker.end()


def _wait(workers: Sequence[Worker]) -> Worker | None:
    """Return the worker that failed first, once all have ended or their grace is over."""
    failed: Worker | None = None
    deadline = float("inf")
    while any(worker.process.is_alive() for worker in workers) and time.monotonic() < deadline:
        if failed is None and (failed := _first_failed(workers)) is not None:
            deadline = time.monotonic() + GRACE
        time.sleep(_POLL)
    return failed or _first_failed(workers)


def _first_failed(workers: Sequence[Worker]) -> Worker | None:
    # A reported failure comes before an abrupt end, which may only be its consequence.
    ended = [worker for worker in workers if worker.process.exitcode]
    return min(ended, key=lambda worker: not worker.pipe.poll(), default=None)


@contextmanager
def _passing_signals_on(workers: Sequence[Worker]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            if worker.process.pid is not None and worker.process.exitcode is None:
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for received in (signal.SIGINT, signal.SIGTERM):
            before[received] = signal.signal(received, pass_on)
    try:
        yield
    finally:
        for received, handler in before.items():
            signal.signal(received, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work(plain: dict[str, Any], environment: dict[str, str], pipe: Connection) -> None:
    """Run one process of a job, report a failure on `pipe`, and end without waiting for the others."""
    with suppress(OSError):
        os.setsid()  # Ctrl-C reaches this process once, passed on by the parent, not by the terminal as well
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    report = _run(plain)
    if report is not None:
        with suppress(OSError):
            pipe.send(report)
    sys.stdout.flush()
    sys.stderr.flush()
    # The process group's destructor would wait for the other processes, which may be gone.
    os._exit(report[1] if report is not None else 0)


def _run(plain: dict[str, Any]) -> tuple[str, int, int] | None:
    """Return None, or message, exit code and signal of what went wrong."""
    from qexp.commands import train

    try:
        check_targets(plain)
        train.run(parse(plain))
    except Interrupted as stop:
        return str(stop), stop.exit_code, stop.signal
    except KeyboardInterrupt:
        return "Ctrl-C", 130, int(signal.SIGINT)
    except QexpError as error:
        return str(error), error.exit_code, 0
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}", 1, 0
    return None


def _end_with_parent(pipe: Connection) -> None:
    """The parent holds the other end and sends nothing; when it is gone, even by SIGKILL, so is this process."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)
