"""Bias absorption: what a channel never falls below is taken off it and added where it is read.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721; the
formulas from memory, as standard: c = max(0, beta - 3 gamma), b1 <- b1 - c, b2 <- b2 + W2 c. Behind a ReLU this is
exact for values above c, 99.87% of a normal density's; zeros that pad the second layer's input are not raised by
c, so at its borders it is not exact (the formulas leave them out, and so does this).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from qexp.calibration.bias import response
from qexp.calibration.equalization import Equalized, layer_of, neighbours
from qexp.graph.tracing import is_relu

DEVIATIONS = 3.0
"""Of a normal density below its mean, that are kept above the absorbed part."""


@torch.no_grad()
def absorb_biases(equalized: Equalized) -> Equalized:
    """Lower the biases of an equalized network's first layers, and raise those of the layers that read them.

    Channels whose mean is within `DEVIATIONS` of zero, and layers without a batch norm's statistics, stay as they
    are. The statistics follow.
    """
    folding = equalized.folding
    graph, statistics = folding.model, dict(folding.statistics)
    absorbed = []
    for first, second, between in neighbours(graph):
        if first not in statistics or not any(is_relu(graph, node) for node in between):
            continue
        mean, deviation = statistics[first]
        excess = (mean - DEVIATIONS * deviation).clamp(min=0)
        reader, bias = layer_of(graph, second), layer_of(graph, first).bias
        if bias is None:
            continue
        if reader.bias is None:  # whatever the numbers are: what a network consists of does not depend on them
            reader.bias = nn.Parameter(reader.weight.new_zeros(reader.weight.shape[0]))
        if not bool(excess.any()):
            continue
        bias.sub_(excess.to(bias))
        reader.bias.add_(response(reader, excess.to(reader.weight), reader.weight))
        statistics[first] = (mean - excess, deviation)
        absorbed.append(first)
    return replace(equalized, folding=replace(folding, statistics=statistics), absorbed=tuple(absorbed))
