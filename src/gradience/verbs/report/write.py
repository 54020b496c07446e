"""The verb ``report``: a run, its config and its adapter in one file that can be passed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from gradience.errors import OutputError
from gradience.io.atomic import atomic_file
from gradience.io.types import PathLike
from gradience.render.html.content import Story
from gradience.render.markdown import report_markdown
from gradience.verbs.diagnose.sources import Sources, find_sources
from gradience.verbs.report.gather import tell

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


def write_report(
    path: PathLike | None,
    out: PathLike,
    *,
    adapter: PathLike | None = None,
    config: PathLike | None = None,
    base: PathLike | None = None,
    task: str | None = None,
    compare: Sequence[PathLike] = (),
    kind: ReportFormat | None = None,
    force: bool = False,
) -> Story:
    """Write a report, whole or not at all, and return what it says.

    Args:
        path: the folder that a run left, in which log, adapter and configuration are looked for; or a log.
        out: the file to write.
        adapter: the adapter, where it is elsewhere: its folder or its weights file.
        config: the configuration, where it is elsewhere: anything that `check_config` reads.
        base: the base model of the adapter, as `audit_adapter` takes it.
        task: what was trained (`sst2`, `sft`, `dpo`, ...), for the rules about the configuration.
        compare: other adapters to compare this one with, by their weights; or a run's folder, whose checkpoints are
            compared as a series.
        kind: `html` (one page without script or network) or `md` (short, for a pull request); by the suffix if None.
        force: replace the file if it is there.

    Raises:
        GradienceError: a source cannot be read, or the file cannot be written or is there already.
    """
    sources = find_sources(path, adapter=adapter, config=config)
    return write_sources(sources, Path(out), base=base, task=task, compare=compare, kind=kind, force=force)


def write_sources(
    sources: Sources,
    out: Path,
    *,
    base: PathLike | None = None,
    task: str | None = None,
    compare: Sequence[PathLike] = (),
    kind: ReportFormat | None = None,
    force: bool = False,
) -> Story:
    """Write a report on sources that were found, as `write_report` does."""
    chosen = kind or format_of(out)
    with atomic_file(out, force=force) as draft:  # a name that is taken is refused before the work
        story = tell(sources, base=base, task=task, compare=compare)
        draft.write_text(report_text(story, chosen), encoding="utf-8")
    return story


def report_text(story: Story, kind: ReportFormat) -> str:
    """Return the report in a format."""
    if kind == "html":
        from gradience.render.html.page import report_html  # noqa: PLC0415  # matplotlib, which Markdown needs nothing of

        return report_html(story)
    return report_markdown(story.diagnosis, story.comparison)
