"""The verb ``report``: describe a run, its config and its adapter in one file that can be passed on.

The file is an HTML page or Markdown, depending on its suffix. It is written whole or not at all, and an existing file
is refused before any work. Only the HTML page needs matplotlib, which the extra `report` installs. This module also
writes pages for a fleet and for the curves of several runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from gradience.errors import GradienceError, OutputError
from gradience.io import PathLike
from gradience.io.atomic import atomic_file
from gradience.schema.fleet import FleetShowReport, RunsCurvesReport
from gradience.telemetry.redact import hide_in

if TYPE_CHECKING:
    # Reading sources imports numpy, and JAX for weights, which `gradience report --help` does not need.
    from gradience.render.html import Story
    from gradience.verbs.diagnose.sources import Sources


ReportFormat: TypeAlias = Literal["html", "md"]

_SUFFIXES: Final[dict[str, ReportFormat]] = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}


def format_of(out: Path) -> ReportFormat:
    """The format of a file, by its suffix.

    Raises:
        OutputError: no format has this suffix.
    """
    found = _SUFFIXES.get(out.suffix.lower())
    if found is None:
        raise OutputError(f"{out.name}: its suffix names no format", advice="name it .html or .md, or give --format")
    return found


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


def write_report(
    path: PathLike | None,
    out: PathLike,
    *,
    adapter: PathLike | None = None,
    config: PathLike | None = None,
    base: PathLike | None = None,
    task: str | None = None,
    compare: Sequence[PathLike] = (),
    bench: PathLike | None = None,
    against: PathLike | None = None,
    kind: ReportFormat | None = None,
    force: bool = False,
) -> Story:
    """Write a report, whole or not at all, and return the data in it.

    Args:
        path: the folder of a run, which is searched for log, adapter and configuration; or a log.
        out: the file to write.
        adapter: the adapter, if it is not in the folder: its own folder or its weights file.
        config: the configuration, if it is not in the folder: anything that `check_config` reads.
        base: the base model of the adapter, as `audit_adapter` takes it.
        task: the task of the training (`sst2`, `sft`, `dpo`, ...), for the rules about the configuration.
        compare: other adapters whose weights are compared with this one's; or a run's folder, whose checkpoints are
            compared as a series.
        bench: the folder of a bench, or its bench.json.
        against: a fleet that `audit_fleet` wrote; the report then says where the adapter stands in it.
        kind: `html` (one page without script or network; needs matplotlib) or `md` (short, for a pull request); None
            decides by the suffix.
        force: replace the file if it exists.

    Raises:
        GradienceError: a source cannot be read, the file cannot be written or exists already, or matplotlib is missing.
    """
    from gradience.verbs.diagnose.sources import find_sources  # noqa: PLC0415  # see TYPE_CHECKING

    sources = find_sources(path, adapter=adapter, config=config)
    return write_sources(
        sources, Path(out), base=base, task=task, compare=compare, bench=bench, against=against, kind=kind, force=force
    )


def write_sources(
    sources: Sources,
    out: Path,
    *,
    base: PathLike | None = None,
    task: str | None = None,
    compare: Sequence[PathLike] = (),
    bench: PathLike | None = None,
    against: PathLike | None = None,
    kind: ReportFormat | None = None,
    force: bool = False,
) -> Story:
    """Write a report on sources that are already found. The arguments are those of `write_report`."""
    from gradience.verbs.report.gather import build_story  # noqa: PLC0415  # see TYPE_CHECKING

    chosen = kind or format_of(out)
    check_format(chosen)
    with atomic_file(out, force=force) as draft:
        story = build_story(sources, base=base, task=task, compare=compare, bench=bench, against=against)
        _write(draft, out, report_text(story, chosen))
    return story


def _write(draft: Path, out: Path, text: str) -> None:
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}", advice="check the space left") from error


def report_text(story: Story, kind: ReportFormat) -> str:
    """The report as text in a format, with secrets masked that other programs left in its sources."""
    story = hide_in(story)
    if kind == "html":
        from gradience.render.html.page import report_html  # noqa: PLC0415  # matplotlib

        return report_html(story)
    from gradience.render.markdown import report_markdown  # noqa: PLC0415  # schemas of all reports

    return report_markdown(story.diagnosis, story.comparison, story.bench)


def write_page(report: FleetShowReport | RunsCurvesReport, out: PathLike, *, force: bool) -> None:
    """Write the HTML page of a fleet, or of the curves of several runs, whole or not at all.

    Raises:
        GradienceError: matplotlib is not installed.
        OutputError: the file exists already, or cannot be written.
    """
    check_format("html")
    from gradience.render.html.page import curves_html, fleet_html  # noqa: PLC0415  # matplotlib

    shown = hide_in(report)
    text = fleet_html(shown) if isinstance(shown, FleetShowReport) else curves_html(shown)
    with atomic_file(Path(out), force=force) as draft:
        _write(draft, Path(out), text)
