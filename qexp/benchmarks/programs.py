"""Whole programs timed from outside, as a user waits for them: the help, a finished sweep, the default run."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from qexp.benchmarks.measure import Measure, Spread, spread
from qexp.errors import TrainingError
from qexp.runs import find_runs

HELP_SECONDS = 0.3
SWEEP_SECONDS = 10.0
DIGITS_SECONDS = 60.0
DIGITS_ACCURACY = 0.97

_SWEEP = ("-m", "quantizer=pact,dorefa", "bits=2,4", "seed=0,1,2,3,4", "epochs=1")
_JOBS = 20
_DEFAULT = ("quantizer=pact", "bits=4")


def startup(rounds: int) -> list[Measure]:
    """Time `qexp --help` in `rounds` processes, and count the modules of torch that it imports."""
    seconds = [_timed(["--help"], Path.cwd())[0] for _ in range(rounds)]
    command = [sys.executable, "-X", "importtime", "-m", "qexp", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    modules = float(len(torch_modules(done.stderr)))
    processes = f"{rounds} processes"
    return [
        Measure("startup", "qexp --help", spread(seconds), HELP_SECONDS, "{:.3f} s", basis=processes),
        Measure("startup", "torch modules imported by it", Spread(modules, modules, modules), 0.0, "{:.0f}"),
    ]


def torch_modules(import_times: str) -> list[str]:
    """Return torch and its parts among the modules that `python -X importtime` lists.

    >>> torch_modules(
    ...     "import time: 12 | 34 | os\\nimport time: 5 | 9 |   torch.nn\\nimport time: 1 | 1 | torchlight"
    ... )
    ['torch.nn']
    """
    names = re.findall(r"^import time:[\s\d]*\|[\s\d]*\|\s*(\S+)", import_times, re.MULTILINE)
    return [name for name in names if name.partition(".")[0] == "torch"]


def sweep(threads: int | None) -> list[Measure]:
    """Make a sweep of 20 short runs, then time typing it again.

    Raises:
        TrainingError: the sweep failed, or did not leave its 20 runs done.
    """
    with tempfile.TemporaryDirectory(prefix="qexp-bench-") as folder:
        words = ["train", *_SWEEP, *_places(folder, threads)]
        first, _ = _timed(words, Path(folder))
        done = sum(run.status == "done" for run in find_runs(Path(folder)))
        if done != _JOBS:
            raise TrainingError(f"the sweep to be timed left {done} finished runs; {_JOBS} were expected.")
        again, _ = _timed(words, Path(folder))
    what = f"finished sweep of {_JOBS} jobs, typed again"
    basis = f"{first:.0f} s the first time"
    return [Measure("sweep", what, spread([again]), SWEEP_SECONDS, "{:.1f} s", basis=basis)]


def digits(threads: int | None) -> list[Measure]:
    """Time the default run on the digits, from the command to its result, and read its accuracy.

    Raises:
        TrainingError: the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="qexp-bench-") as folder:
        words = ["train", *_DEFAULT, *_places(folder, threads)]
        seconds, _ = _timed(words, Path(folder))
        results = [run.result for run in find_runs(Path(folder)) if run.result]
    if len(results) != 1:
        raise TrainingError(f"the run to be timed left {len(results)} results; one was expected.")
    accuracy, command = float(results[0]["test_accuracy"]), f"qexp train {' '.join(_DEFAULT)}"
    basis = f"{results[0]['train_seconds']:.0f} s of it training"
    return [
        Measure("digits", command, spread([seconds]), DIGITS_SECONDS, "{:.1f} s", basis=basis),
        Measure("digits", "its test accuracy", spread([accuracy]), DIGITS_ACCURACY, "{:.4f}", at_least=True),
    ]


def _places(folder: str, threads: int | None) -> list[str]:
    words = [f"output_dir={folder}", "trainer.progress=false"]
    return words if threads is None else [*words, f"trainer.threads={threads}"]


def _timed(arguments: Sequence[str], folder: Path) -> tuple[float, str]:
    """Run `qexp` with `arguments` in `folder`; return the seconds and what it printed.

    Raises:
        TrainingError: it failed; its last line says why.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "qexp", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        raise TrainingError(f"`qexp {' '.join(arguments)}` ended with exit code {done.returncode}: {said[-1]}")
    return seconds, done.stdout
