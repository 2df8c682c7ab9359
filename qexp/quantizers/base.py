"""The promise of a quantizer: what every method may rely on and what every method must keep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from qexp.bits import BITS
from qexp.errors import ConfigError
from qexp.ops.codes import Codes
from qexp.ops.rounding import TrainedRounding, ste

Rounding = Callable[[Tensor], Tensor]
"""Rounds to the nearest integer in the forward pass; its gradient is the method's own choice."""


@dataclass(frozen=True)
class Site:
    """Where a quantizer stands in the network, known before any data is seen.

    Attributes:
        name: the layer's dotted name, with `_1`, `_2` ... for the later calls of a shared module.
        kind: `weight`, `activation` (the output of a nonlinearity) or `input` (of a layer).
        shape: of the weight (out, in, ...), or of one sample's features (C, H, W) or (C,); empty if unknown.
        signed: whether values can be negative.
        end: where what the site replaces ends: 6 for a ReLU6.
    """

    name: str
    kind: Literal["weight", "activation", "input"]
    shape: tuple[int, ...] = ()
    signed: bool = False
    end: float = math.inf


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that want an optimizer setting of their own.

    `lr_factor` multiplies the learning rate; `weight_decay` of None means none at all is applied.
    """

    parameters: tuple[nn.Parameter, ...]
    lr_factor: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True)
class Observed:
    """What calibration saw at one site: the range that an observer chose, and mean and standard deviation.

    Float32 scalars; the moments are there for a quantizer that says `needs_moments`. Where values are never
    negative they are those of a density symmetric about zero, whose upper half the values above zero are.
    """

    low: Tensor
    high: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None


@dataclass
class Description:
    """What a quantizer can say of itself, for logs, tables and figures.

    `learned` holds the learned tensors by name (`alpha`, `step`), `shares` the fractions (0 to 1) seen on one
    tensor (`clipped`), `levels` the number of distinct codes that tensor used.
    """

    learned: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)
    levels: int | None = None


class Quantizer(nn.Module):
    """Maps a tensor to its quantized values; one instance serves one site.

    A subclass implements `forward` and `codes`; the rest has defaults that do nothing, and each says
    when it is called. Arguments beyond `bits`, `site` and `rounding` come from the method's YAML file.

    Args:
        bits: 1 to 8, or 32 for no rounding.
        site: where it stands.
        rounding: real to integer; straight-through by default.

    Raises:
        ConfigError: the method does not support this width.
    """

    version: ClassVar[int] = 1
    """Of the method's maths; part of every run's identity. Raise it when the numbers change."""

    special_versions: ClassVar[Mapping[str, int]] = {}
    """Of what only some runs have, and counted for these alone: `soft`, a rounding other than the plain one;
    `network`, that scope; `relu`, that placement; `float_activations`, inner activations of 32 bits; `perturbed`,
    breakpoints moved at random."""

    supported_bits: ClassVar[tuple[int, ...]] = BITS

    acts_at_32: ClassVar[bool] = False
    """Whether it still changes values at 32 bits (PACT clips); else a site of 32 bits is left alone."""

    only_beside_fewer: ClassVar[bool] = False
    """Whether it acts at 32 bits only where the network's inner activations have fewer; else the ReLU stays."""

    needs_moments: ClassVar[bool] = False
    """Whether `fit_activations` reads more than the range."""

    of_either_sign: ClassVar[tuple[str, ...]] = ()
    """Names of `learned()` that may be 0 or negative (an offset); levels and steps may not."""

    may_rest: ClassVar[bool] = False
    """Whether a learned value that stands still, without a gradient, is as it should be."""

    scope: str = "layer"
    """How many learned values it has: `layer`, `channel`, `element`, or `network`, shared by all sites."""

    fixed_grid: bool = False
    """Whether its levels stay where they are, however large the weights."""

    rounds: bool = True
    """Whether it calls `rounding`; a method that takes signs or powers of two has no use for another one."""

    def __init__(self, bits: int, site: Site, rounding: Rounding = ste) -> None:
        super().__init__()
        if bits not in self.supported_bits:
            widths = ", ".join(map(str, self.supported_bits))
            raise ConfigError(
                f"{site.name}: bits={bits} is not supported by {type(self).__name__}; choose one of {widths}."
            )
        self.bits = bits
        self.site = site
        self.rounding = rounding
        self.real: tuple[nn.Parameter, ...] = ()  # in a tuple: the layer owns it, not this module

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized values of `x`, same shape and dtype, differentiable as the method says."""
        raise NotImplementedError(type(self).__name__)

    def codes(self, x: Tensor) -> Codes:
        """Return the integers behind `forward(x)`: `codes(x).decode() == forward(x)`, exactly, in float32.

        Raises:
            ConfigError: at 32 bits there are none.
        """
        raise NotImplementedError(type(self).__name__)

    def calibrate(self, x: Tensor) -> None:
        """Start the learned tensors from data, in place, before the first step. Default: keep them."""

    @property
    def starts_from_data(self) -> bool:
        """Whether `calibrate` does anything; if no quantizer's does, no data are shown before training."""
        return type(self).calibrate is not Quantizer.calibrate

    def fit_weights(self, weight: Tensor) -> None:
        """Take ranges, and what else follows from the numbers, from trained weights, and keep them.

        Called once after training; until then a method that can do this measures each tensor it is given.

        Raises:
            ConfigError: the method cannot be put on a trained network, or the weights hold no numbers.
        """
        raise self._not_after_training()

    def fit_activations(self, seen: Observed) -> None:
        """Take the range, and what else follows, from what calibration saw, and keep it; as `fit_weights`."""
        raise self._not_after_training()

    def _not_after_training(self) -> ConfigError:
        return ConfigError(
            f"{self.site.name}: {type(self).__name__} is a method for training and cannot be put on a trained"
            " network; for `qexp ptq` take quantizer=uniform or pwlq, for this one `qexp train`."
        )

    def fitted(self) -> dict[str, Tensor]:
        """Return what `fit_weights` or `fit_activations` kept, by name, for the run's record. Default: nothing."""
        return {}

    def holds(self, kept: Tensor) -> bool:
        """Say whether `kept`, NaN until it was fitted, can be used without measuring anew; in evaluation only.

        (Under training a compiler must not branch on values.)
        """
        return not self.training and not bool(kept.isnan().any())

    @property
    def stored_bits(self) -> float:
        """Bits that one value takes in memory: `bits`, unless codes say more than the multiplier sees."""
        return self.bits

    @property
    def products(self) -> int:
        """How many products one of its values takes in a multiply-accumulate: 1, or one for each of its parts."""
        return 1

    def learned(self) -> dict[str, nn.Parameter]:
        """Return the learned tensors by their name in the logs: `{"alpha": ...}`. Default: none."""
        return {}

    def learned_with_rounding(self) -> dict[str, nn.Parameter]:
        """Return `learned()` and what the rounding learns beside it."""
        return self.learned() | (self.rounding.learned() if isinstance(self.rounding, TrainedRounding) else {})

    def can_share(self, other: Quantizer) -> bool:
        """Say whether one learned tensor serves both: of one class, both of weights or both of activations."""
        return type(self) is type(other) and (self.site.kind == "weight") == (other.site.kind == "weight")

    def share(self, other: Quantizer) -> None:
        """Take over the learned tensors of `other` (scope `network`); the names of `learned` are attributes."""
        for name, parameter in other.learned().items():
            setattr(self, name, parameter)

    def penalized(self) -> dict[str, nn.Parameter]:
        """Return those of `learned()` that `alpha_regularization` acts on. Default: none."""
        return {}

    def parameter_groups(self) -> Iterator[ParameterGroup]:
        """Yield groups for the optimizer. Default: every parameter of its own, without weight decay."""
        if parameters := tuple(self.parameters()):
            yield ParameterGroup(parameters)

    def attach(self, weight: nn.Parameter) -> None:
        """Take note of the layer's weights, in `real`, once, when it is put on them."""
        self.real = (weight,)

    @torch.no_grad()
    def silent(self, x: Tensor) -> bool:
        """Say whether a fixed grid makes all of `x` 0; a grid that follows it does not."""
        return self.fixed_grid and self.bits < 32 and not bool(self.codes(x).decode().any())

    def auxiliary_loss(self) -> Tensor | None:
        """Return a scalar added to the loss inside the graph, after the forward pass. Default: None."""
        return None

    def after_step(self) -> None:
        """Act after each optimizer step, under `no_grad` (clip a weight, say). Default: nothing."""

    @torch.no_grad()
    def describe(self, x: Tensor | None = None) -> Description:
        """Return what it learned and, when `x` (its input) is given, how it treats that tensor."""
        description = Description(
            learned={name: value.detach() for name, value in self.learned_with_rounding().items()}
        )
        if x is not None and self.bits < 32:
            description.levels = int(self.codes(x).values.unique().numel())
        if x is not None and (self.bits < 32 or self.acts_at_32) and (share := self.clipped(x)) is not None:
            description.shares["clipped"] = share
        return description

    def complaint(self) -> str | None:
        """Say what went wrong with what it learned, for the watchdog, in words. Default: None, nothing."""
        return None

    def clipped(self, x: Tensor) -> Tensor | None:
        """Return the share (0 to 1) of `x` that its range or its gradient's window cuts off. Default: no such."""
        return None

    @torch.no_grad()
    def below_zero(self) -> bool:
        """Say whether what it puts out can be negative: a ReLU's place may be taken by a grid with levels below 0.

        (On the meta device, without numbers, the levels of a method with tensors of its own are not known.)
        """
        if self.site.signed or self.site.kind != "activation" or self.bits == 32:
            return self.site.signed
        own = next(itertools.chain(self.parameters(), self.buffers()), None)
        if own is not None and own.is_meta:
            return False
        zeros = torch.zeros(1, *self.site.shape, device="cpu" if own is None else own.device)
        return bool((self.codes(zeros).codebook[0] < 0).any())

    def require_grid(self) -> int:
        """Return the bits of its grid; raise ConfigError where there is none (32 bits)."""
        if self.bits == 32:
            raise ConfigError(f"{self.site.name}: 32 bits are not rounded, so there are no integer codes.")
        return self.bits

    def extra_repr(self) -> str:
        """Return the text between the brackets of `repr`."""
        return f"bits={self.bits}, site={self.site.name!r}"


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Yield (site name, quantizer) for every quantizer in `model`, in the order of its modules."""
    for module in model.modules():
        if isinstance(module, Quantizer):
            yield module.site.name, module


def scope_shape(scope: str, site: Site) -> tuple[int, ...]:
    """Return the shape of one learned value per `scope`, so that it broadcasts against (N, *site.shape).

    Raises:
        ConfigError: an unknown scope, or one that needs the site's shape where that is not known.
    """
    if scope in ("layer", "network"):
        return ()
    if scope not in ("channel", "element"):
        raise ConfigError(f"scope={scope} is not one of layer, channel, element, network.")
    if not site.shape:
        raise ConfigError(f"{site.name}: scope={scope} needs the input's shape, which is not known; take layer.")
    if scope == "element":
        return site.shape
    return (site.shape[0], *([1] * (len(site.shape) - 1)))


def clip_steps(bits: int, site: Site) -> int | None:
    """Return `grid_steps`; None at 32 bits, where a clip does not round."""
    return None if bits == 32 else grid_steps(bits, site)


def grid_steps(bits: int, site: Site) -> int:
    """Return the grid steps between 0 and a clip level, for 1 to 8 bits.

    2^bits - 1 for values that are never negative, 2^(bits-1) - 1 on each side for those that can be.

    Raises:
        ConfigError: one bit at a signed site has no level beside zero.
    """
    if not site.signed:
        return 2**bits - 1
    if bits == 1:
        raise ConfigError(
            f"{site.name}: 1 bit leaves no level beside zero for an input that can be negative; "
            f"set layers.'{site.name.removesuffix('.input')}'.bits=2 or more."
        )
    return 2 ** (bits - 1) - 1
