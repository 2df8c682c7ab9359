"""Each row of a table against one method's: the difference seed by seed, and a paired t-test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr

from qexp.errors import ConfigError
from qexp.report.groups import Group
from qexp.report.intervals import LEAST, Summary, summarize
from qexp.report.numbers import change_text


@dataclass(frozen=True)
class Paired:
    """The differences over the seeds that both groups have, and the two-sided p of a paired t-test.

    `p` is None below three seeds, and where all differences are alike.
    """

    summary: Summary
    p: float | None


def parse_against(text: str) -> dict[str, str]:
    """Read `lsq`, or `quantizer=lsq,rounding._target_=...`.

    >>> parse_against("lsq")
    {'quantizer': 'lsq'}
    """
    if "=" not in text:
        return {"quantizer": text}
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key and sign and value for key, sign, value in pairs):
        raise ConfigError(f"--against {text}: a quantizer's name, or KEY=VALUE with commas.")
    return {key.strip(): value.strip() for key, _, value in pairs}


def partner(group: Group, groups: Sequence[Group], wanted: Mapping[str, str]) -> Group | None:
    """Return the group to compare `group` with: as `wanted`, of the same bits, network and recipe.

    None for the float network, where there is no such group, and for that group itself.

    Raises:
        ConfigError: several groups are as `wanted`.
    """
    if group.first.is_float:
        return None
    key = group.first.baseline_key()
    found = [
        other
        for other in groups
        if other.is_as(wanted) and other.first.bits == group.first.bits and other.first.baseline_key() == key
    ]
    if len(found) > 1:
        names = " and ".join(other.first.run.path.name for other in found[:2])
        apart = ",".join(f"{name}={value}" for name, value in wanted.items())
        raise ConfigError(f"--against {apart}: {names} are both; add KEY=VALUE that sets one of them apart.")
    return found[0] if found and found[0] is not group else None


def paired(group: Group, other: Group) -> Paired | None:
    """Return the paired comparison; None without a common seed.

    The p-value is that of |mean| / (s / sqrt(n)) under Student's t with n - 1 degrees of freedom.
    """
    differences = group.minus(other)
    if not differences:
        return None
    summary = summarize(differences)
    spread = statistics.stdev(differences) if len(differences) >= LEAST else 0.0
    # Equal differences of decimal numbers are a last place of a binary one apart.
    if spread <= 1e-9 * max(map(abs, (*group.values, *other.values))):
        return Paired(summary, None)
    t = abs(summary.mean) / (spread / math.sqrt(summary.n))
    return Paired(summary, float(2 * stdtr(summary.n - 1, -t)))


def paired_text(found: Paired, metric: str, n: int) -> str:
    """Return a cell: the mean difference, half the interval, p, and how many pairs, where not all `n` runs."""
    told = [] if found.p is None else [f"p = {found.p:.2g}"]
    told += [] if found.summary.n == n else [f"n = {found.summary.n}"]
    text = change_text(found.summary, metric)
    return f"{text} ({', '.join(told)})" if told else text
