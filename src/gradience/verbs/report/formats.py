"""The file of a report: its format, and how it is written."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, TypeAlias

from gradience.errors import GradienceError, OutputError

ReportFormat: TypeAlias = Literal["html", "md"]
_SUFFIXES: Final[dict[str, ReportFormat]] = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}


def format_of(out: Path) -> ReportFormat:
    """The format of a file, by its suffix.

    Raises:
        OutputError: no format has this suffix.
    """
    kind = _SUFFIXES.get(out.suffix.lower())
    if kind is None:
        raise OutputError(f"{out.name}: its suffix names no format", advice="name it .html or .md, or give --format")
    return kind


def check_format(kind: ReportFormat) -> None:
    """Refuse a format that cannot be written.

    Raises:
        GradienceError: the format is HTML, and matplotlib is not installed.
    """
    if kind == "html" and find_spec("matplotlib") is None:
        raise GradienceError(
            "an HTML report needs matplotlib, which is not installed",
            advice="in the clone: pip install -e '.[report]'; or give --format md",
        )


def write_text(draft: Path, out: Path, text: str) -> None:
    """Write the text of `out` into the file that will take its place.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}", advice="check the space left") from error
