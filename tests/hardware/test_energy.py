from __future__ import annotations

import pytest

from qexp.errors import ConfigError
from qexp.hardware.energy import ADD_PJ, CACHE_PJ, MULTIPLY_PJ, layer_energy, mac_energy, unique_filters


def test_a_binary_network_costs_more_than_an_order_of_magnitude_less() -> None:
    """The paper's conclusion, and 32 times fewer bytes of weights, so 32 times less energy for them."""
    real, binary = (layer_energy(10**6, 800 * bits, bits, 100 * bits, bits) for bits in (32, 1))
    assert real.weights[0] == pytest.approx(32 * binary.weights[0])
    assert real.arithmetic > 10 * binary.arithmetic


def test_by_hand() -> None:
    # 640 weights of 1 bit: 10 accesses of 8 bytes; 64 inputs of 8 bits: 8 accesses.
    energy = layer_energy(1000, 80, 1, 64, 8)
    assert energy.weights == (13_000.0, 26_000.0)
    assert energy.activations == 800.0
    assert energy.arithmetic == pytest.approx(1000 * (0.2 / 8 + 0.1))
    assert mac_energy(2, 32) == mac_energy(32, 32) == MULTIPLY_PJ["float32"] + ADD_PJ["float32"]
    assert mac_energy(1, 32) == mac_energy(32, 1) == ADD_PJ["float32"]  # a sign chooses, nothing is multiplied


def test_the_printed_energies() -> None:
    assert MULTIPLY_PJ == {"int8": 0.2, "int32": 3.1, "float16": 1.1, "float32": 3.7}
    assert ADD_PJ == {"int8": 0.03, "int32": 0.1, "float16": 0.4, "float32": 0.9}
    assert CACHE_PJ == {2**13: 10.0, 2**15: 20.0, 2**20: 100.0}
    assert layer_energy(0, 80, 1, 0, 1).weights == (13_000.0, 26_000.0)


def test_there_are_at_most_256_filters_of_3_x_3_up_to_sign() -> None:
    every = [[bool(code >> bit & 1) for bit in range(9)] for code in range(512)]
    assert unique_filters(every) == 0.5
    assert unique_filters(every * 3) == pytest.approx(256 / 1536)
    with pytest.raises(ConfigError, match="no filter"):
        unique_filters([])
