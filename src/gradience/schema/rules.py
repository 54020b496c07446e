"""What there is to say of a rule, whether it found something or not."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema.findings import Evidence
from gradience.schema.scalars import Fraction, Severity

__all__ = ["RULES_SCHEMA_ID", "RuleCard", "RuleGroup", "RuleThreshold", "RulesReport"]

RULES_SCHEMA_ID: Final = "gradience.rules/v1"

RuleGroup: TypeAlias = Literal["config", "base", "serve", "log", "weights", "weights_and_base", "joins", "merge"]


class RuleThreshold(msgspec.Struct, kw_only=True, frozen=True):
    """A number that a rule compares with."""

    name: str
    value: float
    unit: str
    source: Annotated[str, Meta(description="Where the number comes from; a judgement or proposal is called one.")]


class RuleCard(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One rule: when it speaks, how grave and how sure it is, its grounds, and what would verify it."""

    id: Annotated[str, Meta(description="Stable id, such as `LR001`.")]
    title: str
    groups: Annotated[
        list[RuleGroup],
        Meta(
            description="Where it applies. `config`: check; `base`: check --base; `serve`: check --serve; `log`: "
            "monitor; `weights`: audit; `weights_and_base`: audit --base; `joins`: diagnose, over findings of "
            "several of these; `merge`: merge-check."
        ),
    ] = []
    severity: Annotated[Severity, Meta(description="The usual one: a finding may be milder or graver.")]
    condition: Annotated[str, Meta(description="When it speaks.")] = ""
    confidence: Annotated[Fraction, Meta(description="A judgement, in 0..1.")] | None = None
    scope: Annotated[str, Meta(description="Where the rule applies, and where it does not.")] = ""
    rationale: Annotated[str, Meta(description="Why it matters.")] = ""
    action: Annotated[str, Meta(description="What to consider doing.")] = ""
    verify: Annotated[str, Meta(description="What would confirm or refute it.")] = ""
    thresholds: list[RuleThreshold] = []
    evidence: list[Evidence] = []


class RulesReport(msgspec.Struct, kw_only=True, frozen=True):
    """Rules, as `gradience rules --json` prints them."""

    schema: Literal["gradience.rules/v1"]
    rules: list[RuleCard]
