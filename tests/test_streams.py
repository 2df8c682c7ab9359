from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import TextIO

import pytest

from qexp.streams import Tolerant, tolerant_output


def broken_pipe() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


def test_a_reader_that_is_gone_ends_nothing() -> None:
    with broken_pipe() as pipe:
        stream = Tolerant(pipe)
        for _ in range(3):
            assert stream.write("a line\n") == 7
            stream.flush()
        assert not stream.isatty()


def test_output_that_was_closed_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with tolerant_output():
        print("nobody reads this")
    assert sys.stdout is None


def test_what_is_read_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = io.StringIO()
    monkeypatch.setattr(sys, "stdout", kept)
    with tolerant_output():
        print("hello")
    assert kept.getvalue() == "hello\n"
    assert sys.stdout is kept


@pytest.mark.parametrize("end", ["| head -1", ">&-", ">&- 2>&-"])
def test_the_program_with_an_output_that_ends(end: str) -> None:
    line = f"set -o pipefail; {sys.executable} -m qexp list {end}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
