"""The processes of one job agree on what one process alone would have found."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qexp.data.batches import Batch, Batches, Plan
from qexp.lit import world
from qexp.lit.evaluate import measure
from qexp.lit.schedules import constant
from qexp.lit.task import Classification

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
LOGITS, LABELS = torch.randn(7, 10, generator=GENERATOR), torch.tensor([3, 1, 4, 1, 5, 9, 2])


class Rows(Batches):
    """Of 7 samples in batches of 3: two processes get 2 and 1, 2 and 1, then 1 and none."""

    def __init__(self) -> None:
        super().__init__(Plan(torch.arange(7), 3, rank=world.rank(), world_size=world.size()))

    def _load(self, shares: Any, epoch: int) -> Iterator[Batch]:
        for rows in shares:
            yield LOGITS[rows], LABELS[rows]


class Answers(nn.Module):
    """Takes logits for images, and no batch without any."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        assert len(logits)
        return logits


def task() -> Classification:
    torch.manual_seed(1)
    return Classification(nn.Linear(10, 10), optimizer=lambda groups: None, schedule=constant(), total_steps=1)


def found() -> dict[str, Any]:
    """What a process of a job finds: of an evaluation, of an epoch of training, of buffers and of values."""
    module, norm = task(), nn.BatchNorm1d(2)
    module.training_step(tuple(whole[:6].chunk(world.size())[world.rank()] for whole in (LOGITS, LABELS)), 0)
    for buffer in norm.buffers():
        buffer.fill_(5 + world.rank())
    world.agree_on_buffers(norm)
    return {
        "evaluation": measure(Answers(), Rows(), CPU),
        "epoch": module.epoch_means(),
        "buffers": [buffer.tolist() for buffer in norm.buffers()],
        "gathered": world.gathered(f"of {world.rank()}"),
    }


def member(rank: int, folder: Path, work: Callable[[], Any]) -> None:
    """Be process `rank` of two that meet in `folder`, and leave there what `work` returns."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RANK", str(rank))
    patch.setenv("WORLD_SIZE", "2")
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.save(work(), folder / f"{rank}.pt")
    torch.distributed.barrier()


def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=member, args=(rank, tmp_path, found)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    alone, both = found(), [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    exact = -LOGITS.double().log_softmax(1)[torch.arange(7), LABELS].mean().item()
    assert alone["evaluation"]["loss"] == pytest.approx(exact)
    for one in both:
        assert one["evaluation"] == pytest.approx(alone["evaluation"])
        assert one["epoch"] == pytest.approx(alone["epoch"])
        assert one["buffers"] == alone["buffers"] == [[5.0, 5.0], [5.0, 5.0], 5]
        assert one["gathered"] == ["of 0", "of 1"]
