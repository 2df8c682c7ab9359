"""A layer, its batch norm and the sign behind it as one comparison: bits in, bits out, no float between.

The sign of a batch norm turns at one accumulator of each channel. It is found by bisection over the layer's own
float arithmetic, so that fused and layer by layer give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.xnor.layers import IntegerLayer
from qexp.xnor.product import Limits, linear_geometry


def limits_of(layer: IntegerLayer, after: nn.Module) -> Limits:
    """Return where the sign of `after(layer's output)` turns, for each channel of a linear layer.

    Args:
        after: monotone in each channel (batch norm of any kind, dropout), in evaluation mode.
    """
    bound = layer.bound
    low = torch.full((layer.weight.outputs,), -bound, dtype=torch.int64)
    high = torch.full_like(low, bound)

    def positive(sums: Tensor) -> Tensor:
        scores = after(layer.rescaled(sums.to(torch.int32).unsqueeze(0), linear_geometry(1)))
        return scores[0] >= 0

    start, end = positive(low), positive(high)
    turned = start & ~end  # a negative gain
    constant = start == end
    low, high = low - 1, high + 1  # `low` is below the limit, `high` has reached it
    while bool((high - low > 1).any()):
        middle = (low + high).div(2, rounding_mode="floor").clamp(-bound, bound)
        reached = positive(middle) ^ turned
        high, low = torch.where(reached, middle, high), torch.where(reached, low, middle)
        low, high = torch.minimum(low, high - 1), torch.maximum(high, low + 1)
    least = torch.where(constant, torch.where(start, -bound - 1, bound + 1), high)
    return Limits(least.to(torch.int32), turned)


class FusedLinear:
    """A linear layer on bits whose output is the packed signs behind its batch norm; nothing is learned here.

    Args:
        layer: linear, on bits; its weights' grid is centred, as every grid of one bit is.
        after: what stands between it and the sign, in evaluation mode; None for the last layer.

    Raises:
        ConfigError: a grid of weights that is not centred: its sums need those of the input too.
    """

    def __init__(self, layer: IntegerLayer, after: nn.Module | None) -> None:
        if layer.weight_grid.shift:
            raise ConfigError(f"engine xnor: {layer.name}: weights off a centred grid cannot be fused.")
        self.layer = layer
        with torch.no_grad():
            self.limits = None if after is None else limits_of(layer, after)

    def __call__(self, packed: Tensor) -> Tensor:
        """Return packed signs (1, rows, words), or of the last layer its float output, for a packed input."""
        layer, geometry = self.layer, linear_geometry(packed.shape[1])
        if self.limits is None:
            return layer.rescaled(
                layer.product.sums(packed, layer.weight, geometry, layer.base(geometry)), geometry
            )
        return layer.product.reached(packed, layer.weight, geometry, layer.base(geometry), self.limits)


class FusedMLP:
    """The binarized network of linear layers, from images to scores, on bits throughout.

    Args:
        network: of an engine; `fc1`, `bn1` ... `fc`, `bn`, as `qexp.models.qnn.QNNMLP` names them.
    """

    def __init__(self, network: nn.Module, depth: int) -> None:
        numbers = [str(number) for number in range(1, depth + 1)]
        self.layers = [FusedLinear(getattr(network, f"fc{n}"), getattr(network, f"bn{n}")) for n in numbers]
        self.last, self.norm = FusedLinear(network.fc, None), network.bn  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the scores (N, classes) of images (N, C, H, W); their codes are taken and packed here."""
        first = self.layers[0].layer
        packed = first.packed_input(images.flatten(1))
        for layer in self.layers:
            packed = layer(packed)
        return self.norm(self.last(packed))  # type: ignore[operator]
