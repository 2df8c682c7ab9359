from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import multiprocessing, os, signal, sys
from qexp.data.imagenet import ImageNet
source = ImageNet(root=sys.argv[1], num_classes=2, resize=36, crop=32, workers=2, mean=[0.5] * 3, std=[0.2] * 3)
batches = iter(source.train_batches(4, 0, "cpu"))
next(batches)
workers = [child.pid for child in multiprocessing.active_children()]
print(*workers, flush=True)
for worker in workers:
    os.kill(worker, signal.SIGINT)  # as a terminal does: the parent decides
    os.kill(worker, signal.SIGTERM)
print(len(list(batches)), flush=True)
batches = iter(source.train_batches(4, 0, "cpu"))
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_finish_an_epoch_through_signals_and_end_with_a_killed_parent(tree):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tree)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    first, rest, second = done.stdout.splitlines()
    assert len(first.split()) == len(second.split()) == 2
    assert rest == "2"  # of three batches one was taken before
    deadline = time.monotonic() + 3
    while any(alive(int(process)) for process in second.split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(int(process)) for process in (first + " " + second).split())
