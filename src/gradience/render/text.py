"""Pieces of plain text that every report shares."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from gradience.schema.findings import Finding, NotRun
from gradience.schema.scalars import NonFinite

__all__ = ["WIDTH", "banner", "clean", "count", "finding_lines", "not_run_lines", "number", "percent", "short_path"]

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
