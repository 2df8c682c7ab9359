"""Output that nobody reads any more (`qexp train | head`, a closed terminal) is dropped; it never ends a run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Tolerant:
    """A text stream that goes quiet once its reader is gone; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        with self._quiet_when_broken():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, or drop it."""
        with self._quiet_when_broken():
            self._stream.flush()

    @contextlib.contextmanager
    def _quiet_when_broken(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # What is still buffered goes where it disturbs nobody, also when the interpreter ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Within, stdout and stderr drop what cannot be delivered; one that was closed from the start is no error."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123, pathlib costs the start some time
        opened: list[Any] = [Tolerant(stream) if stream is not None else nowhere for stream in before]
        sys.stdout, sys.stderr = opened
        try:
            yield
        finally:
            for stream in opened:
                stream.flush()
            sys.stdout, sys.stderr = before
