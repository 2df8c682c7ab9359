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
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from qexp import forkserver
from qexp.build import check_targets
from qexp.config import Config, parse
from qexp.errors import Interrupted, QexpError, TrainingError

GRACE = 15.0
"""Seconds that the other processes get to end by themselves once one has failed."""

_PRELOADED = ["qexp.commands.train", "qexp.commands.network", "qexp.lit.fit", "qexp.report.plots"]
_POLL = 0.05


def rank() -> int:
    """Return this process's number in its job; 0 when it is alone. Process 0 alone locks and writes."""
    return int(os.environ.get("RANK", "0"))


def wants_launch(config: Config) -> bool:
    """Return whether this process has to start the job's processes (and is none of them)."""
    return config.trainer.devices > 1 and "RANK" not in os.environ


@dataclass(frozen=True)
class Report:
    """How a process ended, in its own words.

    Attributes:
        signal: the one that stopped it, or 0.
        trace: of a bug, else empty.
        time: of the machine's clock since its start, the same for all its processes.
    """

    message: str
    exit_code: int
    signal: int = 0
    trace: str = ""
    time: float = field(default_factory=time.monotonic)


class Worker:
    """One process of a job, and the pipe on which it says how it ended."""

    report: Report | None = None

    def __init__(self, plain: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        context = forkserver.context(_PRELOADED)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(dict(plain), dict(environment), theirs))
        with _start_method("forkserver"):
            self.process.start()
        theirs.close()

    def failure(self) -> BaseException:
        """Return what the process reported, as this process would have raised it; a bug's traceback is printed."""
        if self.report is None:
            code = self.process.exitcode or 0
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            return TrainingError(f"a process of the job ended {how}, without a word: out of memory, or killed?")
        if self.report.signal:
            return Interrupted(self.report.signal)
        print(self.report.trace, end="", file=sys.stderr)
        error = QexpError(self.report.message)
        error.exit_code = self.report.exit_code
        return error

    def listen(self) -> bool:
        """Take in what it has to report; return whether it has failed."""
        if self.report is None:
            with suppress(EOFError, OSError):
                self.report = self.pipe.recv() if self.pipe.poll() else None
        return self.report is not None or bool(self.process.exitcode)

    def blame(self) -> tuple[int, float]:
        """Return how likely it is the cause of the job's failure, the likeliest first.

        When one process ends, the others lose their connection to it and report that as well: a mistake or a
        signal that was reported is the cause, else a process that was killed, else the first that was surprised.
        """
        if self.report is None:
            return (3 if self.process.exitcode == -signal.SIGABRT else 1), 0.0
        return (2 if self.report.trace else 0), self.report.time

    def end(self) -> None:
        """End it, if it still runs."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


@contextmanager
def _start_method(name: str) -> Iterator[None]:
    """Make `name` this process's default, which a new process takes over.

    joblib's workers have one of their own as default, which a process that they start would look for in vain.
    """
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(name, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)  # None: Python's own


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
        "QEXP_COMMAND": os.environ.get("QEXP_COMMAND") or " ".join(["qexp", *sys.argv[1:]]),
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
    """Return the worker whose failure ended the job, once all have ended or their grace is over."""
    deadline = float("inf")
    while any(worker.process.is_alive() for worker in workers) and time.monotonic() < deadline:
        if deadline == float("inf") and any(worker.listen() for worker in workers):
            deadline = time.monotonic() + GRACE
        time.sleep(_POLL)
    return min((worker for worker in workers if worker.listen()), key=Worker.blame, default=None)


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
    forkserver.hear_signals()
    os.environ.clear()
    os.environ.update(environment)
    # What the run itself starts, it starts as a run of one process does.
    multiprocessing.set_start_method(None, force=True)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    report = _run(plain)
    if report is not None:
        with suppress(OSError):
            pipe.send(report)
    sys.stdout.flush()
    sys.stderr.flush()
    # The process group's destructor would wait for the other processes, which may be gone.
    os._exit(report.exit_code if report is not None else 0)


def _run(plain: dict[str, Any]) -> Report | None:
    """Return None, or what went wrong."""
    from qexp.commands import train

    try:
        check_targets(plain)
        train.run(parse(plain))
    except Interrupted as stop:
        return Report(str(stop), stop.exit_code, stop.signal)
    except KeyboardInterrupt:
        return Report("Ctrl-C", 130, int(signal.SIGINT))
    except QexpError as error:
        return Report(str(error), error.exit_code)
    except Exception as error:
        return Report(f"{type(error).__name__}: {error}".splitlines()[0], 1, trace=traceback.format_exc())
    return None


def _end_with_parent(pipe: Connection) -> None:
    """The parent holds the other end and sends nothing; when it is gone, even by SIGKILL, so is this process."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)
