"""The report of an import as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradience.render.text import banner, clean
from gradience.schema.reports import ImportedRunReport, ImportReport

__all__ = ["import_text"]

_SHOWN: Final = 10


def import_text(report: ImportReport) -> str:
    """Return the report for a terminal."""
    return "\n".join(_lines(report))


def _lines(report: ImportReport) -> Iterator[str]:
    yield from banner("GRADIENCE IMPORT")
    yield f"Source: {clean(report.source)} ({report.format})"
    for path in report.files:
        yield f"  read: {clean(path)}"
    yield f"Wrote:  {clean(report.out)}"
    yield ""
    for run in report.runs:
        yield from _run(run, shown=len(report.runs) > 1 and run is report.runs[-1])
    if report.skipped_total:
        yield f"Not imported ({report.skipped_total}):"
        for row in report.skipped[:_SHOWN]:
            yield f"  {clean(row.file)} {row.line}: {clean(row.reason)}"
        if report.skipped_total > _SHOWN:
            yield f"  ... and {report.skipped_total - _SHOWN} more (--json lists them)"
        yield ""
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield f"Next: gradience monitor {clean(report.out)}"


def _run(run: ImportedRunReport, *, shown: bool) -> Iterator[str]:
    yield f"Run {clean(run.run_id)}" + (f" ({clean(run.name)})" if run.name else "") + (", shown" if shown else "")
    first = "-" if run.first_step is None else run.first_step
    last = "-" if run.last_step is None else run.last_step
    events = run.events
    yield (
        f"  steps {first} to {last}: {events.get('train_step', 0)} rows of training, "
        f"{events.get('eval', 0)} evaluations" + (f", {run.sessions} starts" if run.sessions > 1 else "")
    )
    reason = f" ({clean(run.status_reason)})" if run.status_reason else ""
    yield f"  ended: {run.status}{reason}"
    yield ""
