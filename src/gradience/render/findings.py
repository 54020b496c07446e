"""Rules and findings as text, and in the formats that other programs show.

As text: the reports without measurements, on the rules, a validated log, and an import.

For programs: SARIF 2.1.0 (OASIS, errata 01) and GitHub's workflow commands. SARIF is built as plain dicts with the
standard's own keys and names; tests validate them against its official schema. A finding becomes a result, a rule its
descriptor, and a rule that could not be judged a notification.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Final
from urllib.parse import quote

from gradience.io.reading import real_path
from gradience.render import as_lines, as_text, banner, clean, sentence
from gradience.schema import Json, Severity
from gradience.schema.document import Finding, NotRun, RuleCard, RuleGroup
from gradience.schema.reports import (
    BadLine,
    ImportedRunReport,
    ImportReport,
    SourceLocation,
    ValidateLogsReport,
    ValidateReport,
)

HEADINGS: Final[dict[RuleGroup, str]] = {
    "config": "A configuration (gradience check)",
    "base": "A configuration beside its base model (gradience check --base)",
    "serve": "A configuration where it will run (gradience check --serve)",
    "data": "A data set (gradience check --data)",
    "log": "A run's log (gradience monitor)",
    "weights": "An adapter's weights (gradience audit)",
    "weights_and_base": "An adapter's weights beside their base (gradience audit --base)",
    "joins": "Several of these that have one cause (gradience diagnose)",
    "merge": "Adapters that may be merged (gradience merge-check)",
    "served": "What serves an adapter (gradience verify-served)",
}

_SHOWN: Final = 10

_COMMANDS: Final[dict[Severity, str]] = {"info": "notice", "warning": "warning", "error": "error", "critical": "error"}

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_HOME: Final = "https://github.com/johntnanney/gradience"
_LEVELS: Final[dict[Severity, str]] = {"info": "note", "warning": "warning", "error": "error", "critical": "error"}


@as_text
def rules_text(cards: Sequence[RuleCard]) -> Iterator[str]:
    """The rules as a table, with a part for each group; a rule of two groups is listed in both."""
    yield from banner("GRADIENCE RULES")
    for group, heading in HEADINGS.items():
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
    where = "; ".join(HEADINGS[group] for group in card.groups)
    sure = "" if card.confidence is None else f"{card.confidence:.2f} (a judgement)"
    labelled = {
        "Severity": card.severity,
        "Confidence": sure,
        "Applies to": f"{where[:1].lower()}{where[1:]}",
        "When": card.condition,
        "Only where": "; ".join(card.premises),
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


@as_lines
def validate_text(report: ValidateReport) -> Iterator[str]:
    """The report of a validation as text: one line for a valid log, else a line for each fault."""
    if report.error is not None:
        yield f"{clean(report.file)}: cannot be read: {clean(report.error)}"
        return
    yield f"{clean(report.file)}: {_verdict(report)}"
    for bad in report.issues:
        yield f"  {_fault(bad)}"
    if (more := report.issues_total - len(report.issues)) > 0:
        yield f"  ... and {more} more (--max-issues shows them)"
    events = {**report.events, **report.unknown_events}
    if events:
        yield f"  events: {', '.join(f'{clean(name)} {n}' for name, n in events.items())}"
    for warning in report.warnings:
        yield f"  warning: {clean(warning)}"
    for note in report.notes:
        yield f"  note: {clean(note)}"


@as_lines
def validate_logs_text(report: ValidateLogsReport) -> Iterator[str]:
    """The reports of several logs, one after the other."""
    for log in report.logs:
        yield validate_text(log).rstrip("\n")


def _verdict(report: ValidateReport) -> str:
    lines = "1 line" if report.lines == 1 else f"{report.lines} lines"
    if report.valid:
        return f"valid, {lines}"
    faults = "1 fault" if report.issues_total == 1 else f"{report.issues_total} faults"
    return f"not valid, {faults} in {lines}"


def _fault(bad: BadLine) -> str:
    where = f"line {bad.line}" + (f", {clean(bad.path)}" if bad.path else f" (byte {bad.offset})")
    if bad.path is None or bad.expected is None:
        return f"{where}: {clean(bad.reason)}"
    hint = f" ({clean(bad.hint)})" if bad.hint else ""
    return f"{where}: expected {clean(bad.expected)}, got {clean(bad.got or 'nothing')}{hint}"


@as_text
def import_text(report: ImportReport) -> Iterator[str]:
    """The report of an import for a terminal."""
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


def github_lines(findings: Sequence[Finding], *, locations: Sequence[SourceLocation | None]) -> Iterator[str]:
    """A workflow command for each finding.

    Args:
        findings: the findings.
        locations: the file and line of each finding, in their order; None for a finding without a location.
    """
    for finding, at in zip(findings, locations, strict=True):
        action = f" ({clean(finding.action)})" if finding.action else ""
        parameters = ",".join(f"{name}={_parameter(value)}" for name, value in _parameters(finding, at))
        yield f"::{_COMMANDS[finding.severity]} {parameters}::{_message(clean(finding.message) + action)}"


def _parameters(finding: Finding, at: SourceLocation | None) -> Iterator[tuple[str, str]]:
    if at is not None:
        yield "file", clean(at.path)
        if at.line is not None:
            yield "line", str(at.line)
    yield "title", f"gradience {finding.id}"


def _message(text: str) -> str:
    r"""The text with those characters escaped that would end a command.

    >>> _message("50 % of\n100")
    '50 %25 of%0A100'
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _parameter(text: str) -> str:
    """The text as a parameter's value: escaped as a message; colons and commas too, which separate parameters."""
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def sarif_log(
    findings: Sequence[Finding],
    *,
    locations: Sequence[SourceLocation | None],
    known: Iterable[RuleCard] = (),
    not_run: Iterable[NotRun] = (),
    version: str,
    root: Path,
) -> dict[str, Json]:
    """The findings as a SARIF log.

    Args:
        findings: the findings.
        locations: the file and line of each finding, in their order; None for a finding without a location.
        known: the rules that were applied; for a finding of another rule, a rule is made from the finding.
        not_run: rules that could not be judged.
        version: version of this program.
        root: the folder that paths are made relative to.
    """
    rules = {card.id: card for card in known}
    for finding in findings:
        rules.setdefault(finding.id, _card_of(finding))
    index = {rule: number for number, rule in enumerate(rules)}
    driver = {
        "name": "gradience",
        "version": version,
        "informationUri": _HOME,
        "rules": [_descriptor(card) for card in rules.values()],
    }
    invocation = {
        "executionSuccessful": True,
        "toolExecutionNotifications": [_notification(item, index) for item in not_run],
    }
    results = [_result(item, at, index[item.id], root) for item, at in zip(findings, locations, strict=True)]
    run = {"tool": {"driver": driver}, "invocations": [invocation], "results": results}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _card_of(finding: Finding) -> RuleCard:
    return RuleCard(
        id=finding.id,
        title=finding.id,
        severity=finding.severity,
        confidence=finding.confidence,
        scope=finding.scope or "",
        rationale=finding.rationale or "",
        action=finding.action or "",
        verify=finding.verify or "",
        evidence=finding.evidence,
    )


