"""The GPU's product, where there is a GPU; its messages everywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from qexp.errors import ConfigError
from qexp.xnor import triton_kernel
from qexp.xnor.packing import pack_bits


def test_without_triton_or_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.zeros(2, 1, dtype=torch.int64)
    if triton_kernel.triton is not None:
        with pytest.raises(ConfigError, match="CUDA device"):
            triton_kernel.product(words, words, 64)
    monkeypatch.setattr(triton_kernel, "triton", None)
    with pytest.raises(ConfigError, match="triton is not installed"):
        triton_kernel.product(words, words, 64)


INTERPRETED = """
import torch
from qexp.xnor.packing import pack_bits
from qexp.xnor.triton_kernel import tiles
for rows, count, columns in ((1, 1, 1), (65, 300, 70), (3, 65, 200), (64, 512, 64)):
    left, right = torch.randn(rows, count), torch.randn(columns, count)
    signs = [torch.where(side >= 0, 1.0, -1.0) for side in (left, right)]
    found = tiles(pack_bits(left >= 0), pack_bits(right >= 0), count)
    assert torch.equal(found.float(), signs[0] @ signs[1].t()), (rows, count, columns)
print("equal")
"""


@pytest.mark.skipif(triton_kernel.triton is None, reason="triton is not installed")
def test_the_kernel_is_the_integer_product_where_its_statements_are_interpreted() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(("rows", "count", "columns"), [(1, 1, 1), (65, 300, 70), (128, 1024, 129), (3, 65, 200)])
def test_the_gpu_gives_the_integer_product(rows: int, count: int, columns: int) -> None:
    left, right = torch.randn(rows, count), torch.randn(columns, count)
    signs = [torch.where(side >= 0, 1.0, -1.0) for side in (left, right)]
    found = triton_kernel.product(pack_bits(left >= 0).cuda(), pack_bits(right >= 0).cuda(), count)
    assert torch.equal(found.cpu().float(), signs[0] @ signs[1].t())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_gpu_finds_places_beyond_32_bits() -> None:
    rows, columns = 2**16, 2**15 + 64
    if torch.cuda.get_device_properties(0).total_memory < 12e9:
        pytest.skip("the result alone takes 9 GB")
    left, right = (torch.randn(count, 1) for count in (rows, columns))
    found = triton_kernel.product(pack_bits(left >= 0).cuda(), pack_bits(right >= 0).cuda(), 1)
    signs = [torch.where(side >= 0, 1, -1) for side in (left, right)]
    assert torch.equal(found[-70:].cpu(), (signs[0][-70:] * signs[1].t()).int())
