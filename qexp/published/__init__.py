"""The papers' numbers as data files, each cell with its source."""

from __future__ import annotations

from qexp.published.cells import (
    NO_JUDGES,
    TO_FRACTION,
    Artefact,
    Cell,
    artefact_names,
    is_artefact,
    load_artefact,
    parse_paper,
)

__all__ = [
    "NO_JUDGES",
    "TO_FRACTION",
    "Artefact",
    "Cell",
    "artefact_names",
    "is_artefact",
    "load_artefact",
    "parse_paper",
]
