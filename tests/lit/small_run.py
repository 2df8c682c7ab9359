"""A run small enough to be killed many times: digits, dropout, batch norm, PACT, momentum, one-cycle.

As a program (`small_run.py FOLDER`) it trains the same run once per entry of `KILLS`, each in a process of its own
that kills itself with SIGKILL at that point.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qexp.files
from qexp.config import parse
from qexp.data.digits import Digits
from qexp.files import MetricsFile
from qexp.lit import fit as fitting
from qexp.lit.start import seed_everything
from qexp.lit.task import Classification
from qexp.quantizers.base import Site
from qexp.quantizers.pact import PACT
from qexp.runs import RunDirectory


def config(**changes: Any) -> Any:
    """A checked configuration; `trainer_*` changes the trainer's entries, the rest the top level's."""
    lit = "qexp.lit"
    plain: dict[str, Any] = {
        "task": {"_target_": f"{lit}.task.Classification"},
        "dataset": {"_target_": "qexp.data.digits.Digits"},
        "model": {"_target_": "qexp.models.mlp.MLP"},
        "quantizer": {"weight": None, "activation": None, "placement": "relu", "first_last": "same"},
        "rounding": {"_target_": "qexp.ops.rounding.ste", "_partial_": True},
        "bits": {"weight": 4, "activation": 4},
        "first_last": None,
        "layers": {},
        "alpha_regularization": {"lambda_alpha": 0.01},
        "optimizer": {"_target_": f"{lit}.optimizers.sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4},
        "schedule": {"_target_": f"{lit}.schedules.onecycle"},
        "trainer": {
            "device": "cpu", "devices": 1, "strategy": "auto", "precision": "float32", "channels_last": True,
            "compile": False, "deterministic": False, "threads": 1, "checkpoint_minutes": None,
            "checkpoint_steps": None, "watchdog": "warn", "progress": False,
        },
        "logger": {},
        "epochs": 3,
        "batch_size": 128,
        "seed": 0,
        "output_dir": "outputs",
        "experiment": {"name": "train"},
    }  # fmt: skip
    for key, value in changes.items():
        if key.startswith("trainer_"):
            plain["trainer"][key.removeprefix("trainer_")] = value
        else:
            plain[key] = value
    return parse(plain)


def network(alpha: float = 10.0, bits: int = 4) -> nn.Sequential:
    """A small convolutional network; the same numbers on every call."""
    seed_everything(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        PACT(bits, Site("first", "activation", (8, 8, 8)), alpha=alpha),
        nn.Conv2d(8, 8, 3),
        PACT(bits, Site("second", "activation", (8, 6, 6)), alpha=alpha),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8 * 36, 10),
    )


def train(folder: Path, **changes: Any) -> tuple[nn.Module, dict[str, float]]:
    """Train `network()` in `folder`, from its checkpoint if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    net = changes.pop("network", None) or network()
    return net, fitting.fit(net, Digits(), config(**changes), RunDirectory(folder))


def die() -> None:
    """End as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_call(owner: Any, name: str, call: int) -> None:
    """Make the `call`-th call of `owner.name` the last thing that this process does, after it has run."""
    original: Callable[..., Any] = getattr(owner, name)
    count = 0

    def replacement(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        result = original(*arguments, **named)
        count += 1
        if count == call:
            die()
        return result

    setattr(owner, name, replacement)


KILLS: dict[str, Callable[[], None]] = {
    "mid_epoch": lambda: _die_at_call(Classification, "optimizer_step", 17),
    "before_any_checkpoint": lambda: _die_at_call(Classification, "optimizer_step", 2),
    # Of the second checkpoint: every byte is written, nothing is synced or swapped in.
    "in_a_checkpoint_write": lambda: _die_at_call(torch, "save", 2),
    "after_metrics": lambda: _die_at_call(MetricsFile, "append", 3),
    "after_the_swap": lambda: _die_at_call(qexp.files, "_sync_folder", 3),
}


def main(root: Path) -> None:
    """Run every entry of `KILLS` in a child process and check how it ended."""
    torch.set_num_threads(1)
    for name, arrange in KILLS.items():
        child = os.fork()
        if child == 0:
            arrange()
            train(root / name, trainer_checkpoint_steps=4)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"{name}: ended with {status}, not by SIGKILL")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
