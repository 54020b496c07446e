"""What would get in each other's way in a weighted sum of adapters: rules over the numbers of a merge check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from gradience.policy import merge_conditions as conditions
from gradience.policy.rules import Hit
from gradience.policy.thresholds import Threshold
from gradience.schema.findings import Evidence, Finding, NotRun, gravest_first
from gradience.schema.merge import MergeCheckReport
from gradience.schema.scalars import Severity

__all__ = ["MERGE_RULES", "MergeRule", "merge_findings", "merge_not_run"]

_TASK_VECTORS = Evidence(
    source="Ilharco et al. 2022, arXiv 2212.04089",
    says="fine-tuned updates of different tasks are close to orthogonal; those that are not belong to related tasks",
)
_TIES = Evidence(
    source="TIES, Yadav et al. 2023, arXiv 2306.01708",
    says="values of opposite sign, and redundant small ones, are what a plain mean of updates loses",
)
_ALGEBRA = Evidence(
    source="definition", says="M = sum w_i dW_i holds <M, dW_i> / norm(dW_i)^2 of adapter i's own update"
)
_PHI = Evidence(
    source="LoRA, Hu et al. 2021, arXiv 2106.09685, section 7.2",
    says="phi(i, j) between two runs of one task: only the leading directions are shared, the rest is near chance",
)
_FILES = Evidence(source="the adapters' files", says="config and tensors")


class MergeRule(NamedTuple):
    """One rule: the condition yields hits over a report's numbers."""

    id: str
    severity: Severity
    title: str
    condition: Callable[[MergeCheckReport], Iterator[Hit]]
    confidence: float
    evidence: tuple[Evidence, ...]
    rationale: str
    action: str
    scope: str
    verify: str
    thresholds: tuple[Threshold, ...] = ()


_LINEAR: Final = "weighted sums of trained LoRA adapters"
_EVAL: Final = "Evaluate each adapter and the merged one on held-out data of every task."

MERGE_RULES: Final = (
    MergeRule(
        "MRG401",
        "warning",
        "updates that point against each other",
        conditions.opposed,
        0.7,
        (_TASK_VECTORS, _ALGEBRA),
        "Each takes away from the other what they have in common.",
        "See what the sum keeps of each; consider TIES, or serving them apart.",
        _LINEAR,
        _EVAL,
        (conditions.OPPOSED,),
    ),
    MergeRule(
        "MRG402",
        "warning",
        "updates of very different size",
        conditions.scales,
        0.6,
        (_ALGEBRA,),
        "A sum is mostly its largest member: another alpha, rank or learning rate can make an adapter large.",
        "Give the smaller a larger weight if it is meant to count as much.",
        _LINEAR,
        _EVAL,
        (conditions.SCALE,),
    ),
    MergeRule(
        "MRG403",
        "warning",
        "an adapter of which the sum keeps less than half",
        conditions.halved,
        0.7,
        (_ALGEBRA,),
        "The other updates have a part along this one's direction, of the opposite sign.",
        "Change the weights until the coefficients are what is wanted, or consider TIES.",
        _LINEAR,
        _EVAL,
        (conditions.HALVED,),
    ),
    MergeRule(
        "MRG404",
        "warning",
        "entries that cancel",
        conditions.cancelled,
        0.5,
        (_TIES,),
        "What cancels is lost to all of them.",
        "Consider TIES, which keeps the majority's sign.",
        _LINEAR,
        _EVAL,
        (conditions.CANCELLED,),
    ),
    MergeRule(
        "MRG405",
        "info",
        "updates that are nearly one",
        conditions.twins,
        0.8,
        (_ALGEBRA,),
        "With weights that sum to more than one the common update grows beyond either's.",
        "Let the weights of twins sum to one.",
        _LINEAR,
        _EVAL,
        (conditions.TWINS,),
    ),
    MergeRule(
        "MRG406",
        "info",
        "shared directions with another content",
        conditions.shared,
        0.4,
        (_PHI,),
        "A cosine near 0 says that the updates do not add up or cancel, not that they leave each other alone. Adapters "
        "that were started from one seed share input directions for that reason alone.",
        "Look at the modules with the largest overlap; evaluate both tasks.",
        _LINEAR,
        _EVAL,
        (conditions.SHARED, conditions.UNRELATED),
    ),
    MergeRule(
        "MRG407",
        "warning",
        "different base models",
        conditions.bases,
        0.8,
        (_FILES,),
        "An update is made for the weights it was trained on.",
        "Check that these are names of one base.",
        "configs that name their base",
        "Compare the bases' files.",
    ),
    MergeRule(
        "MRG408",
        "warning",
        "an adapter that is no plain LoRA",
        conditions.obstacles,
        0.95,
        (_FILES,),
        "'gradience merge' sums s B A, and refuses what is more or other than that.",
        "Turn it into a plain LoRA first: 'gradience convert --help'.",
        "PEFT adapters",
        "'gradience merge --dry-run' says what it refuses.",
    ),
)


def merge_findings(report: MergeCheckReport) -> list[Finding]:
    """Return what the rules say of a merge check's numbers, the gravest first."""
    return gravest_first(_finding(rule, hit) for rule in MERGE_RULES for hit in rule.condition(report))


def merge_not_run(report: MergeCheckReport) -> Iterator[NotRun]:
    """Yield the rules that had nothing to judge, each with its reason."""
    apart = None if report.modules else "no module in two of the adapters"
    without_base = sum(not item.adapter.base_model for item in report.adapters)
    reasons = {
        "MRG401": apart,
        "MRG404": apart if report.signs is None else None,
        "MRG405": apart,
        "MRG406": apart,
        "MRG407": f"{without_base} of the configs name no base model" if without_base else None,
    }
    return (NotRun(id=rule.id, reason=reason) for rule in MERGE_RULES if (reason := reasons.get(rule.id)))


def _finding(rule: MergeRule, hit: Hit) -> Finding:
    return Finding(
        id=rule.id,
        severity=hit.severity or rule.severity,
        message=hit.message,
        action=hit.action or rule.action,
        rationale=rule.rationale,
        confidence=rule.confidence,
        scope=rule.scope,
        verify=rule.verify,
        evidence=[*rule.evidence, *hit.evidence],
        values=hit.values,
    )
