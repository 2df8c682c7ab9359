from __future__ import annotations

import itertools
import math

import pytest

from qexp.errors import ConfigError
from qexp.hardware.mac import CORE_RULES, WIDTHS, core_count, mac_area, mac_density
from qexp.hardware.system import ENDS, Machine

CORES = {16: 4, 8: 8, 4: 16, 2: 32}
"""Printed in the text, as the rest of the machine is."""


def test_the_machine_is_the_papers() -> None:
    machine = Machine()
    assert (machine.rows, machine.columns) == (8, 64)
    assert (machine.clock, machine.memory) == (2e9, 16e6)
    assert ENDS == 8
    assert {bits: core_count(bits) for bits in CORES} == CORES
    assert machine.peak(16) == 4 * 512 * 2e9


def test_areas_are_the_papers_and_rise_with_the_bits() -> None:
    assert {bits: mac_area(bits) for bits in (16, 8, 4, 2)} == {16: 14.3, 8: 6.63, 4: 2.51, 2: 1.0}
    areas = [mac_area(bits) for bits in WIDTHS]
    assert all(low < high for low, high in itertools.pairwise(areas))
    # The text: "about 14x" from 16 to 2 bits.
    assert round(mac_density(2)) == 14


@pytest.mark.parametrize("rule", CORE_RULES)
def test_fewer_bits_never_mean_fewer_cores(rule: str) -> None:
    counts = [core_count(bits, rule) for bits in WIDTHS]
    assert counts == sorted(counts, reverse=True)


def test_the_paper_uses_no_more_cores_than_the_area_of_its_macs_allows() -> None:
    for bits in CORES:
        assert core_count(bits) <= core_count(bits, "area")
        assert core_count(bits, "area") * mac_area(bits) <= core_count(16) * mac_area(16)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"bits=32: a width here is 1 to 8, or 16"):
        mac_area(32)
    with pytest.raises(ConfigError, match=r"cores=all: choose paper or area"):
        core_count(4, "all")


def test_areas_between_are_read_off_a_line_of_logarithms() -> None:
    # From 1.0 at 2 bits to 2.51 at 4; one bit continues that line.
    assert mac_area(3) == pytest.approx(2.51 ** math.log2(1.5))
    assert mac_area(1) == pytest.approx(1 / 2.51)
    assert [core_count(bits, "area") for bits in (7, 6, 5, 3, 1)] == [10, 12, 16, 33, 143]
