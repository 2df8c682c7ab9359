"""A sweep as a union of grids, checked whole before its first job starts.

Hydra's own sweeper runs one grid, the product of all comma lists. A paper's table is mostly a union of several:
one float network, two methods at four widths. An experiment lists them under `experiment.grids`, each written as
on the command line: `quantizer=pact,dorefa bits=2,3,4,5`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from qexp.errors import ConfigError, did_you_mean
from qexp.jobs.composition import decode_overrides, encode_override

Launch = Callable[[list[list[str]], int], Sequence[Any]]
"""Starts jobs, given their overrides and the number of the first, and returns what came of each."""


def sweep(jobs: Sequence[list[str]], launch: Launch, most: int | None) -> list[Any]:
    """Launch all jobs, at most `most` at a time (None: all at once), and return what came of each.

    Raises:
        ConfigError: `most` is below 1.
    """
    if most is not None and most < 1:
        raise ConfigError(f"hydra.sweeper.max_batch_size={most}: null, or how many jobs a batch has, 1 or more.")
    found: list[Any] = []
    for start in range(0, len(jobs), most or max(len(jobs), 1)):
        found += launch(list(jobs[start : start + most] if most else jobs), start)
    return found


def expand(
    grids: Sequence[str], params: Mapping[str, str], typed: Sequence[str], configs: ConfigLoader | None = None
) -> list[list[str]]:
    """Return the overrides of each job of a sweep.

    Args:
        grids: as under `experiment.grids`; without any there is one, of `params` and what was typed.
        params: as `hydra.sweeper.params`, shared by all grids.
        typed: the overrides of the command line; `narrowed` says how they act on the grids.
        configs: knows the options that a `glob(...)` picks from; None where no group is swept by one.
    """
    shared = _grid([f"{key}={value}" for key, value in params.items()], configs)
    listed = [{**shared, **parse_grid(text, configs)} for text in grids or [""]]
    return union(narrowed(listed, _grid(typed, configs)))


Grid = dict[str, list[str]]
"""Values by key, both as typed (`++key`, `bits`)."""


def values(override: Override) -> list[str]:
    """Return the values that an override sweeps, or its only one.

    Raises:
        ConfigError: a sweep without an end (`interval`), which only a search could run, or without any value (a
            `glob` that no option fits).
    """
    if not override.is_sweep_override():
        return [_plain(override.get_value_element_as_str())]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: an interval has no end of values; list them with commas.")
    found = list(map(_plain, override.sweep_string_iterator()))
    if not found:
        raise ConfigError(f"{decode_overrides([str(override.input_line)])}: {_nothing_to_pick(override)}")
    return found


def _nothing_to_pick(override: Override) -> str:
    """Say why a `glob` has no values, and what to type instead."""
    group, configs = override.key_or_group, override.config_loader
    options = configs.get_group_options(group) if configs else []
    if not options:
        return f"glob picks from a group's options, and '{group}' is no group; list its values with commas."
    return f"no option of the group '{group}' fits.{did_you_mean('', options)}"


def _plain(value: str) -> str:
    """Drop the quotes of a single word: `bits='4'` and `bits=4` are one choice."""
    inner = value[1:-1]
    return inner if value == f"'{inner}'" and inner.isalnum() else value


def parse_grid(text: str, configs: ConfigLoader | None = None) -> Grid:
    """Return a grid written as on the command line; its words are parted by spaces.

    >>> parse_grid("quantizer=pact,dorefa seed=0")
    {'quantizer': ['pact', 'dorefa'], 'seed': ['0']}

    Raises:
        ConfigError: a word without `=`, one key twice.
    """
    words = text.split()
    for word in words:
        if "=" not in word:
            raise ConfigError(f"experiment.grids: '{word}' in '{text}' is no key=value.")
    grid = _grid([encode_override(word) for word in words], configs)
    if len(grid) < len(words):
        raise ConfigError(f"experiment.grids: a key stands twice in '{text}'.")
    return grid


def _grid(overrides: Sequence[str], configs: ConfigLoader | None) -> Grid:
    """Return the values of each override by its key; of a key that stands twice the last one counts."""
    parsed = OverridesParser.create(configs).parse_overrides(list(overrides))
    return {override.get_key_element(): values(override) for override in parsed}


def narrowed(grids: Sequence[Grid], typed: Grid) -> list[Grid]:
    """Return the grids as the command line leaves them.

    A typed key picks from the values that the grids list (`recipe=pact/svhn` leaves that row of a table): a grid
    that lists none of the typed values is left out. Values that no grid lists are run by those that stay; where
    none would, they take the place of what was listed, but not of one grid's own `null`, which says that it goes
    without. Grids that do not list the key get what was typed, where it means something to them; `left_out` says
    which jobs are without it.

    >>> narrowed([{"quantizer": ["none"]}, {"quantizer": ["pact"], "bits": ["2", "4"]}], {"bits": ["4"]})
    [{'quantizer': ['none']}, {'quantizer': ['pact'], 'bits': ['4']}]
    """
    new = [key for key in typed if not any(key in grid for grid in grids)]
    for key, wanted in sorted(typed.items(), key=lambda item: "." in item[0]):  # options before their settings
        listing = [grid for grid in grids if key in grid]
        listed = {value for grid in listing for value in grid[key]}
        picks = bool(listed.intersection(wanted))
        alone = ["null"] if listed != {"null"} or len(listing) < len(grids) else None
        found = []
        for grid in grids:
            if key not in grid:
                values = wanted if not listing or _has(grid, key, listing) else []
                found.append({**grid, key: values} if values else grid)
            elif not picks:
                found.append(grid if grid[key] == alone else {**grid, key: wanted})
            elif chosen := _chosen(grid[key], wanted, listed):
                found.append({**grid, key: chosen})
        grids = found
    # What is new comes last, in the order in which it was typed.
    return [
        {key: grid[key] for key in [*(key for key in grid if key not in new), *new] if key in grid}
        for grid in grids
    ]


def _has(grid: Grid, key: str, listing: Sequence[Grid]) -> bool:
    """Say whether a setting that other grids list means something to this one.

    The settings of an option (`rounding.k`) are only those of grids that may choose it, too.
    """
    group, _, setting = key.partition(".")
    if _is_without(grid.get("quantizer"), key):
        return False
    options = {option for other in listing for option in other.get(group, [""])}
    return not setting or not options.isdisjoint(grid.get(group, [""]))


def _is_without(quantizers: Sequence[str] | None, key: str) -> bool:
    """Say whether a setting is one of quantization, which a float network does not have."""
    return quantizers == ["none"] and key.partition(".")[0] in ("bits", "quantizer") and key != "quantizer"


def left_out(
    jobs: Sequence[Sequence[str]], typed: Sequence[str], configs: ConfigLoader | None = None
) -> list[str]:
    """Return a line for each typed setting that jobs of the sweep are without, for `narrowed` left them theirs.

    Settings of quantization beside `quantizer=none` are not told: they have no effect.

    >>> left_out([["quantizer=none", "model.weights=null"], ["bits=2", "model.weights=a"]], ["model.weights=a"])
    ['model.weights=a: not in 1 of 2 jobs, of model.weights=null']
    """
    lines = []
    for key, wanted in _grid(typed, configs).items():
        without: Counter[str] = Counter()
        for job in jobs:
            words = dict(word.split("=", 1) for word in job)
            if words.get(key) not in wanted and not _is_without([words.get("quantizer", "")], key):
                group = key if key in words else key.partition(".")[0]
                without[f"{group}={words[group]}" if group in words else f"another {group}"] += 1
        lines += [
            f"{key}={','.join(wanted)}: not in {count} of {len(jobs)} jobs, of {word}"
            for word, count in without.items()
        ]
    return lines


def _chosen(of_grid: Sequence[str], wanted: Sequence[str], listed: Collection[str]) -> list[str]:
    if not set(of_grid).intersection(wanted):
        return []
    return [value for value in wanted if value in of_grid or value not in listed]


def union(grids: Sequence[Grid]) -> list[list[str]]:
    """Return the jobs of all grids in order, each once: every combination of a grid's values.

    >>> union([{"a": ["1", "2"]}, {"a": ["2"], "b": ["3"]}, {"a": ["1"]}])
    [['a=1'], ['a=2'], ['a=2', 'b=3']]
    """
    jobs: dict[frozenset[str], list[str]] = {}  # one job may come from two grids, in another order of words
    for grid in grids:
        words = [[f"{key}={value}" for value in listed] for key, listed in grid.items()]
        for job in itertools.product(*words):
            jobs.setdefault(frozenset(job), list(job))
    return list(jobs.values())
