"""Ctrl-C, SIGTERM, a scheduler's signal: finish the step, write a checkpoint, end; a second one ends at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch

from qexp.errors import Interrupted
from qexp.interrupts import asked_to_stop, requeue_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context in which the signals set a flag; training reads it between two steps."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (*SIGNALS, *requeue_signals())}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals over, also from Lightning, which registers its own when a fit begins."""
        for number in self._before:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            # The checkpoint is swapped in whole or not at all, so ending here loses no file.
            os._exit(128 + number)
        self.signal = number
        name = signal.Signals(number).name
        text = f"{name}: stopping after this step, with a checkpoint; again to end at once.\n"
        # os.write, because a handler that prints can break into another print.
        os.write(2, text.encode())

    def agreed(self, trainer: Any, due: bool = False) -> tuple[bool, bool]:
        """Return whether to stop, and whether something is `due` in any process.

        Under DDP every process gives the same answers, which each step waits for: once, therefore.
        """
        if self.signal is None:
            self.signal = asked_to_stop()
        if trainer.world_size > 1:
            wish = torch.tensor([self.signal or 0, due], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(wish, op=torch.distributed.ReduceOp.MAX)
            number, any_due = wish.tolist()
            due = bool(any_due)
            if not number:
                return False, due  # a signal that came during the reduction stays asked for: the next step sees it
            self.signal = number
        return self.signal is not None, due

    def end(self) -> None:
        """Leave the training loop.

        Raises:
            Interrupted: always; it names the signal.
        """
        raise Interrupted(self.signal or signal.SIGINT)
