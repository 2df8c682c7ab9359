"""Shift-based batch norm as a module, in the place of torch's (arXiv 1602.02830, algorithm 3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.errors import ConfigError
from qexp.ops.shift_norm import ShiftNormalize, shift_normalize

Normalization = Literal["shift", "shift_authors"]
ONE_VALUE = "Expected more than 1 value per channel"
"""Of torch's batch norm, and of the one here, for a batch with none to compare with."""

AUTHORS_EPS, AUTHORS_MOMENTUM = 1e-5, 0.125


class ShiftBatchNorm(_BatchNorm):
    """Takes over `norm`'s parameters and buffers, under their names.

    As the paper has it, with what it does not state (eps, the weight of running statistics) as in the batch norm
    it replaces; the running variance is that of the batches themselves (torch's is n / (n - 1) of it).
    `authors` is their Torch code: eps 1e-5, running averages of the mean and of the inverse standard deviation,
    with a weight of 1/8 for the newest. `running_var` is a variance there too, the one that has this inverse, so
    that the statistics of an ordinary batch norm can be taken over.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, norm: _BatchNorm, authors: bool = False) -> None:
        eps, momentum = (AUTHORS_EPS, AUTHORS_MOMENTUM) if authors else (norm.eps, norm.momentum)
        super().__init__(norm.num_features, eps, momentum, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.authors = authors
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, channels, ...) by channel, in float32; returns input's dtype."""
        x = input.float()
        if self.training:
            if x.numel() == self.num_features:
                raise ValueError(f"{ONE_VALUE} when training, got input size {tuple(input.shape)}")
            result, mean, variance = ShiftNormalize.apply(x, self.weight, self.bias, self.eps)
            self._remember(mean, variance)
        else:
            inverse = (self.running_var + self.eps).rsqrt()
            result = shift_normalize(x, self.weight, self.bias, self.running_mean, inverse)
        return result.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        # None is torch's word for a plain mean over all batches, which re-estimation asks for.
        share = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        if self.authors:
            inverse = (self.running_var + self.eps).rsqrt().lerp((variance + self.eps).rsqrt(), share)
            self.running_var.copy_(inverse.pow(-2) - self.eps)
        else:
            self.running_var.lerp_(variance, share)


def shifted(model: nn.Module, kind: Normalization) -> nn.Module:
    """Put a `ShiftBatchNorm` in the place of each batch norm of `model`, in place; return the model.

    `shift_authors` leaves one behind the last layer, that of the scores, as it is; so does the authors' code.

    Raises:
        ConfigError: there is no batch norm, or one without parameters or running averages.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not found:
        raise ConfigError(f"normalization={kind}: {type(model).__name__} has no batch norm to replace.")
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d | _BatchNorm)]
    of_scores = kind == "shift_authors" and layers[-1] is model.get_submodule(found[-1])
    for name in found[:-1] if of_scores else found:
        norm = model.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        if not norm.affine or not norm.track_running_stats or norm.momentum is None:
            raise ConfigError(f"normalization={kind}: '{name}' has no parameters or no moving averages.")
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, ShiftBatchNorm(norm, kind == "shift_authors"))
    return model
