"""A training step as a plain function: network and batch in, loss and statistics out; what a compiler sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qexp.lit.losses import class_scores, distillation_loss, penalty, supervised_loss
from qexp.quantizers.base import Quantizer

STATISTICS = ("loss", "correct", "penalty", "distillation")
"""What a step reports, each summed over the batch's samples.

They are the data's loss, the right answers, what quantizers and the penalty on clip levels add to the loss, and
what a teacher adds.
"""


def classification_step(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    quantizers: Sequence[Quantizer],
    penalized: Sequence[nn.Parameter],
    lambda_alpha: float,
    label_smoothing: float,
    loss_name: str = "cross_entropy",
    teacher: nn.Module | None = None,
    distillation: float = 0.0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the statistics of one batch.

    The loss is that of the data, plus that of a teacher, plus what the quantizers add, plus the penalty, whose
    gradient is lambda_alpha * alpha whatever the optimizer does with it.

    Args:
        images: (N, C, H, W).
        labels: (N,), int64.
        quantizers: those whose auxiliary loss counts.
        penalized: each penalized parameter once.
        lambda_alpha: 0 switches the penalty off.
        loss_name: the data's loss, as `qexp.lit.losses.supervised_loss` has it.
        teacher: a float network in evaluation mode, whose answers the network is to give too; None for none.
        distillation: weight of that loss; temperature: as `qexp.lit.losses.distillation_loss` has it.

    Returns:
        The scalar loss, and `STATISTICS` (4,) in float32, detached.
    """
    logits = class_scores(network(images)).float()
    data_loss = supervised_loss(logits, labels, loss_name, label_smoothing)
    taught = None
    if teacher is not None:
        with torch.no_grad():
            wanted = class_scores(teacher(images)).float()
        taught = distillation * distillation_loss(logits, wanted, temperature)
    return objective(logits, labels, data_loss, quantizers, penalized, lambda_alpha, taught)


def language_step(
    network: nn.Module,
    tokens: Tensor,
    targets: Tensor,
    state: Tensor | None,
    quantizers: Sequence[Quantizer],
    penalized: Sequence[nn.Parameter],
    lambda_alpha: float,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and the statistics of one batch of windows, and the state behind them, detached.

    Args:
        tokens, targets: (N, steps), int64.
        state: that the windows before left behind; None at the beginning of the text.

    The others, and the loss, are those of `classification_step`; every token counts as a sample.
    """
    logits, after = network(tokens, state)
    logits, labels = logits.flatten(0, 1).float(), targets.flatten()
    data_loss = supervised_loss(logits, labels, "cross_entropy", label_smoothing)
    return *objective(logits, labels, data_loss, quantizers, penalized, lambda_alpha), after.detach()


def objective(
    logits: Tensor,
    labels: Tensor,
    data_loss: Tensor,
    quantizers: Sequence[Quantizer],
    penalized: Sequence[nn.Parameter],
    lambda_alpha: float,
    taught: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `data_loss` plus those of a teacher (None: without) and of the quantizers, and `STATISTICS`.

    Args:
        logits: (N, classes), float32.
        labels: (N,).
    """
    nothing = torch.zeros_like(data_loss)
    taught = nothing if taught is None else taught
    added = nothing
    for quantizer in quantizers:
        extra = quantizer.auxiliary_loss()
        if extra is not None:
            added = added + extra.float()
    if lambda_alpha:
        added = added + penalty(penalized, lambda_alpha)
    count = labels.shape[0]
    correct = (logits.detach().argmax(dim=1) == labels).sum().float()
    data, penalties, teachers = (part.detach() * count for part in (data_loss, added, taught))
    return data_loss + taught + added, torch.stack([data, correct, penalties, teachers])
