"""A fleet, or the curves of runs, as one HTML page without script or network."""

from __future__ import annotations

from pathlib import Path

from gradience.errors import OutputError
from gradience.io.atomic import atomic_file, refuse_file
from gradience.io.paths import PathLike
from gradience.schema.fleet import FleetShowReport
from gradience.schema.runs import RunsCurvesReport
from gradience.telemetry.redact import hide_in
from gradience.verbs.report import check_format


def write_fleet_page(report: FleetShowReport, out: PathLike, *, force: bool = False) -> None:
    """Write the page about a fleet, whole or not at all.

    Raises:
        GradienceError: matplotlib is not installed.
        OutputError: the file exists already, or cannot be written.
    """
    check_format("html")
    from gradience.render.html.collections import fleet_html  # noqa: PLC0415  # matplotlib

    _write(fleet_html(hide_in(report)), Path(out), force=force)


def write_curves_page(report: RunsCurvesReport, out: PathLike, *, force: bool = False) -> None:
    """Write the page with the curves of runs, whole or not at all.

    Raises:
        GradienceError: matplotlib is not installed.
        OutputError: the file exists already, or cannot be written.
    """
    check_format("html")
    from gradience.render.html.collections import curves_html  # noqa: PLC0415  # matplotlib

    _write(curves_html(hide_in(report)), Path(out), force=force)


def _write(text: str, out: Path, *, force: bool) -> None:
    refuse_file(out, force=force)
    try:
        with atomic_file(out, force=force) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}", advice="check the space left") from error
