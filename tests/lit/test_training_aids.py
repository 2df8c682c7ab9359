"""What helps at few bits: a float teacher, statistics measured anew, a start from a run of more bits."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from qexp.cli import main
from qexp.commands import train
from qexp.data.digits import Digits
from qexp.errors import ConfigError
from qexp.layers.normalization import ShiftBatchNorm
from qexp.lit.batch_norm import reestimate, require
from qexp.lit.checkpoint import network_state, read_checkpoint
from qexp.lit.losses import distillation_loss
from qexp.lit.schedules import constant
from qexp.lit.step import classification_step
from qexp.lit.task import Classification

from ..composing import parsed

QUICK = ["epochs=1", "trainer.progress=false", "logger=none", "trainer.compile=false", "trainer.threads=1"]


def run(folder: Path, *words: str) -> dict:
    before = set(folder.rglob("result.json"))
    assert main(["train", *QUICK, f"output_dir={folder}", *words]) == 0
    (found,) = set(folder.rglob("result.json")) - before
    return {"path": found.parent, **json.loads(found.read_text())}


@pytest.fixture(scope="module")
def float_run(tmp_path_factory) -> dict:
    return run(tmp_path_factory.mktemp("float"), "quantizer=none", "epochs=6")


def test_the_distillation_loss_is_the_divergence_from_the_teacher():
    logits, wanted = torch.randn(2, 5, 7, dtype=torch.float64)
    p, q = (wanted / 3).softmax(1), (logits / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, wanted, 3.0), expected)
    assert distillation_loss(wanted, wanted).abs() < 1e-12


def test_the_teacher_teaches_and_is_not_trained():
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)
    x, labels = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
    plain, _ = classification_step(student, x, labels, [], [], 0.0, 0.0)
    taught, statistics = classification_step(
        student, x, labels, [], [], 0.0, 0.0, "cross_entropy", teacher, 2.0, 1.0
    )
    torch.testing.assert_close(taught - plain, 2 * distillation_loss(student(x), teacher(x)))
    torch.testing.assert_close(statistics[2:] / 8, torch.stack([torch.zeros(()), (taught - plain).detach()]))
    task = Classification(
        student, optimizer=lambda groups: None, schedule=constant, total_steps=1, distillation=1.0,
        teacher_network=teacher,
    )  # fmt: skip
    assert set(task.state_dict()) == {"network.weight", "network.bias"}


def test_a_run_with_a_teacher(float_run, tmp_path):
    words = ["quantizer=lsq", "bits=2", f"model.weights={float_run['path']}", "epochs=2"]
    taught = run(tmp_path, *words, "task=distillation", "alpha_regularization=none")
    alone = run(tmp_path, *words)
    assert taught["run_id"] != alone["run_id"]
    rows = list(csv.reader((taught["path"] / "metrics.csv").read_text().splitlines()))
    answers = [float(row[3]) for row in rows if row[2] == "train_distillation"]
    assert answers and all(value > 0 for value in answers), "the answers' loss is shown beside the data's"
    assert not any(row[2] == "train_penalty" for row in rows), "nothing penalizes here"


def test_a_teacher_has_the_batch_norms_that_it_was_trained_with(float_run, tmp_path):
    def teacher(weights: Path) -> torch.nn.Module:
        words = ["quantizer=lsq", "bits=2", "task=distillation", "normalization=shift", f"model.weights={weights}"]
        return train._teacher(train.plan(parsed(*words)))

    shifted = tmp_path / "shifted"
    shutil.copytree(float_run["path"], shifted)
    config = (shifted / "config.yaml").read_text()
    (shifted / "config.yaml").write_text(config.replace("normalization: null", "normalization: shift"))
    shutil.copy(shifted / "last.ckpt", tmp_path / "alone.ckpt")
    places = (float_run["path"], shifted, shifted / "last.ckpt", tmp_path / "alone.ckpt")
    found = [any(isinstance(module, ShiftBatchNorm) for module in teacher(place).modules()) for place in places]
    assert found == [False, True, True, False]


def test_a_teacher_is_needed(capsys):
    assert main(["train", *QUICK, "quantizer=lsq", "task=distillation"]) == 2
    assert "task.distillation: a trained float network is needed" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="nobody is taught"):
        Classification(nn.Linear(1, 1), optimizer=None, schedule=constant, total_steps=1, teacher="x")


def test_fewer_bits_start_from_the_run_of_more(float_run, tmp_path):
    def train(bits, *words):
        return run(tmp_path, "quantizer=lsq", f"bits={bits}", "epochs=2", *words)

    four = train(4, f"model.weights={float_run['path']}")
    three = train(3, f"model.weights={four['path']}")
    assert three["test_accuracy"] > train(3)["test_accuracy"] + 0.05, "ahead of a start from nothing"


def test_the_shares_of_weights_that_oscillate_are_in_the_record(float_run, tmp_path):
    found = run(
        tmp_path,
        "quantizer=lsq",
        "bits=2",
        f"model.weights={float_run['path']}",
        "quantizer.weight.freeze_above=0.02",
        "optimizer.lr=0.1",
        "epochs=3",
    )
    with (found["path"] / "metrics.csv").open() as lines:
        rows = [
            row for row in csv.DictReader(lines) if row["name"].startswith(("oscillating_share/", "frozen_share/"))
        ]
    last = {row["name"]: float(row["value"]) for row in rows}
    assert {name.split("/")[0] for name in last} == {"oscillating_share", "frozen_share"}
    assert all(0 <= value <= 1 for value in last.values()) and max(last.values()) > 0


@pytest.mark.parametrize("count", [4, 10])  # an epoch has 7
def test_statistics_are_the_means_over_the_batches(count):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)).train()
    data = [(3 + torch.randn(16, 6), None) for _ in range(7)]

    class Source(list):
        epochs = ()

        def load_state_dict(self, state):
            assert state["position"] == 0
            self.epochs += (state["epoch"],)

    source = Source(data)
    reestimate(network, source, count, torch.device("cpu"))
    assert source.epochs == (0, 1)[: 1 + count // 7]
    with torch.no_grad():
        outputs = [network[0](x) for x, _ in [*data, *data][:count]]
    torch.testing.assert_close(network[1].running_mean, torch.stack([y.mean(0) for y in outputs]).mean(0))
    torch.testing.assert_close(network[1].running_var, torch.stack([y.var(0) for y in outputs]).mean(0))
    assert network.training and network[2].training and network[1].momentum == 0.1


def test_the_statistics_of_a_run_are_measured_with_its_last_weights_and_saved(small_run, tmp_path):
    network, _ = small_run.train(tmp_path, epochs=2, batch_norm_batches=5)
    batches = itertools.islice(Digits().train_batches(128, 0, "cpu"), 5)  # the first ones of the first epoch
    with torch.no_grad():
        outputs = [network[0](images) for images, _ in batches]
    state = network_state(read_checkpoint(tmp_path / "last.ckpt"))
    for name, measure in (("running_mean", torch.mean), ("running_var", torch.var)):
        expected = torch.stack([measure(y, (0, 2, 3)) for y in outputs]).mean(0)
        torch.testing.assert_close(state[f"1.{name}"], expected, rtol=1e-4, atol=1e-5)


def test_reestimation_is_saved_and_evaluates_the_same(tmp_path, capsys):
    found = run(tmp_path, "quantizer=lsq", "bits=2", "batch_norm_batches=5")
    assert main(["eval", str(found["path"])]) == 0
    assert f"{found['test_accuracy']:.4f}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no batch norm"):
        require(nn.Linear(2, 2))
