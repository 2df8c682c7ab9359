"""Evaluation that can be quoted: float32, eager, every sample once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qexp.config import Config
from qexp.data.base import DataSource
from qexp.data.batches import Batches
from qexp.errors import ConfigError
from qexp.graph.modes import evaluating
from qexp.lit import cpu, world
from qexp.lit.losses import class_scores

TOP5_CLASSES = 100
"""The fewest classes for which top-5 accuracy is reported; with ten of them it says next to nothing."""


def device_of(config: Config) -> torch.device:
    """Return the device of `trainer.device`; `auto` takes a GPU where there is one.

    Raises:
        ConfigError: cuda was asked for and there is none, or fewer devices than `trainer.devices`.
    """
    wanted = config.trainer.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda: no CUDA device here; use trainer.device=cpu or auto.")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and config.trainer.devices > (found := torch.cuda.device_count()):
        raise ConfigError(
            f"trainer.devices={config.trainer.devices}: {found} CUDA device{'s' * (found != 1)} here; give at most"
            " as many, or trainer.device=cpu."
        )
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if wanted == "cuda" else torch.device(wanted)
    )


def move(network: nn.Module, source: DataSource, config: Config) -> tuple[torch.device, bool]:
    """Bring `network` to the configured device and memory format; return the device, and if channels come last.

    The process computes as `cpu.prepare` says from then on.

    Raises:
        ConfigError: as `device_of`.
    """
    cpu.prepare(config.trainer.threads)
    device = device_of(config)
    channels_last = channels_come_last(source, config)
    network.to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    return device, channels_last


def channels_come_last(source: DataSource, config: Config) -> bool:
    """Return whether batches and networks have their channels last; only images have any."""
    return config.trainer.channels_last and len(source.shape) == 3


def evaluate(network: nn.Module, source: DataSource, config: Config, split: str = "test") -> dict[str, float]:
    """Return `<split>_loss` and `<split>_accuracy` of `network`, in float32 and without compiling.

    Of a segmentation it is `<split>_miou`, of a detection `<split>_map`, of a text `<split>_perplexity` or
    `<split>_bits_per_character`.

    `<split>_accuracy_top5` comes with them where `measure` gives it. The network's modes and its place are left as
    they were found.

    Args:
        split: `test` or `validation` (reported as `val_*`).

    Raises:
        ConfigError: the data set has no validation split.
    """
    device, channels_last = move(network, source, config)
    batches = batches_of(source, split, device, channels_last=channels_last)
    prefix = "test" if split == "test" else "val"
    return {f"{prefix}_{name}": value for name, value in measured(network, batches, device, source).items()}


def batches_of(source: DataSource, split: str, device: torch.device | str, *, channels_last: bool) -> Batches:
    """Return the batches of `test` or `validation`.

    Raises:
        ConfigError: the data set has no validation split.
    """
    make = source.test_batches if split == "test" else source.validation_batches
    batches = make(None, device, channels_last=channels_last)
    if batches is None:
        raise ConfigError(
            "eval.split=validation: nothing was set apart; a run has such images where it was trained with"
            " dataset.validation above 0."
        )
    return batches


def measured(network: nn.Module, batches: Batches, device: torch.device, source: DataSource) -> dict[str, float]:
    """Return the metrics of a source's task over `batches`, by name without the split."""
    if source.task == "classification":
        return measure(network, batches, device)
    if source.task == "language_modelling":
        from qexp.lit.language import language

        return language(network, batches, device, characters=source.primary_metric == "bits_per_character")
    from qexp.lit import dense_metrics  # with torchmetrics, which other tasks do without

    if source.task == "segmentation":
        return dense_metrics.segmentation(network, batches, device, source.num_classes)
    return dense_metrics.detection(network, batches, device, source.shape[-1])


@torch.no_grad()
def measure(network: nn.Module, batches: Batches, device: torch.device) -> dict[str, float]:
    """Return mean cross entropy as `loss`, the share of right answers as `accuracy`, over all of `batches`.

    Where the network tells at least `TOP5_CLASSES` classes apart, also the share of samples whose class is among
    the five largest logits, as `accuracy_top5`. Sums are kept in float64. Batches that the processes of a job
    share are summed over all of them, each of which has to call this.
    """
    names = ("loss", "accuracy", "accuracy_top5")
    totals = torch.zeros(2, len(names), dtype=torch.float64, device=device)  # sums, and samples behind each
    with evaluating(network), float32(device):
        for images, labels in batches:
            if not len(labels):  # of a last batch with fewer samples than processes
                continue
            found = sums(class_scores(network(images)), labels)
            here = torch.tensor([float(len(labels)) * (name in found) for name in names], dtype=torch.float64)
            none = torch.zeros_like(found["loss"])
            totals += torch.stack([torch.stack([found.get(name, none) for name in names]), here.to(device)])
    if batches.plan.world_size > 1:
        totals = world.summed(totals)
    return {name: total / samples for name, total, samples in zip(names, *totals.tolist(), strict=True) if samples}


def sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return what `measure` averages, summed over one batch: float64 scalars, by name.

    Args:
        logits: (N, classes).
        labels: (N,), the index of each sample's class.
    """
    found = {
        "loss": F.cross_entropy(logits.double(), labels, reduction="sum"),
        "accuracy": (logits.argmax(dim=1) == labels).sum().double(),
    }
    if logits.shape[1] >= TOP5_CLASSES:
        best = logits.topk(5, dim=1).indices
        found["accuracy_top5"] = (best == labels.unsqueeze(1)).any(dim=1).sum().double()
    return found


@contextlib.contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TensorFloat-32, which keeps 10 bits of each factor and moves quantized values."""
    with torch.autocast(device.type, enabled=False), tensor_float32(False):
        yield


@contextlib.contextmanager
def tensor_float32(allowed: bool) -> Iterator[None]:
    """Say whether a GPU's convolutions and matrix products may take TensorFloat-32 for float32.

    torch by itself lets the former do so, from NVIDIA's Ampere on, and not the latter.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = allowed
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
