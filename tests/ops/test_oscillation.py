from __future__ import annotations

import torch

from qexp.ops.oscillation import Oscillation
from qexp.quantizers.base import Site
from qexp.quantizers.lsq import LSQ


def played(rows, **arguments):
    counter = Oscillation((len(rows[0]),), **arguments)
    counter.begin(torch.tensor(rows[0], dtype=torch.float32))
    for row in rows[1:]:
        counter.count(torch.tensor(row, dtype=torch.float32), None)
    return counter


def test_only_a_move_back_counts():
    """The first weight goes up step by step, the second up and down, the third up, rests, and down again."""
    rows = [[0, 0, 0], [1, 1, 1], [2, 0, 1], [3, 1, 1], [4, 0, 0]]
    counter = played(rows, momentum=0.5)
    assert counter.frequency[0] == 0
    assert counter.frequency[1].item() == 0.5 * (1 + 0.5 + 0.25)  # the last three moves
    assert counter.frequency[2].item() == 0.5
    assert counter.shares()["oscillating"].item() == torch.tensor(2 / 3).item()


def test_a_weight_that_flips_too_often_is_held_at_its_mean_level():
    counter = Oscillation((2,), momentum=0.1)
    counter.begin(torch.tensor([2.0, 0.0]))
    for step in range(60):
        counter.count(torch.tensor([3.0 if step % 4 == 0 else 2.0, 0.0]), 0.15)
    assert counter.frozen.tolist() == [True, False] and counter.integers.tolist() == [2, 0]
    counter.count(torch.tensor([7.0, 1.0]), 0.15)
    assert counter.integers.tolist() == [2, 1], "what is frozen stays, however its real value moves"


def test_a_frozen_weight_stays_on_its_level_and_the_shares_are_shown():
    site = Site("conv", "weight", (4, 3))
    quantizer = LSQ(3, site, freeze_above=0.05)
    weight = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    quantizer.attach(weight)
    quantizer.calibrate(weight)
    start = quantizer.step.item()
    with torch.no_grad():
        for step in range(40):
            weight[0, 0] = start * (1.6 if step % 2 else 1.4)
            quantizer.after_step()
        weight += 0.4
        quantizer.step.mul_(1.1)
        quantizer.after_step()
    assert quantizer.oscillation.frozen.sum() == 1
    assert weight[0, 0].item() in {quantizer.step.item(), 2 * quantizer.step.item()}
    shares = quantizer.describe(weight).shares
    assert abs(shares["frozen"].item() - 1 / 12) < 1e-6 and shares["oscillating"].item() > 0
    again = LSQ(3, site, freeze_above=0.05)
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again.oscillation.frozen, quantizer.oscillation.frozen)


def test_its_buffers_are_of_types_that_gloo_hands_to_other_processes(tmp_path):
    """As DistributedDataParallel does before a step, with one process."""
    quantizer = LSQ(8, Site("conv", "weight", (4, 3)), freeze_above=0.05)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for buffer in quantizer.buffers():
            torch.distributed.broadcast(buffer, 0)
    finally:
        torch.distributed.destroy_process_group()


def test_the_ends_of_eight_bits_fit_and_checkpoints_of_sixteen_load():
    counter = played([[-128, 127], [127, -128]])
    assert counter.integers.tolist() == [127, -128] and counter.direction.tolist() == [1, -1]
    old = {**counter.state_dict(), "integers": torch.tensor([-128, 127], dtype=torch.int16)}
    again = Oscillation((2,))
    again.load_state_dict(old)
    assert again.integers.tolist() == [-128, 127] and again.integers.dtype == torch.int8
