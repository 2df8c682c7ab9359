"""When and how a training step is compiled: one full graph, one shape, and never quietly eager."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qexp.errors import ConfigError

log = logging.getLogger(__name__)

STEPS_THAT_PAY = 2000
"""Below so many steps, compiling (a minute) costs more than it saves."""


def pays(network: nn.Module, steps: int) -> bool:
    """Return whether compiling pays for a run of `steps` steps: long enough, and convolutions in it."""
    has_convolution = any(isinstance(module, nn.Conv2d) for module in network.modules())
    return has_convolution and steps > STEPS_THAT_PAY


def decide(wanted: bool | str, device: torch.device, pays: Callable[[], bool]) -> bool:
    """Return whether to compile, from `trainer.compile`.

    Args:
        wanted: true, false or `auto` (when it pays and can be done).
        pays: asked under `auto` only.

    Raises:
        ConfigError: asked for, but there is no C++ compiler for the CPU.
    """
    asked = str(wanted).lower()
    if asked == "false" or (asked == "auto" and not pays()):
        return False
    problem = _missing_compiler(device)
    if problem is None:
        return True
    if asked == "auto":
        log.warning("trainer.compile=auto: %s; the run goes on uncompiled, about half as fast.", problem)
        return False
    raise ConfigError(f"trainer.compile=true: {problem}; install g++ or clang, or set trainer.compile=false.")


def _missing_compiler(device: torch.device) -> str | None:
    if device.type != "cpu":
        return None
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # inductor's own exception class moved between torch versions
        return f"no C++ compiler was found ({type(error).__name__})"
    return None


def compile_step(step: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Compile `step` as one full graph of static shapes; a graph break or the recompile limit is an error.

    On a CPU random numbers are torch's, as uncompiled: the compiler's own take three times as long.
    """
    # After `recompile_limit` graphs dynamo goes on in eager mode without a word, at half the speed.
    import torch._dynamo  # a second of imports, which a sweep of finished runs does not need

    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(step, fullgraph=True, dynamic=False, options={"fallback_random": device.type == "cpu"})


def reset() -> None:
    """Forget every compiled graph: called between the jobs of a sweep, which share one process."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
