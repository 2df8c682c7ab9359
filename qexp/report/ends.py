"""Widths as a table tells them: those of most layers, and the rule for the first and the last one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from qexp.bits import parse_bits
from qexp.errors import ConfigError

ABSENT = "–"
"""Shown where a run has no value for a key."""

Ends = tuple[tuple[int | None, ...], ...]
"""Widths (weights, input) of the first and of the last layer; None where the method leaves them in float."""


def bits_label(bits: Mapping[str, Any]) -> str:
    """Return the widths in one word.

    >>> bits_label({"weight": 4, "activation": 8, "first": None, "last": None})
    'w4a8'
    """
    return f"w{bits.get('weight', '?')}a{bits.get('activation', '?')}"


def rule_of(config: Mapping[str, Any]) -> str:
    """Return the rule for both ends: one word, or each end by itself where `bits.first` or `bits.last` is set."""
    rule = config.get("first_last")
    if rule is None:
        rule = node_of(config, "quantizer").get("first_last", ABSENT)
    bits = node_of(config, "bits")
    ends = {end: rule if bits.get(end) is None else bits[end] for end in ("first", "last")}
    texts = {end: bits_label(value) if isinstance(value, Mapping) else str(value) for end, value in ends.items()}
    if texts["first"] == texts["last"]:
        return texts["first"]
    return f"first {texts['first']}, last {texts['last']}"


def told_rule(rule: str, bits: str, ends: Ends | None) -> str:
    """Return the rule, or where the ends have other widths, as a method's for the image, these."""
    if ends is None:
        return rule
    with contextlib.suppress(ConfigError):  # a damaged configuration may hold anything
        if fits(rule, bits, ends):
            return rule
    first, last = (f"w{weight or 32}a{activation or 32}" for weight, activation in ends)
    return first if first == last else f"first {first}, last {'same' if last == bits else last}"


def fits(rule: str, bits: str, ends: Ends) -> bool:
    """Say whether both ends have the widths of a rule; where a method leaves them in float, any rule's."""
    pairs = zip(_rule_widths(rule, bits), ends, strict=True)
    return all(has in (None, asked) for pair in pairs for asked, has in zip(*pair, strict=True))


def ends_of(quantization: Mapping[str, Any]) -> Ends | None:
    """Return the widths of both ends, of a run's identity; None where it does not tell them."""
    bits = quantization.get("bits")
    ends = [end for end in bits[-2:] if isinstance(end, list) and len(end) == 2] if isinstance(bits, list) else []
    return (tuple(ends[0]), tuple(ends[1])) if len(ends) == 2 else None


def _rule_widths(rule: str, bits: str) -> tuple[tuple[int, int], ...]:
    """Return the widths (weights, input) that a rule gives both ends.

    >>> _rule_widths("first 8, last same", "w2a4"), _rule_widths("32", "w2a2")
    (((8, 8), (2, 4)), ((32, 32), (32, 32)))
    """
    first, _, last = rule.removeprefix("first ").partition(", last ")
    return tuple(parse_bits(bits if end == "same" else end, "first_last") for end in (first, last or first))


def node_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a group of the config; a damaged or older one that lacks it gives an empty one."""
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}
