from __future__ import annotations

import math

import pytest
import torch

from qexp.quantizers.qnn_log import log_codes, log_quant


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7])
def test_against_the_formula_in_float64(bits: int) -> None:
    x = torch.cat([torch.linspace(-1.7, 1.7, 401), torch.logspace(-25, 2, 300), torch.tensor([0.0])])
    lowest = -(2 ** (bits - 1) - 1)
    for value, found in zip(x.tolist(), log_quant(x, bits).tolist(), strict=True):
        exponent = max(min(round(math.log2(abs(value))), 0), lowest) if value else lowest
        assert found == math.copysign(2.0**exponent, value if value else 1.0)


def test_one_bit_is_the_sign() -> None:
    assert log_quant(torch.tensor([-0.1, 0.0, 0.1]), 1).tolist() == [-1, 1, 1]


@pytest.mark.parametrize("bits", [1, 3, 7])
def test_every_code_is_used(bits: int) -> None:
    codebook = log_codes(torch.zeros(1), bits).codebook
    assert len(codebook) == 2**bits and (codebook.diff() > 0).all()
    assert log_codes(codebook, bits).values.tolist() == list(range(2**bits))
