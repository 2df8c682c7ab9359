"""Evaluation that can be quoted: float32, eager, every sample once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from qexp.config import Config
from qexp.data.base import DataSource
from qexp.data.batches import Batches
from qexp.errors import ConfigError


def device_of(config: Config) -> torch.device:
    """Return the device of `trainer.device`; `auto` takes a GPU where there is one.

    Raises:
        ConfigError: cuda was asked for and there is none.
    """
    wanted = config.trainer.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda: no CUDA device here; use trainer.device=cpu or auto.")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if wanted == "cuda" else torch.device(wanted)
    )


def move(network: nn.Module, source: DataSource, config: Config) -> tuple[torch.device, bool]:
    """Bring `network` to the configured device and memory format; return the device, and if channels come last.

    Raises:
        ConfigError: as `device_of`.
    """
    device = device_of(config)
    channels_last = config.trainer.channels_last and len(source.shape) == 3
    network.to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    return device, channels_last


def evaluate(network: nn.Module, source: DataSource, config: Config, split: str = "test") -> dict[str, float]:
    """Return `<split>_loss` and `<split>_accuracy` of `network`, in float32 and without compiling.

    The network's modes and its place are left as they were found.

    Args:
        split: `test` or `validation` (reported as `val_*`).

    Raises:
        ConfigError: the data set has no validation split.
    """
    device, channels_last = move(network, source, config)
    if split == "test":
        batches: Batches | None = source.test_batches(None, device, channels_last=channels_last)
    else:
        batches = source.validation_batches(None, device, channels_last=channels_last)
    if batches is None:
        raise ConfigError("split=validation: the data set keeps none; set dataset.validation to a share above 0.")
    prefix = "test" if split == "test" else "val"
    loss, accuracy = measure(network, batches, device)
    return {f"{prefix}_loss": loss, f"{prefix}_accuracy": accuracy}


@torch.no_grad()
def measure(network: nn.Module, batches: Batches, device: torch.device) -> tuple[float, float]:
    """Return mean cross entropy and accuracy over `batches`; sums are kept in float64."""
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    samples = 0
    with evaluating(network), float32(device):
        for images, labels in batches:
            logits = network(images)
            loss = F.cross_entropy(logits.double(), labels, reduction="sum")
            totals += torch.stack([loss, (logits.argmax(dim=1) == labels).sum().double()])
            samples += labels.shape[0]
    loss_sum, correct = totals.tolist()
    return loss_sum / max(samples, 1), correct / max(samples, 1)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put `network` into evaluation mode, and each module back into its own afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TensorFloat-32, which keeps 10 bits of each factor and moves quantized values."""
    cudnn = torch.backends.cudnn
    with (
        torch.autocast(device.type, enabled=False),
        cudnn.flags(enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False),
    ):
        yield
