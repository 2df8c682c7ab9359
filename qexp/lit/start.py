"""Before the first step: seeds, and quantizers started from the first training batch."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from qexp.data.batches import Batches
from qexp.lit.evaluate import float32
from qexp.quantizers.base import Quantizer, named_quantizers


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_rank(seed: int, rank: int) -> None:
    """Give each further process of a job its own stream (dropout); the first one keeps the run's."""
    if rank:
        seed_everything(seed + 1_000_003 * rank)


def calibrate(network: nn.Module, batches: Batches, device: torch.device) -> bool:
    """Give each quantizer its input on the first training batch, in forward order, each on top of the former ones.

    The pass runs in training mode (batch statistics: the running ones mean nothing yet), in float32, without
    gradient, and leaves buffers and generators as they were, the network in training mode. A quantizer that is
    called several times, once a step of a recurrence for instance, starts from its last call. Of several processes
    each shows its own share of that batch, and what the first one finds is what training starts from.

    Returns:
        Whether any quantizer wants it; if none does, nothing runs.
    """
    wanting = [q for _, q in named_quantizers(network) if q.starts_from_data]
    if not wanting:
        return False
    images, _ = next(iter(batches))
    batches.load_state_dict({"epoch": 0, "position": 0})
    buffers = {name: value.clone() for name, value in network.named_buffers()}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Quantizer)
        module.calibrate(inputs[0])

    handles = [quantizer.register_forward_pre_hook(hook) for quantizer in wanting]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), float32(device), torch.random.fork_rng(devices=devices):
            network.to(device)
            network.train()
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    theirs = set(held_by_quantizers(network, buffers))
    for name, value in network.named_buffers():
        if name in buffers and name not in theirs:
            value.copy_(buffers[name])
    return True


def held_by_quantizers(network: nn.Module, names: Iterable[str]) -> list[str]:
    """Return those of `names`, of tensors of `network`, that its quantizers hold."""
    found = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, Quantizer))
    return [name for name in names if name.startswith(found)]
