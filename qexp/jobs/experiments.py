"""What the jobs of an experiment are, composed without running them: as its file has them, word by word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from qexp.bits import parse_bits
from qexp.jobs.composition import compose
from qexp.jobs.grids import expand
from qexp.paths import config_dir


@cache
def words_of(name: str, typed: str) -> list[tuple[str, ...]]:
    """Return the words of each job of `experiment=name`, with what is typed beside it (words parted by spaces)."""
    node: Any = OmegaConf.load(config_dir() / "experiment" / f"{name}.yaml")
    return [tuple(words) for words in expand(list(node.experiment.get("grids") or []), {}, typed.split())]


@cache
def configuration(name: str, command: str, words: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the configuration of one job, with its choices' names, as its run will keep it."""
    return compose(command, [f"experiment={name}", *words])


def configurations(
    name: str, command: str, typed: str = "", quantizer: str | None = None, bits: str | None = None
) -> Iterator[Mapping[str, Any]]:
    """Yield the configurations of an experiment's jobs: of all, or of those that name no other method or width.

    Args:
        name: the experiment.
        command: train or ptq, whichever makes its runs.
        typed: what is typed beside it, words parted by spaces.
        quantizer: the only method wanted, None for all.
        bits: the only widths wanted (`w4a8`), None for all.
    """
    for words in words_of(name, typed):
        said = dict(word.split("=", 1) for word in words)
        other_method = quantizer is not None and said.get("quantizer", quantizer) != quantizer
        other_bits = bits is not None and parse_bits(said.get("bits", bits)) != parse_bits(bits)
        if not (other_method or other_bits):
            yield configuration(name, command, words)
