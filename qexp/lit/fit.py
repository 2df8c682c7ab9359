"""Trains a network: from its first batch or from the run's checkpoint, to the last epoch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from qexp.build import build
from qexp.config import Config
from qexp.data.base import DataSource
from qexp.data.batches import Batches
from qexp.errors import ConfigError
from qexp.layers.normalization import ONE_VALUE
from qexp.lit import compiling, cpu, world
from qexp.lit.alphas import AlphaLog
from qexp.lit.batch_norm import Reestimation, require
from qexp.lit.checkpoint import CheckpointWriter, check_fits, read_checkpoint
from qexp.lit.evaluate import channels_come_last, device_of, measured, tensor_float32
from qexp.lit.optimizers import parameter_groups
from qexp.lit.position import EpochBatches
from qexp.lit.progress import ProgressLines
from qexp.lit.record import Recorder, Source
from qexp.lit.signals import StopRequest
from qexp.lit.start import calibrate, seed_rank
from qexp.lit.task import Classification, LanguageModelling
from qexp.lit.trainer import make_trainer, silence
from qexp.lit.watchdog import Watchdog
from qexp.models.weights import RUN_KEY
from qexp.runs import RunDirectory

log = logging.getLogger(__name__)


def fit(
    network: nn.Module, source: DataSource, config: Config, run: RunDirectory, teacher: nn.Module | None = None
) -> dict[str, float]:
    """Train `network` in place, resuming from the run's checkpoint when there is one.

    Args:
        teacher: of distillation.

    Returns:
        The last epoch's metrics, and `train_seconds` and `compiled` (0 or 1).

    Raises:
        Interrupted: a signal asked to stop; a checkpoint was written.
        CheckpointError: the run's checkpoint is damaged or belongs to another network.
        TrainingError: the loss or a learned level is no number any more.
        OutputError: the disk is full.
    """
    cpu.prepare(config.trainer.threads)
    device = device_of(config)
    batches = _train_batches(source, config, device)
    total_steps = len(batches) * config.epochs
    checkpoint = read_checkpoint(run.checkpoint) if run.checkpoint.exists() else None
    if checkpoint is None:
        with _more_than_one(config.batch_size):
            calibrate(network, batches, device)
        seed_rank(config.seed, world.rank())
    else:
        check_fits(network, checkpoint, run.checkpoint)
    compiled = _compiled(config, network, total_steps, device, checkpoint)
    module = _task(network, config, total_steps, teacher, channels_come_last(source, config))
    if compiled:
        module.step = compiling.compile_step(module.step, device)
    step = int(checkpoint["global_step"]) if checkpoint else -1
    if world.rank() == 0:
        run.metrics.truncate(step)
    with StopRequest() as request, silence(), tensor_float32(config.trainer.precision == "tf32"):
        writer = _writer(config, run, request, compiled)
        callbacks = [*_observers(source, config, device, run), writer]
        trainer = make_trainer(config, device, callbacks, make_loggers(config, run, step))
        loader = EpochBatches(batches)
        loader.trainer = trainer
        try:
            with _more_than_one(config.batch_size):
                trainer.fit(module, train_dataloaders=loader, ckpt_path=run.checkpoint if checkpoint else None)
        finally:
            compiling.reset()
        if trainer.world_size == 1 and request.signal is not None:  # it came behind the last step's look for it
            request.end()
    return {**run.metrics.last(), "train_seconds": writer.train_seconds, "compiled": float(compiled)}


@contextlib.contextmanager
def _more_than_one(batch_size: int) -> Iterator[None]:
    """Say which setting leaves a batch norm a single value, of which torch says that it is one."""
    try:
        yield
    except ValueError as error:
        if ONE_VALUE not in str(error):
            raise
        raise ConfigError(
            f"batch_size={batch_size}: a batch norm needs more than one value of each channel, and a process has a"
            " batch with one; choose a larger batch_size."
        ) from error


def check(network: nn.Module, config: Config, run: RunDirectory) -> None:
    """Build what `fit` will build, and drop it: a mistake in it shows before the run's folder exists.

    Raises:
        ConfigError: a setting of the task, the optimizer, the schedule or a logger; or the environment names other
            processes than the run has.
    """
    _require_processes(config.trainer.devices)
    module = _module(network, config, total_steps=1)
    misread = type(module) is Classification if config.reads_text else isinstance(module, LanguageModelling)
    if misread:
        what = "a text: take task=language_modelling" if config.reads_text else "images: take task=classification"
        raise ConfigError(f"task={config.task['_target_'].rpartition('.')[2]}: the network reads {what}.")
    if config.batch_norm_batches is not None:
        require(network)
    build(config.optimizer, groups=parameter_groups(network))
    make_loggers(config, run, -1)


def _require_processes(devices: int) -> None:
    """Refuse an environment of other processes, which are not there: each step would see a share of its batch."""
    if (found := world.size()) != devices:
        raise ConfigError(
            f"trainer.devices={devices}: the environment says that this is one of WORLD_SIZE={found} processes;"
            f" unset it and RANK, or set trainer.devices={found}."
        )


def _writer(config: Config, run: RunDirectory, request: StopRequest, compiled: bool) -> CheckpointWriter:
    settings = config.trainer
    return CheckpointWriter(
        run.checkpoint, request, settings.checkpoint_minutes, settings.checkpoint_steps, compiled
    )


def _observers(source: DataSource, config: Config, device: torch.device, run: RunDirectory) -> list[pl.Callback]:
    """Those that look and write, in the order in which they have to be asked."""
    alphas = AlphaLog()
    watchdog = Watchdog(config.trainer.watchdog, alphas, run.add_warning)
    sources: list[Source] = [*_sources(source, config, device), alphas, watchdog]
    recorder = Recorder(run.metrics, sources, at_start=[alphas, watchdog])
    observers: list[pl.Callback] = [alphas, watchdog, recorder]
    if config.batch_norm_batches is not None:
        batches = _train_batches(source, config, device)
        observers.insert(0, Reestimation(batches, config.batch_norm_batches))
    return [*observers, ProgressLines(recorder)] if config.trainer.progress else observers


def _train_batches(source: DataSource, config: Config, device: torch.device) -> Batches:
    return source.train_batches(
        config.batch_size,
        config.seed,
        device,
        rank=world.rank(),
        world_size=world.size(),
        channels_last=channels_come_last(source, config),
    )


def _compiled(
    config: Config, network: nn.Module, steps: int, device: torch.device, checkpoint: dict[str, Any] | None
) -> bool:
    """A resumed run goes on as it began: a compiled step differs from an eager one in the last bits."""
    if checkpoint is not None:
        return bool(checkpoint[RUN_KEY]["compiled"])
    return compiling.decide(config.trainer.compile, device, lambda: compiling.pays(network, steps))


def _task(
    network: nn.Module,
    config: Config,
    total_steps: int,
    teacher: nn.Module | None,
    channels_last: bool,
) -> Classification:
    module = _module(network, config, total_steps, teacher)
    if channels_last:
        module.memory_format = torch.channels_last
        network.to(memory_format=torch.channels_last)
        if teacher is not None:
            teacher.to(memory_format=torch.channels_last)
    return module


def _module(
    network: nn.Module, config: Config, total_steps: int, teacher: nn.Module | None = None
) -> Classification:
    module: Classification = build(
        config.task,
        network=network,
        optimizer=lambda groups: build(config.optimizer, groups=groups),
        schedule=build(config.schedule, epochs=config.epochs),
        total_steps=total_steps,
        lambda_alpha=config.lambda_alpha,
        **({} if teacher is None else {"teacher_network": teacher}),
    )
    return module


def _sources(source: DataSource, config: Config, device: torch.device) -> list[Source]:
    validation = source.validation_batches(
        None,
        device,
        rank=world.rank(),
        world_size=world.size(),
        channels_last=channels_come_last(source, config),
    )
    if validation is None:
        return []

    def validate(trainer: pl.Trainer, module: Classification) -> dict[str, float]:
        world.agree_on_buffers(module.network)
        found = measured(module.network, validation, module.device, source)
        return {f"val_{name}": value for name, value in found.items()}

    return [validate]


def make_loggers(config: Config, run: RunDirectory, step: int) -> list[Any]:
    """Return the loggers of `config.logger`; events after `step` (-1: all) are replaced."""
    return [
        build(node, directory=run.path, name=run.path.name, purge_step=step + 1) for node in config.logger.values()
    ]
