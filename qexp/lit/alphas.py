"""What every quantizer learned, once per epoch: its level, the share it clips, its gradient, its used levels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from qexp.graph.modes import evaluating
from qexp.lit.evaluate import float32
from qexp.lit.task import Classification
from qexp.quantizers.base import Description, Quantizer, named_quantizers


@dataclass(frozen=True)
class Seen:
    """One quantizer at the end of an epoch.

    `learned` holds its values by name, `gradients` those of the last step (None before the first). `sharing` are
    the sites that learn the same tensors, itself included (scope `network`). `positive` names the values that have
    to be above 0; `may_rest` says that they may stand still, `complaint` what the quantizer itself finds wrong.
    """

    site: str
    learned: dict[str, Tensor]
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    clipped: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    levels: int | None = None
    sharing: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    may_rest: bool = False
    complaint: str | None = None


class AlphaLog(pl.Callback):
    """A source of numbers for the Recorder; keeps the epoch's last batch to look at it.

    `seen` holds what was found last, for the watchdog.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._images: Tensor | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Keep the images of the epoch's last batch."""
        if trainer.is_last_batch:
            self._images = batch[0]

    def __call__(self, trainer: pl.Trainer, module: Classification) -> dict[str, float]:
        """Return the numbers of every quantizer, by tag `<what>/<site>`."""
        self.seen = list(look(module.network, self._images))
        self._images = None
        return {tag: value for seen in self.seen for tag, value in numbers(seen).items()}


def look(network: nn.Module, images: Tensor | None) -> Iterator[Seen]:
    """Yield every quantizer that learns something or sees activations, as it treats `images` (None: unseen).

    The pass is in evaluation mode, float32 and without gradient: it moves no statistics and draws no numbers.
    """
    descriptions: dict[Quantizer, Description] = {}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Quantizer)
        descriptions[module] = module.describe(inputs[0])

    quantizers = [
        (site, q) for site, q in named_quantizers(network) if q.learned_with_rounding() or q.site.kind != "weight"
    ]
    if images is not None and quantizers:
        handles = [quantizer.register_forward_pre_hook(hook) for _, quantizer in quantizers]
        try:
            with torch.no_grad(), evaluating(network), float32(images.device):
                network(images)
        finally:
            for handle in handles:
                handle.remove()
    sharing: dict[tuple[int, ...], list[str]] = {}
    for site, quantizer in quantizers:
        sharing.setdefault(_tensors(quantizer), []).append(site)
    for site, quantizer in quantizers:
        description = descriptions.get(quantizer) or quantizer.describe()
        shares = {name: float(value) for name, value in description.shares.items()}
        clipped = shares.pop("clipped", None)
        yield Seen(
            site=site,
            learned={name: value.detach().clone() for name, value in quantizer.learned_with_rounding().items()},
            gradients={name: value.grad for name, value in quantizer.learned_with_rounding().items()},
            clipped=clipped,
            shares=shares,
            levels=description.levels,
            sharing=tuple(sharing[_tensors(quantizer)]) if quantizer.learned_with_rounding() else (site,),
            positive=tuple(name for name in quantizer.learned() if name not in quantizer.of_either_sign),
            may_rest=quantizer.may_rest,
            complaint=quantizer.complaint(),
        )


def _tensors(quantizer: Quantizer) -> tuple[int, ...]:
    return tuple(id(value) for value in quantizer.learned_with_rounding().values())


def numbers(seen: Seen) -> dict[str, float]:
    """Return the tags of one quantizer: `alpha/<site>` is its value, or the mean where it has many.

    Many values also give `alpha_min/<site>` and `alpha_max/<site>`; `alpha_grad/<site>` is the gradient's norm.
    """
    found: dict[str, float] = {}
    for name, value in seen.learned.items():
        found[f"{name}/{seen.site}"] = float(value.mean())
        if value.numel() > 1:
            found[f"{name}_min/{seen.site}"] = float(value.min())
            found[f"{name}_max/{seen.site}"] = float(value.max())
        gradient = seen.gradients.get(name)
        if gradient is not None:
            found[f"{name}_grad/{seen.site}"] = float(gradient.norm())
    if seen.clipped is not None:
        found[f"clip_share/{seen.site}"] = seen.clipped
    found |= {f"{name}_share/{seen.site}": value for name, value in seen.shares.items()}
    if seen.levels is not None:
        found[f"levels/{seen.site}"] = float(seen.levels)
    return found
