"""Typed look-ups in plain containers that collect every mistake instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from qexp.arguments import typed
from qexp.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Reader:
    """Reads one mapping of a configuration; `errors` is shared by the readers of all of them.

    Args:
        node: the mapping; anything else is one error.
        path: its dotted name, for the messages.
        errors: where they go.
        known: the keys it may have; None if any.
    """

    def __init__(self, node: object, path: str, errors: list[str], known: Collection[str] | None = None) -> None:
        self.path = path
        self.errors = errors
        self.node: Mapping[str, Any] = node if isinstance(node, Mapping) else {}
        self.ok = isinstance(node, Mapping)
        if not self.ok:
            errors.append(f"{path}={typed(node)}: it has to be a group of keys.")
        for key in self.node:
            if known is not None and key not in known:
                names_here = [self.name(name) for name in known]
                errors.append(f"unknown key '{self.name(key)}'.{did_you_mean(self.name(key), names_here)}")

    def name(self, key: object) -> str:
        """Return the dotted name of `key`, as one types it."""
        return f"{self.path}.{key}" if self.path else str(key)

    def get(self, key: str, default: T, convert: Callable[[Any], T], rule: str) -> T:
        """Return `convert(value)`; a value it rejects (ValueError, TypeError) is an error that states `rule`."""
        if key not in self.node:
            if self.ok:
                self.errors.append(f"{self.name(key)} is missing: {rule}.")
            return default
        try:
            return convert(self.node[key])
        except ConfigError as error:
            self.errors.append(str(error))
        except (TypeError, ValueError):
            self.errors.append(f"{self.name(key)}={typed(self.node[key])}: {rule}.")
        return default

    def integer(self, key: str, least: int, most: int | None = None) -> int:
        """Return a whole number from `least` to `most` (None: without end)."""
        rule = f"a whole number, at least {least}" + ("" if most is None else f", at most {most}")
        return self.get(key, least, lambda value: whole(value, least, most), rule)

    def optional_integer(self, key: str, least: int) -> int | None:
        """Return a whole number that is at least `least`, or None."""
        rule = f"null, or a whole number, at least {least}"
        return self.get(key, None, lambda value: None if value is None else whole(value, least), rule)

    def boolean(self, key: str) -> bool:
        """Return true or false."""
        return self.choice(key, (True, False))

    def choice(self, key: str, options: tuple[T, ...]) -> T:
        """Return one of `options`."""
        return self.get(key, options[0], lambda value: one_of(value, options), "one of " + names(options))

    def text(self, key: str) -> str:
        """Return a text that is not empty."""
        return self.get(key, "", nonempty, "a text")

    def optional_text(self, key: str) -> str | None:
        """Return a text that is not empty, or None."""
        return self.get(key, None, lambda value: None if value is None else nonempty(value), "null, or a text")

    def target(self, key: str) -> dict[str, Any]:
        """Return a node that says by `_target_` what to build."""
        return self.get(key, {}, with_target, "a group of keys with a _target_")


def whole(value: Any, least: int, most: int | None = None) -> int:
    """Return `value` as an int from `least` to `most`, or raise ValueError (a bool is no number)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise ValueError(value)
    if value != int(value) or (most is not None and value > most):
        raise ValueError(value)
    return int(value)


def finite(value: Any, least: float) -> float:
    """Return `value` as a finite float of at least `least`, or raise ValueError."""
    if isinstance(value, (bool, str)) or not least <= value < float("inf"):
        raise ValueError(value)
    return float(value)


def one_of(value: Any, options: tuple[T, ...]) -> T:
    """Return the entry of `options` that equals `value` (0 is not False), or raise ValueError."""
    for option in options:
        if type(option) is type(value) and option == value:
            return option
    raise ValueError(value)


def nonempty(value: Any) -> str:
    """Return `value`, a text with at least one character, or raise ValueError."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(value)
    return value


def with_target(value: Any) -> dict[str, Any]:
    """Return `value`, a mapping with a `_target_`, or raise ValueError."""
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        raise ValueError(value)
    return dict(value)


def names(options: Collection[object]) -> str:
    """Return options as one types them: `auto, true, false`."""
    return ", ".join(map(typed, options))
