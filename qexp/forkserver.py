"""Processes that start as copies of a server which has imported everything and computed nothing.

A process that trains has threads, and a copy of it may wait for ever for a lock that one of them held. The server
is started with Ctrl-C and SIGTERM blocked, and what it forks begins the same way: a signal that comes before a new
process is ready to hear it waits, instead of ending it.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.util  # its own end registers itself first, so that `_kill_followers` comes before it
import signal
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

AVAILABLE = "forkserver" in multiprocessing.get_all_start_methods()
"""False on Windows, where new processes start from nothing."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FOLLOWERS: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


def context(preload: Sequence[str]) -> ForkServerContext | SpawnContext:
    """Return multiprocessing's context of the server; a server that is not running yet imports `preload` first."""
    if not AVAILABLE:
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(preload))
    resource_tracker.ensure_running()  # the server needs it, and starting it lifts the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return made


def hear_signals() -> None:
    """In a new process: take the signals that came so far, and those to come."""
    if AVAILABLE:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def ignore_signals() -> None:
    """In a new process: leave Ctrl-C and SIGTERM, which reach every process, to the parent."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


@contextlib.contextmanager
def following() -> Iterator[None]:
    """Processes that are started inside ignore signals: they are killed when this process ends.

    multiprocessing sends its daemons SIGTERM at the end and waits for them, in vain for those that do not hear it.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        _FOLLOWERS.update(set(multiprocessing.active_children()) - before)


@atexit.register
def _kill_followers() -> None:
    for process in _FOLLOWERS:
        if process.is_alive():
            process.kill()
