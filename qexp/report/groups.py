"""Runs that differ in nothing but their seed make one group, the unit of every table."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from qexp.errors import ConfigError, did_you_mean
from qexp.report.ends import ABSENT
from qexp.report.facts import CHECKPOINTS, KEYS, SUBJECT, Facts
from qexp.report.intervals import Summary, summarize
from qexp.report.numbers import by_size

# What a float network does not have, and what one method sets otherwise than another.
_FOLLOW_QUANTIZER = (
    "quantizer.",
    "first_last",
    "gradient_",
    "layers",
    "rounding.",
    "alpha_regularization.",
    "calibration.",
    "observer",
    "versions.",
)


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, with one value each of the metric.

    Attributes:
        keys: the values that set this group apart, by table key.
        members: one run per seed.
        values: the metric of each member, in the same order.
    """

    keys: dict[str, str]
    members: tuple[Facts, ...]
    values: tuple[float, ...]

    @property
    def first(self) -> Facts:
        """Any member: they agree in all but the seed."""
        return self.members[0]

    @property
    def summary(self) -> Summary:
        """Mean and interval over the seeds."""
        return summarize(self.values)

    @property
    def by_seed(self) -> dict[int | None, float]:
        """The value of each seed."""
        return {member.seed: value for member, value in zip(self.members, self.values, strict=True)}

    def minus(self, other: Group) -> list[float]:
        """Return its values minus those of `other`, for each seed that both have."""
        base = other.by_seed
        return [value - base[seed] for seed, value in self.by_seed.items() if seed in base]

    def is_as(self, wanted: Mapping[str, str]) -> bool:
        """Say whether its runs have these values, by key."""
        return all(str(self.first.setting(key)) == value for key, value in wanted.items())


def group_runs(
    runs: Sequence[Facts], metric: str, by: Sequence[str] | None = None, also: Sequence[str] = ()
) -> list[Group]:
    """Sort runs into groups.

    Args:
        runs: finished runs whose result holds `metric`.
        metric: its name in the result's metrics.
        by: keys to group by; None groups by `SUBJECT` and by whatever else differs.
        also: further keys to group by, which no run needs to have.

    Returns:
        Groups, the float network first, then by falling bits.

    Raises:
        ConfigError: a key that no run has; with `by`, runs of different recipes in one group; one seed twice.
    """
    if by is None:
        keys = keys_apart(runs)
    else:
        known = {*KEYS, *_all_keys(runs)}
        for key in by:
            if key not in known:
                raise ConfigError(f"--by: '{key}' is no setting of these runs.{did_you_mean(key, known)}")
        keys = list(by)
    keys = list(dict.fromkeys([*keys, *also]))
    groups = []
    for values, members in _split(runs, keys).items():
        _refuse_mixture(members, keys)
        once = _one_per_seed(members, keys)
        numbers = tuple(metric_of(member, metric) for member in once)
        groups.append(Group(dict(zip(keys, values, strict=True)), tuple(once), numbers))
    return sorted(groups, key=_order)


def by_origin(runs: Sequence[Facts]) -> list[Facts]:
    """Return runs whose checkpoints of one seed each stand for the recipe that made them.

    Runs of several seeds that each start from the float run of their own seed are of one recipe; those that all
    start from one network are, too, and that network is told by its digest.
    """
    anywhere: dict[tuple[str, ...], set[int | None]] = {}
    akin: dict[tuple[str, ...], set[int | None]] = {}  # among the runs that differ in nothing else
    digests: dict[tuple[str, ...], set[str]] = {}
    for run in runs:
        for name in CHECKPOINTS:
            digest = str(run.get(name))
            anywhere.setdefault((name, digest), set()).add(run.seed)
            akin.setdefault((name, digest, _kin(run)), set()).add(run.seed)
            digests.setdefault((name, _kin(run)), set()).add(digest)

    def is_own(run: Facts, name: str) -> bool:
        """Whether a checkpoint is that of its seed, not one network for all; a single run goes with the others."""
        digest = str(run.get(name))
        if len(akin[name, digest, _kin(run)]) > 1:
            return False
        return len(digests[name, _kin(run)]) > 1 or len(anywhere[name, digest]) == 1

    found = []
    for run in runs:
        own = {name: f"run {recipe}" for name, recipe in run.origins.items() if is_own(run, name)}
        found.append(dataclasses.replace(run, recipe={**run.recipe, **own}) if own else run)
    return found


