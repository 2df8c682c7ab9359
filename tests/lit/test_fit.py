"""What training itself decides: memory format, precision, and that its processes are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qexp.cli import main
from qexp.data.base import DataSource
from qexp.data.batches import Batch, Batches, Plan
from qexp.lit import fit as fitting
from qexp.lit.evaluate import evaluate, float32, tensor_float32
from qexp.lit.task import Classification
from qexp.runs import RunDirectory


class Rows(Batches):
    """Vectors of two classes, told apart by the sign of their first number."""

    def _load(self, shares: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        for rows in shares:
            vectors = torch.randn(len(rows), 6, generator=torch.Generator().manual_seed(int(rows[0])))
            yield vectors, (vectors[:, 0] > 0).long()


class Vectors(DataSource):
    """Samples that are no images."""

    name, shape, num_classes = "vectors", (6,), 2

    def digest(self) -> str:
        return "0"

    def train_batches(self, batch_size: int, *_: Any, **__: Any) -> Batches:
        return Rows(Plan(torch.arange(256), batch_size, training=True))

    def validation_batches(self, *_: Any, **__: Any) -> Batches | None:
        return None

    def test_batches(self, *_: Any, **__: Any) -> Batches:
        return Rows(Plan(torch.arange(64), 64))

    def training_samples(self, *_: Any, **__: Any) -> Batches:
        return self.test_batches()


def test_samples_that_are_no_images_are_trained_on_by_default(small_run: Any, tmp_path: Path) -> None:
    config, network = small_run.config(batch_size=32, epochs=5), nn.Linear(6, 2)
    assert config.trainer.channels_last
    fitting.fit(network, Vectors(), config, RunDirectory(tmp_path))
    assert evaluate(network, Vectors(), config)["test_accuracy"] > 0.8


def tf32() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_only_tf32_computes_in_tensor_float32(
    precision: str, allowed: bool, small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, step, before = set(), Classification.training_step, tf32()

    def training_step(self: Classification, batch: Any, index: int) -> Tensor:
        seen.add(tf32())
        return step(self, batch, index)

    monkeypatch.setattr(Classification, "training_step", training_step)
    small_run.train(tmp_path, epochs=1, trainer_precision=precision)
    assert seen == {(allowed, allowed)}
    assert tf32() == before


def test_evaluation_is_in_float32_whatever_trains_around_it() -> None:
    with tensor_float32(True):
        with float32(torch.device("cpu")):
            assert tf32() == (False, False)
        assert tf32() == (True, True)


def test_an_environment_of_other_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Left over in a shell, it would have each step train on a quarter of its batch."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["train", "quantizer=none", "epochs=1", f"output_dir={tmp_path / 'out'}"]) == 2
    assert "trainer.devices=1: the environment says that this is one of WORLD_SIZE=4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
