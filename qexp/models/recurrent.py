"""Networks that predict a text's next token: embedding, recurrent layers, linear layer over the vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.layers.recurrence import GATES, Cell, Recurrence
from qexp.ops.numbers import is_count, is_positive_or_zero


class LanguageModel(nn.Module):
    """A recurrent language model; its state goes in and comes out, so that a text can be read in pieces.

    Args:
        input_shape: (steps,) of a sequence of tokens.
        num_classes: size of the vocabulary.
        cell: `rnn` (tanh) or `lstm`.
        units: of each recurrent layer.
        layers: number of them.
        embedding: size of a token's vector; None: `units`.
        dropout: share of the values behind the embedding and behind each recurrent layer that training leaves out.
        start: weights and biases start uniform in [-start, start]; None: 1 / sqrt(units), as torch's.
        embedding_start: the embedding's likewise; None: `start`. What is rounded needs a size to start from.

    Raises:
        ConfigError: a number without meaning, or data that are no sequences.
    """

    task = "language_modelling"

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        cell: Cell = "lstm",
        units: int = 300,
        layers: int = 1,
        embedding: int | None = None,
        dropout: float = 0.0,
        start: float | None = None,
        embedding_start: float | None = None,
    ) -> None:
        super().__init__()
        _check(input_shape, cell, units, layers, embedding, dropout)
        _check_starts(start=start, embedding_start=embedding_start)
        size = units if embedding is None else embedding
        self.embedding = nn.Embedding(num_classes, size)
        self.recurrent = nn.ModuleList(
            RecurrentLayer(cell, size if place == 0 else units, units, place) for place in range(layers)
        )
        self.decoder = nn.Linear(units, num_classes)
        self.dropout = nn.Dropout(dropout)
        bound = 1 / math.sqrt(units) if start is None else start
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        if embedding_start is not None:
            nn.init.uniform_(self.embedding.weight, -embedding_start, embedding_start)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of each next token, and the state behind the last one.

        Args:
            tokens: int64 (N, steps).
            state: (layers, states, N, units) that an earlier call returned; None at the beginning of a text.

        Returns:
            (N, steps, vocabulary), and the state.
        """
        x = self.dropout(self.embedding(tokens))
        states = []
        for layer in self.recurrent:
            x, last = layer(x, state)
            x = self.dropout(x)
            states.append(last)
        return self.decoder(x), torch.stack(states)


class RecurrentLayer(nn.Module):
    """One recurrent layer: what its inputs contribute, for all steps at once, then the walk over the steps."""

    def __init__(self, cell: Cell, inputs: int, units: int, place: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, GATES[cell] * units)
        self.hidden = Recurrence(cell, units, place)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return outputs (N, steps, units) and the last state (states, N, units) for `x` (N, steps, inputs)."""
        outputs, last = self.hidden(self.input(x), state)
        return outputs, last


def _check(
    input_shape: tuple[int, ...], cell: str, units: int, layers: int, embedding: int | None, dropout: float
) -> None:
    if len(input_shape) != 1:
        raise ConfigError(
            f"a language model reads sequences of tokens, not {tuple(input_shape)}; choose dataset=ptb."
        )
    if cell not in GATES:
        raise ConfigError(f"model.cell={cell}: {' or '.join(GATES)}.")
    for name, value in (
        ("units", units),
        ("layers", layers),
        ("embedding", 1 if embedding is None else embedding),
    ):
        if not is_count(value):
            raise ConfigError(f"model.{name}={value}: a whole number above 0.")
    if not 0 <= dropout < 1:
        raise ConfigError(f"model.dropout={dropout}: a share, 0 or more, below 1.")


def _check_starts(**starts: float | None) -> None:
    for name, value in starts.items():
        if value is not None and not is_positive_or_zero(value):
            raise ConfigError(f"model.{name}={value}: a number, 0 or more; or null.")
