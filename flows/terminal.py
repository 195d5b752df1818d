"""Prints reports and tables on stdout, where neither a key nor an id is ever cut.

On a terminal, lines wrap at its width, and a table that is wider becomes a list. Elsewhere, a row is one line of whatever
length, for `grep`, `less` and the logs of CI.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import ClassVar

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markdown import Heading, Markdown, TableElement
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

MIN_TEXT_CHARS = 16
"""The width to which a column of sentences may shrink. With less, sentences are hard to read; with more, a table becomes a
list on wider terminals."""

MAX_LINE_CHARS = 100_000
"""The width where lines do not wrap."""


class WholeTable:
    """A table that cuts no cell: where it does not fit, each row becomes its first cell and, below it, the others."""

    def __init__(self, header: Sequence[Text], rows: Sequence[Sequence[Text]]) -> None:
        """Take the cells; only those with spaces, beyond the first column, are wrapped."""
        self._header = header
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or the list where the table does not fit."""
        table = self._table()
        needed = Measurement.get(console, options.update(width=MAX_LINE_CHARS), table).minimum
        yield table if needed <= options.max_width else self._list()

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True, style="markdown.table.border")
        for index, cells in enumerate(zip(self._header, *self._rows, strict=True)):
            whole = max(cell.cell_len for cell in cells)
            words = max(Text(word).cell_len for cell in cells for word in [*cell.plain.split(), ""])
            wraps = index > 0 and any(" " in cell.plain for cell in cells[1:])
            width = min(whole, max(words, MIN_TEXT_CHARS)) if wraps else whole
            table.add_column(
                cells[0], header_style="markdown.table.header", min_width=width, no_wrap=not wraps, overflow="fold"
            )
        for row in self._rows:
            table.add_row(*row)
        return table

    def _list(self) -> RenderableType:
        lines: list[RenderableType] = [Text()]
        for first, *others in self._rows:
            facts = [
                Text.assemble((name.plain, "dim"), " ", cell) for name, cell in zip(self._header[1:], others, strict=True)
            ]
            lines += [Text.assemble(first), Padding(Text(" · ").join(facts), (0, 0, 0, 2))]
        return Group(*lines, Text())


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar = Heading.LEVEL_ALIGN | {"h1": "left"}


class _TableElement(TableElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [self.header.row if self.header else None, *(self.body.rows if self.body else [])]
        header, *cells = [[cell.content for cell in row.cells] for row in rows if row]
        yield WholeTable(header, cells)


class Report(Markdown):
    """The markdown of a report."""

    elements: ClassVar = Markdown.elements | {"heading_open": _Heading, "table_open": _TableElement}


def show(*parts: RenderableType) -> None:
    """Print on stdout.

    Raises:
        OSError: The reader has gone, or a disk is full.
    """
    is_terminal = sys.stdout.isatty()
    console = Console() if is_terminal else Console(width=MAX_LINE_CHARS)
    # Not printed by rich, which exits with 1 where the reader has gone.
    with console.capture() as printed:
        console.print(*parts, sep="\n", markup=False, highlight=False)
    text = printed.get()
    sys.stdout.write(text if is_terminal else "".join(f"{line.rstrip()}\n" for line in text.splitlines()))