def _result(finding: Finding, at: SourceLocation | None, index: int, root: Path) -> dict[str, Json]:
    action = f" ({clean(finding.action)})" if finding.action else ""
    return {
        "ruleId": finding.id,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{clean(finding.message)}{action}"},
        "locations": [] if at is None else [{"physicalLocation": _physical(at, root)}],
        "properties": {"severity": finding.severity, **_confidence(finding), "values": finding.values},
    }


def _physical(at: SourceLocation, root: Path) -> dict[str, Json]:
    region: dict[str, Json] = {} if at.line is None else {"region": {"startLine": at.line}}
    return {"artifactLocation": {"uri": _uri(at.path, root)}, **region}


def _uri(path: str, root: Path) -> str:
    """The path relative to the root, or as a file: URI if it is outside the root."""
    absolute = real_path(root / path)
    try:
        return quote(os.fsencode(PurePath(absolute.relative_to(real_path(root))).as_posix()))
    except ValueError:
        return absolute.as_uri()


def _descriptor(card: RuleCard) -> dict[str, Json]:
    title = sentence(card.title) + ("" if card.title.endswith((".", "!", "?")) else ".")
    return {
        "id": card.id,
        "shortDescription": {"text": title},
        "fullDescription": {"text": card.rationale or title},
        "help": {"text": "\n".join(_help(card, "", ": ")), "markdown": "\n\n".join(_help(card, "**", ":** "))},
        "defaultConfiguration": {"level": _LEVELS[card.severity]},
        "properties": {"tags": ["lora"], **_confidence(card)},
    }


def _confidence(of: Finding | RuleCard) -> dict[str, Json]:
    return {} if of.confidence is None else {"confidence": of.confidence}


def _help(card: RuleCard, before: str, after: str) -> Iterator[str]:
    """The rule's texts, each labelled between `before` and `after`; the rule's title if it has no text."""
    labelled = [
        ("When", card.condition),
        ("Why", card.rationale),
        ("Action", card.action),
        ("Scope", card.scope),
        ("Verify", card.verify),
        *(("Evidence", f"{item.source}: {item.says}") for item in card.evidence),
    ]
    shown = [f"{before}{label}{after}{text}" for label, text in labelled if text]
    yield from shown or [card.title]


def _notification(item: NotRun, index: dict[str, int]) -> dict[str, Json]:
    rule: dict[str, Json] = {"associatedRule": {"id": item.id, "index": index[item.id]}} if item.id in index else {}
    return {"level": "note", "message": {"text": f"{item.id} was not judged: {clean(item.reason)}"}, **rule}
