"""Ctrl-C and SIGTERM outside a training step: a job ends with its record, and a sweep's workers hear of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from qexp.errors import Interrupted


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises Interrupted, as Ctrl-C raises KeyboardInterrupt; in the main thread only."""

    def receive(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handling({signal.SIGTERM: receive}):
        yield


@contextlib.contextmanager
def passed_to_workers() -> Iterator[None]:
    """Within, both signals are passed to this process's children, and it waits for what they record.

    A terminal's Ctrl-C reaches the children by itself: passed on, it would count as a second one and end them.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and _in_foreground():
            return
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    with _handling({signal.SIGTERM: receive, signal.SIGINT: receive}):
        yield


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


def _in_foreground() -> bool:
    """Return whether a terminal sends its Ctrl-C to this process and its children."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
