"""Arithmetic cost of a layer from its shapes: multiply-accumulates, bit-operations, packed weight bytes.

One multiply-accumulate (MAC) is one product added to a sum; the "4.1 GFLOPs" of a ResNet50 in papers are such
MACs. Biases, batch norm, pooling and activations are left out, as they are there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qexp.errors import ConfigError


def convolution_macs(weight_shape: Sequence[int], output_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of a convolution for one sample.

    Every output value takes one product for each of its filter's weights, so the groups are in the weight's
    shape already, and stride, padding and dilation in the output's.

    Args:
        weight_shape: (out channels, in channels / groups, *kernel).
        output_shape: (out channels, *sides) of one sample.

    >>> convolution_macs((64, 3, 7, 7), (64, 112, 112))
    118013952

    Raises:
        ConfigError: the two disagree on dimensions or on the number of out channels.
    """
    if len(weight_shape) != len(output_shape) + 1 or weight_shape[0] != output_shape[0]:
        raise ConfigError(
            f"a convolution's weight {tuple(weight_shape)} does not give an output {tuple(output_shape)}; "
            "the output of one sample is (out channels, *sides)."
        )
    return math.prod(output_shape) * math.prod(weight_shape[1:])


def linear_macs(weight_shape: Sequence[int], output_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of a linear layer for one sample.

    Args:
        weight_shape: (out features, in features).
        output_shape: (*positions, out features) of one sample; mostly (out features,).

    >>> linear_macs((1000, 512), (1000,))
    512000

    Raises:
        ConfigError: the two disagree on the number of out features.
    """
    if len(weight_shape) != 2 or not output_shape or weight_shape[0] != output_shape[-1]:
        raise ConfigError(
            f"a linear layer's weight {tuple(weight_shape)} does not give an output {tuple(output_shape)}; "
            "the output of one sample is (*positions, out features)."
        )
    return math.prod(output_shape) * weight_shape[1]


def bit_operations(macs: int, weight_bits: int, activation_bits: int) -> int:
    """Return MACs x weight bits x activation bits, the usual measure (BOPs) of low-precision arithmetic.

    A float operand counts with its 32 bits, so a float MAC counts 1024.

    >>> bit_operations(1000, 4, 4), bit_operations(1000, 32, 32)
    (16000, 1024000)
    """
    return macs * weight_bits * activation_bits


def packed_bytes(parameters: int, bits: float) -> int:
    """Return the bytes that `parameters` values of `bits` bits take when packed without gaps, rounded up.

    >>> packed_bytes(3, 3), packed_bytes(10, 32)
    (2, 40)
    """
    return math.ceil(parameters * bits / 8)
