"""Training steps outside a run: the task, the optimizer and the batches of `qexp train`, on random images."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qexp.build import build
from qexp.config import Config
from qexp.data.base import ImageSource, normalisation
from qexp.data.batches import ArrayBatches, Pixels, Plan
from qexp.lit import compiling
from qexp.lit.evaluate import device_of
from qexp.lit.start import calibrate
from qexp.lit.task import Classification
from qexp.quantizers.base import named_quantizers

_TOTAL_STEPS = 10_000
"""Of the schedule; a benchmark sees its first steps alone."""


def random_batches(source: ImageSource, batch_size: int, samples: int, device: torch.device) -> ArrayBatches:
    """Return training batches of random images in the shape, statistics and augmentation of `source`.

    Nothing of the data set is read where its shape and classes are known without.
    """
    generator = torch.Generator().manual_seed(0)
    channels, height, width = source.shape
    size, levels = (samples, height, width, channels), source.peak + 1
    images = torch.randint(0, levels, size, generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, source.num_classes, (samples,), generator=generator)
    numbers = [np.tile(each, height * width) for each in normalisation(source.mean, source.std, source.peak)]
    scale, shift = (torch.from_numpy(each) for each in numbers)
    pixels = Pixels(*(tensor.to(device) for tensor in (images, labels, scale, shift)))
    plan = Plan(torch.arange(samples), batch_size, training=True, shuffle=True)
    augment, padding = getattr(source, "augment", "none"), getattr(source, "padding", 4)
    return ArrayBatches(pixels, plan, augment, padding)


class TrainingStep:
    """A network that takes one batch again and again, each time as a step of `qexp train` does.

    Args:
        network: quantized or float; moved to the device and its memory format changed, as training does.
        config: of the run whose steps these are; says the device.
        source: images are random, but of its shape.
        precision: float32 or bfloat16.
        compiled: compile the step (the first call then takes long).
    """

    def __init__(
        self, network: nn.Module, config: Config, source: ImageSource, precision: str, *, compiled: bool
    ) -> None:
        self.device = device_of(config)
        self.precision = precision
        batches = random_batches(source, config.batch_size, config.batch_size, self.device)
        self.batch = next(iter(batches))
        batches.load_state_dict({"epoch": 0, "position": 0})  # quantizers start from this very batch
        calibrate(network, batches, self.device)
        self.task: Classification = build(
            config.task,
            network=network,
            optimizer=lambda groups: build(config.optimizer, groups=groups),
            schedule=build(config.schedule, epochs=config.epochs),
            total_steps=_TOTAL_STEPS,
            lambda_alpha=config.lambda_alpha,
        )
        self.task.to(self.device)
        if config.trainer.channels_last:
            self.task.memory_format = torch.channels_last
            network.to(memory_format=torch.channels_last)
        self.task.train()
        self.task.on_fit_start()
        if compiled:
            self.task.step = compiling.compile_step(self.task.step, self.device)
        self.optimizer: torch.optim.Optimizer = self.task.configure_optimizers()["optimizer"]
        self.quantizers = [quantizer for _, quantizer in named_quantizers(network)]

    def loss(self) -> Tensor:
        """Return the loss of the batch: the forward half of a step."""
        # Lightning's mixed precision does the same around a training step, without autocast's weight cache.
        enabled = self.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False):
            return self.task.training_step(self.batch, 0)

    def __call__(self) -> None:
        """Take one whole step: forward, backward, optimizer, and what quantizers do afterwards."""
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for quantizer in self.quantizers:
                quantizer.after_step()


def finishing(device: torch.device) -> Callable[[], object]:
    """Return what waits until `device` has done all it was given."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


@contextlib.contextmanager
def fresh_compiler() -> Iterator[None]:
    """Start without compiled graphs and leave none behind."""
    compiling.reset()
    try:
        yield
    finally:
        compiling.reset()


def wait_for_compile_workers(patience: float = 90.0, look: float = 1.0, idle: float = 0.03) -> bool:
    """Wait until this process's children use no processor: a compiler's workers start while steps already run.

    Args:
        patience: seconds after which to go on anyway.
        look: seconds between two looks.
        idle: share of one core below which they count as idle.

    Returns:
        Whether they came to rest; True where the system does not tell (no /proc).
    """
    end = time.monotonic() + patience
    before = _children_seconds(os.getpid())
    while time.monotonic() < end:
        time.sleep(look)
        now = _children_seconds(os.getpid())
        if now - before <= idle * look:
            return True
        before = now
    return False


def _children_seconds(process: int) -> float:
    """Return the processor time that all descendants of `process` have used so far."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # After the name, which may hold spaces and brackets: state, parent ... utime and stime (proc(5)).
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            number = int(stat.parent.name)
            parents[number] = int(fields[1])
            seconds[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    total, level = 0.0, {process}
    while level:
        level = {number for number, parent in parents.items() if parent in level}
        total += sum(seconds[number] for number in level)
    return total
