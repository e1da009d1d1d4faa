"""What every part of the benchmark returns: a small table, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Measurements of one part, ready to print."""

    title: str
    """What was measured, on what, in one line."""
    columns: Sequence[str]
    """Heading of each column; the first is the stage."""
    rows: Sequence[Sequence[str]]
    """Cells, formatted; as many a row as there are columns."""
    notes: Sequence[str] = field(default=())
    """Lines below it: what a column means, what fell short."""


def table_text(table: Table) -> str:
    """The table as text: first column to the left, the others to the right."""
    cells = [list(table.columns), *(list(row) for row in table.rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(table.columns))]
    lines = [table.title]
    for row in cells:
        first, *others = (cell for cell in row)
        line = first.ljust(widths[0]) + "".join(
            cell.rjust(width + 2) for cell, width in zip(others, widths[1:], strict=True)
        )
        lines.append(line.rstrip())
    lines += [f"  {note}" for note in table.notes]
    return "\n".join(lines)
