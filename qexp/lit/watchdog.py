"""Names the layer whose learned level went wrong: not a number, not above zero, lost, stuck or clipping all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from qexp.errors import TrainingError
from qexp.lit.alphas import AlphaLog, Seen
from qexp.lit.position import epochs_done
from qexp.lit.task import Classification

Mode = Literal["warn", "stop", "off"]

log = logging.getLogger(__name__)

STUCK_EPOCHS = 3
"""Epochs without any change, while the learning rate is above zero, after which a level counts as stuck."""

CLIPS_EVERYTHING = 0.99
"""Share of a tensor at or beyond the clip level."""


class Watchdog(pl.Callback):
    """Looks at what `alphas` saw, once per epoch.

    Args:
        mode: `warn` says each finding once per layer and cause, `stop` ends the run, `off` does not look.
        alphas: asked before the watchdog, in the Recorder's order.
        keep: where a warning goes besides the log.
    """

    def __init__(self, mode: Mode, alphas: AlphaLog, keep: Callable[[str], None]) -> None:
        self.mode = mode
        self.alphas = alphas
        self.keep = keep
        self._said: set[str] = set()
        self._unchanged: dict[str, int] = {}
        self._before: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know, so that it counts on and repeats nothing."""
        return {"said": sorted(self._said), "unchanged": dict(self._unchanged), "before": dict(self._before)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._said, self._unchanged = set(state["said"]), dict(state["unchanged"])
        self._before = dict(state["before"])

    def __call__(self, trainer: pl.Trainer, module: Classification) -> dict[str, float]:
        """Look; the watchdog adds no numbers.

        Raises:
            TrainingError: in mode `stop`, for the first finding.
        """
        if self.mode == "off":
            return {}
        # The factor 0 of a schedule's first or last step is no reason to move.
        moving = any(group["lr"] > 0.0 for group in trainer.optimizers[0].param_groups)
        epoch = epochs_done(trainer)
        for seen in self.alphas.seen:
            for cause, text in (*findings(seen), *self._stuck(seen, moving and epoch > 0)):
                sites = len(seen.sharing)
                shared = f" (one for {sites} layers)" if sites > 1 and cause != "clips" else ""
                self._report(f"{cause}:{seen.site}", f"epoch {epoch}: layer {seen.site}{shared}: {text}", trainer)
        return {}

    def _report(self, key: str, text: str, trainer: pl.Trainer) -> None:
        if self.mode == "stop":
            raise TrainingError(f"{text} (trainer.watchdog=stop)")
        if key not in self._said:
            self._said.add(key)
            if trainer.is_global_zero:
                self.keep(text)
                log.warning(text)

    def _stuck(self, seen: Seen, moving: bool) -> Iterator[tuple[str, str]]:
        if not _speaks(seen) or seen.may_rest:
            return
        for name, value in seen.learned.items():
            key = f"{name}/{seen.site}"
            before = self._before.get(key)
            value = value.cpu()
            same = moving and before is not None and torch.equal(before, value)
            self._unchanged[key] = self._unchanged.get(key, 0) + 1 if same else 0
            self._before[key] = value
            if self._unchanged[key] >= STUCK_EPOCHS:
                gradient = seen.gradients.get(name)
                reason = "; its gradient is zero" if gradient is None or not bool(gradient.any()) else ""
                yield "stuck", f"{name} is stuck at {_value(value)} for {STUCK_EPOCHS} epochs{reason}"


def _speaks(seen: Seen) -> bool:
    """Whether this site speaks for its level: of several that share one, the first does."""
    return not seen.sharing or seen.sharing[0] == seen.site


def findings(seen: Seen) -> Iterator[tuple[str, str]]:
    """Yield (cause, sentence) for what one look at a quantizer shows; a bad level explains its clipping."""
    bad = list(_bad_levels(seen))
    yield from bad if _speaks(seen) else ()
    clipped = seen.clipped
    if not bad and clipped is not None and clipped > CLIPS_EVERYTHING:
        yield "clips", f"clips everything ({clipped:.1%} of its input)"


def _bad_levels(seen: Seen) -> Iterator[tuple[str, str]]:
    for name, value in seen.learned.items():
        if not bool(torch.isfinite(value).all()):
            yield "nan", f"{name} is not a number ({_value(value)})"
        elif name in seen.positive and float(value.min()) <= 0.0:
            sign = "negative" if float(value.min()) < 0.0 else "zero"
            yield "negative", f"{name} is {sign} ({_value(value)}): it quantizes nothing any more"
    if seen.complaint is not None:
        yield "lost", seen.complaint


def _value(value: torch.Tensor) -> str:
    if value.numel() == 1:
        return f"{float(value):.4g}"
    return f"{float(value.min()):.4g} to {float(value.max()):.4g} in {value.numel()} values"
