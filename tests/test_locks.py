from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from qexp import locks
from qexp.locks import InUseError, held, hold, owner

ELSEWHERE = "4711 another-machine 00000000-boot\n"


def claim(folder: Path, seconds_ago: float, text: str = ELSEWHERE) -> Path:
    """Leave the claim of another machine, touched so long ago; a file system whose locks do not reach here."""
    file = folder / ".claim"
    file.write_text(text)
    then = time.time() - seconds_ago
    os.utime(file, (then, then))
    return file


def test_a_folder_is_held_once_and_free_again(tmp_path: Path) -> None:
    with hold(tmp_path):
        assert held(tmp_path)
        assert owner(tmp_path).startswith(f"process {os.getpid()} on ")
        with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on "), hold(tmp_path):
            pass
        assert held(tmp_path)
    assert not held(tmp_path)
    assert not (tmp_path / ".claim").exists()
    with hold(tmp_path):
        pass


def test_another_machine_that_works_is_respected(tmp_path: Path) -> None:
    file = claim(tmp_path, 5)
    assert held(tmp_path)
    with pytest.raises(InUseError, match="process 4711 on another-machine"), hold(tmp_path):
        pass
    assert file.read_text() == ELSEWHERE


def test_another_machine_of_the_same_name_is_another_machine(tmp_path: Path) -> None:
    claim(tmp_path, 5, f"123 {socket.gethostname()} 00000000-another-boot\n")
    if not locks._boot():
        pytest.skip("this system does not number its boots")
    assert held(tmp_path)
    with pytest.raises(InUseError, match="process 123"), hold(tmp_path):
        pass


def test_who_lost_a_claim_leaves_the_new_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT", 0.02)
    with hold(tmp_path):  # asleep for minutes; another machine took over
        file = claim(tmp_path, 100)
        time.sleep(0.1)
        assert time.time() - file.stat().st_mtime > 90, "it is not kept alive"
    assert file.read_text() == ELSEWHERE


def test_looking_at_a_folder_does_not_keep_anybody_out(tmp_path: Path) -> None:
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            held(tmp_path)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(100):
            with hold(tmp_path):
                pass
    finally:
        over.set()
        watcher.join()


def test_another_machine_that_is_gone_is_not(tmp_path: Path) -> None:
    claim(tmp_path, locks.STALE + 1)
    assert not held(tmp_path)
    with hold(tmp_path):
        assert (tmp_path / ".claim").read_text().startswith(f"{os.getpid()} ")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_a_claim_that_is_suspect_is_watched_until_it_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = claim(tmp_path, locks.SUSPECT + 1)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.utime(file))
    with pytest.raises(InUseError), hold(tmp_path):
        pass
    claim(tmp_path, locks.SUSPECT + 1)
    monkeypatch.setattr(time, "sleep", lambda seconds: claim(tmp_path, locks.STALE + 1))
    with hold(tmp_path):
        pass


def test_what_a_killed_process_of_this_machine_left_is_no_obstacle(tmp_path: Path) -> None:
    claim(tmp_path, 1, locks._myself())
    assert not held(tmp_path)
    with hold(tmp_path):
        pass


def test_the_holder_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)
    with hold(tmp_path):
        file = tmp_path / ".claim"
        os.utime(file, (1, 1))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_claim_that_was_renewed_while_one_took_it_away_is_given_back(tmp_path: Path) -> None:
    file = claim(tmp_path, 0, "4712 third-machine boot\n")
    locks._remove(file, ELSEWHERE)  # what was seen before
    assert file.read_text() == "4712 third-machine boot\n"
    locks._remove(file, "4712 third-machine boot\n")
    assert not file.exists()


def test_without_locks_the_claim_alone_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with hold(tmp_path), pytest.raises(InUseError), hold(tmp_path):
        pass
    with hold(tmp_path):
        pass


def test_a_full_disk_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> str:
        if (tmp_path / ".claim").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return "me here boot\n"

    monkeypatch.setattr(locks, "_myself", full)
    with pytest.raises(OSError, match="No space left"), hold(tmp_path):
        pass
    assert not (tmp_path / ".claim").exists()


def _count_alone(folder: Path, rounds: int) -> None:
    """Add to a number without any other protection than the lock."""
    number = folder / "number"
    while rounds:
        try:
            with hold(folder):
                before = int(number.read_text())
                time.sleep(0.001)
                number.write_text(str(before + 1))
                rounds -= 1
        except InUseError:
            time.sleep(0.001)


@pytest.mark.parametrize("works", [True, False], ids=["locks", "claims alone"])
def test_several_processes_never_hold_it_at_once(
    works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("spawn")
    (tmp_path / "number").write_text("0")
    target = _count_alone if works else _count_by_claims
    workers = [context.Process(target=target, args=(tmp_path, 20)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert (tmp_path / "number").read_text() == "60"


def _count_by_claims(folder: Path, rounds: int) -> None:
    fcntl.flock = lambda handle, operation: None  # type: ignore[assignment]  # a lock that no other machine sees
    locks._is_here = lambda text: False  # type: ignore[assignment]
    _count_alone(folder, rounds)
