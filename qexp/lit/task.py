"""The task: Lightning's view of a training step, with its running sums, its optimizer and its state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from qexp.errors import ConfigError, TrainingError
from qexp.lit import world
from qexp.lit.language import perplexity
from qexp.lit.losses import penalized, refuse_smoothing
from qexp.lit.optimizers import Group, parameter_groups
from qexp.lit.schedules import Schedule
from qexp.lit.step import STATISTICS, classification_step, language_step
from qexp.ops.rounding import TrainedRounding
from qexp.quantizers.base import Quantizer, named_quantizers

STATE = "recurrent_state"
"""Key of a checkpoint."""


class Classification(pl.LightningModule):
    """Trains `network` to tell classes apart.

    Args:
        network: images to logits, quantized or not.
        optimizer: makes the optimizer from the parameter groups.
        schedule: progress to the factor on the learning rate.
        total_steps: of the whole run; the schedule's end.
        lambda_alpha: weight of the penalty on alphas.
        label_smoothing: share of each label spread over all classes.
        loss: what training minimizes; `qexp.lit.losses` has them.
        distillation: weight of the loss against the answers of a float network, beside the data's; 0 for none.
        temperature: that both networks' logits are divided by for it.
        gradient_clip: the largest norm of all gradients together; None does not clip them.
        teacher: the float network's checkpoint or run; None: the one that training starts from, model.weights.
        teacher_network: the network itself, whoever made it.

    Raises:
        ConfigError: `label_smoothing` is no share, or belongs to another loss.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: Callable[[Sequence[Group]], torch.optim.Optimizer],
        schedule: Schedule,
        total_steps: int,
        lambda_alpha: float = 0.0,
        label_smoothing: float = 0.0,
        loss: Literal["cross_entropy", "squared_hinge"] = "cross_entropy",
        distillation: float = 0.0,
        temperature: float = 1.0,
        gradient_clip: float | None = None,
        teacher: str | None = None,
        teacher_network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"task.label_smoothing={label_smoothing}: a share, 0 or more, and below 1.")
        refuse_smoothing(loss, label_smoothing)
        if not 0.0 <= distillation < math.inf or not 0.0 < temperature < math.inf:
            raise ConfigError(
                f"task.distillation={distillation}, task.temperature={temperature}: a weight of 0 or more, and a"
                " temperature above 0."
            )
        if (teacher is not None or temperature != 1.0) and not distillation:
            raise ConfigError(
                f"task.teacher={teacher}, task.temperature={temperature}: nobody is taught with"
                " task.distillation=0; set a weight."
            )
        if gradient_clip is not None and not 0.0 < gradient_clip < math.inf:
            raise ConfigError(f"task.gradient_clip={gradient_clip}: a norm above 0, or null.")
        self.distillation, self.temperature = distillation, temperature
        self.gradient_clip = gradient_clip
        # In a tuple, so that it is no part of this module: neither trained nor saved.
        self._teacher = (teacher_network.eval(),) if teacher_network is not None and distillation else ()
        self.network = network
        self.loss = loss
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.total_steps = total_steps
        self.lambda_alpha = lambda_alpha
        self.label_smoothing = label_smoothing
        self.step: Callable[..., Any] = classification_step
        self.memory_format = torch.contiguous_format
        quantizers = [quantizer for _, quantizer in named_quantizers(network)]
        self.auxiliary = [q for q in quantizers if _overrides(q, "auxiliary_loss")]
        self._after_step = [q for q in quantizers if _overrides(q, "after_step")]
        self._roundings = [m for m in network.modules() if isinstance(m, TrainedRounding)]
        self.penalized = penalized(network)
        self.totals = torch.zeros(len(STATISTICS), dtype=torch.float64)
        self.samples = 0
        self.first_bad_step = torch.full((), float("inf"))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of one batch; its statistics stay on the device until someone reads them."""
        self._progress()
        images, labels = batch
        images = images.contiguous(memory_format=self.memory_format)
        loss, statistics = self.step(
            self.network,
            images,
            labels,
            self.auxiliary,
            self.penalized,
            self.lambda_alpha,
            self.label_smoothing,
            self.loss,
            self._teacher[0] if self._teacher else None,
            self.distillation,
            self.temperature,
        )
        return self._counted(loss, statistics, labels)

    def _progress(self) -> None:
        for rounding in self._roundings:
            rounding.progress(min(self.global_step / self.total_steps, 1.0))

    def _counted(self, loss: Tensor, statistics: Tensor, labels: Tensor) -> Tensor:
        self.totals += statistics
        self.samples += labels.numel()
        bad = torch.where(torch.isfinite(loss.detach()), float("inf"), float(self.global_step + 1))
        self.first_bad_step = torch.minimum(self.first_bad_step, bad)
        return loss

    def on_fit_start(self) -> None:
        """Move the running sums to the training device."""
        self.totals = self.totals.to(self.device)
        for teacher in self._teacher:
            teacher.to(self.device)
        self.first_bad_step = self.first_bad_step.to(self.device)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Scale all gradients together down to the largest norm that was asked for."""
        if self.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the quantizers act on what the step made."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            for quantizer in self._after_step:
                quantizer.after_step()
            for rounding in self._roundings:
                rounding.after_step()

    def configure_optimizers(self) -> Any:
        """Return the optimizer and a schedule that moves with every step."""
        optimizer = self.make_optimizer(parameter_groups(self.network))
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(min(step / self.total_steps, 1.0)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def running(self) -> dict[str, float]:
        """Return the means since the epoch began, of this process; reading them waits for the device.

        What the loss has no part for is left out: `train_penalty`, `train_distillation`.
        """
        return self._means(self.totals, self.samples)

    def epoch_means(self) -> dict[str, float]:
        """Return the epoch's means over all processes, each of which has to call this."""
        return self._means(world.summed(self.totals), self.samples * world.size())

    def _means(self, totals: Tensor, samples: int) -> dict[str, float]:
        loss, correct, penalty, distillation = (value / max(samples, 1) for value in totals.tolist())
        means = {"train_loss": loss, "train_accuracy": correct}
        if self.lambda_alpha or self.auxiliary:
            means["train_penalty"] = penalty
        if self._teacher:
            means["train_distillation"] = distillation
        return means

    def check_finite(self) -> None:
        """Refuse a state that holds no numbers any more; reading it waits for the device.

        Raises:
            TrainingError: names the first step whose loss was not finite and the layer where it shows.
        """
        first = float(self.first_bad_step)
        if math.isfinite(first):
            place = first_non_finite(self.network)
            raise TrainingError(
                f"step {int(first)}: the loss is not a number; {place}. Try a smaller optimizer.lr, more bits,"
                " or trainer.precision=float32."
            )

    def clear_running(self) -> None:
        """Begin a new epoch's means."""
        self.totals.zero_()
        self.samples = 0


class LanguageModelling(Classification):
    """Trains `network` to predict the next token of a text, window by window, carrying its state.

    Gradients flow back to a window's beginning, the state from one to the next (truncated back-propagation); every
    epoch begins without one. The training perplexity is logged beside what a classification logs.

    Args:
        network: `network(tokens, state)` returns logits and the state behind them.
        gradient_clip: as `Classification`'s, which has the other arguments too.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: Callable[[Sequence[Group]], torch.optim.Optimizer],
        schedule: Schedule,
        total_steps: int,
        lambda_alpha: float = 0.0,
        label_smoothing: float = 0.0,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__(
            network,
            optimizer=optimizer,
            schedule=schedule,
            total_steps=total_steps,
            lambda_alpha=lambda_alpha,
            label_smoothing=label_smoothing,
            gradient_clip=gradient_clip,
        )
        self.step = language_step
        self.state: Tensor | None = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of one batch of windows, and keep the state behind it."""
        self._progress()
        tokens, targets = batch
        loss, statistics, self.state = self.step(
            self.network,
            tokens,
            targets,
            None if batch_index == 0 or self.state is None else self.state.to(self.device),
            self.auxiliary,
            self.penalized,
            self.lambda_alpha,
            self.label_smoothing,
        )
        return self._counted(loss, statistics, targets)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of every process."""
        checkpoint[STATE] = world.gathered(None if self.state is None else self.state.cpu())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from this process's state."""
        self.state = checkpoint[STATE][world.rank()]

    def _means(self, totals: Tensor, samples: int) -> dict[str, float]:
        means = super()._means(totals, samples)
        if self.label_smoothing:
            return means  # the loss is no longer the text's own entropy
        return means | {"train_perplexity": perplexity(means["train_loss"])}


def first_non_finite(network: nn.Module) -> str:
    """Say where `network` first holds a value that is not finite, quantizers before weights."""
    for site, quantizer in named_quantizers(network):
        for name, value in quantizer.learned_with_rounding().items():
            if not bool(torch.isfinite(value).all()):
                return f"{name} of layer {site} is not finite"
    for name, parameter in network.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"layer {name.rpartition('.')[0]} has a {name.rpartition('.')[2]} that is not finite"
    return "every parameter is finite, so it arises in the forward pass"


def _overrides(quantizer: Quantizer, method: str) -> bool:
    return getattr(type(quantizer), method) is not getattr(Quantizer, method)
