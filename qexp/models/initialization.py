"""He initialization: weights that keep a ReLU network's signal at the same scale from layer to layer."""

from __future__ import annotations

from torch import nn


def he_initialize(model: nn.Module) -> None:
    """Start every convolution and linear layer of `model` by He et al. 2015, batch norm at the identity.

    Hidden weights are drawn from N(0, 2 / fan_in); biases are zero; the last linear layer, which no ReLU
    follows, is drawn from N(0, 1 / fan_in). In place; the draws come from torch's global generator.

    Source: He et al. 2015 (arXiv 1502.01852), equation 10.
    """
    linear_layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            last = bool(linear_layers) and module is linear_layers[-1]
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear" if last else "relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
