"""Binarized networks: weights and activations are signs, +1 or -1, in training and afterwards.

Courbariaux et al. 2016, "Binarized Neural Networks", arXiv 1602.02830, equations 1 to 5 and algorithm 1; the
binary case of Hubara et al., "Quantized Neural Networks", arXiv 1609.07061.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.binary import sign, stochastic_sign, windowed
from qexp.ops.codes import Codes
from qexp.ops.rounding import ste
from qexp.quantizers.base import Quantizer, Rounding, Site
from qexp.quantizers.bounded import BoundedWeight


def sign_codes(x: Tensor) -> Codes:
    """Return 0 for -1 and 1 for +1."""
    return Codes((x.detach() >= 0).int(), torch.tensor([-1.0, 1.0], device=x.device))


class BinaryWeight(BoundedWeight):
    """The sign of each weight. The gradient reaches the real weights whole; clipping them is its window.

    Args:
        stochastic: in training draw the sign, +1 with probability (w + 1) / 2; evaluation takes the sign.
    """

    supported_bits: ClassVar[tuple[int, ...]] = (1, 32)
    rounds = False

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste, *, stochastic: bool = False) -> None:
        super().__init__(bits, site, rounding)
        self.stochastic = stochastic

    def forward(self, x: Tensor) -> Tensor:
        """Return the signs."""
        if self.bits == 32:
            return x
        drawn = self.stochastic and self.training
        return windowed(stochastic_sign(x) if drawn else sign(x), x, None)

    def codes(self, x: Tensor) -> Codes:
        """Return the signs that evaluation takes."""
        self.require_grid()
        return sign_codes(x)


class BinaryActivation(Quantizer):
    """The sign of each activation; its gradient passes where |x| <= window, as that of a hard tanh.

    Args:
        stochastic: in training draw the sign, +1 with probability (x + 1) / 2, as the authors' Torch code does.
        window: of the straight-through estimator; the paper's is 1, wider ones relax it late in training.

    Raises:
        ConfigError: a window that lets nothing pass.
    """

    supported_bits: ClassVar[tuple[int, ...]] = (1, 32)
    rounds = False

    def __init__(
        self, bits: int, site: Site, rounding: Rounding = ste, *, stochastic: bool = False, window: float = 1.0
    ) -> None:
        super().__init__(bits, site, rounding)
        if not window > 0:
            raise ConfigError(f"quantizer.activation.window={window}: above 0; the paper's is 1.")
        self.stochastic, self.window = stochastic, window

    def forward(self, x: Tensor) -> Tensor:
        """Return the signs."""
        if self.bits == 32:
            return x
        drawn = self.stochastic and self.training
        return windowed(stochastic_sign(x) if drawn else sign(x), x, self.window)

    def codes(self, x: Tensor) -> Codes:
        """Return the signs that evaluation takes."""
        self.require_grid()
        return sign_codes(x)

    def clipped(self, x: Tensor) -> Tensor:
        """Return the share of elements whose gradient is cancelled."""
        return (x.abs() > self.window).float().mean()
