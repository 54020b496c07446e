"""Files that a command writes for people to read: their formats, and a page of HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

from gradience.blocks import Page
from gradience.errors import GradienceError, OutputError
from gradience.io import PathLike
from gradience.io.atomic import atomic_file
from gradience.schema.document import Report
from gradience.telemetry.redact import hide_in

R = TypeVar("R", bound=Report)

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


def write_page(report: R, view: Callable[[R], Page], out: PathLike, *, sources: Iterable[Path], force: bool) -> None:
    """Write a report as a page of HTML, whole or not at all, with secrets masked.

    Args:
        report: what it shows.
        view: the report as a page.
        out: the file to write; its suffix is `.html`.
        sources: files of which one that is private makes the page private, too.
        force: replace the file if it exists.

    Raises:
        GradienceError: matplotlib is not installed.
        OutputError: the file exists already, or cannot be written, or its suffix is another.
    """
    if format_of(Path(out)) != "html":
        raise OutputError(f"{out}: a page of HTML", advice="name it .html")
    check_format("html")
    from gradience.blocks.html.pieces import page_html  # matplotlib

    text = page_html(view(hide_in(report)))
    with atomic_file(Path(out), sources=sources, force=force) as draft:
        write_text(draft, Path(out), text)


def write_text(draft: Path, out: Path, text: str) -> None:
    """Write the text of `out` into the file that will take its place.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}", advice="check the space left") from error
