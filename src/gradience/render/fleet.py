"""Reports on a fleet as text."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.render.text import banner, clean, counted
from gradience.schema.fleet import FleetAuditReport


def fleet_audit_text(report: FleetAuditReport) -> str:
    """What a job did, for a terminal."""
    return "\n".join(_audit(report))


def _audit(report: FleetAuditReport) -> Iterator[str]:
    yield from banner("GRADIENCE FLEET AUDIT")
    yield f"Fleet: {clean(report.out)}"
    rate = f" ({report.audited / report.seconds:.1f} a second)" if report.audited and report.seconds else ""
    yield f"{counted(report.found, 'adapter')}: {report.audited} audited in {report.seconds:.1f} s{rate}, "
    yield f"  {report.unchanged} unchanged, {report.removed} no longer there"
    if report.errors or report.crashed:
        yield f"Not read: {report.errors} with an error, {report.crashed} on which workers died"
    yield from (f"Note: {clean(note)}." for note in report.notes)
