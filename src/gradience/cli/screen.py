"""A report on a terminal: sentences wrapped to its width, and severities in colour unless NO_COLOR is set."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from typing import Final

_COLOURS: Final = {"CRITICAL": "1;31", "ERROR": "31", "WARNING": "33", "INFO": "36"}  # SGR of ECMA-48
_TAG: Final = re.compile(r"\[(CRITICAL|ERROR|WARNING|INFO)\]")
_TABLE: Final = re.compile(r"\S {2,}\S|[\u2500-\u28ff]")  # columns or drawings, which wrapping would tear apart
_LEAST: Final = 40  # columns, under which wrapping helps nobody
_HANG: Final = 2  # further columns by which the rest of a sentence is indented


def for_screen(text: str) -> str:
    """Return the text as the terminal of this process should show it."""
    width = shutil.get_terminal_size().columns
    lines = [wrapped(line, width) for line in text.split("\n")]
    shown = "\n".join(lines)
    return coloured(shown) if has_colour() else shown


def has_colour() -> bool:
    """Whether colours are wanted: not with NO_COLOR (no-color.org), nor on a terminal that has none."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str) -> str:
    """Return the text with the tags of severities in colour."""
    return _TAG.sub(lambda hit: f"\x1b[{_COLOURS[hit[1]]}m{hit[0]}\x1b[0m", text)


def wrapped(line: str, width: int) -> str:
    """Return a sentence on lines of the width, the later ones indented under it; a table's line as it is."""
    body = line.lstrip()
    if len(line) <= width or width < _LEAST or _TABLE.search(body):
        return line
    indent = " " * (len(line) - len(body))
    if set(body) == {"="}:  # a rule across the page
        return line[:width]
    return textwrap.fill(
        body,
        width,
        initial_indent=indent,
        subsequent_indent=indent + " " * _HANG,
        break_long_words=False,
        break_on_hyphens=False,
    )
