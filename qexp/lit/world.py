"""The processes of one job, as torchrun and `qexp.commands.distributed` name them in the environment."""

from __future__ import annotations

import os

import torch


def rank() -> int:
    """Return this process's number; 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """Return the number of processes; 1 when this one is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def summed(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of `value` over all processes, each of which has to call this."""
    if size() == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total


def agree_on_buffers(module: torch.nn.Module) -> None:
    """Give every process the first one's buffers (batch norm's running statistics), which are what is saved."""
    if size() > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def gathered(value: object) -> list[object]:
    """Return the values of all processes by their number, each of which has to call this."""
    found: list[object] = [value] * size()
    if size() > 1:
        torch.distributed.all_gather_object(found, value)
    return found
