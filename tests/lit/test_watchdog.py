"""Each finding is shown by a run that really does it."""

from __future__ import annotations

import math

import pytest
import torch

from qexp.errors import TrainingError
from qexp.lit.alphas import Seen
from qexp.lit.watchdog import findings
from qexp.runs import RunDirectory


def warnings_of(small_run, folder, **changes):
    small_run.train(folder, **changes)
    return RunDirectory(folder).read_warnings()


def sgd(**changes):
    return {"_target_": "qexp.lit.optimizers.sgd", "lr": 0.1, "momentum": 0.0, **changes}


CONSTANT = {"_target_": "qexp.lit.schedules.constant"}


def test_a_healthy_run_is_not_blamed(small_run, tmp_path):
    assert warnings_of(small_run, tmp_path) == []


def test_an_alpha_that_turns_negative_is_named(small_run, tmp_path):
    # One step takes alpha to alpha - lr * lambda * alpha = -0.5 alpha; the second step would bring it back.
    found = warnings_of(
        small_run, tmp_path, epochs=1, batch_size=1400, optimizer=sgd(), schedule=CONSTANT,
        alpha_regularization={"lambda_alpha": 15.0},
    )  # fmt: skip
    assert len(found) == 2
    assert "layer first: alpha is negative (-5)" in found[0]
    assert "layer second: alpha is negative" in found[1]


def test_an_alpha_that_is_stuck_is_named(small_run, tmp_path):
    # Nothing reaches a clip level of 1000 and nothing pulls on it.
    found = warnings_of(
        small_run, tmp_path, epochs=4, network=small_run.network(alpha=1000.0),
        alpha_regularization={"lambda_alpha": 0},
    )  # fmt: skip
    assert len(found) == 2
    assert "layer first: alpha is stuck at 1000 for 3 epochs; its gradient is zero" in found[0]


def test_a_layer_that_clips_everything_is_named(small_run, tmp_path):
    network = small_run.network(alpha=1.0)
    network[3].bias.data.fill_(500.0)
    found = warnings_of(
        small_run, tmp_path, epochs=1, network=network, optimizer=sgd(lr=1e-6), schedule=CONSTANT,
        alpha_regularization={"lambda_alpha": 0},
    )  # fmt: skip
    assert len(found) == 1
    assert "layer second: clips everything (100.0% of its input)" in found[0]


def test_a_loss_that_is_not_a_number_always_ends_the_run(small_run, tmp_path):
    with pytest.raises(TrainingError, match=r"step \d+: the loss is not a number; alpha of layer first is not"):
        small_run.train(tmp_path, optimizer=sgd(lr=1e20), trainer_watchdog="off")


def test_an_alpha_that_is_not_a_number_is_named(small_run, tmp_path):
    network = small_run.network()
    network[4].alpha.data.fill_(math.nan)
    with pytest.raises(
        TrainingError, match=r"alpha of layer second is not finite|layer second: alpha is not a number"
    ):
        small_run.train(tmp_path, network=network, trainer_watchdog="stop")


def test_stop_ends_the_run_at_the_first_finding(small_run, tmp_path):
    with pytest.raises(TrainingError, match="layer first: alpha is stuck"):
        small_run.train(
            tmp_path, epochs=6, network=small_run.network(alpha=1000.0), trainer_watchdog="stop",
            alpha_regularization={"lambda_alpha": 0},
        )  # fmt: skip


def test_off_says_nothing(small_run, tmp_path):
    found = warnings_of(
        small_run, tmp_path, epochs=4, network=small_run.network(alpha=1000.0), trainer_watchdog="off",
        alpha_regularization={"lambda_alpha": 0},
    )  # fmt: skip
    assert found == []


def test_an_alpha_of_exactly_zero_is_blamed():
    seen = Seen("act", {"alpha": torch.tensor(0.0)}, positive=("alpha",))
    assert [cause for cause, _ in findings(seen)] == ["negative"]
