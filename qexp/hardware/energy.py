"""Energy and memory of a network's inference, and how many of its binary filters differ.

Energies of single operations: Horowitz 2014, "Computing's energy problem", for 45 nm, as tables 2 and 3 of
Courbariaux et al. 2016 (arXiv 1602.02830) print them. What they add up to for a layer is this project's model:
`layer_energy` states it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qexp.errors import ConfigError

MULTIPLY_PJ = {"int8": 0.2, "int32": 3.1, "float16": 1.1, "float32": 3.7}
ADD_PJ = {"int8": 0.03, "int32": 0.1, "float16": 0.4, "float32": 0.9}
CACHE_PJ = {8_192: 10.0, 32_768: 20.0, 1_048_576: 100.0}
"""Bytes of a cache -> picojoules of one 64-bit access."""
CACHE = 1_048_576
"""Bytes of the cache that inputs are taken to come from."""
DRAM_PJ = (1300.0, 2600.0)
"""Of one 64-bit access, least and most."""
ACCESS_BYTES = 8


@dataclass(frozen=True)
class Energy:
    """Of one layer or network and one sample, in picojoules; `weights` is (least, most), from DRAM."""

    arithmetic: float
    activations: float
    weights: tuple[float, float]

    def __add__(self, other: Energy) -> Energy:
        least, most = (a + b for a, b in zip(self.weights, other.weights, strict=True))
        return Energy(self.arithmetic + other.arithmetic, self.activations + other.activations, (least, most))


def mac_energy(weight_bits: int, activation_bits: int) -> float:
    """Return the picojoules of one multiply-accumulate.

    Two operands of 8 bits or fewer are multiplied at the int8 figure times weight bits x activation bits / 64
    (ours: no figure is printed for other widths) and added in 32 bits; with a float operand both are float32,
    and of a float operand with one bit there is only the sum to pay.

    >>> round(mac_energy(32, 32), 6), round(mac_energy(8, 8), 6), mac_energy(1, 32)
    (4.6, 0.3, 0.9)
    """
    if max(weight_bits, activation_bits) > 8:
        if min(weight_bits, activation_bits) == 1:
            return ADD_PJ["float32"]
        return MULTIPLY_PJ["float32"] + ADD_PJ["float32"]
    return MULTIPLY_PJ["int8"] * weight_bits * activation_bits / 64 + ADD_PJ["int32"]


def layer_energy(macs: int, weight_bytes: int, weight_bits: int, input_bytes: int, activation_bits: int) -> Energy:
    """Return a layer's energy for one sample: each weight comes from DRAM once, each input from a cache once.

    Args:
        macs: multiply-accumulates for one sample; those that take several products several times.
        weight_bytes: that the weights take in memory, which may be more than their multiplier's bits.
        input_bytes: that the inputs take, likewise.
    """
    fetched = weight_bytes / ACCESS_BYTES
    read = input_bytes / ACCESS_BYTES
    least, most = (fetched * each for each in DRAM_PJ)
    return Energy(macs * mac_energy(weight_bits, activation_bits), read * CACHE_PJ[CACHE], (least, most))


def total(parts: Iterable[Energy]) -> Energy:
    """Return the sum.

    >>> total([Energy(1.0, 2.0, (3.0, 4.0))] * 2)
    Energy(arithmetic=2.0, activations=4.0, weights=(6.0, 8.0))
    """
    return sum(parts, Energy(0.0, 0.0, (0.0, 0.0)))


def unique_filters(filters: Iterable[Sequence[bool]]) -> float:
    """Return the share of binary 2-D filters that differ: the others' results can be taken from theirs.

    A filter and its negative count once (arXiv 1602.02830, section 3: 42% in its CIFAR-10 network, a mean over
    layers).

    Args:
        filters: each as its signs, True for +1.

    Raises:
        ConfigError: there is no filter.

    >>> unique_filters([(True, False), (False, True), (True, True), (True, False)])
    0.5
    """
    every = [tuple(map(bool, one)) for one in filters]
    if not every:
        raise ConfigError("there is no filter to count.")
    # The one of a pair whose first sign is +1 stands for both.
    kept = {one if one[0] else tuple(not sign for sign in one) for one in every}
    return len(kept) / len(every)
