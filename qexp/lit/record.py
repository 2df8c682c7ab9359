"""Writes each epoch's numbers to metrics.csv and to the loggers, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from qexp.files import MetricsFile
from qexp.lit.position import epochs_done
from qexp.lit.task import Classification

Source = Callable[[pl.Trainer, Classification], dict[str, float]]
"""Gives further numbers at the end of an epoch (validation, alphas)."""

CHECK_EVERY = 50
"""Steps between two looks at whether the loss is still a number; on a GPU each look waits for it."""


class Recorder(pl.Callback):
    """The only writer of numbers; `latest` holds those of the newest epoch.

    Args:
        metrics: the run's metrics.csv.
        sources: asked in order after each epoch.
        at_start: asked before the first step, as epoch 0.
    """

    def __init__(self, metrics: MetricsFile, sources: list[Source], at_start: list[Source]) -> None:
        self.metrics = metrics
        self.sources = sources
        self.at_start = at_start
        self.latest: dict[str, float] = {}
        self._lr = 0.0

    def record(self, trainer: pl.Trainer, epoch: int, values: dict[str, float]) -> None:
        """Write `values` for `epoch`; in a job of several processes the first one alone writes."""
        self.latest = values
        if trainer.is_global_zero and values:
            self.metrics.append(epoch, trainer.global_step, values)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Write what there is before the first step; a resumed run has it already."""
        if trainer.global_step == 0:
            values: dict[str, float] = {}
            for source in self.at_start:
                values.update(source(trainer, module))
            self.record(trainer, 0, values)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        """Remember the learning rate of the step to come: afterwards the schedule has moved on."""
        self._lr = trainer.optimizers[0].param_groups[-1]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Look now and then whether the loss is still a number."""
        if (index + 1) % CHECK_EVERY == 0 or module.device.type == "cpu":
            module.check_finite()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Write the epoch's means and what the sources add, then begin new means."""
        module.check_finite()
        values = {**module.epoch_means(), "lr": self._lr}
        for source in self.sources:
            values.update(source(trainer, module))
        epoch = epochs_done(trainer)
        self.record(trainer, epoch, values)
        module.clear_running()
