"""Text of the reports that hold no measurement: the rules, a validated log, an import."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gradience.render.text import as_text, banner, clean
from gradience.schema.findings import RuleCard, RuleGroup
from gradience.schema.reports import BadLine, ImportedRunReport, ImportReport, ValidateReport

_HEADINGS: Final[dict[RuleGroup, str]] = {
    "config": "A configuration (gradience check)",
    "base": "A configuration beside its base model (gradience check --base)",
    "serve": "A configuration where it will run (gradience check --serve)",
    "data": "A data set (gradience check --data)",
    "log": "A run's log (gradience monitor)",
    "weights": "An adapter's weights (gradience audit)",
    "weights_and_base": "An adapter's weights beside their base (gradience audit --base)",
    "joins": "Several of these that have one cause (gradience diagnose)",
    "merge": "Adapters that may be merged (gradience merge-check)",
}

_SHOWN: Final = 10


@as_text
def rules_text(cards: Sequence[RuleCard]) -> Iterator[str]:
    """The rules as a table, a part for each group; a rule that applies in two stands in both."""
    yield from banner("GRADIENCE RULES")
    for group, heading in _HEADINGS.items():
        members = [card for card in cards if group in card.groups]
        if members:
            yield f"{heading}:"
            yield from (f"{card.id:<8}{card.severity:<9}{_sure(card)}  {card.title}" for card in members)
            yield ""
    yield "Severity is the usual one; confidence is a judgement in 0..1. 'gradience rules LR001' explains one."


def _sure(card: RuleCard) -> str:
    return "   -" if card.confidence is None else f"{card.confidence:.2f}"


@as_text
def rule_text(card: RuleCard) -> Iterator[str]:
    """One rule with its condition, numbers and evidence."""
    yield from banner(f"{card.id}: {card.title}")
    where = "; ".join(_HEADINGS[group] for group in card.groups)
    sure = "" if card.confidence is None else f"{card.confidence:.2f} (a judgement)"
    labelled = {
        "Severity": card.severity,
        "Confidence": sure,
        "Applies to": f"{where[:1].lower()}{where[1:]}",
        "When": card.condition,
        "Scope": card.scope,
        "Why": card.rationale,
        "Action": card.action,
        "Verify": card.verify,
    }
    yield from (f"{f'{label}:':<12}{text}" for label, text in labelled.items() if text)
    yield from _numbers(card)
    if card.evidence:
        yield "Evidence:"
    for ground in card.evidence:
        yield f"  {ground.source}:"
        yield f"      {ground.says}"


def _numbers(card: RuleCard) -> Iterable[str]:
    numbers = [f"  {item.name} = {item.value:g} ({item.unit}): {item.source}" for item in card.thresholds]
    return ["Thresholds:", *numbers] if numbers else []


@as_text
def validate_text(report: ValidateReport) -> Iterator[str]:
    """The report as text: one line for a valid log, else a line per fault."""
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


@as_text
def import_text(report: ImportReport) -> Iterator[str]:
    """The report for a terminal."""
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
