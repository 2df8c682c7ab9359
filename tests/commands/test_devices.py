from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from qexp.commands import devices
from qexp.commands.devices import devices_of, lock_file, occupied
from qexp.errors import ConfigError, OutputError
from qexp.lit.evaluate import device_of

from ..composing import parsed


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_one_run_waits_for_the_other_and_says_so(capsys):
    """Two runs on overlapping devices: the second begins when the first has ended, never before."""
    events: list[str] = []

    def second() -> None:
        with occupied(["cuda:1", "cuda:2"]):
            events.append("second begins")

    with occupied(["cuda:0", "cuda:1"]):
        thread = threading.Thread(target=second)
        thread.start()
        printed, deadline = "", time.monotonic() + 60
        while "\n" not in printed and time.monotonic() < deadline:
            time.sleep(0.01)
            printed += capsys.readouterr().out
        assert thread.is_alive()
        with occupied(["cuda:3"]):  # another device is free
            events.append("first ends")
    thread.join(timeout=60)
    assert events == ["first ends", "second begins"]
    printed += capsys.readouterr().out
    assert printed.splitlines() == [f"waiting for cuda:1: the distributed run of process {os.getpid()} is on it"]


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    program = (
        "import os, signal, tempfile\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "from qexp.commands.devices import occupied\n"
        "with occupied(['cpu']): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert lock_file("cpu").exists()
    with occupied(["cpu"]):
        pass


def test_devices_are_named_as_the_machine_counts_them(monkeypatch):
    import torch

    two = parsed("trainer.devices=2", "trainer.device=cpu")
    assert devices_of(two) == ["cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    two = parsed("trainer.devices=2", "trainer.device=cuda")
    assert devices_of(two) == ["cuda:0", "cuda:1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    assert devices_of(two) == ["cuda:2", "cuda:3"]
    with pytest.raises(ConfigError, match=r"trainer.devices=4: 3 CUDA devices here; give at most as many"):
        device_of(parsed("trainer.devices=4", "trainer.device=auto"))


def test_a_lock_that_cannot_be_made_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "lock_file", lambda device: tmp_path / "none" / "x.lock")
    with pytest.raises(OutputError, match="set TMPDIR to a folder of yours") as caught, occupied(["cpu"]):
        pass
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_locks_are_a_users_own(tmp_path):
    with occupied(["cuda:GPU-1/2"]):
        (file,) = tmp_path.iterdir()
    assert file == Path(lock_file("cuda:GPU-1/2")) and file.stat().st_mode & 0o777 == 0o600
    assert str(os.getuid()) in file.name
