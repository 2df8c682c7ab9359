"""Progress for people: a bar on a terminal, one line per epoch anywhere else."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from qexp.lit.position import epochs_done
from qexp.lit.record import Recorder

log = logging.getLogger(__name__)

REFRESH = 1.0
"""Seconds between two looks at the running loss; each look waits for the device."""


class ProgressLines(pl.Callback):
    """Shows epoch, steps per second, loss and accuracy.

    Args:
        recorder: whose numbers it shows; nothing is computed twice.
        console: where to; stderr, so that stdout stays for results.
    """

    def __init__(self, recorder: Recorder, console: Console | None = None) -> None:
        self.recorder = recorder
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._looked = self._began = 0.0
        self._steps = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Begin an epoch's bar."""
        self._start(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        """A run resumed in mid-epoch has no epoch start: begin here."""
        if not self._began:
            self._start(trainer, done=index)

    def _start(self, trainer: pl.Trainer, done: int = 0) -> None:
        self._began, self._steps = time.monotonic(), 0
        if not (trainer.is_global_zero and self.console.is_terminal):
            return
        epoch = epochs_done(trainer) + 1
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=4,
        )
        total = trainer.num_training_batches
        text = f"{epoch}/{trainer.max_epochs}"
        self._task = self._bar.add_task("", total=total, completed=done, epoch=text, numbers="")
        self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Move the bar, and read the loss once a second."""
        self._steps += 1
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._looked >= REFRESH:
            self._looked = now
            running = module.running()
            rate = self._steps / max(now - self._began, 1e-9)
            self._bar.update(
                self._task,
                numbers=f"{rate:.1f} it/s  loss {running['train_loss']:.4f}  acc {running['train_accuracy']:.4f}",
            )
        self._bar.update(self._task, completed=index + 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Print the epoch's line."""
        self._stop()
        seconds = time.monotonic() - self._began
        self._began = 0.0
        if not trainer.is_global_zero:
            return
        epoch = epochs_done(trainer)
        values = self.recorder.latest
        shown = [
            f"{name} {values[name]:.4f}"
            for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
            if name in values
        ]
        shown.append(f"lr {values.get('lr', 0.0):.4g}  {seconds:.1f} s")
        rate = self._steps / max(seconds, 1e-9)
        line = f"epoch {epoch}/{trainer.max_epochs}  {'  '.join(shown)}  {rate:.1f} it/s"
        log.info(line)
        self.console.print(line, highlight=False, soft_wrap=True)

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
