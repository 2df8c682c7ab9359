"""Checkpoints that survive a kill, a full disk and a strange TMPDIR, and that hold all a run needs to go on."""

from __future__ import annotations

import errno
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import CheckpointIO

from qexp.errors import CheckpointError, OutputError
from qexp.files import atomic_stream
from qexp.lit import world
from qexp.lit.signals import StopRequest
from qexp.lit.start import held_by_quantizers
from qexp.lit.task import Classification
from qexp.models.weights import QUANTIZED, QUANTIZERS, RUN_KEY, RUN_PREFIX
from qexp.quantizers.base import named_quantizers


class DurableCheckpointIO(CheckpointIO):
    """Writes beside the target, syncs, and swaps in; reads tensors and primitives only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; the old file stays whole until the new one is on the disk.

        Raises:
            OutputError: the disk is full or the folder is not writable.
        """
        target = Path(path)
        try:
            with atomic_stream(target) as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:
            # torch.save reports a failed write of its zip archive as a RuntimeError around the OSError.
            reason = _disk_problem(error)
            if reason is None:
                raise
            intact = "; the earlier one is intact" if target.exists() else ""
            raise OutputError(
                f"{target}: the checkpoint cannot be written ({reason}){intact}. Make room"
                " or choose another output_dir, then type the command again."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the checkpoint, on the CPU."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the checkpoint."""
        Path(path).unlink(missing_ok=True)


def _disk_problem(error: BaseException) -> str | None:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError):
            return found.strerror or errno.errorcode.get(found.errno or 0, "write error")
        found = found.__cause__ or found.__context__
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a run's checkpoint holds.

    Raises:
        CheckpointError: it is missing, cut short, or not a checkpoint of qexp.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no checkpoint; `qexp status` shows how far each run came.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({error.strerror or error}).") from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError ... for damage
        raise CheckpointError(
            f"{path}: the checkpoint cannot be read (cut short, or not one: {type(error).__name__}); delete it to"
            " start this run again."
        ) from error
    if not isinstance(content, dict) or RUN_KEY not in content or "state_dict" not in content:
        raise CheckpointError(f"{path}: not a checkpoint of a qexp run; delete it to start this run again.")
    return content


def network_state(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the network's tensors by its own names."""
    state = checkpoint["state_dict"].items()
    return {name.removeprefix(RUN_PREFIX): value for name, value in state if name.startswith(RUN_PREFIX)}


def check_fits(network: torch.nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Compare names and shapes.

    Raises:
        CheckpointError: the checkpoint was made for another network; the message names what differs.
    """
    ours = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in network_state(checkpoint).items()}
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(
            f"{path}: made for another network, it differs in {', '.join(wrong[:5])}{more}; delete it to start"
            " this run again."
        )


def random_state() -> dict[str, Any]:
    """Return the state of every generator as tensors and primitives."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, list(internal), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every generator where `random_state` found it."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and (cuda := _of_this_device(state["cuda"])) is not None:
        torch.cuda.set_rng_state(cuda)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))


def _of_this_device(state: torch.Tensor | list[torch.Tensor] | None) -> torch.Tensor | None:
    """Return the state of this process's device; earlier versions kept those of every device that was in sight."""
    if isinstance(state, list):
        return state[min(torch.cuda.current_device(), len(state) - 1)] if state else None
    return state


class CheckpointWriter(pl.Callback):
    """Writes `last.ckpt` every so many minutes or steps and at each epoch's end, and when a signal asks to stop.

    Args:
        path: the checkpoint.
        request: a signal's wish to stop, honoured between two steps.
        minutes, steps: the interval; None for none.
        compiled: whether the step is compiled, kept so that a resumed run does the same.
    """

    def __init__(
        self, path: Path, request: StopRequest, minutes: float | None, steps: int | None, compiled: bool
    ) -> None:
        self.path = path
        self.request = request
        self.minutes = minutes
        self.steps = steps
        self.compiled = compiled
        self.seconds_before = 0.0
        self._began = self._written = time.monotonic()
        self._restored: dict[str, Any] | None = None

    @property
    def train_seconds(self) -> float:
        """Seconds spent training, in this process and before it."""
        return self.seconds_before + time.monotonic() - self._began

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out: generators, running sums, time spent."""
        checkpoint[RUN_KEY] = {
            "random": world.gathered(random_state()),
            "totals": world.gathered(module.totals.cpu()),
            "samples": module.samples * world.size(),
            "train_seconds": self.train_seconds,
            "compiled": self.compiled,
            QUANTIZED: _has_quantizers(module.network),
            QUANTIZERS: held_by_quantizers(module.network, module.network.state_dict()),
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep our state until everything else is in place."""
        self._restored = checkpoint[RUN_KEY]
        self.seconds_before = checkpoint[RUN_KEY]["train_seconds"]
        self._began = time.monotonic()  # training may begin and end with it: all epochs were done

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Restore last of all, so that nothing in the set-up draws from the restored generators."""
        self._began = self._written = time.monotonic()
        self.request.install()  # Lightning has put handlers of its own in front
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        totals = _own_totals(state["totals"])
        module.totals[: len(totals)].copy_(totals)
        module.samples = state["samples"] // world.size()
        set_random_state(state["random"][world.rank()])

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Write when it is time; the epoch's last step leaves it to the epoch's end, a moment later."""
        if trainer.is_last_batch:
            return
        stop, due = self.request.agreed(trainer, self._due(trainer))
        if stop or due:
            self.write(trainer, module)
        if stop:
            self.request.end()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Write at the epoch's end, after its numbers are in metrics.csv."""
        self.write(trainer, module)
        stop, _ = self.request.agreed(trainer)
        if stop:  # also after the last one: what comes behind it may be hours of a sweep
            self.request.end()

    def write(self, trainer: pl.Trainer, module: Classification) -> None:
        """Write now; a state that holds no numbers any more is refused."""
        module.check_finite()
        trainer.save_checkpoint(self.path)
        self._written = time.monotonic()

    def _due(self, trainer: pl.Trainer) -> bool:
        """Return whether it is time by this process's clock."""
        if self.steps and trainer.global_step % self.steps == 0:
            return True
        return self.minutes is not None and time.monotonic() - self._written >= 60.0 * self.minutes


def _own_totals(found: list[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """Return this process's running sums.

    Earlier versions kept, of fewer `STATISTICS`, the sums of all processes together: they go on in the first one.
    """
    if isinstance(found, list):
        return found[world.rank()]
    return found if world.rank() == 0 else torch.zeros_like(found)


def _has_quantizers(network: torch.nn.Module) -> bool:
    return next(named_quantizers(network), None) is not None


def save_network(path: Path, network: torch.nn.Module) -> None:
    """Write a network that was not trained here where a run's checkpoint lies, for `qexp eval`.

    Raises:
        OutputError: the disk is full or the folder is not writable.
    """
    state = {f"{RUN_PREFIX}{name}": value.detach().cpu() for name, value in network.state_dict().items()}
    content = {"state_dict": state, RUN_KEY: {QUANTIZED: _has_quantizers(network)}}
    DurableCheckpointIO().save_checkpoint(content, path)
