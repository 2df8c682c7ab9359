"""Numbers as a page prints them: 76.10 has four digits, which a float alone would forget."""

from __future__ import annotations

from typing import Any

import yaml


class Printed(float):
    """A number that remembers its characters."""

    characters: str


def characters(number: float) -> str:
    """Return a number's characters where it remembers them, else the fewest that give it back.

    >>> characters(read("76.10")), characters(76.10)
    ('76.10', '76.1')
    """
    return getattr(number, "characters", str(number))


class _Loader(yaml.SafeLoader):
    def printed(self, node: yaml.ScalarNode) -> Printed:
        number = Printed(self.construct_yaml_float(node))
        number.characters = str(node.value)
        return number


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.printed)


def read(text: str) -> Any:
    """Return what YAML holds, as `yaml.safe_load` does, its numbers with their characters."""
    return yaml.load(text, _Loader)
