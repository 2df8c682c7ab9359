"""From folders on the command line to the runs below them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qexp.errors import ConfigError, did_you_mean
from qexp.files import holds, is_there
from qexp.runs import Run, find_runs

DEFAULT_ROOT = "outputs"
"""Where runs are looked for when nothing is named: `output_dir`'s default."""


def collect(roots: Sequence[Path]) -> list[Run]:
    """Return the runs below `roots`, each folder once.

    Raises:
        ConfigError: a folder that is not there; no run in any of them.
    """
    runs: dict[Path, Run] = {}
    for root in roots:
        if not (is_there(str(root)) and root.is_dir()):
            siblings = [str(root.parent / entry.name) for entry in _folders(root.parent)]
            raise ConfigError(f"{root}: there is no such folder of runs.{did_you_mean(str(root), siblings)}")
        runs |= {run.path.resolve(): run for run in find_runs(root)}
    if not runs:
        names = ", ".join(map(str, roots))
        raise ConfigError(f"no runs in {names}; a run is made by `qexp train`, another folder can be named")
    return list(runs.values())


def one_run(path: Path) -> Run:
    """Return the run whose folder is `path`.

    Raises:
        ConfigError: it is not there, or it is a folder of several runs.
    """
    runs = collect([path])
    if len(runs) > 1:
        shown = ", ".join(str(run.path) for run in runs[:3])
        raise ConfigError(
            f"{path}: holds {len(runs)} runs, name one of them: {shown}{' ...' if len(runs) > 3 else ''}"
        )
    return runs[0]


def _folders(parent: Path) -> list[Path]:
    try:
        return [entry for entry in parent.iterdir() if holds(entry.is_dir)]
    except OSError:
        return []
