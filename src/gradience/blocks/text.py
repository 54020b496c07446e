"""Blocks as text for a terminal. Every string loses here, and nowhere else, what could steer the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import wraps
from itertools import chain
from typing import Final, ParamSpec

from gradience.blocks import (
    Bars,
    Block,
    FactList,
    Figure,
    Findings,
    Fold,
    Heading,
    Intervals,
    Next,
    Note,
    Section,
    ShownFinding,
    Table,
    Title,
    VerdictLine,
    clean,
    grounds,
)
from gradience.blocks.plots import Grid, forest_lines, grid_lines, histogram_lines

P = ParamSpec("P")

INFOS: Final = 5  # findings of severity info that a screen shows
_WIDTH: Final = 72  # characters of a banner
PAGE: Final = 100  # most characters of a line of prose or of a table
_COLUMNS: Final = ContextVar[int | None]("_COLUMNS", default=None)  # of the terminal that is printed on
_LEAST: Final = 40  # columns; a narrower terminal folds for itself
_HANG: Final = 4  # further indent of a folded line
_LABEL: Final = 12  # characters in which a label is followed by blanks; further on, blanks part columns
_SOURCE: Final = 8  # columns of a source's name
_COMMAND: Final = "gradience "
_JOIN: Final = " \\"  # after which a shell goes on
_WORD: Final = re.compile(r"( *)(\S+)")
_COLUMN: Final = re.compile(r"( *)(\S+(?: \S+)*)")
_PLACE: Final = re.compile(r"\S*/\S*:")  # in a file
_DRAWING: Final = re.compile(r"[\u2500-\u257f\u25a0-\u28ff]")  # but for the bars of a curve in a cell


def as_text(view: Callable[P, Iterable[Block]]) -> Callable[P, str]:
    """Decorate a view, which yields blocks, so that it returns the whole text, its prose folded."""

    @wraps(view)
    def text(*args: P.args, **kwargs: P.kwargs) -> str:
        return "\n".join(chain.from_iterable(map(folded, printed(view(*args, **kwargs)))))

    return text


def as_lines(view: Callable[P, Iterable[Block]]) -> Callable[P, str]:
    """As `as_text`, for lines that name places in a file: none is folded."""

    @wraps(view)
    def text(*args: P.args, **kwargs: P.kwargs) -> str:
        return "\n".join(printed(view(*args, **kwargs)))

    return text


def printed(blocks: Iterable[Block]) -> Iterator[str]:
    """The lines of blocks, none with an escape sequence, a control or a bidi override."""
    return map(clean, chain.from_iterable(map(_lines, blocks)))


def fit_terminal(columns: int) -> None:
    """Fold what this context prints for a terminal of so many columns, so that the terminal need not fold it again."""
    _COLUMNS.set(columns if columns >= _LEAST else None)


def page_width() -> int:
    """Most characters of a line of prose: those of the terminal, and at most `PAGE`."""
    return min(PAGE, _COLUMNS.get() or PAGE)


def folded(line: str) -> list[str]:
    """The line in pieces that fit the page, the later ones indented; a drawing stays whole.

    A row of columns is whole in a pipe, and so is a command. A terminal too narrow for them gets the row folded between
    two columns, and the command so that it can be copied.

    >>> folded("  [INFO] " + "it is long, " * 9)[1]
    '      long, it is long,'
    """
    body, columns = line.lstrip(), _COLUMNS.get()
    row, command = "  " in body[_LABEL:], _COMMAND in line
    page = columns if row or command else page_width()
    place = not row and _PLACE.match(line)
    if page is None or len(line) <= page or _DRAWING.search(body) or place:
        return [line]
    if set(body) == {"="}:  # a rule across the page
        return [line[:page]]
    indent = " " * (len(line) - len(body) + _HANG)
    return _command(line, indent, page) if command else _packed(_COLUMN if row else _WORD, line, indent, page)


def _command(line: str, indent: str, page: int) -> list[str]:
    """The words before a command, and the command in pieces that a shell joins again."""
    begin = line.find(_COMMAND)
    lead = _packed(_WORD, line[:begin], indent, page) if begin > page // 2 else []
    pieces = _packed(_WORD, indent + line[begin:] if lead else line, indent, page - len(_JOIN))
    return [*lead, *(piece + _JOIN for piece in pieces[:-1]), pieces[-1]]


def _packed(part: re.Pattern[str], line: str, indent: str, page: int) -> list[str]:
    """As many parts on each piece as the page holds; a column that is wider than the page is folded as words."""
    pieces = [""]
    for gap, text in part.findall(line):
        if len(pieces[-1] + gap + text) <= page or not pieces[-1].strip():
            pieces[-1] += gap + text
        else:
            pieces.append(indent + text)
        if len(pieces[-1]) > page and part is _COLUMN:
            pieces[-1:] = _packed(_WORD, pieces[-1], indent, page)
    return pieces


def _lines(block: Block) -> Iterable[str]:  # noqa: C901, PLR0911  # a line for each block
    match block:
        case str():
            return [block]
        case Title(text):
            return ["=" * _WIDTH, text, "=" * _WIDTH]
        case Heading(text):
            return [f"{text}:"]
        case VerdictLine(word, rest):
            return [f"Verdict: {word.upper()}{rest}"]
        case Note(text):
            return [f"Note: {text}"]
        case Next(text, alternative):
            return [f"Next: {text}", *([f"   or: {alternative}"] if alternative else [])]
        case FactList():
            return (f"{'':{block.indent}}{label + ': ':<{block.width}}{value}" for label, value in block.pairs)
        case Table():
            return _table(block)
        case Findings():
            return _findings(block)
        case Fold(summary, content, is_open):
            return [summary, *(printed(content) if is_open else ())]
        case Section(_, title, content):
            return [f"{title}:", *printed(content)]
        case Figure(title, drawing):
            return _drawing(title, drawing)


def _drawing(title: str, drawing: object) -> Iterable[str]:
    match drawing:
        case Grid():
            return grid_lines(drawing, page_width())
        case Bars(bins, width, limit):
            bars = histogram_lines(bins, width, limit=limit)
            return [f"  {title}:", *(f"  {line}" for line in bars)] if bars else []
        case Intervals():
            return forest_lines(drawing, page_width())
    return []


def _table(block: Table) -> Iterator[str]:
    specs = [spec for _, spec in block.columns]

    def line(cells: Iterable[str]) -> str:
        texts = (f"{clean(cell):{spec}}" for cell, spec in zip(cells, specs, strict=True))
        return (" " * block.indent + (" " * block.gap).join(texts)).rstrip()

    rows = list(map(line, block.rows)) if block.told is None else block.told
    if block.told is None:
        yield line(title for title, _ in block.columns)
    kept = list(shortened(rows, block.most, of=block.of, indent=block.indent))
    for place, row in enumerate(kept):
        yield row
        # The line that counts the rows left out stands in the place of a row, and has no reasons.
        if place < min(len(block.below), len(rows)) and row is rows[place] and block.below[place]:
            yield block.below[place]


def shortened(
    lines: Sequence[str], most: int | None, *, of: str = "", indent: int = 2, how: str = "--verbose lists all"
) -> Iterator[str]:
    """The first lines, and a last line with the number of lines left out, as of `more`.

    Args:
        lines: all lines.
        most: how many lines to keep; None for all.
        of: a noun phrase for the lines left out, after the word "more".
        indent: spaces before the last line.
        how: how the user can see all lines.

    >>> list(shortened(["a", "b", "c"], 1, indent=0))
    ['a', '... and 2 more (--verbose lists all)']
    """
    kept = lines[:most]
    yield from kept
    yield from more(len(lines) - len(kept), how, of=of, indent=indent)


def more(n: int, how: str, *, of: str = "", indent: int = 2) -> list[str]:
    """A line with the number of lines left out, and how the user can see them; nothing if none was."""
    return [f"{'':{indent}}... and {n} more{f' {of}' if of else ''} ({how})"] if n > 0 else []


def _findings(block: Findings) -> Iterator[str]:
    """A line for each finding, one for each of its pieces, and one for its action; `verbose` adds the grounds."""
    infos: list[str] = []
    for item in block.found:
        head = f"  [{item.finding.severity.upper()}] {item.finding.id}{item.where}: {item.finding.message}"
        if item.finding.severity == "info" and not block.verbose:
            infos.append(head)
            continue
        yield head
        yield from _beneath(item, block)
    yield from shortened(infos, INFOS)


def _beneath(item: ShownFinding, block: Findings) -> Iterator[str]:
    for source, rule, says in item.pieces:
        yield f"      {source:<{_SOURCE}}{rule + ': ' if rule else ''}{says}"
    if item.finding.action and block.actions:
        yield f"      -> {item.finding.action}"
    yield from (f"      {label}: {text}" for label, text in grounds(item.finding) if block.verbose)