def by_ends(runs: Sequence[Facts]) -> list[Facts]:
    """Return runs whose ends have the same widths with one word for their rule: `same` beside 2, at 2 bits."""
    words: dict[tuple[object, ...], set[str]] = {}
    for run in runs:
        words.setdefault((run.subject, run.ends), set()).add(run.first_last)
    found = []
    for run in runs:
        word = min(words[run.subject, run.ends], key=lambda each: (each != "same", each))
        alike = run.ends is None or word == run.first_last
        recipe = {**run.recipe, "first_last": word}
        found.append(run if alike else dataclasses.replace(run, first_last=word, recipe=recipe))
    return found


def _kin(run: Facts) -> str:
    """Return all that a run is but its seed and its checkpoints."""
    rest = sorted((key, repr(value)) for key, value in run.recipe.items() if key not in CHECKPOINTS)
    return repr((run.subject, rest))


def metric_of(member: Facts, metric: str) -> float:
    """Return one metric of a finished run; NaN where the run did not report it."""
    value = metrics_of(member).get(metric)
    return float("nan") if value is None else float(value)


def metrics_of(member: Facts) -> dict[str, float]:
    """Return every number that a finished run reported, and the lowest and highest of its alphas and steps."""
    result = member.run.result or {}
    found = dict(result.get("metrics") or {})
    for name in ("test_accuracy", "calibration_seconds", "train_seconds"):
        if name in result:
            found.setdefault(name, result[name])
    for learned in ("alpha", "step"):
        if values := [v for name, v in found.items() if name.startswith(f"{learned}/") and v is not None]:
            found |= {f"{learned}_lowest": min(values), f"{learned}_highest": max(values)}
    if member.epochs and isinstance(seconds := found.get("train_seconds"), (int, float)):
        found["epoch_seconds"] = seconds / member.epochs
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def differing(members: Iterable[Facts]) -> list[str]:
    """Return the keys in which runs differ, apart from the seed and the numerics.

    What follows from another difference is left out: two quantizers differ in their classes and settings, too, and
    runs of two commands in most of what decides them.
    """
    members = list(members)
    commands = {member.command for member in members}
    if len(commands) > 1:
        of_each = [differing(m for m in members if m.command == command) for command in sorted(commands)]
        return list(dict.fromkeys(["command", *itertools.chain(*of_each)]))
    keys = [*SUBJECT, *dict.fromkeys(key for member in members for key in member.recipe)]
    found = [key for key in keys if len({str(member.get(key)) for member in members}) > 1]
    implied = {
        "quantizer": _FOLLOW_QUANTIZER,
        "model": ("model.", "weights"),
        "dataset": ("dataset.", "data_digest"),
        "observer": ("observer.",),
    }
    prefixes = tuple(prefix for name in found for prefix in implied.get(name, ()))
    return [key for key in found if not key.startswith(prefixes)] if prefixes else found


def keys_apart(runs: Sequence[Facts]) -> list[str]:
    """Return `SUBJECT` and every key that differs inside a group of one subject."""
    keys = list(SUBJECT)
    # Again until nothing differs: two runs of one observer may differ in what their difference to a third implied.
    while found := [key for members in _split(runs, keys).values() for key in differing(members)]:
        keys += dict.fromkeys(found)
    for members in _split(runs, keys).values():
        keys += [key for key in _numerics_behind_a_repeated_seed(members) if key not in keys]
    return keys


def _numerics_behind_a_repeated_seed(members: Sequence[Facts]) -> list[str]:
    """Return the numerics in which two runs of one seed differ: such runs are no independent samples."""
    found = []
    for one, other in itertools.combinations(_distinct(members), 2):
        if one.seed == other.seed:
            found += [key for key in one.numerics if one.get(key) != other.get(key)]
    return list(dict.fromkeys(found))


def _all_keys(runs: Sequence[Facts]) -> set[str]:
    return {key for run in runs for key in (*run.recipe, *run.numerics)}


