"""How many images a second an accelerator computes: a roofline, layer by layer, over its cores and its memory.

The machine is the one of PACT's figure 6 (arXiv 1805.06085, section 6): cores of 8 x 64 MACs, 16 MB on the chip,
an external memory of limited bandwidth. The paper's own performance model is not public; this one is ours, and its
structure was chosen with the figure in view.

Compute. A core holds a tile of 8 input channels x 64 output channels and takes one kernel tap of one output
pixel a cycle; pixels and tiles of output channels are shared out over the cores. So an image's three channels
fill 3 of 8 rows, and a depthwise layer uses 8 of 512 MACs. A layer runs at the rate of its own width: small
MACs join to form wider ones (8 bits on 2-bit MACs cost 4 times as much, which the paper's 1.24 for its ends
asks for; not 16 times).

Memory. A share of it is usable. The largest layer's input and output take theirs, and as many weights as fit
stay in the rest from one batch to the next: those whose loading would be waited for. Other weights are loaded
once per batch while their own layer computes, so a layer takes the longer of its two times. What of a layer's
input and output does not fit goes out and comes back. The image arrives before the first layer starts: nothing
hides it.

Free of charge here: normalization, activations, pooling, shortcuts, biases, the network's answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qexp.errors import ConfigError
from qexp.hardware.mac import check_width, core_count

Bits = tuple[int, int]
"""Widths of a layer's weights and of its activations."""

USABLE_MEMORY = 0.665
"""Share of the memory on the chip that holds weights and activations: the one constant that is fitted.

`figure6.fit` finds it from the paper's 12 throughputs. The rest is left to double buffers, partial sums and
shortcuts. Two more constants were tried and left out, because the fit has no use for them: a sustained share of
the external bandwidth (0.99) and cycles lost per layer (0).
"""

ENDS = 8
"""Bits of the first and the last layer in the paper's 4-bit and 2-bit configurations."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, for one sample.

    Attributes:
        macs: multiply-accumulates.
        weights, inputs, outputs: numbers of values.
        weight_shape: (out channels, in channels / groups, *kernel).
    """

    name: str
    macs: int
    weights: int
    inputs: int
    outputs: int
    weight_shape: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True)
class Machine:
    """An accelerator; the defaults are the paper's, but for `usable`.

    Attributes:
        rows, columns: MACs of one core; rows take input channels, columns output channels.
        clock: cycles per second.
        memory: bytes on the chip.
        usable: share of the memory that holds weights and activations.
        cores: how cores are counted, one of `mac.CORE_RULES`.
    """

    rows: int = 8
    columns: int = 64
    clock: float = 2e9
    memory: float = 16e6
    usable: float = USABLE_MEMORY
    cores: str = "paper"

    def peak(self, bits: int) -> float:
        """Return the multiply-accumulates per second of a chip whose MACs are `bits` wide."""
        return core_count(bits, self.cores) * self.rows * self.columns * self.clock


@dataclass(frozen=True)
class Estimate:
    """What a network costs on a machine.

    Attributes:
        throughput: images per second.
        compute_seconds: for one image, the cores at work.
        wait_seconds: for one image, the cores waiting for the external memory.
        cores: of the chip.
        peak: multiply-accumulates per second of the chip.
        weight_bytes: all weights, packed.
        traffic: bytes over the external memory for one image.
    """

    throughput: float
    compute_seconds: float
    wait_seconds: float
    cores: int
    peak: float
    weight_bytes: float
    traffic: float

    @property
    def wait_share(self) -> float:
        """Share of the time in which the cores wait for the external memory."""
        return self.wait_seconds / (self.wait_seconds + self.compute_seconds)

    @property
    def bound(self) -> str:
        """`compute` or `memory`: what takes most of the time."""
        return "memory" if self.wait_share > 0.5 else "compute"


def default_ends(bits: Bits) -> Bits:
    """Return the widths of the first and last layer as in the paper: 8 bits where the others have fewer.

    >>> default_ends((2, 2)), default_ends((4, 8)), default_ends((16, 16))
    ((8, 8), (8, 8), (16, 16))
    """
    return max(bits[0], ENDS), max(bits[1], ENDS)


