"""What a judgement says: one finding, its grounds, and the checks that could not run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, get_args

import msgspec
from msgspec import Meta

from gradience.schema.scalars import Fraction, Json, Severity

__all__ = ["SEVERITIES", "Evidence", "Finding", "FindingRef", "NotRun", "gravest_first"]

SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)  # mildest first


class Evidence(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One ground of a finding: a source in the literature, or a value seen in the input."""

    source: Annotated[str, Meta(description="Paper, document, experiment; or the place in the input.")]
    says: Annotated[str, Meta(description="What the source says, with its numbers.")]


class Finding(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One thing to look at. A hypothesis with its evidence: the user decides."""

    id: Annotated[str, Meta(description="Stable id of the rule, such as `LR001`.")]
    severity: Severity
    message: Annotated[str, Meta(description="One sentence: what was seen.")]
    action: Annotated[str, Meta(description="What to consider doing.")] | None = None
    rationale: Annotated[str, Meta(description="Why it matters.")] | None = None
    confidence: Fraction | None = None
    scope: Annotated[str, Meta(description="Where the rule applies.")] | None = None
    verify: Annotated[str, Meta(description="What would confirm or refute it.")] | None = None
    evidence: list[Evidence] = []
    values: Annotated[dict[str, Json], Meta(description="The numbers the rule looked at.")] = {}


class FindingRef(msgspec.Struct, kw_only=True, frozen=True):
    """A finding of one run in brief; that run's own report has its grounds."""

    id: str
    severity: Severity
    message: str


class NotRun(msgspec.Struct, kw_only=True, frozen=True):
    """A check that could not run, and why: silence is not a pass."""

    id: str
    reason: str


def gravest_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings by severity, the gravest first, otherwise in the order given."""
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))
