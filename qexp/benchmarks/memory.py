"""Memory of a training step: the bytes that the forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def held_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Return the bytes of all storages that `forward` saves for its backward pass.

    A storage counts once and whole, however many tensors saved are views of it; those of `parameters`, which are
    there anyway, do not count.

    Args:
        forward: eager; returns what `backward` would be called on.
        parameters: of the network.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    # The storages are kept until all are counted: a freed one's address could come again.
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()
    total = sum(storage.nbytes() for storage in held.values())
    del kept
    return total


def cuda_peak(step: Callable[[], object], device: torch.device) -> int:
    """Return by how many bytes the memory in use on `device` rises at most during `step`."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
