"""Learning-rate schedules: pure functions from a run's progress to a factor on the learning rate.

Each name here makes a `Schedule`: it maps progress (0 at the first step, 1 at the run's end) to a factor. Lengths
are shares of the run, so a recipe written for 200 epochs keeps its shape on a run of 30; a warm-up's are epochs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from qexp.errors import ConfigError

Schedule = Callable[[float], float]
"""Progress in [0, 1] to the factor on the learning rate."""


def constant(*, warmup_epochs: float = 0.0, epochs: int = 1) -> Schedule:
    """The learning rate stays what it is.

    >>> constant()(0.7)
    1.0
    """
    return _with_warmup(lambda progress: 1.0, warmup_epochs, epochs)


def multistep(
    *, milestones: Sequence[float], of: float, factor: float = 0.1, warmup_epochs: float = 0.0, epochs: int = 1
) -> Schedule:
    """The learning rate is multiplied by `factor` at each milestone.

    Args:
        milestones: epochs of the original recipe.
        of: the original recipe's length in epochs; the milestones scale with the run.
        factor: what each milestone multiplies by.
        warmup_epochs: epochs of this run over which the rate rises linearly from zero.
        epochs: this run's length.

    Raises:
        ConfigError: milestones that do not rise between 0 and `of`.

    >>> schedule = multistep(milestones=[60, 120], of=200, factor=0.1)
    >>> [round(schedule(progress), 4) for progress in (0.0, 0.29, 0.3, 0.6)]
    [1.0, 1.0, 0.1, 0.01]
    """
    shares = [milestone / of for milestone in milestones] if of > 0 else [-1.0]
    if shares != sorted(shares) or any(not 0.0 < share <= 1.0 for share in shares):
        raise ConfigError(
            f"schedule.milestones={list(milestones)}: they must rise and lie between 0 and schedule.of={of}."
        )
    _refuse_negative("factor", factor)
    return _with_warmup(lambda progress: factor ** bisect_right(shares, progress), warmup_epochs, epochs)


def step(*, every: float, of: float, factor: float = 0.1, warmup_epochs: float = 0.0, epochs: int = 1) -> Schedule:
    """The learning rate is multiplied by `factor` every `every` epochs of a recipe that is `of` epochs long.

    >>> round(step(every=30, of=90)(0.5), 6)
    0.1
    """
    if not 0 < every <= of:
        raise ConfigError(f"schedule.every={every}: it must lie between 0 and schedule.of={of}.")
    count = math.ceil(of / every) - 1
    milestones = [every * (index + 1) for index in range(count)]
    return multistep(milestones=milestones, of=of, factor=factor, warmup_epochs=warmup_epochs, epochs=epochs)


def cosine(*, final: float = 0.0, warmup_epochs: float = 0.0, epochs: int = 1) -> Schedule:
    """Half a cosine from 1 down to `final` (Loshchilov and Hutter 2017, equation 5, one cycle).

    >>> [round(cosine()(progress), 3) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    _refuse_negative("final", final)
    return _with_warmup(lambda progress: _anneal(1.0, final, progress), warmup_epochs, epochs)


def exponential(*, final: float = 1e-4, warmup_epochs: float = 0.0, epochs: int = 1) -> Schedule:
    """From 1 down to `final`, by the same factor in equal times.

    Raises:
        ConfigError: `final` is not above zero.

    >>> [round(exponential(final=0.01)(progress), 3) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.1, 0.01]
    """
    if not final > 0:
        raise ConfigError(f"schedule.final={final}: a factor above 0 on the learning rate.")
    return _with_warmup(lambda progress: final**progress, warmup_epochs, epochs)


def onecycle(*, rise: float = 0.3, start: float = 0.04, final: float = 1e-4, epochs: int = 1) -> Schedule:
    """Up from `start` to 1 over the share `rise`, then down to `final`, both along half a cosine.

    Smith and Topin 2018. `epochs` is accepted so that every schedule is made alike.

    >>> [round(onecycle()(progress), 4) for progress in (0.0, 0.3, 1.0)]
    [0.04, 1.0, 0.0001]
    """
    if not 0.0 < rise < 1.0:
        raise ConfigError(f"schedule.rise={rise}: it must lie between 0 and 1.")
    _refuse_negative("start", start)
    _refuse_negative("final", final)

    def factor(progress: float) -> float:
        if progress < rise:
            return _anneal(start, 1.0, progress / rise)
        return _anneal(1.0, final, (progress - rise) / (1.0 - rise))

    return factor


def _anneal(first: float, last: float, share: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * share))


def _with_warmup(schedule: Schedule, warmup_epochs: float, epochs: int) -> Schedule:
    if not 0 <= warmup_epochs < max(epochs, 1):
        raise ConfigError(
            f"schedule.warmup_epochs={warmup_epochs}: it must be at least 0 and below epochs={epochs}."
        )
    share = warmup_epochs / max(epochs, 1)
    if share == 0.0:
        return schedule
    return lambda progress: min(progress / share, 1.0) * schedule(progress)


def _refuse_negative(key: str, value: float) -> None:
    if value < 0.0:
        raise ConfigError(f"schedule.{key}={value}: a factor on the learning rate is 0 or more.")
