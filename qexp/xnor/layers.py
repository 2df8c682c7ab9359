"""A quantized layer as whole numbers: scale times the sum of products of integers, however that sum is taken."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.errors import ConfigError
from qexp.layers.quantized import QuantLayer, QuantRecurrence, float_output
from qexp.layers.recurrence import walk
from qexp.quantizers.image import ImageGrid
from qexp.xnor.grids import ROUNDED, Grid, grid_of, one_step
from qexp.xnor.packing import pack_planes
from qexp.xnor.product import Geometry, PackedWeight, TorchProduct, linear_geometry

Mode = Literal["packed", "reference", "prove"]
"""How sums are taken: on bits, by float convolutions of the integers, or both, compared."""

EXACT_FLOAT32 = 2**24
LIMIT = 2**31


class IntegerLayer(nn.Module):
    """A convolution or linear layer whose output is scale * accumulator (+ offset term) (+ bias), in this order.

    The accumulator is the sum of products of the whole numbers behind weights and inputs; zeros around an image
    count as zeros. `mode` says how it is taken; the float arithmetic behind it is the same.

    Args:
        name: for messages.
        layer: evaluated layer with a weight quantizer; of a recurrent one, the product of one step.
        grid: of its input.
        product: takes the sums on bits.
        weights: grid and codes from a packed checkpoint; None: the layer's own.

    Raises:
        ConfigError: the layer cannot run on integers; the message is the reason, without its name.
    """

    scale: Tensor

    def __init__(
        self,
        name: str,
        layer: QuantLayer,
        grid: Grid,
        product: TorchProduct,
        weights: tuple[Grid, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.grid, self.product = name, grid, product
        self.layer = layer
        weight, codes = _weight_grid(layer) if weights is None else weights
        self._check(layer, weight, codes)
        self._signs = grid.signs
        self.weight_grid, self.codes = weight, codes
        self.mode: Mode = "packed"
        self.different = 0  # accumulators that the two ways did not agree on
        self.compared = 0
        taps_first = codes.reshape(*codes.shape[:2], -1).transpose(1, 2)  # (out, taps, channels)
        words = pack_planes(taps_first, weight.bits)
        self.weight: PackedWeight = product.weight(words, codes.shape[1], grid.bits)
        self.integers = weight.integers(codes.reshape(len(codes), codes.shape[1], *self.kernel).double())
        self.register_buffer("scale", grid.half_step * weight.half_step)
        self._bases: dict[Geometry, Tensor] = {}

    def _check(self, layer: nn.Module, weight: Grid, codes: Tensor) -> None:
        self.bound = codes[0].numel() * self.grid.largest * weight.largest
        if self.bound >= LIMIT:
            raise ConfigError(f"its sums reach {self.bound:.2g}, beyond 32 bits")
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise ConfigError(f"it has {layer.groups} groups, the kernel takes one")
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ConfigError(f"its padding is {layer.padding_mode}, the kernel pads with zeros")

    @property
    def reads_signs(self) -> bool:
        """Whether its input comes as signs, from a quantizer elsewhere."""
        return self._signs and self.layer.input_quantizer is None

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return tuple(self.layer.kernel_size) if isinstance(self.layer, nn.Conv2d) else (1, 1)  # type: ignore[return-value]

    def geometry(self, x: Tensor) -> Geometry:
        """Return what this layer looks at in `x`: (N, C, H, W), or (N, features)."""
        if not isinstance(self.layer, nn.Conv2d):
            return linear_geometry(len(x))
        layer, (height, width) = self.layer, x.shape[2:]
        (kh, kw), (sh, sw) = self.kernel, layer.stride
        dh, dw = layer.dilation
        top, bottom, left, right = _padding(layer)
        out_h = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
        out_w = (width + left + right - dw * (kw - 1) - 1) // sw + 1
        return Geometry(len(x), height, width, out_h, out_w, kh, kw, sh, sw, top, left, dh, dw)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for values on the grid: (N, C, H, W) or (..., features)."""
        if not isinstance(self.layer, nn.Conv2d) and x.dim() != 2:
            return self.forward(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.weight.outputs)
        geometry = self.geometry(x)
        if self.mode == "reference":
            sums = self.reference(self.grid.codes(self._quantized(x)), geometry)
        elif self.mode == "prove":
            sums = self._proved(x, geometry)
        else:
            sums = self._sums(x, geometry)
        return self.rescaled(sums, geometry)

    def _quantized(self, x: Tensor) -> Tensor:
        """Return the values on the grid of an input that its quantizer, where the layer has one, has not seen."""
        return x if self.layer.input_quantizer is None else self.layer.input_quantizer(x)

    @torch.no_grad()
    def weights_off(self) -> int:
        """Return how many of the whole numbers, times their scale, are not what the layer's quantizer makes."""
        quantizer, weight = self.layer.weight_quantizer, self.layer.weight
        assert quantizer is not None
        after = [1] * (weight.dim() - 1)
        found = self.integers.reshape(weight.shape) * _by_channel(self.weight_grid.half_step.double(), after)
        limit = 2 * ROUNDED * _by_channel(self.weight_grid.reach, after)
        return int((~((found - quantizer(weight)).abs() <= limit)).sum())

    @torch.no_grad()
    def outputs_off(self, x: Tensor, output: Tensor) -> int:
        """Return how many outputs on bits for an input `x` are not what the float layer made of it.

        That layer adds n rounded products and a bias: each addition is off by at most 2^-24 of the sum so far, to
        either side, all of them by about sqrt(n) of that; 16 times as much may pass. Here a few roundings follow
        the exact sum, and its numbers may lie from the quantizers' values by what `grid_of`, `weights_off` and
        `_proved` let pass: 60 times 2^-24 of the largest, which is doubled.
        """
        quantizer, bias = self.layer.weight_quantizer, self.layer.bias
        assert quantizer is not None
        after = [1, 1] if isinstance(self.layer, nn.Conv2d) else []
        fan_in = self.codes[0].numel()
        magnitudes = float_output(self.layer, self._quantized(x).abs(), quantizer(self.layer.weight).abs())
        if bias is not None:
            magnitudes = magnitudes + _by_channel(bias.abs() - bias, after)
        largest = _by_channel(fan_in * self.grid.reach * self.weight_grid.reach, after)
        limit = 2.0**-20 * fan_in**0.5 * magnitudes.double() + 60 * 2.0**-23 * largest
        return int((~((self(x).double() - output).abs() <= limit)).sum())

    def packed_input(self, x: Tensor) -> Tensor:
        """Return an input in bits (planes, pixels, words of channels), or as bytes (1, pixels, channels).

        Its quantizer, where the layer has one, has not seen it yet.
        """
        if isinstance(self.layer.input_quantizer, ImageGrid):
            codes = self.product.image_codes(x, self.layer.input_quantizer)
        elif self._signs:
            return self.product.signs(self._rows(self._quantized(x)).float())
        else:
            codes = self.grid.codes(self._quantized(x))
        return self._pack(codes)

    def _pack(self, codes: Tensor) -> Tensor:
        rows = self._rows(codes.to(torch.uint8))
        return rows.unsqueeze(0).contiguous() if self.weight.bytes else self.product.pack(rows, self.grid.bits)

    def _rows(self, x: Tensor) -> Tensor:
        """Return pixels (N * H * W, channels) of (N, C, H, W); rows (N, features) as they are."""
        return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).reshape(-1, self.codes.shape[1])

    def _sums(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Return the accumulators, int32 (N, out, H', W') or (N, out)."""
        shift, base = self.weight_grid.shift, self.base(geometry)
        if not shift:
            return self._shaped(self.product.sums(self.packed_input(x), self.weight, geometry, base), geometry)
        codes = self.grid.codes(self._quantized(x))
        sums = self.product.sums(self._pack(codes), self.weight, geometry, base)
        return self._shaped(sums + shift * self._input_sums(codes, geometry), geometry)

    def _proved(self, x: Tensor, geometry: Geometry) -> Tensor:
        values = self._quantized(x)
        codes = self.grid.codes(values)
        off = float((self.grid.values(codes) - values).abs().max()) if x.numel() else 0.0
        outside = bool((codes < 0).any() or (codes > self.grid.levels - 1).any())
        if outside or not off <= 4 * ROUNDED * float(self.grid.reach):
            numbers = bool(values.isfinite().all())
            what = "values that its quantizer does not make" if numbers else "no numbers (NaN)"
            raise ConfigError(f"engine xnor: {self.name}: its input holds {what}.")
        sums = self._sums(x, geometry)
        self.different += int((sums != self.reference(codes, geometry)).sum())
        self.compared += sums.numel()
        return sums

    def reference(self, codes: Tensor, geometry: Geometry) -> Tensor:
        """Return the accumulators by a float convolution of integers, exact: float32 below 2^24, else float64.

        On a GPU always float64, rounded: its float32 convolutions may be sums of transformed parts. In the
        kernel's order in memory: a float layer behind it adds in that order, and two would round apart.
        """
        dtype = torch.float32 if self.bound < EXACT_FLOAT32 and codes.device.type == "cpu" else torch.float64
        integers, weight = self.grid.integers(codes).to(dtype), self.integers.to(dtype)
        if isinstance(self.layer, nn.Conv2d):
            sums = geometry.convolve(integers, weight)
            return sums.round().to(torch.int32, memory_format=torch.channels_last)
        return F.linear(integers, weight.flatten(1)).round().to(torch.int32)

    def rescaled(self, sums: Tensor, geometry: Geometry) -> Tensor:
        """Return what accumulators (N, out, ...) stand for, float32: scale times sum, offset's share, bias."""
        after = [1] * (sums.dim() - 2)
        out = sums.float().mul_(_by_channel(self.scale, after))  # a product of both types takes 20 times as long
        if self.grid.offset:
            inside = self._inside(geometry, self.integers).float().reshape(1, -1, *sums.shape[2:])
            out += self.grid.offset * _by_channel(self.weight_grid.half_step, after) * inside
        if self.layer.bias is not None:
            out += self.layer.bias.reshape(-1, *after)
        return out

    def base(self, geometry: Geometry) -> Tensor:
        """Return what the kernel subtracts twice the mismatches from: int32 (positions, out).

        Outside the image every bit counts as 0, hence as the lowest odd number: its share is taken out again.
        """
        key = geometry._replace(images=1)
        if key not in self._bases:
            odd = 2**self.grid.bits - 1
            weight = self.integers - self.weight_grid.shift  # odd numbers
            total = weight.sum((1, 2, 3)).reshape(1, -1, 1, 1)
            no_mismatch = weight[0].numel() * odd * (2**self.weight_grid.bits - 1)
            at_zero = -odd * total if self.weight.bytes else torch.full_like(total, no_mismatch)
            outside = odd * (total - self._inside(key, weight))
            base = at_zero + outside + self.grid.shift * self._inside(key, self.integers)
            self._bases[key] = base.flatten(2)[0].t().to(torch.int32).contiguous()
        return self._bases[key]

    def _inside(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """Return the sum of the weights that lie on the image at each position: (1, out, H', W')."""
        ones = weight.new_ones(1, 1, geometry.height, geometry.width)
        return geometry._replace(images=1).convolve(ones, weight.sum(1, keepdim=True)).round()

    def _input_sums(self, codes: Tensor, geometry: Geometry) -> Tensor:
        """Return the sum of the input's odd numbers under the kernel: int32 (rows, 1)."""
        odd = (2 * codes - (2**self.grid.bits - 1)).double()
        if not isinstance(self.layer, nn.Conv2d):
            return odd.sum(1, keepdim=True).to(torch.int32)
        sums = geometry.convolve(odd.sum(1, keepdim=True), odd.new_ones(1, 1, *self.kernel))
        return sums.round().reshape(-1, 1).to(torch.int32)

    def _shaped(self, sums: Tensor, geometry: Geometry) -> Tensor:
        if not isinstance(self.layer, nn.Conv2d):
            return sums
        shape = (geometry.images, geometry.out_height, geometry.out_width, self.weight.outputs)
        return sums.reshape(shape).permute(0, 3, 1, 2)


class IntegerRecurrence(nn.Module):
    """The walk of a recurrent layer over the steps, `product` of each step's last output taken on integers."""

    def __init__(self, layer: QuantRecurrence, product: IntegerLayer) -> None:
        super().__init__()
        self.layer, self.product = layer, product

    def forward(self, gates: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `Recurrence` does: each step's output (N, T, H) and the last state (states, N, H)."""
        return walk(self.layer, gates, state, self.product)


def read_and_made(layer: QuantLayer, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, Tensor]:
    """Return what a float layer multiplied by its weights, before its quantizer, and the product (with a bias).

    Args:
        inputs: that the layer was called with.
        output: what it returned; of a recurrent layer the last outputs are in it, the products are taken again.
    """
    if not isinstance(layer, QuantRecurrence):
        return inputs[0], output
    (_, state), read = inputs, output[0][:, :-1]
    if state is not None:
        read = torch.cat([state[layer.place][0].unsqueeze(1), read], dim=1)
    assert layer.weight_quantizer is not None and layer.input_quantizer is not None
    return read, float_output(layer, layer.input_quantizer(read), layer.weight_quantizer(layer.weight))


def _by_channel(value: Tensor, after: list[int]) -> Tensor:
    """Return a scalar as it is, one value for each channel so that it broadcasts against (N, channels, ...)."""
    return value.reshape(-1, *after) if value.dim() else value


def _weight_grid(layer: QuantLayer) -> tuple[Grid, Tensor]:
    """Return the grid of a layer's weights and their codes, or raise ConfigError with the reason."""
    quantizer = layer.weight_quantizer
    if quantizer is None or quantizer.bits == 32:
        raise ConfigError("its weights are float")
    codes = quantizer.codes(layer.weight.detach())
    grid = grid_of(one_step(codes.codebook))
    if isinstance(grid, str):
        raise ConfigError(f"the codes of its weights: {grid}")
    if grid.half_step.dim() and len(grid.half_step) != len(layer.weight):
        raise ConfigError("its weights have more scales than output channels")
    if grid.offset:
        raise ConfigError("zero is no point of the grid of its weights")
    return grid, codes.values


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return the zeros above, below, left, right."""
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
        return top, bottom, left, right
    rows, columns = (0, 0) if isinstance(layer.padding, str) else layer.padding  # `valid`
    return rows, rows, columns, columns
