"""What a configuration file says of itself: the comment on its top holds the command, the idea and the source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_COMMAND = re.compile(r"(qexp\s|[\w./]+=\S)")
_SOURCE = re.compile(r"\s*\(([^()]*(?:arXiv|https?://)[^()]*)\)|[;:,]?\s*(arXiv[: ]\d[\d.]+\d|https?://[^\s,;]+)")


@dataclass(frozen=True)
class Header:
    """A configuration's name, its idea in one sentence, and where it comes from (empty if it names nothing)."""

    name: str
    idea: str
    source: str


def read_header(path: Path, name: str) -> Header:
    """Read the comment block at the top of a YAML file; a file without one has an empty idea."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if text.startswith("@package") or (not lines and _COMMAND.match(text)):
            continue
        lines.append(text)
    return parse_header(name, " ".join(lines))


def parse_header(name: str, text: str) -> Header:
    """Part the text of a header into its first sentence and its sources.

    >>> parse_header("pact", "PACT: each ReLU becomes a learned clip (arXiv 1805.06085, eq. 1 to 3). More.")
    Header(name='pact', idea='PACT: each ReLU becomes a learned clip', source='arXiv 1805.06085, eq. 1 to 3')
    """
    sources = [(match.group(1) or match.group(2)).strip(" .;") for match in _SOURCE.finditer(text)]
    without = re.sub(r"\s+", " ", _SOURCE.sub("", text))
    # A sentence ends at a stop before a capital letter or a code mark; "et al. 2016" and "eq. 1" go on.
    idea = re.split(r"(?<=[.!?])\s+(?=[A-Z`])", without, maxsplit=1)[0]
    return Header(name, idea.strip(" .,;:"), "; ".join(dict.fromkeys(sources)))


def read_group(folder: Path) -> list[Header]:
    """Read every configuration below a group's folder, in subfolders too, sorted by name."""
    files = sorted(folder.rglob("*.yaml"))
    return [read_header(file, file.relative_to(folder).with_suffix("").as_posix()) for file in files]
