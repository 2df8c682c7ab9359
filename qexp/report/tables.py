"""A table and its four forms: terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

FORMATS = ("terminal", "markdown", "csv", "latex")

SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".txt": "terminal"}
"""The form that a file's name asks for."""

WIDE = 10_000
"""Columns of what rich prints where no terminal sets a width: a file or a pipe breaks no line."""

_LONGEST_WHOLE = 12
_PLAIN_WIDTH = 240  # columns where no terminal sets a width: a file or a pipe wraps nothing
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


@dataclass(frozen=True)
class Column:
    """A column: its key in each row, its header, and whether it holds numbers (aligned to the right)."""

    key: str
    header: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """Rows as text for people and as records for programs.

    Attributes:
        rows: the text of each column, by column key.
        records: the same rows as plain values, for CSV; every record has the same keys.
        caption: what the numbers are: metric, unit, interval, the rule for both ends.
        notes: lines below the table.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, str]]
    records: Sequence[Mapping[str, object]]
    caption: str = ""
    notes: Sequence[str] = ()


def screen_width() -> int | None:
    """Return the terminal's width in characters; None where a file or a pipe is written, which wraps nothing."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def render(table: Table, form: str, width: int | None = None) -> str:
    """Return the table as text, with a line break at its end.

    Args:
        table: what to show.
        form: one of `FORMATS`.
        width: of the terminal, in characters; None for a file, where no line is wrapped.

    Raises:
        KeyError: `form` is none of `FORMATS`.
    """
    if form == "terminal":
        return to_terminal(table, width)
    forms: dict[str, Callable[[Table], str]] = {"markdown": to_markdown, "csv": to_csv, "latex": to_latex}
    return forms[form](table)


def to_terminal(table: Table, width: int | None = None) -> str:
    """Return the table drawn with lines, for a screen `width` characters wide."""
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column, columns_width in zip(table.columns, _widths(table, width or _PLAIN_WIDTH), strict=True):
        justify: Literal["left", "right"] = "right" if column.number else "left"
        grid.add_column(Text(column.header), justify=justify, overflow="fold", width=columns_width)
    for row in table.rows:
        grid.add_row(*(Text(row[column.key]) for column in table.columns))
    # A screen too narrow for the longest words wraps the drawn lines itself; here, rich would cut them off.
    screen = Console(file=io.StringIO(), width=10 * _PLAIN_WIDTH, color_system=None, highlight=False)
    screen.print(Text(table.title), soft_wrap=True)
    if table.rows:
        screen.print("", grid, "", sep="\n")
    for line in filter(None, [table.caption, *table.notes]):
        screen.print(Text(line), soft_wrap=True)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _widths(table: Table, width: int) -> list[int]:
    """Return the columns' widths: as wide as their texts, the widest ones narrowed until all fit `width`.

    A narrow screen breaks sentences, not numbers and short names: no column gets narrower than its longest word,
    or `_LONGEST_WHOLE`.
    """
    texts = [[column.header, *(row[column.key] for row in table.rows)] for column in table.columns]
    widths = [max(map(len, column)) for column in texts]
    longest = [max((len(word) for text in column for word in text.split()), default=1) for column in texts]
    free = width - 2 * len(widths)  # a space on each side of the border between two columns
    while sum(widths) > free:
        spare = [(now, index) for index, now in enumerate(widths) if now > min(longest[index], _LONGEST_WHOLE)]
        if not spare:
            break
        widths[max(spare)[1]] -= 1
    return widths


def to_markdown(table: Table) -> str:
    """Return a GitHub-flavoured table with the title above and caption and notes below."""

    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(_markdown_text(text).replace("|", r"\|") for text in texts) + " |"

    lines = [f"**{_markdown_text(table.title)}**", ""] if table.title else []
    lines.append(line([column.header for column in table.columns]))
    lines.append("|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|")
    lines += [line([row[column.key] for column in table.columns]) for row in table.rows]
    if table.caption:
        lines += ["", _markdown_text(table.caption)]
    if table.notes:
        lines += ["", *(f"- {_markdown_text(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _markdown_text(text: str) -> str:
    """Return text whose asterisks (a misprint's mark, a pattern of layers) neither emphasize nor make a list."""
    return text.replace("*", r"\*")


def to_csv(table: Table) -> str:
    """Return the records with a header line; numbers in full, an empty field for no value, no caption."""
    stream = io.StringIO()
    names = list(table.records[0]) if table.records else [column.key for column in table.columns]
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for record in table.records:
        writer.writerow({key: "" if value == "–" else value for key, value in record.items()})
    return stream.getvalue()


def to_latex(table: Table) -> str:
    """Return a `table` environment for the booktabs package."""
    body = [_latex_row([row[column.key] for column in table.columns]) for row in table.rows]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_text(' '.join(filter(None, [table.title + '.', table.caption])))}}}",
        rf"\begin{{tabular}}{{{''.join('r' if column.number else 'l' for column in table.columns)}}}",
        r"\toprule",
        _latex_row([column.header for column in table.columns]),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {_latex_text(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(texts: Sequence[str]) -> str:
    return " & ".join(map(_latex_text, texts)) + r" \\"


def _latex_text(text: str) -> str:
    """Return text with LaTeX's own signs escaped and the few symbols that tables use in its words."""
    escaped = "".join(_LATEX.get(sign, sign) for sign in text)
    for sign, word in {
        "±": r"$\pm$",
        "–": "--",
        "−": "$-$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "Δ": r"$\Delta$",
    }.items():
        escaped = escaped.replace(sign, word)
    return escaped
