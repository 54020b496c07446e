"""From causes and coverage to one line: what is the matter, what was seen, what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from gradience.policy.adapter_table import ADAPTER_CHECKS
from gradience.policy.config_rules import RULES
from gradience.policy.joins import unread_legs
from gradience.policy.joins_table import JOINS
from gradience.policy.run_detectors import DETECTORS
from gradience.schema.audit import AuditReport
from gradience.schema.diagnose import Cause, DiagnosedSource, Source, SourceCoverage, Unjudged, Verdict
from gradience.schema.findings import SEVERITIES, NotRun
from gradience.schema.reports import CheckReport, MonitorReport

__all__ = ["IDS", "coverage_of", "headline", "is_complete", "unjudged", "verdict_of"]

IDS: Final[dict[Source, tuple[str, ...]]] = {
    "config": tuple(rule.id for rule in RULES),
    "log": tuple(detector.id for detector in DETECTORS),
    "weights": tuple(check.id for check in ADAPTER_CHECKS),
}
_NAMES: Final[dict[Source, str]] = {"config": "config", "log": "log", "weights": "weights"}
_WORDS: Final[dict[Verdict, str]] = {
    "healthy_as_far_as_seen": "healthy as far as seen",
    "needs_attention": "needs attention",
    "broken": "broken",
    "could_not_judge": "could not judge",
}


def unjudged(
    sources: Iterable[DiagnosedSource],
    check: CheckReport | None,
    monitor: MonitorReport | None,
    audit: AuditReport | None,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> list[Unjudged]:
    """Return every rule, detector, check and join that did not run, with its reason; of joins also those left out."""
    told: dict[Source, list[NotRun] | None] = {
        "config": check.not_run if check else None,
        "log": monitor.not_run if monitor else None,
        "weights": audit.not_run if audit else None,
    }
    read = frozenset(source.source for source in sources if source.state == "read")
    found: list[Unjudged] = []
    for source in sources:
        items = told[source.source]
        if items is None:
            items = [NotRun(id=rule, reason=source.reason) for rule in IDS[source.source]]
        found += [Unjudged(source=source.source, id=item.id, reason=item.reason) for item in items]
    lacking = ((join.id, left_out.get(join.id) or unread_legs(join, read)) for join in JOINS)
    return found + [Unjudged(source="join", id=rule, reason=why) for rule, why in lacking if why is not None]


def coverage_of(not_run: Iterable[Unjudged]) -> list[SourceCoverage]:
    """Return how many of each kind ran."""
    gone: dict[str, set[str]] = {}
    for item in not_run:
        gone.setdefault(item.source, set()).add(item.id)
    counts = [
        SourceCoverage(source=source, judged=len(set(ids) - gone.get(source, set())), total=len(ids))
        for source, ids in IDS.items()
    ]
    lost = len(gone.get("join", set()))
    return [*counts, SourceCoverage(source="join", judged=len(JOINS) - lost, total=len(JOINS))]


def is_complete(sources: Iterable[DiagnosedSource], coverage: Iterable[SourceCoverage]) -> bool:
    """Whether something was judged, and every source that is there could be read."""
    judged = sum(item.judged for item in coverage if item.source != "join")
    return judged > 0 and all(source.state != "unreadable" for source in sources)


def verdict_of(causes: Iterable[Cause], *, complete: bool) -> Verdict:
    """Return the verdict: the gravest cause decides; without one, whether enough could be judged."""
    worst = max((SEVERITIES.index(cause.severity) for cause in causes), default=-1)
    if worst >= SEVERITIES.index("error"):
        return "broken"
    if worst >= SEVERITIES.index("warning"):
        return "needs_attention"
    return "healthy_as_far_as_seen" if complete else "could_not_judge"


def headline(
    verdict: Verdict, sources: Sequence[DiagnosedSource], causes: Sequence[Cause], coverage: Sequence[SourceCoverage]
) -> str:
    """Return the verdict in one line."""
    return "; ".join([f"{_WORDS[verdict]}{_count(causes)}", *_seen(sources, coverage)])


def _count(causes: Sequence[Cause]) -> str:
    counts = Counter(cause.severity for cause in causes)
    parts = [_counted(counts[severity], severity) for severity in reversed(SEVERITIES) if counts[severity]]
    return f" ({', '.join(parts)})" if parts else ""


def _counted(n: int, severity: str) -> str:
    return f"{n} {severity}" if n == 1 or severity == "info" else f"{n} {severity}s"


def _seen(sources: Sequence[DiagnosedSource], coverage: Sequence[SourceCoverage]) -> Iterator[str]:
    judged = {item.source: f"{item.judged} of {item.total} judged" for item in coverage}
    seen = [f"{_NAMES[s.source]} ({judged[s.source]})" for s in sources if s.state == "read"]
    yield f"seen: {', '.join(seen) or 'nothing'}"
    absent = [_NAMES[s.source] for s in sources if s.state == "absent"]
    if absent:
        yield f"not there: {', '.join(absent)}"
    unreadable = [_NAMES[s.source] for s in sources if s.state == "unreadable"]
    if unreadable:
        yield f"there but not readable: {', '.join(unreadable)}"
