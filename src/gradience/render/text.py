"""Where a finding points, and the cards of the rules behind findings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

from gradience.schema.findings import Coverage, Finding, NotRun, RuleCard
from gradience.schema.scalars import NonFinite


class Place(NamedTuple):
    """Where a finding points: a file, and a line where it is known."""

    path: str
    line: int | None = None


def cards(known: Iterable[RuleCard], findings: Sequence[Finding]) -> list[RuleCard]:
    """Return the known cards, and one made from the first finding of each rule that has none."""
    found = {card.id: card for card in known}
    for finding in findings:
        found.setdefault(finding.id, _card_of_finding(finding))
    return list(found.values())


def _card_of_finding(finding: Finding) -> RuleCard:
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


WIDTH = 72

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]?")
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # controls, bidi overrides, surrogates, separators


def clean(text: str) -> str:
    r"""Return the text on one line, without escape sequences, controls or bidi overrides (CWE-150).

    >>> clean("a\x1b[31mb\u202ec\nd")
    'abc d'
    """
    flat = _ESCAPES.sub("", text).replace("\n", " ").replace("\t", " ")
    return "".join(ch for ch in flat if unicodedata.category(ch) not in _UNSAFE)


def banner(title: str) -> list[str]:
    """Return a title between two rules."""
    rule = "=" * WIDTH
    return [rule, title, rule]


def number(value: float | NonFinite | None, spec: str = ".2f") -> str:
    """Return the number in the given format, `-` for none; non-finite ones by name."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, spec)


def percent(value: float | NonFinite | None) -> str:
    """Return a fraction as a percentage with one decimal, `-` for none."""
    return number(value, ".1%")


def count(value: int) -> str:
    """Return a count in thousands or millions, as people write it.

    >>> count(294_912), count(950), count(41_943_040)
    ('294.9K', '950', '41.9M')
    """
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def short_path(path: str | PurePath) -> str:
    """Return the last two parts of a path: a report is passed on, and need not say where on a disk it was made.

    >>> short_path("/home/me/runs/toy/run.jsonl")
    'toy/run.jsonl'
    """
    return "/".join(part for part in PurePath(path).parts[-2:] if part != "/")


def finding_lines(findings: Iterable[Finding], *, verbose: bool) -> Iterator[str]:
    """Yield a line per finding; verbose adds rationale, confidence, scope, evidence, verification."""
    for finding in findings:
        yield f"  [{finding.severity.upper()}] {finding.id}: {clean(finding.message)}"
        if finding.action:
            yield f"      -> {clean(finding.action)}"
        if not verbose:
            continue
        if finding.rationale:
            yield f"      why: {clean(finding.rationale)}"
        if finding.confidence is not None:
            yield f"      confidence: {finding.confidence:.2f}"
        if finding.scope:
            yield f"      scope: {clean(finding.scope)}"
        for item in finding.evidence:
            yield f"      evidence: {clean(item.source)}: {clean(item.says)}"
        if finding.verify:
            yield f"      verify: {clean(finding.verify)}"


def not_run_lines(not_run: Iterable[NotRun]) -> Iterator[str]:
    """Yield a line per check that could not run, with its reason."""
    for item in not_run:
        yield f"  {item.id}: {clean(item.reason)}"


_MOST_NAMES = 5


def coverage_rows(coverage: Coverage) -> Iterator[tuple[str, str]]:
    """Yield what the rows speak of, and their values in words."""
    types = ", ".join(f"{clean(kind)} {number}" for kind, number in coverage.by_type.items())
    reach = f"{coverage.layers} of {coverage.layers_total} layers"
    yield "Reaches", f"{coverage.modules} modules{f' ({types})' if types else ''} in {reach}"
    if coverage.trainable_params is not None:
        yield "Trains", _trained(coverage)
    if coverage.adapter_bytes is not None:
        yield "Adapter", f"{megabytes(coverage.adapter_bytes)} MB in {coverage.adapter_dtype}"
    if coverage.optimizer_bytes is not None:
        yield "Optimizer", f"{megabytes(coverage.optimizer_bytes)} MB more ({clean(coverage.optimizer_assumption)})"
    if coverage.unmatched_targets:
        yield "No match", ", ".join(clean(name) for name in coverage.unmatched_targets[:_MOST_NAMES])
    for note in coverage.notes:
        yield "Note", clean(note)


def _trained(coverage: Coverage) -> str:
    total, base = coverage.trainable_params or 0, coverage.base_params
    besides = "".join(f", of them {kind} {count(n)}" for kind, n in coverage.trained_besides.items())
    share = f" = {total / base:.2%} of the base's {count(base)}" if base else ""
    return f"{count(total)} parameters{share}{besides}"


def megabytes(size: int) -> str:
    """Return bytes as millions, with two digits that count.

    >>> megabytes(167_772_160), megabytes(81_920)
    ('168', '0.082')
    """
    value = size / 1e6
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"  # two digits
