"""torchvision's classification networks by name, without their downloads (https://pytorch.org/vision)."""

from __future__ import annotations

import warnings

import torch
import torchvision
from torch import nn

from qexp.errors import ConfigError, did_you_mean

ONE_OUTPUT = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}
"""What keeps a network from answering with several outputs in training."""

LEFT_OUT = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""What torchvision's checkpoints hold beside such a network: the weights of its other outputs."""


REWRITTEN = {
    "densenet": ((r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),),
    "vit": ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
}
"""Beginning of an architecture -> older names in its checkpoints, which torchvision's own loading rewrites too."""


def classifier(*, input_shape: tuple[int, int, int], num_classes: int, architecture: str) -> nn.Module:
    """Return torchvision's network `architecture` with random weights and `num_classes` outputs.

    Its weights come by path afterwards (`qexp.models.weights.load_weights`); nothing is ever downloaded. Modules
    keep torchvision's names, so that its checkpoints load as they are.

    Args:
        input_shape: (C, H, W) of one image; C is 3.
        num_classes: width of the output.
        architecture: a name that torchvision knows as a classifier, such as `resnet18`.

    Raises:
        ConfigError: torchvision has no such classifier, or the images do not have 3 channels or are of a size
            that the network cannot take.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        hint = did_you_mean(architecture, known)
        raise ConfigError(f"model.architecture={architecture}: torchvision has no such classifier.{hint}")
    require_colour(architecture, input_shape, "another data set, or a model that follows the data (mlp, resnet20)")
    refuse_size(architecture, *input_shape[1:])
    network = construct(architecture, num_classes)
    network.left_out = LEFT_OUT.get(architecture, ())  # type: ignore[assignment]
    fitting = (pairs for start, pairs in REWRITTEN.items() if architecture.startswith(start))
    network.rewritten = next(fitting, ())  # type: ignore[assignment]
    return network


def construct(architecture: str, num_classes: int) -> nn.Module:
    """Return the network, made on torch's current device."""
    with warnings.catch_warnings():
        # googlenet and inception_v3 announce a change of their initialization whenever they are made.
        warnings.simplefilter("ignore", FutureWarning)
        return torchvision.models.get_model(
            architecture, weights=None, num_classes=num_classes, **ONE_OUTPUT.get(architecture, {})
        )


def refuse_size(architecture: str, height: int, width: int) -> None:
    """Raise ConfigError when `architecture` cannot take images of height x width: tried on shapes alone."""
    with torch.device("meta"), torch.no_grad():
        probe = construct(architecture, 2).eval()
        try:
            probe(torch.zeros(1, 3, height, width))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"model {architecture}: it cannot take images of {height}x{width}; resize them, most of "
                "torchvision's networks were made for 224x224."
            ) from error


def require_colour(architecture: str, input_shape: tuple[int, int, int], instead: str) -> None:
    """Raise ConfigError for images without 3 channels, and say what to choose `instead`."""
    if input_shape[0] != 3:
        raise ConfigError(
            f"model {architecture}: it takes images with 3 channels and these have {input_shape[0]}; choose"
            f" {instead}."
        )
