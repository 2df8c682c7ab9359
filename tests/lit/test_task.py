"""What a step of training does: its loss by hand, its learning rate, and what it tells roundings and a teacher."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.files import MetricsFile
from qexp.lit.losses import distillation_loss
from qexp.lit.schedules import constant
from qexp.lit.step import classification_step
from qexp.lit.task import Classification
from qexp.ops.discretisation import Blend
from qexp.ops.rounding import ASR, ste
from qexp.quantizers.base import Site
from qexp.quantizers.pact import PACT

STEPS = 22
"""Of two epochs."""


class Counting(ASR):
    """Counts how often it may act after a step."""

    acted = 0

    def after_step(self) -> None:
        self.acted += 1


@pytest.fixture(scope="module")
def trained(small_run: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A network of two roundings that are annealed, after two epochs of half a cosine, and its folder."""
    roundings = Counting(mode="annealed", k=2.0, k_end=10.0), Blend(ste, beta=0.5, until=1.0)
    first, second = (PACT(4, Site(f"act{index}", "activation"), each) for index, each in enumerate(roundings))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), first, nn.Linear(16, 16), second, nn.Linear(16, 10))
    folder = tmp_path_factory.mktemp("trained")
    cosine = {"_target_": "qexp.lit.schedules.cosine"}
    small_run.train(folder, network=network, epochs=2, schedule=cosine)
    return network, folder


def test_roundings_hear_how_much_of_the_training_is_done(trained: tuple[nn.Module, Path]) -> None:
    network, _ = trained
    share = (STEPS - 1) / STEPS  # before the last step
    assert network[2].rounding.k.item() == pytest.approx(2 + (10 - 2) * share)
    assert network[4].rounding.beta.item() == pytest.approx(0.5 * (1 - share))


def test_roundings_act_after_every_step(trained: tuple[nn.Module, Path]) -> None:
    network, _ = trained
    assert network[2].rounding.acted == STEPS


def test_the_recorded_rate_is_that_of_each_epochs_last_step(trained: tuple[nn.Module, Path]) -> None:
    _, folder = trained
    rates = [value for _, _, name, value in MetricsFile(folder / "metrics.csv").rows() if name == "lr"]
    expected = [0.1 * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in (STEPS // 2 - 1, STEPS - 1)]
    assert rates == pytest.approx(expected)


def test_a_smoothed_label_is_shared_among_the_classes() -> None:
    """Of two classes at 0.2 the label keeps 0.9: -0.9 ln p - 0.1 ln (1 - p) with p / (1 - p) = e^2."""
    logits, label = torch.tensor([[1.0, -1.0]]), torch.tensor([0])
    loss, _ = classification_step(nn.Identity(), logits, label, [], [], 0.0, 0.2)
    p = 1 / (1 + math.exp(-2))
    assert loss.item() == pytest.approx(-0.9 * math.log(p) - 0.1 * math.log(1 - p))


def test_what_a_quantizer_adds_to_the_loss_is_trained() -> None:
    class Charging(PACT):
        def auxiliary_loss(self) -> torch.Tensor:
            return 3 * self.alpha

    quantizer = Charging(4, Site("act", "activation"), alpha=2.0)
    network = nn.Sequential(nn.Linear(4, 8), quantizer, nn.Linear(8, 3))
    x, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    gradients, statistics = [], []
    for charged in ([], [quantizer]):
        network.zero_grad()
        loss, found = classification_step(network, x, labels, charged, [], 0.0, 0.0)
        loss.backward()
        gradients.append(quantizer.alpha.grad.item())
        statistics.append(found[2].item())
    assert gradients[1] - gradients[0] == pytest.approx(3.0)
    assert statistics == pytest.approx([0.0, 5 * 3 * 2.0])


def test_a_teacher_answers_as_in_evaluation_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    student, x, labels = nn.Linear(4, 3), torch.randn(16, 4), torch.zeros(16, dtype=torch.long)
    task = Classification(
        student, optimizer=lambda groups: None, schedule=constant(), total_steps=1, distillation=2.0,
        teacher_network=teacher,
    )  # fmt: skip
    loss = task.training_step((x, labels), 0)
    norm = teacher[1]
    assert not norm.running_mean.any() and norm.num_batches_tracked == 0
    hidden = teacher[0](x) / math.sqrt(1 + norm.eps)  # statistics of a start, and nothing is dropped
    wanted = teacher[3](hidden)
    expected = F.cross_entropy(student(x), labels) + 2 * distillation_loss(student(x), wanted)
    torch.testing.assert_close(loss, expected)
