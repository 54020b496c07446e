"""Types of judgement: a finding with its evidence, a rule not run, a rule as a card, and what targets reach."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec

from gradience.schema.document import Report
from gradience.schema.scalars import Fraction, Json, NonNegativeInt, Severity, about

RULES_SCHEMA_ID: Final = "gradience.rules/v2"

RuleGroup: TypeAlias = Literal[
    "config", "base", "serve", "data", "log", "weights", "weights_and_base", "joins", "merge"
]
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)  # mildest first


class Evidence(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One ground of a finding: a source in the literature, or a value seen in the input."""

    source: Annotated[str, about("Paper, document, experiment; or the place in the input.")]
    says: Annotated[str, about("What the source says, with its numbers.")]


class Finding(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One thing to look at. A hypothesis with its evidence: the user decides."""

    id: Annotated[str, about("Stable id of the rule, such as `LR001`.")]
    severity: Severity
    message: Annotated[str, about("One sentence: what was seen.")]
    action: Annotated[str, about("What to consider doing.")] | None = None
    rationale: Annotated[str, about("Why it matters.")] | None = None
    confidence: Fraction | None = None
    scope: Annotated[str, about("Where the rule applies.")] | None = None
    verify: Annotated[str, about("What would confirm or refute it.")] | None = None
    evidence: list[Evidence] = []
    values: Annotated[dict[str, Json], about("The numbers the rule looked at.")] = {}


class FindingRef(msgspec.Struct, kw_only=True, frozen=True):
    """A finding of one run in brief; that run's own report has its grounds."""

    id: str
    severity: Severity
    message: str


class Excluded(Enum):
    """Reasons of a rule that did not run because the user left it out; of all others the input is the reason."""

    NOT_SELECTED = "not selected"
    IGNORED = "ignored on request"


class NotRun(msgspec.Struct, kw_only=True, frozen=True):
    """A check that could not run, and why: silence is not a pass."""

    id: str
    reason: str


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, most severe first, otherwise in the order given: the one order of severity."""
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))


class RuleThreshold(msgspec.Struct, kw_only=True, frozen=True):
    """A number that a rule compares with."""

    name: str
    value: float
    unit: str
    source: Annotated[str, about("Where the number comes from; a judgement or proposal is called one.")]


class RuleCard(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One rule: when it speaks, how grave and how sure it is, its grounds, and what would verify it."""

    id: Annotated[str, about("Stable id, such as `LR001`.")]
    title: str
    groups: Annotated[
        list[RuleGroup],
        about(
            "Where it applies. `config`: check; `base`: check --base; `serve`: check --serve; `data`: "
            "check --data; `log`: monitor; `weights`: audit; `weights_and_base`: audit --base; `joins`: diagnose, over "
            "findings of several of these; `merge`: merge-check."
        ),
    ] = []
    severity: Annotated[Severity, about("The usual one: a finding may be milder or graver.")]
    condition: Annotated[str, about("When it speaks.")] = ""
    confidence: Annotated[Fraction, about("A judgement, in 0..1.")] | None = None
    scope: Annotated[str, about("Where the rule applies, and where it does not.")] = ""
    rationale: Annotated[str, about("Why it matters.")] = ""
    action: Annotated[str, about("What to consider doing.")] = ""
    verify: Annotated[str, about("What would confirm or refute it.")] = ""
    thresholds: list[RuleThreshold] = []
    evidence: list[Evidence] = []


class RulesReport(Report, kw_only=True, frozen=True):
    """Rules, as `gradience rules --json` prints them."""

    schema: Literal["gradience.rules/v2"]
    rules: list[RuleCard]


class Refused(msgspec.Struct, kw_only=True, frozen=True):
    """A module that the targets name and PEFT will not adapt: get_peft_model raises."""

    name: str
    reason: str


class Coverage(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Counted from the base's config.json and safetensors headers by PEFT's rules of matching; nothing is loaded."""

    base: Annotated[str, about("Name of the folder or hub id.")]
    model_type: str
    layout: Annotated[str, about("Whose module tree was assumed, such as `transformers 5`.")]
    modules: Annotated[NonNegativeInt, about("Modules and parameters that get an adapter.")]
    by_type: Annotated[dict[str, int], about("The same by type: attn, mlp, embedding, ...")] = {}
    layers: Annotated[NonNegativeInt, about("Layers with at least one adapted module.")]
    layers_total: Annotated[NonNegativeInt, about("Layers of the base.")]
    lora_params: Annotated[NonNegativeInt, about("Entries of all A and B, biases and magnitudes.")] | None = None
    trainable_params: (
        Annotated[NonNegativeInt, about("The same, with whole modules, biases and token rows.")] | None
    ) = None
    trained_besides: Annotated[dict[str, int], about("Trainable entries that are no LoRA factor, by kind.")] = {}
    base_params: Annotated[NonNegativeInt, about("Entries of the base, as its files declare them.")] = 0
    adapter_dtype: Annotated[str, about("What LoRA's numbers are trained in.")] = "float32"
    adapter_bytes: Annotated[NonNegativeInt, about("All that is trained, while training.")] | None = None
    optimizer_bytes: Annotated[NonNegativeInt, about("States and gradients, on one process.")] | None = None
    optimizer_assumption: Annotated[str, about("What optimizer_bytes takes for granted.")] = ""
    unmatched_targets: Annotated[list[str], about("Names in target_modules that hit nothing.")] = []
    unmatched_excludes: Annotated[list[str], about("Names in exclude_modules that hit nothing.")] = []
    refused: list[Refused] = []
    vocabulary: Annotated[NonNegativeInt, about("Rows of the input embedding.")] | None = None
    added_tokens: Annotated[list[str], about("Tokens of the run's tokenizer that the base's does not have.")] = []
    embedding_trained: Annotated[bool, about("Whether rows of the input embedding are trained.")] = False
    notes: Annotated[list[str], about("What was assumed, and what could not be counted.")] = []
