"""Ctrl-C and SIGTERM outside a training step: a job ends with its record, and a sweep's workers hear of it.

Workers hear of it through a file, because they may be on other machines, or children of a launcher that passes no
signals on. They look for it between two training steps and before each job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from qexp.errors import Interrupted

STOP_VARIABLE = "QEXP_STOP_FILE"
"""Names the file; an environment variable, so that the processes that a worker starts look for it too."""

SECONDS_BETWEEN_LOOKS = 1.0

_next_look = 0.0


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises Interrupted, as Ctrl-C raises KeyboardInterrupt; in the main thread only."""

    def receive(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handling({signal.SIGTERM: receive}):
        yield


@contextlib.contextmanager
def asking_workers(stop: Path) -> Iterator[None]:
    """Within, the first signal writes the file `stop` and lets the workers end; a second one raises Interrupted.

    A terminal's Ctrl-C would reach the children by itself, and a launcher's own would die of it without a word: it
    is blocked for them, as for this process, in which a thread waits for it.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(int(signal.SIGINT) if typed else number)
        if len(received) > 1:
            raise Interrupted(received[0])
        stop.write_text(f"{received[0]}\n", encoding="ascii")
        print(_STOPPING, file=sys.stderr, flush=True)

    typed: list[bool] = []
    with _handling({signal.SIGTERM: receive, signal.SIGINT: receive}), _waiting_for_ctrl_c(typed):
        yield


_STOPPING = (
    "stopping: the running jobs end after their step, with a checkpoint; again to leave at once\n"
    "(jobs that still wait in a cluster's queue do nothing when their turn comes; its own command removes them)"
)


@contextlib.contextmanager
def _waiting_for_ctrl_c(typed: list[bool]) -> Iterator[None]:
    """Block SIGINT for this process and its children; a thread turns it into SIGTERM to the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()
    main = threading.main_thread().ident or 0

    def wait() -> None:
        while signal.sigwait({signal.SIGINT}) and not over.is_set():
            typed.append(True)
            signal.pthread_kill(main, signal.SIGTERM)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    try:
        yield
    finally:
        over.set()
        signal.pthread_kill(waiter.ident or 0, signal.SIGINT)  # the thread's own, to end it
        waiter.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def asked_to_stop(file: str | None = None) -> int | None:
    """Return the signal that the sweep's own process received, or None.

    Args:
        file: where it would say so; None takes what this process was told, and looks once a second at most.
    """
    global _next_look
    if file is None:
        file = os.environ.get(STOP_VARIABLE, "")
        if not file or time.monotonic() < _next_look:
            return None
        _next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
    try:
        return int(Path(file).read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):  # just being written
        return int(signal.SIGTERM)


def requeue_signals() -> tuple[int, ...]:
    """Return the signals on which the scheduler that runs this process wants to start it again later."""
    return tuple(number for number in (signal.SIGUSR1, signal.SIGUSR2) if callable(signal.getsignal(number)))


def hand_back(stop: Interrupted) -> None:
    """Give a scheduler's signal, after the checkpoint that it asked for, to the scheduler's own handler.

    It puts the job back into the queue and ends this process (SystemExit), or raises why it does not.
    """
    handler = signal.getsignal(stop.signal)
    if stop.signal in requeue_signals() and callable(handler):
        handler(stop.signal, None)


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
