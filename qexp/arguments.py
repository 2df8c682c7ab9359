"""Checks a node's values against the types in the target's own signature, before it is called."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Union

from qexp.errors import ConfigError, did_you_mean

_UNIONS = (Union, types.UnionType)
_SEQUENCES = (list, tuple, Sequence)


def check_arguments(
    name: str,
    target: Callable[..., Any],
    given: Mapping[str, Any],
    extra: Collection[str] = (),
    *,
    partial: bool = False,
    path: str = "",
) -> None:
    """Compare what a configuration gives with what `target` takes.

    Args:
        name: the target's dotted name, for the messages.
        given: arguments from the configuration; their types are checked as far as the signature states them.
        extra: names of further arguments that the caller brings.
        partial: whether what is missing may come later.
        path: the node's own name in the configuration (`optimizer`); "" when it is not known.

    Raises:
        ConfigError: an argument that is unknown or missing, or of another type; it names the value and the rule.
    """
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # a class whose constructor is written in C shows none
        return
    named = [
        key for key, value in parameters.items() if value.kind in (value.POSITIONAL_OR_KEYWORD, value.KEYWORD_ONLY)
    ]
    if not any(value.kind is value.VAR_KEYWORD for value in parameters.values()):
        unknown = [key for key in (*given, *extra) if key not in named]
        if unknown:
            if unknown[0] in extra:  # a class of the user's own
                raise ConfigError(f"{name} takes no '{unknown[0]}': it is called with {', '.join(extra)} too.")
            away = " ".join(f"~{path}.{key}" for key in unknown if path and key in given)
            raise ConfigError(
                f"{name} takes no {', '.join(map(repr, unknown))}.{did_you_mean(unknown[0], named)}"
                + (f" What a recipe set for another {path}: {away} takes it away." if away else "")
            )
    missing = [
        key
        for key in named
        if parameters[key].default is inspect.Parameter.empty and key not in given and key not in extra
    ]
    if missing and not partial:
        raise ConfigError(f"{name} needs {', '.join(missing)}: set it in its configuration.")
    hints = _hints(target)
    for key, value in given.items():
        if key in hints and not fits(value, hints[key]):
            where = f"{path}.{key}" if path else f"{name.rpartition('.')[2]}: {key}"
            raise ConfigError(f"{where}={typed(value)}: it has to be {rule(hints[key])}.")


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # a plugin's own types, imported for its type checker alone
        return {}


def fits(value: object, hint: Any) -> bool:
    """Return whether a configuration's `value` can be passed for `hint`; a type of another kind takes anything.

    >>> fits(1, float), fits("abc", float), fits(None, int | None), fits([1, "x"], Sequence[int])
    (True, False, True, False)
    """
    origin = typing.get_origin(hint)
    if origin in _UNIONS:
        return any(fits(value, option) for option in typing.get_args(hint))
    if origin is Literal:
        return any(type(option) is type(value) and option == value for option in typing.get_args(hint))
    if origin in _SEQUENCES:
        entries = [option for option in typing.get_args(hint) if option is not Ellipsis]
        one = entries[0] if len(set(entries)) == 1 else Any
        return isinstance(value, (list, tuple)) and all(fits(entry, one) for entry in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    return True


def rule(hint: Any) -> str:
    """Return in words what fits `hint`.

    >>> rule(float), rule(Sequence[int] | None)
    ('a finite number', 'a list (each a whole number) or null')
    """
    origin = typing.get_origin(hint)
    if origin in _UNIONS:
        return " or ".join(rule(option) for option in typing.get_args(hint))
    if origin is Literal:
        return "one of " + ", ".join(typed(option) for option in typing.get_args(hint))
    if origin in _SEQUENCES:
        entries = {option for option in typing.get_args(hint) if option is not Ellipsis}
        return f"a list (each {rule(entries.pop())})" if len(entries) == 1 else "a list"
    words = {
        float: "a finite number",
        int: "a whole number",
        bool: "true or false",
        str: "a text",
        type(None): "null",
    }
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def typed(value: object) -> str:
    """Return a value as one writes it in a configuration: null, true, false.

    >>> typed(None), typed([True, 1])
    ('null', '[true, 1]')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(typed(entry) for entry in value)}]"
    return str(value)