def cycles(layer: Layer, cores: int, batch: int = 1, machine: Machine | None = None) -> int:
    """Return the cycles that `cores` cores take for a layer of `batch` images.

    Groups of few channels stand beside each other in the array, each in rows and columns of its own.

    >>> cycles(Layer("fc", 64 * 64, 64 * 64, 64, 64, (64, 64)), cores=4)
    8
    """
    machine = machine or Machine()
    outputs, inputs = layer.weight_shape[0] // layer.groups, layer.weight_shape[1]
    together = max(1, min(machine.rows // inputs, machine.columns // outputs, layer.groups))
    row_tiles = math.ceil(inputs * together / machine.rows)
    column_tiles = math.ceil(outputs * together / machine.columns) * math.ceil(layer.groups / together)
    positions = layer.outputs // layer.weight_shape[0]
    steps = math.ceil(column_tiles * positions * batch / cores)
    return steps * row_tiles * math.prod(layer.weight_shape[2:])


def estimate(
    layers: Sequence[Layer],
    bits: Bits,
    ends: Bits | None = None,
    bandwidth: float = math.inf,
    batch: int = 1,
    machine: Machine | None = None,
) -> Estimate:
    """Return what a network costs whose inner layers have `bits`.

    Args:
        layers: in the order they run; the first and the last are the ends.
        bits: widths (weights, activations); the wider one decides the width of the chip's MACs.
        ends: widths of both ends; None as in the paper, see `default_ends`.
        bandwidth: of the external memory, bytes per second; infinite for none that is waited for.
        batch: images computed together, layer by layer.
        machine: None for the paper's.

    Raises:
        ConfigError: no layers, a width that is not known, a bandwidth or batch that is not above 0.
    """
    machine = machine or Machine()
    ends = default_ends(bits) if ends is None else ends
    _check(layers, (*bits, *ends), bandwidth, batch)
    inner = max(bits)
    widths = [ends if place in (0, len(layers) - 1) else bits for place in range(len(layers))]
    compute = [
        cycles(layer, core_count(max(inner, *width), machine.cores), batch, machine) / machine.clock
        for layer, width in zip(layers, widths, strict=True)
    ]
    weights = [layer.weights * width[0] / 8 for layer, width in zip(layers, widths, strict=True)]
    values = [
        batch * (layer.inputs + layer.outputs) * width[1] / 8 for layer, width in zip(layers, widths, strict=True)
    ]
    usable = machine.usable * machine.memory
    spilled = [max(0.0, size - usable) for size in values]
    for_weights = max(0.0, usable - max(values))
    image = batch * layers[0].inputs * ends[1] / 8
    wait = (_late(compute, weights, spilled, for_weights, bandwidth) + image) / bandwidth
    streamed = max(0.0, sum(weights) - for_weights) + sum(spilled) + image
    return Estimate(
        throughput=batch / (sum(compute) + wait),
        compute_seconds=sum(compute) / batch,
        wait_seconds=wait / batch,
        cores=core_count(inner, machine.cores),
        peak=machine.peak(inner),
        weight_bytes=sum(weights),
        traffic=streamed / batch,
    )


def _late(
    compute: Sequence[float], weights: Sequence[float], spilled: Sequence[float], room: float, bandwidth: float
) -> float:
    """Return the bytes that the cores wait for when `room` bytes of weights may stay on the chip.

    Without any that stay, a layer waits for what does not arrive while it computes. Each byte that stays saves one
    of those, whichever layer it is of, so the best choice needs no search. (Where `spilled` is not 0, `room` is.)
    """
    late = sum(
        max(0.0, loaded + moved - bandwidth * seconds)
        for seconds, loaded, moved in zip(compute, weights, spilled, strict=True)
    )
    return max(0.0, late - room)


def _check(layers: Sequence[Layer], widths: Sequence[int], bandwidth: float, batch: int) -> None:
    if not layers:
        raise ConfigError("the network has no convolution or linear layer, so there is nothing to compute.")
    for width in widths:
        check_width(width)
    if not bandwidth > 0:
        raise ConfigError(f"bandwidth={bandwidth / 1e9:g}: GB/s above 0, or inf.")
    if batch < 1:
        raise ConfigError(f"batch={batch}: a whole number of images, at least 1.")
