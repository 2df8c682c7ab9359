"""What evaluation reports, from logits made by hand."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from qexp.data.batches import Batches, Plan
from qexp.lit.evaluate import TOP5_CLASSES, measure, sums

CPU = torch.device("cpu")


class Answers(nn.Module):
    """Takes logits for images and returns them."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


class Served(list):
    """Batches of one process alone, given as they are."""

    plan = Plan(torch.arange(1), 1)


def served(batches: list[tuple[Tensor, Tensor]]) -> Batches:
    return cast(Batches, Served(batches))


def ranked(classes: int, *order: int) -> Tensor:
    """Logits whose largest values are at the classes of `order`, first to last; the rest fall off behind."""
    logits = -torch.arange(1.0, classes + 1)
    for place, index in enumerate(order):
        logits[index] = 100.0 - place
    return logits


def test_top5_counts_the_class_among_the_five_largest_logits() -> None:
    order = (7, 3, 99, 50, 12, 6)
    logits = torch.stack([ranked(100, *order)] * 7)
    labels = torch.tensor([*order, 80])  # first to sixth place, and far behind
    found = sums(logits, labels)
    assert (found["accuracy"].item(), found["accuracy_top5"].item()) == (1.0, 5.0)


@pytest.mark.parametrize(("classes", "expected"), [(TOP5_CLASSES, True), (TOP5_CLASSES - 1, False), (10, False)])
def test_top5_is_reported_from_a_hundred_classes_on(classes: int, expected: bool) -> None:
    found = sums(torch.randn(4, classes), torch.zeros(4, dtype=torch.long))
    assert ("accuracy_top5" in found) is expected


def test_every_sample_counts_once_whatever_the_batches() -> None:
    # Batches of 3 and 1: a mean of the batches' means would give 2/3 and 5/6 here.
    labels = torch.tensor([0, 1, 2, 3])
    logits = torch.stack([ranked(100, 0), ranked(100, 9, 1), ranked(100, 9, 8, 7, 6, 5, 2), ranked(100, 3)])
    found = measure(Answers(), served([(logits[:3], labels[:3]), (logits[3:], labels[3:])]), CPU)
    assert (found["accuracy"], found["accuracy_top5"]) == (0.5, 0.75)
    exact = -logits.double().log_softmax(1)[torch.arange(4), labels].mean().item()
    assert found["loss"] == pytest.approx(exact, rel=1e-12)


def test_the_loss_of_equal_logits_is_the_logarithm_of_the_number_of_classes() -> None:
    found = measure(Answers(), served([(torch.zeros(5, 10), torch.arange(5))]), CPU)
    assert found["loss"] == pytest.approx(math.log(10))
    assert found.keys() == {"loss", "accuracy"}


def test_modes_are_left_as_they_were() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5).eval(), Answers())
    found = measure(network, served([(torch.stack([ranked(10, 4)]), torch.tensor([4]))]), CPU)
    assert found["accuracy"] == 1.0
    assert [module.training for module in network] == [True, False, True]
