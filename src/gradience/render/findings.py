"""The reports without measurements as text: on the rules, a validated log, and an import."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradience.blocks import Block, Title, counted, facts, part
from gradience.blocks.text import as_lines, as_text, more
from gradience.schema.document import RuleCard, RuleGroup, RulesReport
from gradience.schema.reports import BadLine, ImportedRunReport, ImportReport, ValidateLogsReport, ValidateReport

HEADINGS: Final[dict[RuleGroup, str]] = {
    "config": "A configuration (gradience check)",
    "base": "A configuration beside its base model (gradience check --base)",
    "serve": "A configuration where it will run (gradience check --serve)",
    "data": "A data set (gradience check --data)",
    "log": "A run's log (gradience monitor)",
    "weights": "An adapter's weights (gradience audit)",
    "weights_and_base": "An adapter's weights beside their base (gradience audit --base)",
    "between": "An adapter's files beside each other (gradience audit)",
    "joins": "Several of these that have one cause (gradience diagnose)",
    "merge": "Adapters that may be merged (gradience merge --check)",
    "merged": "A merged model's folder (gradience verify)",
    "served": "What serves an adapter (gradience verify)",
}

_SHOWN: Final = 10


@as_text
def rules_text(report: RulesReport) -> Iterator[Block]:
    """The rules as a table, with a part for each group; a rule of two groups is listed in both."""
    yield Title("GRADIENCE RULES")
    for group, heading in HEADINGS.items():
        members = [card for card in report.rules if group in card.groups]
        yield from part(heading, (f"{card.id:<8}{_weight(card):<9}{_sure(card)}  {card.title}" for card in members))
    yield (
        "Severity is the usual one; a reading is a line of a report, no finding. Confidence is a judgement in 0..1. "
        "'gradience rules LR001' explains one."
    )


def _weight(card: RuleCard) -> str:
    return "reading" if card.reading else card.severity


def _sure(card: RuleCard) -> str:
    return "   -" if card.confidence is None else f"{card.confidence:.2f}"


@as_text
def rule_text(card: RuleCard) -> Iterator[Block]:
    """One rule with its condition, numbers and evidence."""
    yield Title(f"{card.id}: {card.title}")
    where = "; ".join(HEADINGS[group] for group in card.groups)
    sure = "" if card.confidence is None else f"{card.confidence:.2f} (a judgement)"
    labelled = {
        "Severity": _weight(card),
        "Confidence": sure,
        "Applies to": f"{where[:1].lower()}{where[1:]}",
        "When": card.condition,
        "Only where": "; ".join(card.premises),
        "Scope": card.scope,
        "Why": card.rationale,
        "Action": card.action,
        "Verify": card.verify,
    }
    yield facts(labelled.items())
    numbers = [f"  {item.name} = {item.value:g} ({item.unit}): {item.source}" for item in card.thresholds]
    yield from ["Thresholds:", *numbers] if numbers else []
    shown = [line for each in card.passports for line in (f"  {each.kind}, {each.source}:", f"      {each.says}")]
    yield from ["Passport:", *shown] if shown else []
    others = [ground for ground in card.evidence if ground.source not in {each.source for each in card.passports}]
    grounds = [line for ground in others for line in (f"  {ground.source}:", f"      {ground.says}")]
    yield from ["Evidence:", *grounds] if grounds else []


@as_lines
def validate_text(report: ValidateReport) -> Iterator[Block]:
    """The report of a validation as text: one line for a valid log, else a line for each fault."""
    if report.error is not None:
        yield f"{report.file}: cannot be read: {report.error}"
        return
    yield f"{report.file}: {_verdict(report)}"
    yield from (f"  {_fault(bad)}" for bad in report.issues)
    yield from more(report.issues_total - len(report.issues), "--max-issues shows them")
    events = {**report.events, **report.unknown_events}
    if events:
        yield f"  events: {', '.join(f'{name} {n}' for name, n in events.items())}"
    yield from (f"  warning: {warning}" for warning in report.warnings)
    yield from (f"  note: {note}" for note in report.notes)


@as_lines
def validate_logs_text(report: ValidateLogsReport) -> Iterator[Block]:
    """The reports of several logs, one after the other."""
    for log in report.logs:
        yield validate_text(log).rstrip("\n")


def _verdict(report: ValidateReport) -> str:
    lines = counted(report.lines, "line")
    return f"valid, {lines}" if report.valid else f"not valid, {counted(report.issues_total, 'fault')} in {lines}"


def _fault(bad: BadLine) -> str:
    where = f"line {bad.line}" + (f", {bad.path}" if bad.path else f" (byte {bad.offset})")
    if bad.path is None or bad.expected is None:
        return f"{where}: {bad.reason}"
    hint = f" ({bad.hint})" if bad.hint else ""
    return f"{where}: expected {bad.expected}, got {bad.got or 'nothing'}{hint}"


@as_text
def import_text(report: ImportReport) -> Iterator[Block]:
    """The report of an import for a terminal."""
    yield Title("GRADIENCE IMPORT")
    yield f"Source: {report.source} ({report.format})"
    yield from (f"  read: {path}" for path in report.files)
    yield f"Wrote:  {report.out}"
    yield ""
    for run in report.runs:
        yield from _run(run, shown=len(report.runs) > 1 and run is report.runs[-1])
    rows = [f"  {row.file} {row.line}: {row.reason}" for row in report.skipped[:_SHOWN]]
    further = more(report.skipped_total - len(rows), "--json lists them")
    yield from part(f"Not imported ({report.skipped_total})", (*rows, *further))
    yield from (f"Note: {note}." for note in report.notes)
    yield f"Next: gradience monitor {report.out}"


def _run(run: ImportedRunReport, *, shown: bool) -> Iterator[Block]:
    yield f"Run {run.run_id}" + (f" ({run.name})" if run.name else "") + (", shown" if shown else "")
    first = "-" if run.first_step is None else run.first_step
    last = "-" if run.last_step is None else run.last_step
    events = run.events
    yield (
        f"  steps {first} to {last}: {events.get('train_step', 0)} rows of training, "
        f"{events.get('eval', 0)} evaluations" + (f", {run.sessions} starts" if run.sessions > 1 else "")
    )
    reason = f" ({run.status_reason})" if run.status_reason else ""
    yield f"  ended: {run.status}{reason}"
    yield ""
