"""Blocks as Markdown, short enough for a comment on a pull request.

Names come from logs and adapters, so every text is escaped, here and nowhere else: none can become markup, notify a
person or create a link.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from gradience.blocks import (
    Block,
    FactList,
    Findings,
    Fold,
    Heading,
    Next,
    Note,
    Page,
    Section,
    ShownFinding,
    Table,
    VerdictLine,
    clean,
    sentence,
    shorter,
)

_ROWS: Final = 20
_TEXT: Final = 300  # characters of one cell
# `_` within a word is no emphasis. GitHub makes links of bare https://, http:// and www., which a backslash breaks.
_SPECIAL: Final = re.compile(r"[\\`*\[\]<|~$&#]|(?<![^\W_])_|_(?![^\W_])|(?<=https):(?=//)|(?<=http):(?=//)|(?<=www)\.")
# A backslash does not keep GitHub from notifying @name or linking #1; an empty comment does.
_SUMMONS: Final = re.compile(r"([@#])(?=\w)")
_FOUND: Final = ("Severity", "Id", "Observation", "Source")


def page_markdown(page: Page) -> str:
    """The page as Markdown: its beginning, and its sections."""
    of = "" if page.name == page.of else f" ({escape(page.of)})"
    head = f"### Gradience {page.kind}: {escape(page.name)}{of}"
    return "\n".join([head, "", *_all((*page.header, *page.sections)), f"<sub>{page.foot}</sub>"]) + "\n"


def escape(text: str) -> str:
    r"""The text escaped for Markdown: no part becomes markup, a table cell, a link, mention or reference.

    >>> escape("a|b @me <b> to_q")
    'a\\|b @<!-- -->me \\<b> to_q'
    """
    return _SUMMONS.sub(r"\1<!-- -->", _SPECIAL.sub(r"\\\g<0>", shorter(clean(text), _TEXT)))


def _all(blocks: Iterable[Block], most: int | None = _ROWS) -> Iterator[str]:
    """The lines of blocks, whose tables have at most so many rows."""
    return chain.from_iterable(_lines(block, most) for block in blocks)


def _lines(block: Block, most: int | None) -> Iterable[str]:  # noqa: C901, PLR0911  # the lines of each block
    match block:
        case str() if block.strip():
            return [escape(block.strip()), ""]
        case VerdictLine(word, rest):
            return [f"**{escape(sentence(word))}**{escape(rest)}", ""]
        case Heading(text):
            return [f"**{escape(text)}**", ""]
        case Note(text):
            return [escape(sentence(text)), ""]
        case Next(text, alternative):
            return [f"**Next:** {escape('; or: '.join(filter(None, (text, alternative))))}", ""]
        case FactList(pairs):
            return _table(("Fact", "Value"), pairs, most)
        case Table():
            caption = [f"{escape(block.caption)}:", ""] if block.caption and block.rows else []
            named = block.by_name()
            return [*caption, *_table(named.titles, named.rows, most)]
        case Findings(found):
            return _table(_FOUND, [_finding(item) for item in found], most)
        case Fold(summary, content):
            return [f"<details><summary>{escape(summary)}</summary>", "", *_all(content, None), "</details>", ""]
        case Section(_, title, content):
            return [f"**{escape(title)}**", "", *_all(content)]
    return []  # Markdown cannot show it


def _finding(item: ShownFinding) -> tuple[str, ...]:
    return item.finding.severity.upper(), item.finding.id, item.finding.message, item.where.strip(" ()")


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], most: int | None) -> Iterator[str]:
    """A table, and a line with the number of rows cut; nothing without rows."""
    if rows:
        yield f"| {' | '.join(map(escape, titles))} |"
        yield f"|{'---|' * len(titles)}"
        yield from (f"| {' | '.join(map(escape, row))} |" for row in rows[:most])
        yield ""
    if most is not None and len(rows) > most:
        yield f"{len(rows) - most} more are not shown."
        yield ""
