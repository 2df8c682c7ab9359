"""Hydra's and OmegaConf's exceptions in a line that a user can act on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from qexp.bits import RULE
from qexp.errors import ConfigError, did_you_mean
from qexp.jobs.composition import LAYERS_RULE, QexpLoader, decode_overrides, decode_pattern
from qexp.published import artefact_names

_NO_KEY = re.compile(r"Could not override '(?P<key>[^']+)'\.\s*(No match in the defaults list)?")
_NO_GROUP = re.compile(r"config group '(?P<key>[^']+)' does not exist")


def one_line(error: Exception, loader: QexpLoader, command: str, overrides: Sequence[str]) -> str:
    """Return what was wrong, in the user's own words and with the nearest real name.

    Args:
        error: from Hydra, OmegaConf or the YAML parser.
        loader: knows the names that exist.
        command: the name of the primary configuration.
        overrides: the command line's `key=value`, encoded; all unknown keys in it are reported at once.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error.missing_cfg_file, loader)
    if isinstance(error, OverrideParseException):
        shown = decode_overrides([error.override])
        if shown.lstrip("+~").startswith("layers."):
            return f"cannot read '{shown}': {LAYERS_RULE}."
        return f"cannot read '{shown}': write key=value, and quote what the shell or Hydra would interpret."
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem})."
    text = str(error)
    if _NO_KEY.match(text) or _NO_GROUP.search(text):
        return "\n".join(_unknown_keys(loader, command, overrides)) or _flat(error)
    if text.startswith("Ambiguous value"):
        line = decode_overrides([text.split("'")[1]])
        return f"{line} gives several values: add -m to run one job for each, or write [...] for a list."
    return _flat(error)


def _missing_option(config_path: str, loader: QexpLoader) -> str:
    group, _, name = config_path.removesuffix(".yaml").rpartition("/")
    if group == "bits":
        return f"bits={name}: {RULE}."
    top = group if group.startswith("hydra") else group.partition("/")[0]
    if not loader.repository.group_exists(top):
        return f"unknown group '{group}'.{did_you_mean(group, _groups(loader))}"
    typed = config_path.removesuffix(".yaml").removeprefix(f"{top}/")
    if top == "experiment" and typed in artefact_names():
        return f"experiment={typed}: no run is made for it. `qexp table {typed}` has its numbers and says more."
    return f"unknown {top} '{typed}'.{did_you_mean(typed, _options(loader, top))}"


def _options(loader: QexpLoader, group: str) -> Iterator[str]:
    """Yield the options of `group`, those in its folders too (`pact/fig8`)."""
    yield from loader.repository.get_group_options(group)
    for folder in loader.repository.get_group_options(group, ObjectType.GROUP):
        yield from (f"{folder}/{option}" for option in _options(loader, f"{group}/{folder}"))


def _unknown_keys(loader: QexpLoader, command: str, overrides: Sequence[str]) -> list[str]:
    """Drop one override after the other that names nothing, and say so of each."""
    left, messages = list(overrides), []
    for _ in overrides:
        try:
            loader.load_configuration(command, left, RunMode.MULTIRUN, validate_sweep_overrides=False)
            break
        except (HydraException, OmegaConfBaseException) as error:
            match = _NO_KEY.match(str(error)) or _NO_GROUP.search(str(error))
            wrong = [item for item in left if match and item.split("=")[0].lstrip("+~") == match["key"]]
            if not match or not wrong:
                break
            left = [item for item in left if item not in wrong]
            messages.append(match["key"])
    known = _known_names(loader, command, left)
    return [_unknown(loader, command, key, known) for key in messages]


def _unknown(loader: QexpLoader, command: str, key: str, known: list[str]) -> str:
    if key in _groups(loader):
        return f"'{key}' is nothing that qexp {command} takes: `qexp {command} --help` has what there is."
    return f"unknown key '{decode_pattern(key)}'.{_nearest(key, known)}"


def _nearest(key: str, known: list[str]) -> str:
    """Return the nearest name: of the same depth first, then by its last part."""
    said = did_you_mean(key, known)
    if said.startswith(" Did"):
        return said
    tails = {name.rpartition(".")[2]: name for name in reversed(known)}
    said = did_you_mean(key.rpartition(".")[2], tails)
    if said.startswith(" Did"):
        return f" Did you mean '{tails[said.split(chr(39))[1]]}'?"
    return " `--cfg job` prints all keys."


def _known_names(loader: QexpLoader, command: str, overrides: Sequence[str]) -> list[str]:
    try:
        config = loader.load_configuration(
            command, list(overrides), RunMode.MULTIRUN, validate_sweep_overrides=False
        )
    except (HydraException, OmegaConfBaseException, ConfigError):
        return _groups(loader)
    plain: Any = OmegaConf.to_container(config, resolve=False)
    plain.pop("hydra", None)
    return [*_groups(loader), *_keys(plain, "")]


def _keys(node: object, path: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if not str(key).startswith("_"):
                name = f"{path}.{key}" if path else str(key)
                yield name
                yield from _keys(value, name)


def _groups(loader: QexpLoader) -> list[str]:
    found = loader.repository.get_group_options("", ObjectType.GROUP)
    return sorted({"bits", *(group for group in found if group != "hydra")})


def _flat(error: BaseException) -> str:
    """Return an exception and its causes as one line, without Hydra's hints on its own notation."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        lines = [line.strip() for line in str(seen).splitlines() if line.strip()]
        parts += [line for line in lines[:2] if not line.startswith(("full_key", "object_type", "See http"))]
        seen = seen.__cause__ if isinstance(seen, ConfigCompositionException) else None
    return ": ".join(dict.fromkeys(part.rstrip(":.") for part in parts)) or type(error).__name__
