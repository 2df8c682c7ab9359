"""What a process does with freed memory, seen from outside: pages that it has to ask for again."""

import os
import subprocess
import sys

import pytest
import torch

from qexp.lit import cpu

FAULTS = """
import resource, sys, torch
from qexp.lit.cpu import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else False
torch.set_num_threads(1)
x = torch.zeros(9 << 20)
for _ in range(4):  # blocks find their places
    x + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    x + 1
print(int(told), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(word: str, **environment: str) -> tuple[bool, int]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, word]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**plain, **environment})
    told, faults = done.stdout.split()
    return told == "1", int(faults)


def test_blocks_of_one_step_serve_the_next() -> None:
    told, kept = page_faults("keep")
    if not told:
        pytest.skip("no glibc, whose options these are")
    _, plain = page_faults("leave")
    if plain < 20 * 9216:  # 20 blocks of 36 MiB in pages of 4 KiB
        pytest.skip("what the options are for does not happen here: the system gives larger pages")
    assert kept < plain / 5


def test_a_choice_of_the_user_stands() -> None:
    assert page_faults("keep", MALLOC_TOP_PAD_="65536")[0] is False


def test_threads_of_one_job_are_not_those_of_the_next() -> None:
    cpu.prepare(None)
    before = torch.get_num_threads()
    try:
        cpu.prepare(3)
        assert torch.get_num_threads() == 3
    finally:
        cpu.prepare(None)
    assert torch.get_num_threads() == before
