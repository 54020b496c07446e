"""The formats of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, TypeAlias

from gradience.errors import OutputError

__all__ = ["ReportFormat", "format_of"]

ReportFormat: TypeAlias = Literal["html", "md"]

_SUFFIXES: Final[dict[str, ReportFormat]] = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}


def format_of(out: Path) -> ReportFormat:
    """Return the format that a file's suffix names.

    Raises:
        OutputError: it names none.
    """
    found = _SUFFIXES.get(out.suffix.lower())
    if found is None:
        raise OutputError(f"{out.name}: its suffix names no format", advice="name it .html or .md, or say --format")
    return found
