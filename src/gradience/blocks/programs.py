"""Findings in the formats that other programs show: SARIF 2.1.0 (OASIS, errata 01), GitHub's commands, and JUnit.

SARIF is built as plain dicts with the standard's own keys and names; tests validate them against its official schema. A
finding becomes a result, a rule its descriptor, and a rule that could not be judged a notification. Texts are cleaned
and escaped here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Final
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, tostring  # builds and writes; nothing is parsed

from gradience.blocks import clean, sentence
from gradience.io.reading import real_path
from gradience.schema import Json, Severity
from gradience.schema.document import Finding, NotRun, RuleCard
from gradience.schema.reports import SourceLocation

_COMMANDS: Final[dict[Severity, str]] = {"info": "notice", "warning": "warning", "error": "error", "critical": "error"}

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_HOME: Final = "https://github.com/johntnanney/gradience"
_LEVELS: Final[dict[Severity, str]] = {"info": "note", "warning": "warning", "error": "error", "critical": "error"}


def github_lines(findings: Sequence[Finding], *, locations: Sequence[SourceLocation | None]) -> Iterator[str]:
    """A workflow command for each finding.

    Args:
        findings: the findings.
        locations: the file and line of each finding, in their order; None for a finding without a location.
    """
    for finding, at in zip(findings, locations, strict=True):
        action = f" ({clean(finding.action)})" if finding.action else ""
        parameters = {**_place(at), "title": f"gradience {finding.id}"}
        pairs = ",".join(f"{name}={_parameter(value)}" for name, value in parameters.items())
        yield f"::{_COMMANDS[finding.severity]} {pairs}::{_message(clean(finding.message) + action)}"


def _place(at: SourceLocation | None) -> dict[str, str]:
    if at is None:
        return {}
    return {"file": clean(at.path), **({} if at.line is None else {"line": str(at.line)})}


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


def junit_xml(
    findings: Sequence[Finding],
    *,
    locations: Sequence[SourceLocation | None],
    known: Iterable[RuleCard] = (),
    not_run: Iterable[NotRun] = (),
) -> str:
    """The rules as test cases of JUnit: a finding of warning or graver fails, a rule not judged is skipped.

    Args:
        findings: the findings; one of severity info is the output of a case that passes.
        locations: the file and line of each finding, in their order; None for a finding without a location.
        known: the rules that were applied; without a finding they pass.
        not_run: rules that could not be judged.
    """
    skipped = {item.id: item.reason for item in not_run}
    ids = {finding.id for finding in findings}
    cases = [_case(finding, at) for finding, at in zip(findings, locations, strict=True)]
    cases += [_quiet(card, skipped.get(card.id)) for card in known if card.id not in ids]
    counts = {kind: str(sum(case.find(kind) is not None for case in cases)) for kind in ("failure", "skipped")}
    attributes = {
        "name": "gradience",
        "tests": str(len(cases)),
        "failures": counts["failure"],
        "skipped": counts["skipped"],
    }
    suites = Element("testsuites", attributes)
    suite = SubElement(suites, "testsuite", {**attributes, "errors": "0"})
    suite.extend(cases)
    written: bytes = tostring(suites, encoding="us-ascii", xml_declaration=True)  # whatever stdout's encoding
    return f"{written.decode()}\n"


def _case(finding: Finding, at: SourceLocation | None) -> Element:
    case = Element("testcase", {"classname": "gradience", "name": finding.id, **_place(at)})
    text = "\n".join(filter(None, (clean(finding.message), clean(finding.action or ""))))
    if finding.severity == "info":
        SubElement(case, "system-out").text = text
    else:
        failure = SubElement(case, "failure", {"type": finding.severity, "message": clean(finding.message)})
        failure.text = text
    return case


def _quiet(card: RuleCard, reason: str | None) -> Element:
    case = Element("testcase", {"classname": "gradience", "name": card.id})
    if reason is not None:
        SubElement(case, "skipped", {"message": clean(reason)})
    return case


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
        # As bytes: a file's name need not be UTF-8.
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
