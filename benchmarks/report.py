"""Tables, for the terminal and for a page of the documentation. It has not heard of what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """What one benchmark found.

    texts: how many of the columns, from the left, are words; the others are figures.
    note: what a reader has to know about the columns.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int
    note: str

    def plain(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column < self.texts else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )

    def markdown(self) -> str:
        rule = ["---" if column < self.texts else "--:" for column in range(len(self.columns))]
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.columns, rule, *self.rows))


def replaced(page: str, name: str, section: str) -> str:
    """The page with what stands between a section's two markers replaced.

    Raises:
        ValueError: the page does not have the markers.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, found_begin, rest = page.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"expected the lines {begin.strip()!r} and {end!r}")
    return f"{head}{begin}\n{section}\n\n{end}{tail}"
