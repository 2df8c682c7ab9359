from __future__ import annotations

import torch

from qexp.ops.codes import Codes, uniform_codebook


def test_one_codebook_for_the_whole_tensor() -> None:
    codes = Codes(torch.tensor([[0, 3], [1, 1]], dtype=torch.int32), torch.tensor([-2.0, -0.5, 0.5, 2.0]))
    assert codes.levels == 4
    assert codes.decode().tolist() == [[-2.0, 2.0], [-0.5, -0.5]]


def test_a_codebook_per_channel_is_read_along_its_channel() -> None:
    step = torch.tensor([1.0, 10.0]).reshape(2, 1, 1)
    values = torch.tensor([0, 1, 2, 3], dtype=torch.int32).reshape(1, 1, 2, 2).expand(3, 2, 2, 2)
    codes = Codes(values, uniform_codebook(0, 3, step))
    assert codes.codebook.shape == (4, 2, 1, 1)
    assert torch.equal(codes.decode(), values * step)


def test_uniform_codebook_is_every_multiple_of_the_step() -> None:
    assert uniform_codebook(-2, 1, torch.tensor(0.25)).tolist() == [-0.5, -0.25, 0.0, 0.25]
    assert uniform_codebook(0, 1, torch.tensor([1.0, 3.0])).tolist() == [[0.0, 0.0], [1.0, 3.0]]
