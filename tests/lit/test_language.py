"""Training and evaluation of language models: the state, the window, the clipped gradient, and a resumed run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qexp.build import build
from qexp.commands.network import build_network
from qexp.data.text import Descriptions
from qexp.errors import CheckpointError, ConfigError
from qexp.lit.evaluate import evaluate, measured
from qexp.lit.fit import fit
from qexp.lit.language import perplexity
from qexp.lit.start import seed_everything
from qexp.lit.task import LanguageModelling
from qexp.models.recurrent import LanguageModel
from qexp.models.weights import load_weights
from qexp.runs import RunDirectory

from ..composing import parsed

SMALL = [
    "model=lstm", "dataset=descriptions", "dataset.train_samples=1500", "dataset.vocabulary=60", "model.units=8",
    "model.dropout=0.3", "batch_size=4", "epochs=2", "logger=none", "trainer.threads=1", "trainer.progress=false",
]  # fmt: skip


def trained(folder: Path, *words: str) -> tuple[nn.Module, dict[str, float]]:
    folder.mkdir(parents=True, exist_ok=True)
    config = parsed(*SMALL, *words)
    source = build(config.dataset)
    seed_everything(config.seed)
    network = build_network(config, source)
    return network, fit(network, source, config, RunDirectory(folder))


def small(**more: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(**{"input_shape": (5,), "num_classes": 60, "units": 8, **more})


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_perplexity_is_that_of_the_text_read_at_one_go(lanes: int) -> None:
    source = Descriptions(name="descriptions", vocabulary=60, sequence_length=5, eval_lanes=lanes)
    network = small().double()
    found = measured(network, source.test_batches(None, "cpu"), torch.device("cpu"), source)
    numbers = source.numbers("test")
    lane = -(-(len(numbers) - 1) // lanes)
    total = 0.0
    for start in range(0, len(numbers) - 1, lane):
        part = numbers[start : start + lane + 1]
        with torch.no_grad():
            logits, _ = network(part[None, :-1])
            total += float(F.cross_entropy(logits[0], part[1:], reduction="sum"))
    loss = total / (len(numbers) - 1)
    assert found["loss"] == pytest.approx(loss, rel=1e-9)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-9)


def test_characters_are_reported_in_bits() -> None:
    source = Descriptions(name="descriptions", level="character", vocabulary=60)
    found = measured(small(cell="rnn"), source.test_batches(None, "cpu"), torch.device("cpu"), source)
    assert found["bits_per_character"] == pytest.approx(found["loss"] / math.log(2))


def test_an_overflowing_perplexity_is_infinite() -> None:
    assert perplexity(1000.0) == math.inf


def task(network: nn.Module, **more: Any) -> LanguageModelling:
    return LanguageModelling(
        network,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        schedule=lambda share: 1.0,
        total_steps=10,
        **more,
    )


def test_the_state_goes_from_window_to_window_without_its_graph_and_not_into_the_next_epoch() -> None:
    network = small()
    module = task(network)
    module._trainer = None  # type: ignore[assignment]
    seen = []

    def step(network: nn.Module, tokens: Any, targets: Any, state: Any, *rest: Any) -> tuple[Any, ...]:
        seen.append(state)
        return torch.zeros(()), torch.zeros(4), network(tokens, state)[1].detach()

    module.step = step
    type(module).global_step = property(lambda self: 0)  # type: ignore[assignment, method-assign]
    try:
        batches = [(torch.randint(0, 60, (2, 5)), torch.zeros(2, 5, dtype=torch.long)) for _ in range(3)]
        for index, batch in enumerate(batches):
            module.training_step(batch, index)
        module.training_step(batches[0], 0)
    finally:
        del type(module).global_step
    assert seen[0] is None and seen[3] is None
    expected = network(batches[1][0], network(batches[0][0])[1])[1]
    assert torch.allclose(seen[2], expected) and not seen[2].requires_grad


def test_all_gradients_together_are_clipped_to_the_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = LanguageModelling.configure_gradient_clipping

    def watched(self: LanguageModelling, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    monkeypatch.setattr(LanguageModelling, "configure_gradient_clipping", watched)
    trained(tmp_path, "quantizer=none", "task.gradient_clip=0.05", "epochs=1")
    assert len(norms) > 10 and max(norms) == pytest.approx(0.05, rel=1e-3)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("quantizer", ["none", "lsq"])
def test_a_run_broken_off_in_mid_epoch_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str
) -> None:
    words = [f"quantizer={quantizer}", "bits=4", "trainer.checkpoint_steps=5"]
    whole, metrics = trained(tmp_path / "whole", *words)
    original, calls = LanguageModelling.optimizer_step, []

    def dying(self: LanguageModelling, *arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 28:  # in the second epoch of 18 steps, three after a checkpoint
            raise KilledError
        original(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(LanguageModelling, "optimizer_step", dying)
        trained(tmp_path / "broken", *words)
    torch.manual_seed(99)
    resumed, again = trained(tmp_path / "broken", *words)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert again["train_loss"] == metrics["train_loss"]
    assert again["train_perplexity"] == pytest.approx(math.exp(again["train_loss"]))


def test_training_lowers_the_perplexity(tmp_path: Path) -> None:
    config = parsed(*SMALL, "quantizer=none")
    source = build(config.dataset)
    seed_everything(0)
    before = evaluate(build_network(config, source), source, config)["test_perplexity"]
    network, _ = trained(tmp_path, "quantizer=qnn_linear", "bits=4", "epochs=4")
    assert evaluate(network, source, config)["test_perplexity"] < 0.7 * before


def test_a_checkpoint_of_other_units_is_named(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "small.pt")
    with pytest.raises(
        CheckpointError, match=r"embedding.weight is \(60, 8\) in the file and \(60, 9\) in the model"
    ):
        load_weights(small(units=9), str(tmp_path / "small.pt"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cell": "gru"}, "model.cell=gru"),
        ({"units": 0}, "model.units=0"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"start": -0.1}, "model.start=-0.1: "),
        ({"start": math.nan}, "model.start=nan: "),
        ({"start": math.inf}, "model.start=inf: "),
        ({"embedding_start": -1}, "model.embedding_start=-1: "),
        ({"embedding_start": "abc"}, "model.embedding_start=abc: "),
        ({"input_shape": (3, 32, 32)}, "sequences of tokens"),
    ],
)
def test_a_network_without_meaning_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        small(**settings)


def test_a_norm_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.gradient_clip=0"):
        task(small(), gradient_clip=0.0)
