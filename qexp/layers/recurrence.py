"""A linear layer applied to its own last output, step by step: the recurrent half of an RNN or LSTM.

Its other half, what the inputs contribute, is an ordinary linear layer before it, taken for all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Cell = Literal["rnn", "lstm"]

GATES = {"rnn": 1, "lstm": 4}
"""Outputs of a cell's linear layers for each unit."""

STATES = {"rnn": 1, "lstm": 2}
"""Vectors that a cell hands to its next step: the output, and behind it an LSTM's memory."""


def rnn_cell(gates: Tensor, state: Tensor | None) -> Tensor:
    """Return the new state (1, N, H): tanh of the sum (N, H) of what input and last output contribute."""
    return torch.tanh(gates).unsqueeze(0)


def lstm_cell(gates: Tensor, state: Tensor | None) -> Tensor:
    """Return the new state, output and memory (2, N, H), from the gates (N, 4H): in, forget, cell, out.

    Hochreiter and Schmidhuber 1997 with Gers et al. 2000's forget gate, in the order of torch's LSTM. Without a
    `state` the memory is zero.
    """
    into, forget, cell, out = gates.chunk(4, dim=-1)
    memory = torch.sigmoid(into) * torch.tanh(cell)
    if state is not None:
        memory = memory + torch.sigmoid(forget) * state[1]
    return torch.stack([torch.sigmoid(out) * torch.tanh(memory), memory])


CELLS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"rnn": rnn_cell, "lstm": lstm_cell}


class Recurrence(nn.Linear):
    """The weights (gates x H, H) from one step's output to the next step's gates, and the walk over the steps.

    Args:
        cell: `rnn` (tanh) or `lstm`.
        units: H.
        place: which of a network's recurrent layers it is; picks its part of the state.
    """

    def __init__(self, cell: Cell, units: int, place: int = 0) -> None:
        super().__init__(units, GATES[cell] * units, bias=False)
        self.cell, self.units, self.place = cell, units, place

    def forward(self, gates: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return each step's output (N, T, H) and the last state (states, N, H).

        Args:
            gates: (N, T, gates x H), what the inputs contribute.
            state: (layers, states, N, H) of all recurrent layers before the first step; None where nothing was
                before: the first step then has no last output to multiply.
        """
        return walk(self, gates, state, lambda output: F.linear(output, self.weight))


def walk(
    layer: Recurrence, gates: Tensor, state: Tensor | None, product: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Run the steps; `product` makes of each step's last output (N, H) what it contributes to the gates."""
    step, outputs = CELLS[layer.cell], []
    now = None if state is None else state[layer.place]
    for contribution in gates.unbind(dim=1):
        if now is not None:
            contribution = contribution + product(now[0])
        now = step(contribution, now)
        outputs.append(now[0])
    assert now is not None, "a sequence has at least one step"
    return torch.stack(outputs, dim=1), now
