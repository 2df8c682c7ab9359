"""How well a network predicts a text: cross entropy, perplexity, bits per character."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.data.batches import Batches
from qexp.data.text import NOT_COUNTED
from qexp.graph.modes import evaluating
from qexp.lit import world
from qexp.lit.evaluate import float32


@torch.no_grad()
def language(network: nn.Module, batches: Batches, device: torch.device, *, characters: bool) -> dict[str, float]:
    """Return `loss` (nats per token), `perplexity` (its exponential) and `accuracy`.

    Of characters also the loss in bits, `bits_per_character`. The state is carried from window to window in each
    lane. Sums are kept in float64; batches that the processes of a job share are summed over all of them, each of
    which has to call this.
    """
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    state: Tensor | None = None
    with evaluating(network), float32(device):
        for tokens, targets in batches:
            if not len(tokens):  # fewer lanes than processes
                continue
            logits, state = network(tokens, state)
            logits, targets = logits.flatten(0, 1), targets.flatten()
            loss = F.cross_entropy(logits.double(), targets, reduction="sum", ignore_index=NOT_COUNTED)
            hits = (logits.argmax(dim=1) == targets).sum()
            totals += torch.stack([loss, hits.double(), (targets != NOT_COUNTED).sum().double()])
    if batches.plan.world_size > 1:
        totals = world.summed(totals)
    total, hits, count = totals.tolist()
    loss = total / count
    found = {"loss": loss, "accuracy": hits / count, "perplexity": perplexity(loss)}
    return found | ({"bits_per_character": loss / math.log(2)} if characters else {})


def perplexity(loss: float) -> float:
    """Return exp(loss); infinity where that is beyond a double.

    >>> round(perplexity(4.0), 3), perplexity(1e6)
    (54.598, inf)
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
