"""The parts that every text report is built from: labelled values, tables, and lists that are cut.

They take strings and yield lines. A report decides what stands in a cell; widths, gaps, and the line that counts what
was cut are decided here, so that they are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, TypeAlias

from gradience.render.text import clean

NAMES: Final = 4  # of a list in one sentence

Columns: TypeAlias = Sequence[tuple[str, str]]  # title, and format specification of its cells


def labelled(pairs: Iterable[tuple[str, str]], *, width: int = 12, indent: int = 0) -> Iterator[str]:
    """One line for each label and value; the values start `width` characters after the indent."""
    return (f"{'':{indent}}{label + ':':<{width}}{value}" for label, value in pairs)


def row(columns: Columns, cells: Iterable[str], *, indent: int = 2, gap: int = 2) -> str:
    """The cells on one line, each in its column's format.

    >>> row((("n", ">3"), ("name", "")), ("12", "q_proj"))
    '   12  q_proj'
    """
    texts = (f"{cell:{spec}}" for (_, spec), cell in zip(columns, cells, strict=True))
    return " " * indent + (" " * gap).join(texts)


def table(
    columns: Columns,
    rows: Sequence[Sequence[str]],
    *,
    most: int | None = None,
    of: str = "",
    indent: int = 2,
    gap: int = 2,
) -> Iterator[str]:
    """A line of titles and one for each row; `most` and `of` as in `shortened`."""
    lines = [row(columns, cells, indent=indent, gap=gap) for cells in rows]
    titles = row(columns, [title for title, _ in columns], indent=indent, gap=gap)
    return chain([titles], shortened(lines, most, of=of, indent=indent))


def shortened(
    lines: Sequence[str], most: int | None, *, of: str = "", indent: int = 2, how: str = "--verbose lists all"
) -> Iterator[str]:
    """The first lines, and one that counts the others.

    Args:
        lines: all of them.
        most: how many to keep; None for all.
        of: what the others are, after the word "more".
        indent: of the counting line.
        how: the way to see the others.

    >>> list(shortened(["a", "b", "c"], 1, indent=0))
    ['a', '... and 2 more (--verbose lists all)']
    """
    yield from lines[:most]
    if most is not None and len(lines) > most:
        yield f"{'':{indent}}... and {len(lines) - most} more{f' {of}' if of else ''} ({how})"


def listed(names: Sequence[str], most: int = NAMES, *, separator: str = ", ") -> str:
    """The first names in one sentence, and the number of the others.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return clean(separator.join(names[:most])) + more


def counted(n: int, noun: str) -> str:
    """A number with its noun, in the plural where that is due.

    >>> counted(1, "finding"), counted(2, "finding"), counted(2, "info")
    ('1 finding', '2 findings', '2 info')
    """
    return f"{n:,} {noun}" if n == 1 or noun == "info" else f"{n:,} {noun}s"
