from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

BEGIN = """
import multiprocessing, os, signal, sys
from qexp.data.imagenet import ImageNet
source = ImageNet(root=sys.argv[1], num_classes=2, resize=36, crop=32, workers=2, mean=[0.5] * 3, std=[0.2] * 3)

def begin(batch_size=4):
    batches = iter(source.train_batches(batch_size, 0, "cpu"))
    next(batches)
    return batches, [child.pid for child in multiprocessing.active_children()]
"""

SIGNALS = """
batches, workers = begin()
print(*workers, flush=True)
for worker in workers:
    os.kill(worker, signal.SIGINT)  # as a terminal does: the parent decides
    os.kill(worker, signal.SIGTERM)
print(len(list(batches)), flush=True)
batches, workers = begin()
print(*workers, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

SIGNALS_AT_BIRTH = """
from multiprocessing.process import BaseProcess
start = BaseProcess.start
def start_and_send(self):
    start(self)
    os.kill(self.pid, signal.SIGINT)
    os.kill(self.pid, signal.SIGTERM)
BaseProcess.start = start_and_send
batches, _ = begin()
print(len(list(batches)))
"""

# Each worker is given two batches ahead: when the first of twelve has come, the last ones were not begun.
KILLED_WORKER = """
batches, workers = begin(batch_size=1)
print(*workers, flush=True)
os.kill(workers[-1], signal.SIGKILL)
list(batches)
"""


def run(tmp_path: Path, tree: Path, program: str) -> tuple[int, list[str], str]:
    """Return its exit code, its lines and what it complains of.

    It writes to files: the end of a pipe comes only when every process that it started has ended.
    """
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
        words = [sys.executable, "-W", "ignore", "-c", BEGIN + program, str(tree)]
        done = subprocess.run(words, stdout=out, stderr=err, check=False, timeout=120)
    return done.returncode, (tmp_path / "out").read_text().splitlines(), (tmp_path / "err").read_text()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def assert_ended(*processes: str) -> None:
    deadline = time.monotonic() + 20
    while any(alive(int(process)) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(int(process)) for process in processes)


def test_workers_finish_an_epoch_through_signals_and_end_with_a_killed_parent(tmp_path, tree):
    code, lines, errors = run(tmp_path, tree, SIGNALS)
    assert code == -9, errors
    first, rest, second = lines
    assert len(first.split()) == len(second.split()) == 2
    assert rest == "2"  # of three batches one was taken before
    assert_ended(*first.split(), *second.split())


def test_a_signal_that_comes_before_a_worker_is_ready_does_not_end_it(tmp_path, tree):
    code, lines, errors = run(tmp_path, tree, SIGNALS_AT_BIRTH)
    assert (code, lines) == (0, ["2"]), errors


def test_a_killed_worker_is_one_error_and_the_others_end(tmp_path, tree):
    """The other one does not hear SIGTERM, by which Python ends such processes before it waits for them."""
    code, (workers,), errors = run(tmp_path, tree, KILLED_WORKER)
    assert code == 1
    assert "DataError: a decoding process was ended from outside" in errors.splitlines()[-1]
    assert "2 were at work: dataset.workers=N takes fewer" in errors.splitlines()[-1]
    assert_ended(*workers.split())
