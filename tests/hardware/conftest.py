from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from qexp.commands.cost import layer_list
from qexp.hardware.system import Layer

from ..composing import configured


@pytest.fixture(scope="session")
def layers_of() -> Callable[[str], list[Layer]]:
    """Return the layers of a model by its name, as the command reads them."""

    @cache
    def layers(model: str) -> list[Layer]:
        found, _ = layer_list(configured(f"model={model}", "quantizer=none", command="explain"))
        return found

    return layers
