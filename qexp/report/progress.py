"""How far a run came, from its `metrics.csv`."""

from __future__ import annotations

from qexp.runs import Run, RunDirectory


def finished_epochs(run: Run) -> int:
    """Return the number of epochs that logged their numbers; 0 before the first one ended."""
    return max((epoch for epoch, _, _, _ in RunDirectory(run.path).metrics.rows()), default=0)


def progress_text(run: Run) -> str:
    """Return `epoch 3 of 40`; `of ?` where the configuration cannot be read; no epochs where nothing trains."""
    if run.config.get("calibration"):
        return "calibrated" if run.status == "done" else "calibration"
    return f"epoch {finished_epochs(run)} of {run.config.get('epochs', '?')}"
