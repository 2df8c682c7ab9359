"""What training minimizes: a loss of the data, that of a teacher, the penalty on clip levels."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.quantizers.base import named_quantizers


def class_scores(answer: object) -> Tensor:
    """Return what a network answered, one score a class: (N, classes).

    Raises:
        ConfigError: it is anything else.
    """
    if isinstance(answer, Tensor) and answer.dim() == 2:
        return answer
    found = f"a tensor of {answer.dim()} axes" if isinstance(answer, Tensor) else "something else"
    raise ConfigError(f"a classifier answers with one tensor (N, classes); this network answers with {found}.")


def squared_hinge(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over samples and classes of max(0, 1 - t y)^2, t = +1 for the label and -1 for the others.

    Source: the authors' code of arXiv 1602.02830 (an L2-SVM at the network's end).

    Args:
        scores: (N, classes), real.
        labels: (N,), int64.

    >>> import torch
    >>> squared_hinge(torch.tensor([[0.5, -2.0]]), torch.tensor([0])).item()
    0.125
    """
    targets = 2 * F.one_hot(labels, scores.shape[1]).to(scores.dtype) - 1
    return (1 - targets * scores).clamp(min=0).square().mean()


def supervised_loss(scores: Tensor, labels: Tensor, name: str, label_smoothing: float = 0.0) -> Tensor:
    """Return the loss called `name` (cross_entropy or squared_hinge) of one batch, a scalar."""
    if name == "squared_hinge":
        return squared_hinge(scores, labels)
    return F.cross_entropy(scores, labels, label_smoothing=label_smoothing)


def refuse_smoothing(name: str, label_smoothing: float) -> None:
    """Raise ConfigError where labels are smoothed for a loss that has no place for it."""
    if name == "squared_hinge" and label_smoothing:
        raise ConfigError(
            f"task.label_smoothing={label_smoothing}: task.loss=squared_hinge has none; set it to 0, or "
            "task.loss=cross_entropy."
        )


def distillation_loss(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(teacher || network) of the softened answers, the mean over the batch (Hinton et al. 2015).

    Args:
        logits, wanted: (N, classes) of the network and of its teacher.
        temperature: T, that both are divided by.
    """
    answers = F.log_softmax(logits / temperature, dim=1)
    target = F.log_softmax(wanted / temperature, dim=1)
    return temperature**2 * F.kl_div(answers, target, reduction="batchmean", log_target=True)


def penalized(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that the penalty acts on, one that quantizers share once."""
    found = (p for _, quantizer in named_quantizers(network) for p in quantizer.penalized().values())
    return list({id(parameter): parameter for parameter in found}.values())


def penalty(parameters: Iterable[Tensor], lambda_alpha: float) -> Tensor | float:
    """Return (lambda_alpha / 2) * sum of alpha^2, a scalar in float32; its gradient is lambda_alpha * alpha.

    Args:
        parameters: as `penalized` has them; without any the penalty is 0.
    """
    return 0.5 * lambda_alpha * sum(parameter.float().square().sum() for parameter in parameters)
