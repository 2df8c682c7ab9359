"""Layers with quantized weights and, where asked, a quantized input; the float layer's parameters are kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.layers.recurrence import Recurrence, walk
from qexp.quantizers.base import Quantizer


class QuantConv2d(nn.Conv2d):
    """A Conv2d whose weights pass through `weight_quantizer` and whose input through `input_quantizer`.

    Takes over `layer`'s parameter tensors, so names in a state dict and an optimizer's references stay valid.
    A dropout in front of the layer goes behind the quantizer, as `input_dropout`: before it, training would round
    values larger by 1 / (1 - p) than evaluation does, on the same grid.
    """

    def __init__(
        self, layer: nn.Conv2d, weight_quantizer: Quantizer | None, input_quantizer: Quantizer | None
    ) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer
        self.input_dropout: nn.Module | None = None
        self.gradient_quantizer: nn.Module | None = None
        _attach(self)
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve the quantized input (N, C, H, W) with the quantized weights."""
        x, weight = _quantized(self, input)
        return _with_gradient(self, self._conv_forward(x, weight, self.bias))


class QuantLinear(nn.Linear):
    """A Linear whose weights pass through `weight_quantizer` and whose input through `input_quantizer`.

    `input_dropout` as of `QuantConv2d`.
    """

    def __init__(
        self, layer: nn.Linear, weight_quantizer: Quantizer | None, input_quantizer: Quantizer | None
    ) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer
        self.input_dropout: nn.Module | None = None
        self.gradient_quantizer: nn.Module | None = None
        _attach(self)
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply the quantized input (..., features) by the quantized weights."""
        x, weight = _quantized(self, input)
        return _with_gradient(self, F.linear(x, weight, self.bias))


class QuantRecurrence(Recurrence):
    """A Recurrence whose weights pass through `weight_quantizer`, once for all steps, and each step's last output
    through `input_quantizer`."""

    def __init__(
        self, layer: Recurrence, weight_quantizer: Quantizer | None, input_quantizer: Quantizer | None
    ) -> None:
        with torch.device("meta"):
            super().__init__(layer.cell, layer.units, layer.place)
        self.weight = layer.weight
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer
        self.gradient_quantizer: nn.Module | None = None
        _attach(self)
        self.train(layer.training)

    def forward(self, gates: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Walk over the steps with quantized weights and quantized last outputs."""
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

        def product(output: Tensor) -> Tensor:
            read = output if self.input_quantizer is None else self.input_quantizer(output)
            return _with_gradient(self, F.linear(read, weight))

        return walk(self, gates, state, product)


def float_output(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Return what a Conv2d or a Linear makes of `x` with other weights than its own."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, layer.bias)
    assert isinstance(layer, nn.Linear)
    return F.linear(x, weight, layer.bias)


QuantLayer = QuantConv2d | QuantLinear | QuantRecurrence

QUANTIZED_LAYERS: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Conv2d: QuantConv2d,
    nn.Linear: QuantLinear,
    Recurrence: QuantRecurrence,
}
"""The float layers that have a quantized form."""


def _attach(layer: QuantLayer) -> None:
    if layer.weight_quantizer is not None and isinstance(layer.weight, nn.Parameter):
        layer.weight_quantizer.attach(layer.weight)


def _quantized(layer: QuantConv2d | QuantLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    if layer.input_quantizer is not None:
        x = layer.input_quantizer(x)
    if layer.input_dropout is not None:
        x = layer.input_dropout(x)
    weight = layer.weight if layer.weight_quantizer is None else layer.weight_quantizer(layer.weight)
    return x, weight


def _with_gradient(layer: QuantLayer, output: Tensor) -> Tensor:
    return output if layer.gradient_quantizer is None else layer.gradient_quantizer(output)
