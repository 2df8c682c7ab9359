"""What narrow weights save on an accelerator whose array stays the same: energy and time of one image.

The machine is the one that PWLQ's supplement simulates (arXiv 2002.00104, section 3 and table 6): an array of
MACs, 8-bit activations, weights of 8 or 4 bits, or 4-bit PWLQ whose tails add to a second accumulator. Technology,
clock, size of the array, buffers and the energy of an operation are not given there, so nothing can be computed
again exactly; this model is ours, and each of its two fitted constants is named so.

Time. Activations stay on the chip, weights come in once per image while their own layer computes, so a layer takes
the longer of its two times. The array does the same number of MACs a second at every width.

Energy. Products, accumulations and the weights' way over the external memory by Horowitz's figures (45 nm, 2014;
as in Hubara et al. 2016, tables 2 and 3); all the rest of a MAC is the same in the three schemes and fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy.optimize import minimize_scalar

from qexp.hardware.energy import ACCESS_BYTES, ADD_PJ, DRAM_PJ, MULTIPLY_PJ
from qexp.hardware.system import Layer

RATE = 3.14e12
"""MACs a second of the array, fitted to the four speed-ups of the table."""

REST = 0.886
"""Picojoules of a MAC that are the same at every width (buffers, control), fitted to the table's two energies."""

MULTIPLY, ADD = MULTIPLY_PJ["int8"], ADD_PJ["int32"]
"""Picojoules of an 8-bit product and of a 32-bit accumulation."""

EXTERNAL = DRAM_PJ[0] / ACCESS_BYTES
"""Picojoules of a byte over the external memory: the lower end."""

TAIL = 0.16
"""Share of weights that add to the second accumulator: beyond the breakpoint of a normal density over 4 sigma.

Of its own networks the PWLQ paper says about a tenth (footnote 5)."""


@dataclass(frozen=True)
class Weights:
    """How weights are stored and multiplied.

    Attributes:
        bits: of the multiplier's weight.
        stored: bits of a weight in memory.
        accumulations: per MAC.
    """

    name: str
    bits: int
    stored: int
    accumulations: float = 1.0


def uniform(bits: int) -> Weights:
    """Return uniform weights."""
    return Weights(f"{bits}-bit uniform", bits, bits)


def piecewise(bits: int) -> Weights:
    """Return PWLQ with one breakpoint: a stored bit says which piece, a tail's offset is accumulated apart."""
    return Weights(f"{bits}-bit PWLQ", bits, bits + 1, 1.0 + TAIL)


def seconds(layers: Sequence[Layer], weights: Weights, bandwidth: float, rate: float = RATE) -> float:
    """Return the time of one image.

    Args:
        layers: as `qexp cost` lists them.
        weights: the scheme.
        bandwidth: of the external memory, bytes per second.
        rate: MACs per second.
    """
    return sum(max(layer.macs / rate, layer.weights * weights.stored / 8 / bandwidth) for layer in layers)


def picojoules(layers: Sequence[Layer], weights: Weights, rest: float = REST) -> float:
    """Return the energy of one image; a product's falls with the width of the weight (ours)."""
    macs = sum(layer.macs for layer in layers)
    each = MULTIPLY * weights.bits / 8 + ADD * weights.accumulations + rest
    return macs * each + sum(layer.weights for layer in layers) * weights.stored / 8 * EXTERNAL


Ratios = Mapping[tuple[str, float | None], float]
"""By scheme and bandwidth in GB/s the speed-up, by scheme and None the energy; against 8-bit uniform weights."""

SCHEMES = (uniform(8), uniform(4), piecewise(4))
"""The three of the table."""


def ratios(layers: Sequence[Layer], cells: Sequence[tuple[str, float | None]], rate: float, rest: float) -> Ratios:
    """Return what the model says at each of `cells`."""
    named = {scheme.name: scheme for scheme in SCHEMES}
    first = SCHEMES[0]

    def ratio(scheme: Weights, bandwidth: float | None) -> float:
        if bandwidth is None:
            return picojoules(layers, scheme, rest) / picojoules(layers, first, rest)
        return seconds(layers, first, bandwidth * 1e9, rate) / seconds(layers, scheme, bandwidth * 1e9, rate)

    return {cell: ratio(named[cell[0]], cell[1]) for cell in cells}


def fit(layers: Sequence[Layer], published: Ratios) -> tuple[float, float]:
    """Return (rate, rest) with the least squared error of the logarithms of `published`.

    Without any energy, or any speed-up, the constant of it is the stored one.
    """
    speeds = {cell: value for cell, value in published.items() if cell[1] is not None}
    energies = {cell: value for cell, value in published.items() if cell[1] is None}

    def loss(rate: float, rest: float, wanted: Ratios) -> float:
        found = ratios(layers, list(wanted), rate, rest)
        return sum(math.log(found[cell] / value) ** 2 for cell, value in wanted.items())

    rate = 10 ** _least(lambda exponent: loss(10**exponent, REST, speeds), 11.0, 14.0) if speeds else RATE
    rest = _least(lambda value: loss(RATE, value, energies), 0.0, 10.0) if energies else REST
    return rate, rest


def _least(loss: Callable[[float], float], low: float, high: float) -> float:
    """Return where `loss` is least: on a grid first, since it has kinks where a layer's two times meet."""
    width = (high - low) / 60
    best = min((low + width * step for step in range(61)), key=loss)
    bounds = (max(low, best - width), min(high, best + width))
    return float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x)


def left_out(layers: Sequence[Layer], published: Ratios) -> Ratios:
    """Return what the model says at each cell when its constant is fitted without it."""
    told = [cell for cell in published if cell[0] != SCHEMES[0].name]
    found = {}
    for cell in told:
        others = {other: published[other] for other in told if other != cell}
        found[cell] = ratios(layers, [cell], *fit(layers, others))[cell]
    return found
