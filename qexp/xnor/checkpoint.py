"""A network on disk with as many bits for a weight as its codes have: one for a binary weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from qexp.errors import CheckpointError, ConfigError
from qexp.files import atomic_write
from qexp.quantizers.base import Quantizer
from qexp.xnor.grids import Grid
from qexp.xnor.layers import IntegerLayer
from qexp.xnor.packing import pack_planes, unpack_planes

FORMAT, EARLIER = "qexp-packed-2", "qexp-packed-1"
"""Of files, and of those that hold no quantizers."""


@dataclass(frozen=True)
class Sizes:
    """Bytes: of the packed layers' weights in float32 and packed (scales counted apart), and of the whole file."""

    float_weights: int
    packed_weights: int
    scales: int
    file: int


@dataclass(frozen=True)
class Packed:
    """What a file holds: the codes of each packed layer's weights with their grid, and every other tensor.

    `quantizers` are those of the network, in words, by the names of their modules.
    """

    weights: Mapping[str, tuple[Grid, Tensor]]
    rest: Mapping[str, Tensor]
    quantizers: Mapping[str, str]


def save_packed(path: Path, network: nn.Module, layers: list[IntegerLayer]) -> Sizes:
    """Write `network`, the weights of `layers` as bits; return the sizes.

    Raises:
        ConfigError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for layer in layers:
        grid, codes = layer.weight_grid, layer.codes
        tensors[f"bits/{layer.name}"] = _flat_bytes(codes, grid.bits)
        tensors[f"half_step/{layer.name}"] = grid.half_step.contiguous()
        about[layer.name] = {"shape": list(codes.shape), "levels": grid.levels, "shift": grid.shift}
    packed = {f"{layer.name}.weight" for layer in layers}
    for name, value in network.state_dict().items():
        if name not in packed:
            tensors[f"rest/{name}"] = value.detach().clone(memory_format=torch.contiguous_format)
    notes = {"layers": json.dumps(about), "quantizers": json.dumps(_quantizers(network))}
    content = save(tensors, metadata={"format": FORMAT, **notes})
    try:
        atomic_write(path, content)
    except OSError as error:
        raise ConfigError(
            f"engine.save={path}: cannot be written ({error.strerror}); name another file."
        ) from error
    return Sizes(
        sum(4 * layer.codes.numel() for layer in layers),
        sum(tensors[f"bits/{layer.name}"].numel() for layer in layers),
        sum(4 * layer.weight_grid.half_step.numel() for layer in layers),
        len(content),
    )


def load_packed(path: Path) -> Packed:
    """Read such a file.

    Raises:
        CheckpointError: missing, damaged, of an earlier format, or none of these.
    """
    if not path.is_file():
        raise CheckpointError(f"engine.load={path}: there is no such file; engine.save=FILE writes one.")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        if about.get("format") == EARLIER:
            raise CheckpointError("of an earlier qexp, which did not note the quantizers")
        if about.get("format") != FORMAT:
            raise KeyError("format")
        weights = {name: _weight(name, one, tensors) for name, one in json.loads(about["layers"]).items()}
        quantizers = {str(name): str(words) for name, words in json.loads(about["quantizers"]).items()}
    except CheckpointError as error:
        raise CheckpointError(f"engine.load={path}: {error}; write it again with engine.save=FILE.") from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"engine.load={path}: no packed checkpoint of qexp, or damaged.") from error
    prefix = "rest/"
    rest = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    return Packed(weights, rest, quantizers)


def take_over(network: nn.Module, packed: Packed, path: Path) -> None:
    """Load everything but the packed weights into `network`.

    Raises:
        CheckpointError: the file is of another network, or of one with other quantizers.
    """
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in packed.rest.items()}
    given |= {f"{name}.weight": tuple(codes.shape) for name, (_, codes) in packed.weights.items()}
    if wanted != given:
        differ = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise CheckpointError(f"engine.load={path}: of another network, it differs in {', '.join(differ[:5])}.")
    for name, value in network.state_dict().items():
        if name in packed.rest and packed.rest[name].dtype != value.dtype:
            kinds = f"{packed.rest[name].dtype}, not {value.dtype}"
            raise CheckpointError(f"engine.load={path}: {name} is {kinds}; write it again with engine.save=FILE.")
    network.load_state_dict(packed.rest, strict=False)
    here = _quantizers(network)  # with what they have learned, which has just been loaded
    for name in {**here, **packed.quantizers}:
        stored, composed = (found.get(name, "no quantizer") for found in (packed.quantizers, here))
        if stored != composed:
            raise CheckpointError(
                f"engine.load={path}: {_place(name)}: {stored} in the file, {composed} in this network; load it"
                " into the network that it was saved from."
            )


def _quantizers(network: nn.Module) -> dict[str, str]:
    """Return each quantizer of a network, by the name of its module: class, bits, and the range of fixed levels.

    Those of weights follow the weights, and a file has its own grid for them.
    """
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, Quantizer):
            levels = ""
            if module.bits < 32 and module.site.kind != "weight":
                table = module.codes(torch.zeros(1, *module.site.shape)).codebook
                levels = f", {float(table.min()):.6g} to {float(table.max()):.6g}"
            found[name] = f"{type(module).__name__} (bits={module.bits}{levels})"
    return found


def _place(quantizer: str) -> str:
    """Return where a quantizer is, for a message.

    >>> _place("fc1.weight_quantizer"), _place("act1")
    ('weights of fc1', 'act1')
    """
    layer, _, role = quantizer.rpartition(".")
    kinds = {"weight_quantizer": "weights", "input_quantizer": "input"}
    return f"{kinds[role]} of {layer}" if role in kinds else quantizer


def _flat_bytes(codes: Tensor, planes: int) -> Tensor:
    """Return the bits of all codes (planes, bytes), uint8, in the order of the elements; nothing between rows."""
    words = pack_planes(codes.flatten(), planes)
    return words.view(torch.uint8)[:, : -(-codes.numel() // 8)].contiguous()


def _weight(name: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Grid, Tensor]:
    shape, levels = tuple(int(side) for side in about["shape"]), int(about["levels"])
    planes, count = (levels - 1).bit_length(), torch.Size(shape).numel()
    flat = tensors[f"bits/{name}"]
    if flat.shape != (planes, -(-count // 8)) or flat.dtype != torch.uint8:
        raise ValueError(name)
    half_step = tensors[f"half_step/{name}"]
    if half_step.dtype != torch.float32 or half_step.shape not in ((), shape[:1]):
        found = f"{half_step.dtype} {tuple(half_step.shape)}"
        raise CheckpointError(f"half_step/{name} is {found}, not torch.float32 () or {shape[:1]}")
    if not bool((half_step.isfinite() & (half_step >= 0)).all()):
        raise CheckpointError(f"half_step/{name} holds values that are no finite numbers from 0 up")
    words = torch.zeros(planes, -(-count // 64) * 8, dtype=torch.uint8)
    words[:, : flat.shape[1]] = flat
    codes = unpack_planes(words.view(torch.int64), count).reshape(shape)
    if not 2 <= levels <= 256 or bool((codes >= levels).any()):
        raise CheckpointError(f"bits/{name} does not hold codes of {levels} levels (2 to 256)")
    return Grid(planes, levels, half_step, int(about["shift"])), codes
