"""For every test: nothing is written into the checkout or the home folder, and where real data is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import register_random, settings
from hypothesis.configuration import set_hypothesis_home_dir

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real data beside the checkout, where QEXP_DATA names no other folder."""

_SCRATCH = Path(tempfile.mkdtemp(prefix="qexp-tests-"))

# Before anything is imported that reads them, and for the processes that tests start. What is printed, and how a
# run begins, must not hang on the shell or the job that the tests are in.
for _name in (
    *("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "QEXP_PLUGINS", "RAY_ADDRESS"),
):
    os.environ.pop(_name, None)
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as cores: with threads besides they would all wait. They share the caches that the first of
    # all processes named, so that a kernel is built, a step compiled and a data set decoded once.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
else:
    os.environ["QEXP_CACHE"] = str(_SCRATCH / "cache")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(_SCRATCH / "inductor")
os.environ["TRITON_CACHE_DIR"] = str(_SCRATCH / "triton")
os.environ["MPLCONFIGDIR"] = str(_SCRATCH / "matplotlib")
set_hypothesis_home_dir(_SCRATCH / "hypothesis")

# A first call imports or compiles, and machines are shared: a slow example is no failure. The same examples each
# time: whether a change is good must not depend on luck.
settings.register_profile("qexp", deadline=None, derandomize=True)
settings.load_profile("qexp")


@cache
def _torchs_generator() -> Any:
    import torch  # here: the process that only starts others needs none

    return torch.default_generator


class _Replayed:
    """Torch's generator as hypothesis asks for one: every example draws the same numbers each time it is run."""

    def seed(self, seed: int) -> None:
        _torchs_generator().manual_seed(seed)

    def getstate(self) -> Any:
        return _torchs_generator().get_state()

    def setstate(self, state: Any) -> None:
        _torchs_generator().set_state(state)


_REPLAYED = _Replayed()  # hypothesis keeps no reference of its own
register_random(_REPLAYED)


# Each has a seed of its own, and hypothesis takes 0: else an input would be the very numbers that its layer holds.
def pytest_collectstart() -> None:
    _REPLAYED.seed(1)  # for what a file makes when it is imported


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _REPLAYED.seed(2)  # for fixtures of a wider scope, whichever test is the first to ask


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """A test draws the same numbers from torch alone, after others, and in another process."""
    _REPLAYED.seed(3)


def pytest_unconfigure() -> None:
    shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def current_folder() -> Iterator[None]:
    """What a test writes by a relative path, `outputs` for one, goes to a temporary folder."""
    before = Path.cwd()
    folder = _SCRATCH / "current"
    folder.mkdir()
    os.chdir(folder)
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def real_file() -> Callable[[str], Path]:
    """Return the path of a file of real data by its name; without it the test is skipped and says so."""
    folders = [Path(named).absolute()] if (named := os.environ.get("QEXP_DATA")) else []
    folders.append(SHARED)

    @cache
    def find(name: str) -> Path | None:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        return _unpacked_cifar10() if name == "cifar10.npz" else None

    def need(name: str) -> Path:
        if (file := find(name)) is None:
            pytest.skip(f"no {name} in {' or '.join(map(str, folders))}; QEXP_DATA names a folder that holds it")
        return file

    return need


def _unpacked_cifar10() -> Path | None:
    program, file = SHARED / "unpack_cifar10.py", _SCRATCH / "data" / "cifar10.npz"
    if not program.is_file():
        return None
    file.parent.mkdir()
    subprocess.run([sys.executable, str(program), str(file)], check=True, stdout=subprocess.DEVNULL)
    return file
