"""Lightning's Trainer, set up from `config.trainer`, and silent but for what qexp says itself."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.loggers import Logger

from qexp.config import Config
from qexp.lit.checkpoint import DurableCheckpointIO

_NOISE = (
    r".*does not have many workers.*",  # our batches are made on the training device, without workers
    r".*smaller than the logging interval.*",  # qexp logs by itself, once per epoch
    r".*GPU available but not used.*",  # trainer.device=cpu is a choice
    r".*no `val_dataloader`.*",  # validation is our own, in float32
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's use of torch's pytree
    r".*is in eval mode.*|.*in eval mode at the start of training.*",  # a frozen part of a traced pair
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's folder
    r".*the tensorboardX.*",
)
"""Lightning's and torch's warnings that say nothing to qexp's user, each with its reason."""


def make_trainer(
    config: Config, device: torch.device, callbacks: Sequence[pl.Callback], loggers: Sequence[Logger]
) -> pl.Trainer:
    """Return the Trainer of one run.

    Validation, checkpoints, progress and logging are qexp's own callbacks; Lightning gives the loop, precision,
    placement and distribution.
    """
    settings = config.trainer
    precision: Any = "bf16-mixed" if settings.precision == "bfloat16" else "32-true"
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=settings.devices,
        strategy="ddp" if settings.devices > 1 else settings.strategy,
        precision=precision,
        deterministic=settings.deterministic,  # said either way: torch keeps what an earlier job chose
        max_epochs=config.epochs,
        callbacks=list(callbacks),
        logger=list(loggers),
        # The environment is named, so that Lightning starts no process of its own, under Slurm neither.
        plugins=[DurableCheckpointIO(), LightningEnvironment()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep Lightning's banners, tips and the warnings of `_NOISE` off the user's screen."""
    # The last one tells every compiling CPU user that there is no CUDA.
    names = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "torch.utils.cpp_extension")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for pattern in _NOISE:
                warnings.filterwarnings("ignore", message=pattern)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
