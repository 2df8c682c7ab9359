"""Where the loop stands, and batches that go on from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytorch_lightning as pl

from qexp.data.batches import Batch, Batches
from qexp.errors import CheckpointError


def epochs_done(trainer: pl.Trainer) -> int:
    """Return the number of whole epochs behind us; at an epoch's end hooks it counts that epoch."""
    progress = cast("Any", trainer.fit_loop.epoch_progress.current)  # typed as its base class in Lightning
    return int(progress.processed)


def batches_done(trainer: pl.Trainer) -> int:
    """Return the number of batches of this epoch that a step was made of."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


class EpochBatches:
    """A data set's batches as Lightning's loop wants them, starting where the loop stands.

    Lightning alone replays the first batches of an interrupted epoch; this asks the loop where it is. `trainer` is
    set once there is one.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.trainer: pl.Trainer | None = None
        self._expected: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: its first line runs when the first batch is asked for, after every state is restored.
        state = self.state_dict()
        if self._expected is not None and self._expected != state:
            raise CheckpointError(
                f"the checkpoint's data stand at {self._expected}, its loop at {state}: it is damaged, or made"
                " with another batch size; delete it to start this run again."
            )
        self._expected = None
        self.batches.load_state_dict(state)
        yield from self.batches

    def state_dict(self) -> dict[str, int]:
        """Return epoch and position of the batch to come."""
        if self.trainer is None:
            return {"epoch": 0, "position": 0}
        return {"epoch": epochs_done(self.trainer), "position": batches_done(self.trainer) % len(self)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Remember where the checkpoint says the data stood, to compare it with the loop."""
        self._expected = {"epoch": int(state["epoch"]), "position": int(state["position"])}
