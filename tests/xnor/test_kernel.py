"""The C++ kernel at the ends of what its sums hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qexp.xnor import extension

TRAPPING = ("-O1", "-fsanitize=signed-integer-overflow", "-fsanitize-undefined-trap-on-error")
"""An overflow that the flags leave undefined ends the process."""

EVERY_BIT_MISMATCHED = """
import sys
from pathlib import Path
import torch
from qexp.xnor.kernel import Kernel
from qexp.xnor.packing import pack_planes
from qexp.xnor.product import NativeProduct, linear_geometry
inputs = 17_000
least = -255 * 255 * inputs  # it fits 32 bits; twice the mismatches do not
product = NativeProduct(Kernel(Path(sys.argv[1])), path=0)
weight = product.weight(pack_planes(torch.full((2, 1, inputs), 255, dtype=torch.uint8), 8), inputs, 8)
codes = product.pack(torch.zeros(1, inputs, dtype=torch.uint8), 8)
base = torch.full((1, 2), -least, dtype=torch.int32)
assert product.sums(codes, weight, linear_geometry(1), base).tolist() == [[least, least]]
print("equal")
"""


@pytest.mark.slow
def test_sums_that_fit_may_pass_32_bits_on_the_way(compiler: bool, tmp_path: Path) -> None:
    command, library, program = extension._compiler(), tmp_path / "kernel.so", tmp_path / "program.cpp"
    program.write_text("int main() { return 0; }\n")
    trapping = [*command, *TRAPPING, program, "-o", tmp_path / "program"]
    if not compiler or subprocess.run(trapping, check=False).returncode != 0:
        pytest.skip("no C++ compiler here that can trap")
    subprocess.run([*command, *extension.FLAGS, *TRAPPING, extension.SOURCE, "-o", library], check=True)
    done = subprocess.run(
        [sys.executable, "-c", EVERY_BIT_MISMATCHED, str(library)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "equal\n", (done.returncode, done.stderr)
