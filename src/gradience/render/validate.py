"""A validation report for people."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.render.text import clean
from gradience.schema.reports import BadLine, ValidateReport

__all__ = ["validate_text"]


def validate_text(report: ValidateReport) -> str:
    """Return the report as text: one line for a valid log, else a line per fault."""
    return "\n".join(_lines(report))


def _lines(report: ValidateReport) -> Iterator[str]:
    yield f"{clean(report.file)}: {_verdict(report)}"
    for bad in report.issues:
        yield f"  {_fault(bad)}"
    if (more := report.issues_total - len(report.issues)) > 0:
        yield f"  ... and {more} more (--max-issues shows them)"
    events = {**report.events, **report.unknown_events}
    if events:
        yield f"  events: {', '.join(f'{clean(name)} {n}' for name, n in events.items())}"
    for note in report.notes:
        yield f"  note: {clean(note)}"


def _verdict(report: ValidateReport) -> str:
    lines = "1 line" if report.lines == 1 else f"{report.lines} lines"
    if report.valid:
        return f"valid, {lines}"
    faults = "1 fault" if report.issues_total == 1 else f"{report.issues_total} faults"
    return f"not valid, {faults} in {lines}"


def _fault(bad: BadLine) -> str:
    where = f"line {bad.line}" + (f", {clean(bad.path)}" if bad.path else f" (byte {bad.offset})")
    if bad.path is None or bad.expected is None or bad.torn:
        return f"{where}: {clean(bad.reason)}"
    return f"{where}: expected {clean(bad.expected)}, got {clean(bad.got or 'nothing')}"
