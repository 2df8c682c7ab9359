"""Progressive bits: a network trained at some widths first, each time from the one before, then at its own.

Every stage is a run like any other, the one that `bits=... model.weights=<the run before>` makes, so a chain that
was interrupted is finished by its command, and two chains share what is the same in them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import yaml

from qexp.build import build
from qexp.commands.planning import teacher_weights
from qexp.config import NO_DISCRETISATION, PLAIN_ROUNDING, Config, parse
from qexp.errors import ConfigError
from qexp.paths import config_dir


def stages(config: Config) -> Iterator[Config]:
    """Yield the configuration of each run of a chain, the last one that of `config` itself at its own widths.

    The weights of a stage are those of the run before, so each has to be made before the next is asked for. What
    distillation learns from stays the network that the chain began with. A stage of 32 bits is the float network's
    run, and a recipe's weight decay follows the bits of each.

    Raises:
        QexpError: a stage cannot be planned, or a method refuses one of the widths, also that of a later stage.
    """
    from qexp.commands.train import plan

    if config.progressive:
        _check(config)
    weights = config.model.get("weights")
    for pair in config.progressive:
        stage = _stage(config, pair, weights)
        yield stage
        weights = str(plan(stage).run.path)
    yield _stage(config, (config.bits.weight, config.bits.activation), weights) if config.progressive else config


def upcoming(config: Config) -> tuple[Config, bool]:
    """Return the first stage that is not done, or the last one, and whether it is the last."""
    from qexp.commands.train import plan

    chain = stages(config)
    for _ in config.progressive:
        stage = next(chain)
        if plan(stage).run.read_result() is None:
            return stage, False
    return next(chain), True


def _check(config: Config) -> None:
    """Look at every stage's network, by its shapes alone, before the first one takes hours."""
    from qexp.commands.network import check_network

    if not config.quantized:
        raise ConfigError("progressive: without a quantizer there are no bits to lower; take quantizer=lsq, say.")
    source = build(config.dataset)
    for pair in (*config.progressive, (config.bits.weight, config.bits.activation)):
        check_network(_stage(config, pair, None), source)


def _stage(config: Config, pair: tuple[int, int], weights: str | None) -> Config:
    plain = copy.deepcopy(config.plain)
    plain["progressive"] = None
    _follow_bits(plain, pair[0])
    plain["bits"] |= dict(zip(("weight", "activation"), pair, strict=True))
    plain["model"]["weights"] = weights
    if pair == (32, 32):
        plain["quantizer"] = yaml.safe_load((config_dir() / "quantizer" / "none.yaml").read_text(encoding="utf-8"))
        plain["names"] = {**config.names, "quantizer": "none"}
        plain["rounding"] = {"_target_": PLAIN_ROUNDING, "_partial_": True}
        plain["discretisation"] = {"_target_": NO_DISCRETISATION}
        plain |= {"first_last": None, "layers": {}, "gradient_bits": None}
    if config.task.get("distillation"):
        plain["task"]["teacher"] = teacher_weights(config)
    return dataclasses.replace(parse(plain), trainer=config.trainer)


def _follow_bits(plain: dict[str, Any], bits: int) -> None:
    """Give a stage the weight decay that its recipe has for its bits, unless the chain has one of its own."""
    by_bits, optimizer = plain.get("decay_by_bits") or {}, plain["optimizer"]
    last = f"w{plain['bits']['weight']}"
    if f"w{bits}" in by_bits and optimizer.get("weight_decay") == by_bits.get(last):
        optimizer["weight_decay"] = by_bits[f"w{bits}"]
