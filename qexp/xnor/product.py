"""The packed product, by torch, the C++ kernel or, elsewhere, the Triton kernel: the same integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from qexp.quantizers.image import ImageGrid
from qexp.xnor.kernel import Kernel
from qexp.xnor.packing import BLOCK, byte_masks, pack_bits, pack_planes, panels, unpack_bits

BYTES_FROM = 3
"""Bits of activations from which, with weights of one bit, a product of bytes is faster than one of planes."""


class Geometry(NamedTuple):
    """What a convolution looks at, in pixels; a linear layer is one of 1 x 1 pixels."""

    images: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel_height: int = 1
    kernel_width: int = 1
    stride_height: int = 1
    stride_width: int = 1
    pad_top: int = 0
    pad_left: int = 0
    dilation_height: int = 1
    dilation_width: int = 1

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Zeros around the image: left, right, top, bottom; negative where pixels are not looked at."""
        rows = (self.out_height - 1) * self.stride_height + (self.kernel_height - 1) * self.dilation_height + 1
        columns = (self.out_width - 1) * self.stride_width + (self.kernel_width - 1) * self.dilation_width + 1
        right, bottom = columns - self.width - self.pad_left, rows - self.height - self.pad_top
        return self.pad_left, right, self.pad_top, bottom

    def convolve(self, images: Tensor, weight: Tensor) -> Tensor:
        """Return torch's convolution (N, out, H', W') of this geometry, zeros around the images."""
        stride = (self.stride_height, self.stride_width)
        dilation = (self.dilation_height, self.dilation_width)
        return F.conv2d(F.pad(images, self.pads), weight, stride=stride, dilation=dilation)


@dataclass(frozen=True)
class PackedWeight:
    """A layer's weights: `words` (planes, out, taps, words of channels) and how the kernel wants them.

    `channels` counts the bits in use of each tap. `bytes` says that activations come as bytes.
    """

    words: Tensor
    channels: int
    bytes: bool
    prepared: Tensor

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.words.shape[1]

    def bits(self) -> Tensor:
        """Return zeros and ones (planes, out, taps, channels), uint8."""
        return unpack_bits(self.words, self.channels)


@dataclass(frozen=True)
class Limits:
    """Where each channel's bit turns: 1 for sums of at least `least` (out,), int32; 0 there where `turned`."""

    least: Tensor
    turned: Tensor


class TorchProduct:
    """Products by float64 convolutions of zeros and ones: exact below 2^53 bits a sum, everywhere, slow."""

    name = "torch"
    device = torch.device("cpu")
    """Where its operands have to be."""

    def weight(self, words: Tensor, channels: int, activation_bits: int) -> PackedWeight:
        """Return weights (planes, out, taps, words) ready for products with activations of so many bits."""
        return PackedWeight(words, channels, False, words)

    def pack(self, codes: Tensor, planes: int) -> Tensor:
        """Pack codes (rows, n), uint8, into (planes, rows, words)."""
        return pack_planes(codes, planes)

    def signs(self, values: Tensor) -> Tensor:
        """Pack float32 values (rows, n) into (1, rows, words): 1 where the value is at least 0."""
        return pack_bits(values >= 0).unsqueeze(0)

    def image_codes(self, x: Tensor, image: ImageGrid) -> Tensor:
        """Return the codes of pixels, uint8, on a grid whose channels are all alike."""
        return image.codes(x).values.to(torch.uint8)

    def mismatches(self, activations: Tensor, weight: PackedWeight, geometry: Geometry) -> Tensor:
        """Return sum over planes i, j of 2^(i + j) popcount(activation i ^ weight j): (rows, out), float64."""
        g, total = geometry, torch.zeros((), dtype=torch.float64, device=activations.device)
        images = unpack_bits(activations, weight.channels).double()
        images = images.reshape(len(images), g.images, g.height, g.width, weight.channels).permute(0, 1, 4, 2, 3)
        kernels = weight.bits().double().transpose(2, 3).unflatten(3, (g.kernel_height, g.kernel_width))
        for i, image in enumerate(images):
            ones = g.convolve(image, torch.ones_like(kernels[0, :1]))
            for j, kernel in enumerate(kernels):
                both = g.convolve(image, kernel)
                set_in_weight = kernel.sum((1, 2, 3)).reshape(1, -1, 1, 1)
                total = total + 2 ** (i + j) * (ones + set_in_weight - 2 * both)
        return total.permute(0, 2, 3, 1).reshape(-1, weight.outputs)

    def sums(self, activations: Tensor, weight: PackedWeight, geometry: Geometry, base: Tensor) -> Tensor:
        """Return base[row % len(base)] - 2 mismatches: (rows, out), int32."""
        found = self.mismatches(activations, weight, geometry).to(torch.int32)
        return base.repeat(len(found) // len(base), 1) - 2 * found

    def reached(
        self, activations: Tensor, weight: PackedWeight, geometry: Geometry, base: Tensor, limits: Limits
    ) -> Tensor:
        """Return, packed (1, rows, words), on which side of its channel's limit each sum is."""
        sums = self.sums(activations, weight, geometry, base)
        return self.pack(((sums >= limits.least) ^ limits.turned).to(torch.uint8), 1)


class NativeProduct(TorchProduct):
    """Products by the C++ kernel."""

    name = "native"

    def __init__(self, kernel: Kernel, path: int = -1) -> None:
        self.kernel = kernel
        self.path = path

    def weight(self, words: Tensor, channels: int, activation_bits: int) -> PackedWeight:
        """See `TorchProduct`; these are in the kernel's order."""
        planes, outputs = words.shape[:2]
        bytes_ = planes == 1 and activation_bits >= BYTES_FROM and self.path < 0 and self.kernel.has_bytes
        if bytes_:
            prepared = byte_masks(unpack_bits(words[0], channels).flatten(1))
        else:
            prepared = panels(words.reshape(planes, outputs, -1))
        return PackedWeight(words, channels, bytes_, prepared)

    def pack(self, codes: Tensor, planes: int) -> Tensor:
        """See `TorchProduct`."""
        return self.kernel.pack_codes(codes.contiguous(), planes)

    def signs(self, values: Tensor) -> Tensor:
        """See `TorchProduct`."""
        return self.kernel.pack_signs(values.contiguous())

    def image_codes(self, x: Tensor, image: ImageGrid) -> Tensor:
        """See `TorchProduct`."""
        lowest, step = float(image.lowest.flatten()[0]), float(image.step.flatten()[0])
        return self.kernel.quantize(x.float().contiguous(), lowest, step, 2**image.bits - 1)

    def sums(self, activations: Tensor, weight: PackedWeight, geometry: Geometry, base: Tensor) -> Tensor:
        """See `TorchProduct`; of bytes, base + 2 sum of byte times sign."""
        return self.kernel.product(activations, weight.prepared, weight.outputs, base, geometry, path=self.path)

    def reached(
        self, activations: Tensor, weight: PackedWeight, geometry: Geometry, base: Tensor, limits: Limits
    ) -> Tensor:
        """See `TorchProduct`."""
        least = F.pad(limits.least, (0, -len(limits.least) % BLOCK))
        flips = pack_bits(limits.turned)
        return self.kernel.product(
            activations, weight.prepared, weight.outputs, base, geometry, least, flips, self.path
        ).unsqueeze(0)


def linear_geometry(rows: int) -> Geometry:
    """Return the geometry of a linear layer over so many rows."""
    return Geometry(rows, 1, 1, 1, 1)
