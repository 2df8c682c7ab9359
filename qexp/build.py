"""From a configuration node to an object: the only reader of `_target_`, and it reads names of qexp alone.

A configuration file may come from somebody else. What it can name is what is defined in the part of `qexp` that
its key is for, or in a package that the user named on this command line (`--plugin NAME`) or in `QEXP_PLUGINS`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qexp.arguments import check_arguments
from qexp.errors import ConfigError, did_you_mean

PLUGINS_VARIABLE = "QEXP_PLUGINS"
"""Names of packages, separated by commas. `--plugin` adds to it, so that a sweep's workers see the same."""

_RESERVED = ("_target_", "_partial_")

_ROLES = {
    "task": "qexp.lit.task",
    "dataset": "qexp.data",
    "model": "qexp.models",
    "rounding": "qexp.ops.rounding",
    "discretisation": "qexp.ops.discretisation",
    "optimizer": "qexp.lit.optimizers",
    "schedule": "qexp.lit.schedules",
    "logger": "qexp.lit.loggers",
    "quantizer": "qexp.quantizers",
    "observer": "qexp.calibration",
    "layers": "qexp.quantizers",
}
"""Top key of a configuration -> where its targets live. qexp also has functions that write files or add plugins:
those are nobody's target."""


def plugins() -> tuple[str, ...]:
    """Return the packages that the user named."""
    return tuple(name.strip() for name in os.environ.get(PLUGINS_VARIABLE, "").split(",") if name.strip())


def check_target(name: object, packages: Collection[str] = tuple(_ROLES.values())) -> None:
    """Refuse a `_target_` whose dotted name is outside `packages` and the plugins; nothing is imported.

    Raises:
        ConfigError: names the target and the way to allow a package of one's own.
    """
    parts = name.split(".") if isinstance(name, str) else []
    well_formed = len(parts) > 1 and all(part.isidentifier() and not part.startswith("_") for part in parts)
    if not well_formed or not _is_inside(".".join(parts[:-1]), packages):
        where = ", ".join(sorted({*packages, *plugins()}))
        raise ConfigError(
            f"_target_={name}: refused, only what is defined in {where} is built here. "
            "For a package of your own: --plugin NAME."
        )


def check_targets(plain: Mapping[str, Any]) -> None:
    """Refuse a configuration that holds, at any depth, a `_target_` outside the part its top key is for."""
    for key, node in plain.items():
        for name in _target_names(node):
            check_target(name, (_ROLES[key],) if key in _ROLES else ())


def _target_names(node: object) -> Iterator[object]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from _target_names(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _target_names(value)


def locate(name: str) -> Callable[..., Any]:
    """Return the class or function called `name`.

    Raises:
        ConfigError: it is outside the allowed packages, it does not exist, it is neither class nor function, or it
            is defined elsewhere and merely imported there.
    """
    check_target(name)
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"_target_={name}: there is no module {error.name}.") from None
        raise
    if not hasattr(module, attribute):
        known = [key for key, value in vars(module).items() if _is_defined(value, module_name)]
        raise ConfigError(f"_target_={name}: {module_name} has no '{attribute}'.{did_you_mean(attribute, known)}")
    found = getattr(module, attribute)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise ConfigError(f"_target_={name}: refused, it is neither a class nor a function.")
    if not _is_inside(found.__module__, ("qexp",)):
        raise ConfigError(f"_target_={name}: refused, it is defined in {found.__module__}, outside qexp.")
    return found


def build(node: Mapping[str, Any], **extra: object) -> Any:
    """Build what `node` describes: call its `_target_` with its other keys and `extra`.

    With `_partial_: true` return the target itself, its arguments bound, instead. Values are passed as they are; a
    nested node is the business of whoever receives it.

    Raises:
        ConfigError: as `locate`; an argument that is unknown, missing, or of another type than the target's.

    >>> build({"_target_": "qexp.lit.schedules.constant"})(0.5)
    1.0
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{node!r}: nothing to build, a _target_ is missing.")
    target = locate(node["_target_"])
    given = {str(key): value for key, value in node.items() if key not in _RESERVED and key not in extra}
    partial = bool(node.get("_partial_", False))
    path = _path_of(node["_target_"])
    check_arguments(node["_target_"], target, given, extra, partial=partial, path=path)
    if not partial:
        return target(**given, **extra)
    # The function itself where nothing is bound: whoever receives it may ask which one it is.
    return functools.partial(target, **given, **extra) if given or extra else target


def _path_of(name: str) -> str:
    """Return the key of a configuration that builds targets like `name`; "" where several do."""
    keys = [key for key, package in _ROLES.items() if name.startswith(f"{package}.")]
    return keys[0] if len(keys) == 1 and keys[0] != "logger" else ""


def _is_inside(module: str, packages: Collection[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in (*packages, *plugins()))


def _is_defined(value: object, module: str) -> bool:
    return getattr(value, "__module__", None) == module and callable(value)


def add_plugin(name: str, folders: Iterable[Path] = ()) -> None:
    """Allow the package `name`, in this process and in those it starts.

    Args:
        folders: where to look when it is not installed; the one that holds it joins the import path.

    Raises:
        ConfigError: there is no such package.
    """
    if not name.isidentifier() or name in sys.builtin_module_names or name in sys.stdlib_module_names:
        raise ConfigError(f"--plugin {name}: not the name of a package of yours.")
    if importlib.util.find_spec(name) is None:
        holder = next(
            (path for path in folders if (path / name).is_dir() or (path / f"{name}.py").is_file()), None
        )
        if holder is None:
            raise ConfigError(f"--plugin {name}: no such Python package, installed or in this folder.")
        sys.path.append(str(holder.resolve()))
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (inherited, str(holder.resolve()))))
    if name not in plugins():
        os.environ[PLUGINS_VARIABLE] = ",".join((*plugins(), name))
