"""How a process computes on a CPU: its threads, and what becomes of memory that tensors let go."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_LARGEST = 2**30  # bytes; what is above stays apart and goes back to the system at once


def prepare(threads: int | None) -> None:
    """Compute with so many threads (None: as many as at the first time), and keep memory for the next step."""
    at_first = _threads_at_first()
    torch.set_num_threads(threads or at_first)
    keep_freed_memory()


@functools.cache
def _threads_at_first() -> int:
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Keep what tensors let go for the next ones, rather than hand it to the system and take it back page by page.

    A network asks for the same large blocks in every step. glibc by itself maps each block of more than 32 MiB
    anew, whose pages the system has to clear; `outputs/results/bench.md` has what that costs.

    Returns:
        Whether it is set: not with another C library, nor where the environment decides (`MALLOC_...`,
        `GLIBC_TUNABLES`).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    with contextlib.suppress(OSError, AttributeError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        return bool(set_option(_MMAP_THRESHOLD, _LARGEST) and set_option(_TRIM_THRESHOLD, _LARGEST))
    return False
