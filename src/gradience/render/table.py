"""The parts that every text report is built from: labelled values, tables, and lists that are cut.

A report decides what stands in a cell. Widths, gaps, and the line that counts what was cut are decided here, so that
they are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias, TypeVar

from gradience.render.text import clean

NAMES: Final = 4  # of a list in one sentence

T = TypeVar("T")
Columns: TypeAlias = Sequence[tuple[str, str, Callable[[T], str]]]  # title, format specification, and cell of an item


def labelled(pairs: Iterable[tuple[str, str]], *, width: int = 12, indent: int = 0) -> Iterator[str]:
    """One line for each label and value; the values start `width` characters after the indent."""
    return (f"{'':{indent}}{label + ':':<{width}}{value}" for label, value in pairs)


def table(
    columns: Columns[T],
    items: Iterable[T],
    *,
    most: int | None = None,
    of: str = "",
    indent: int = 2,
    gap: int = 2,
) -> Iterator[str]:
    """A line of titles and one for each item; `most` and `of` as in `shortened`.

    >>> list(table((("n", ">3", str), ("square", "", lambda n: str(n * n))), [7, 12]))
    ['    n  square', '    7  49', '   12  144']
    """

    def line(cells: Iterable[str]) -> str:
        texts = (f"{cell:{spec}}" for cell, (_, spec, _) in zip(cells, columns, strict=True))
        return " " * indent + (" " * gap).join(texts)

    yield line(title for title, _, _ in columns)
    yield from shortened([line(cell(item) for _, _, cell in columns) for item in items], most, of=of, indent=indent)


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
