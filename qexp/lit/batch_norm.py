"""Batch-norm statistics measured anew after training, when the weights have stopped moving."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.data.batches import Batches
from qexp.errors import ConfigError
from qexp.graph.modes import evaluating
from qexp.lit import world
from qexp.lit.evaluate import float32
from qexp.lit.position import epochs_done


class Reestimation(pl.Callback):
    """At the end of the last epoch, before it is recorded and saved, takes the statistics of `count` batches.

    At few bits a weight that flips between two levels moves a channel's statistics faster than the running means
    follow (Nagel et al. 2022, arXiv 2203.11086).

    Of several processes each measures its own share of every batch, and all take over those of the first (rank 0).
    What is kept then rests on `count` * batch size / number of processes images, in batches that much smaller; the
    others' shares are not averaged in.
    """

    def __init__(self, batches: Batches, count: int) -> None:
        self.batches, self.count = batches, count

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Measure, once."""
        if epochs_done(trainer) >= (trainer.max_epochs or 0):
            reestimate(module.network, self.batches, self.count, module.device)
            world.agree_on_buffers(module.network)


@torch.no_grad()
def reestimate(network: nn.Module, batches: Batches, count: int, device: torch.device) -> None:
    """Set every batch norm's running mean and variance to their means over the first `count` of `batches`.

    An epoch that has fewer is followed by the next.
    """
    norms = normalizations(network)
    momentum = [norm.momentum for norm in norms]
    with evaluating(network), float32(device):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean
            norm.train()
        for images in itertools.islice(_images(batches), count):
            network(images)
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before


def _images(batches: Batches) -> Iterator[Tensor]:
    """Yield the images of one batch after the other, epoch after epoch."""
    for epoch in itertools.count():
        batches.load_state_dict({"epoch": epoch, "position": 0})
        for images, _labels in batches:
            yield images


def normalizations(network: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of `network` that keep statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def require(network: nn.Module) -> None:
    """Refuse a network without batch norms."""
    if not normalizations(network):
        raise ConfigError("batch_norm_batches: this network has no batch norm whose statistics could be measured.")
