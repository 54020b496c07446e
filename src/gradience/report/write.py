"""The verb ``report``: a run, its config and its adapter in one file that can be passed on."""

from __future__ import annotations

from pathlib import Path

from gradience.render.markdown import report_markdown
from gradience.report.formats import ReportFormat, format_of
from gradience.report.gather import PathLike, Story, gather
from gradience.report.page import report_html
from gradience.whole import whole_file

__all__ = ["report_text", "write_report"]


def write_report(
    run: PathLike | None,
    out: PathLike,
    *,
    adapter: PathLike | None = None,
    config: PathLike | None = None,
    base: PathLike | None = None,
    kind: ReportFormat | None = None,
    force: bool = False,
) -> Story:
    """Write a report, whole or not at all, and return what it says.

    Args:
        run: a run.jsonl, the folder of a run, or anything that `gradience import` reads.
        out: the file to write.
        adapter: the trained adapter's folder or weights file; needs JAX, as an audit does.
        config: a configuration to judge instead of the one in the log.
        base: the base model of the adapter, as `audit_adapter` takes it.
        kind: `html` (one page without script or network) or `md` (short, for a pull request); by the suffix if None.
        force: replace the file if it is there.

    Raises:
        GradienceError: a source cannot be read, or the file cannot be written or is there already.
    """
    place = Path(out)
    chosen = kind or format_of(place)
    with whole_file(place, force=force) as draft:  # a name that is taken is refused before the work
        story = gather(run, adapter=adapter, config=config, base=base)
        draft.write_text(report_text(story, chosen), encoding="utf-8")
    return story


def report_text(story: Story, kind: ReportFormat) -> str:
    """Return the report in a format."""
    if kind == "html":
        return report_html(story)
    return report_markdown(story.run, story.audit, story.check, missing=story.missing)
