"""The Triton kernel: compiled for GPUs that are not here, run on one that is, interpreted everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qexp.errors import ConfigError
from qexp.lit.evaluate import float32
from qexp.xnor import triton_kernel
from qexp.xnor.engine import make_engine, products, prove
from qexp.xnor.packing import pack_planes
from qexp.xnor.product import TorchProduct, linear_geometry
from qexp.xnor.triton_kernel import TritonProduct

from .sums import NETWORKS, assert_same_sums, convolution, draws
from .test_engine import batches

needs_triton = pytest.mark.skipif(triton_kernel.triton is None, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_triton
def test_the_kernels_statements_are_right_where_they_are_interpreted() -> None:
    """Triton reads the variable when it is imported, so that it takes a process of its own."""
    file = Path(__file__).parent / "interpreted_triton.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and " passed" in said and "skipped" not in said, said


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_that_are_not_here(capability: int) -> None:
    """Triton's compiler and NVIDIA's assembler need no GPU; the words are counted by the popcount instruction."""
    kernels = triton_kernel
    tile = {"popcount": True, "tile_rows": kernels.ROWS, "tile_columns": kernels.COLUMNS}
    words = dict.fromkeys(("activations", "weights"), "*i64") | dict.fromkeys(("base", "sums"), "*i32")
    assert "popc.b64" in compiled(kernels._tile, capability, words, tile)
    for signs, values in ((True, "*fp32"), (False, "*u8")):
        fixed = {"signs": signs, "tile_rows": kernels.PACKED_ROWS}
        assert "st.global" in compiled(kernels._pack, capability, {"values": values, "result": "*i64"}, fixed)


def compiled(kernel, capability: int, pointers: dict[str, str], fixed: dict[str, int]) -> str:
    """Return the assembly text of a kernel, once its machine code is there, too."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: pointers.get(name, "constexpr" if name in fixed else "i32") for name in names}
    constants = {(names.index(name),): value for name, value in fixed.items()}
    source, target = ASTSource(kernel, signature, constants), GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options=dict(triton_kernel.NO_FUSION))
    assert made.asm["cubin"]
    return made.asm["ptx"]


def test_without_triton_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "triton", None)
    with pytest.raises(ConfigError, match="triton is not installed"):
        TritonProduct()
    said: list[str] = []
    assert products(said.append, torch.device("cuda")).device.type == "cpu"
    assert said[0].endswith("`pip install triton`. Here products are taken on the CPU.")


@needs_triton
def test_a_gpu_gets_the_kernel_of_gpus_where_it_runs() -> None:
    said: list[str] = []
    product = products(said.append, torch.device("cuda", 0))
    if torch.cuda.is_available():
        assert isinstance(product, TritonProduct) and product.device == torch.device("cuda", 0)
    else:  # as on a GPU that triton cannot reach
        assert product.device.type == "cpu" and "triton cannot run on cuda:0: " in said[0]


def test_more_rows_than_the_kernel_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match="take a smaller batch"):
        triton_kernel._refuse(2**31 - triton_kernel.ROWS)
    triton_kernel._refuse(2**31 - triton_kernel.ROWS - 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_made_on_another_device(name: str) -> None:
    """On this default device nothing can be computed: whatever makes a tensor has to name its operands'."""
    make, shape = NETWORKS[name]
    fake, images = make(), batches(shape, 4)
    with torch.device("meta"):
        assert prove(make_engine(fake, TorchProduct()), fake, images).holds


@needs_gpu
@pytest.mark.parametrize("planes", [(1, 1), (2, 3)])
def test_a_gpu_gives_torchs_sums(planes: tuple[int, int]) -> None:
    product = TritonProduct()
    assert_same_sums(product, convolution(3, 9, 7, (3, 3), (2, 1), (1, 1), (1, 1)), 130, 70, planes)
    for rows, count, outputs in ((1, 1, 1), (65, 300, 70), (129, 1024, 129)):
        assert_same_sums(product, linear_geometry(rows), count, outputs, planes)


@needs_gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_prove_themselves_on_a_gpu(name: str) -> None:
    make, shape = NETWORKS[name]
    fake = make()
    on_gpu = [(images.cuda(), labels.cuda()) for images, labels in batches(shape, 40)]
    with float32(torch.device("cuda")):
        assert prove(make_engine(fake, TritonProduct()), fake.cuda(), on_gpu).holds


@needs_gpu
def test_a_gpu_finds_places_beyond_32_bits() -> None:
    rows, columns = 2**16, 2**15 + 64
    if torch.cuda.get_device_properties(0).total_memory < 12e9:
        pytest.skip("the result alone takes 9 GB")
    product = TritonProduct()
    left, right = (draws(count, 1, planes=1).cuda() for count in (rows, columns))
    weight = product.weight(pack_planes(right.unsqueeze(1), 1), 1, 1)
    base = torch.ones(1, columns, dtype=torch.int32, device="cuda")
    found = product.sums(product.pack(left, 1), weight, linear_geometry(rows), base)
    signs = [2 * side.cpu().int() - 1 for side in (left, right)]
    assert torch.equal(found[-70:].cpu(), signs[0][-70:] * signs[1].t())