def _split(runs: Sequence[Facts], keys: Sequence[str]) -> dict[tuple[str, ...], list[Facts]]:
    groups: dict[tuple[str, ...], list[Facts]] = {}
    for run in runs:
        groups.setdefault(tuple(str(run.get(key)) for key in keys), []).append(run)
    return groups


def _refuse_mixture(members: Sequence[Facts], keys: Sequence[str]) -> None:
    """Raise when runs of one group differ in anything but the seed."""
    found = [key for key in differing(members) if key not in keys]
    if not found:
        return
    key = found[0]
    one = members[0]
    other = next(member for member in members if str(member.get(key)) != str(one.get(key)))
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise ConfigError(
        f"runs of different recipes do not mix in one row: {one.run.path.name} has {key}={one.get(key)},"
        f" {other.run.path.name} has {key}={other.get(key)}{more};"
        f" split them with --by {','.join([*keys, *found])}"
    )


def _distinct(members: Sequence[Facts]) -> list[Facts]:
    """Drop copies: a run found twice has the same name, which holds its identity, and the same numbers."""
    found: dict[str, Facts] = {}
    for member in members:
        other = found.setdefault(member.run.path.name, member)
        if (other.run.result or {}).get("metrics") != (member.run.result or {}).get("metrics"):
            raise ConfigError(
                f"one run, made twice with other results: {other.run.path} and {member.run.path}; leave one of"
                " them out"
            )
    return list(found.values())


def _one_per_seed(members: Sequence[Facts], keys: Sequence[str]) -> list[Facts]:
    """Return the members by seed.

    Raises:
        ConfigError: two different runs of one seed, which would count as two samples.
    """
    by_seed: dict[int | None, Facts] = {}
    for member in _distinct(members):
        if member.seed in by_seed:
            other = by_seed[member.seed]
            apart = _numerics_behind_a_repeated_seed([other, member])
            way = f"split them with --by {','.join([*keys, *apart])}" if apart else "leave one of them out"
            raise ConfigError(
                f"two runs of seed {member.seed} in one row are no two samples: {other.run.path} and"
                f" {member.run.path}; {way}"
            )
        by_seed[member.seed] = member
    return [by_seed[seed] for seed in sorted(by_seed, key=lambda seed: (seed is None, seed))]


def _order(group: Group) -> tuple[object, ...]:
    """Sort by model and data set, the float network first, then by falling bits, then by the rest."""
    one = group.first
    widths = [int(digits) for digits in one.bits[1:].split("a") if digits.isdigit()] if "a" in one.bits else [99]
    rest = [by_size(value) for key, value in group.keys.items() if key not in SUBJECT and value != ABSENT]
    return (one.model, one.dataset, not one.is_float, [-width for width in widths], one.quantizer, rest)


def baseline_difference(group: Group, floats: Sequence[Group], apart: Collection[str] = ()) -> Summary | None:
    """Return the group's values minus those of its float baseline, seed by seed; None where there is none.

    Args:
        group: quantized runs.
        floats: where the baseline is looked for: the float run of the same model, data set, recipe and seed.
        apart: settings in which it may differ, where none is the same in all.

    Raises:
        ConfigError: several float networks differ from the group in `apart` alone.
    """
    if group.first.is_float:
        return None
    for without in ((), apart):
        wanted = group.first.baseline_key(without)
        fitting = [one for one in floats if one.first.is_float and one.first.baseline_key(without) == wanted]
        if fitting:
            break
    unlike = {one.first.baseline_key(): one.first.run.path.name for one in fitting}
    if len(unlike) > 1:
        names = " and ".join(list(unlike.values())[:2])
        raise ConfigError(
            f"--float-apart: {names} could both be the float network of {group.first.run.path.name}; leave one of"
            " them out, or name fewer settings."
        )
    differences = differences_from(fitting, group)
    return summarize(differences) if differences else None


def differences_from(baselines: Sequence[Group], group: Group) -> list[float]:
    """Return the group's values minus those of the first baseline that has a seed of it; empty without one.

    Of baselines that differ by rounding alone, those with the group's own arithmetic come first.
    """
    ordered = sorted(baselines, key=lambda one: one.first.numerics != group.first.numerics)
    return next(filter(None, map(group.minus, ordered)), [])
