"""What each rule of a merge check looks for, with its thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from gradience.rules.config.hits import Hit
from gradience.rules.rule import Threshold
from gradience.schema.findings import Evidence, Finding, NotRun, by_severity
from gradience.schema.merge import CheckedAdapter, CheckedPair, MergeCheckReport
from gradience.schema.scalars import Severity

OPPOSED = Threshold(
    "opposed", -0.1, "cosine", "heuristic: independent updates of real sizes lie within a few 1e-3 of 0"
)
TWINS = Threshold("twins", 0.9, "cosine", "heuristic: nine tenths of either is along the other")
SCALE = Threshold("scale_ratio", 4.0, "larger over smaller weighted norm", "heuristic: 1/17 of the energy of the sum")
HALVED = Threshold("kept_share", 0.5, "coefficient over weight", "heuristic: half of what was asked for is undone")
CANCELLED = Threshold(
    "cancelled",
    0.5,
    "share of magnitude",
    "heuristic: independent Gaussian entries of one size cancel 1 - 1/sqrt(2) = .29 by chance",
)
SHARED = Threshold("shared", 0.5, "phi(k, k)", "heuristic: on average half of the directions in common")
UNRELATED = Threshold("unrelated", 0.3, "absolute cosine", "heuristic")


def opposed(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield pairs whose weighted updates have a clearly negative cosine."""
    for pair in report.pairs:
        if pair.cosine is not None and pair.cosine <= OPPOSED.value:
            yield Hit(
                f"{_both(pair)} point against each other: cosine {pair.cosine:.2f} of their weighted updates.",
                {"first": pair.first, "second": pair.second, "cosine": pair.cosine},
            )


def twins(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield pairs that are nearly one update."""
    for pair in report.pairs:
        if pair.cosine is not None and pair.cosine >= TWINS.value:
            yield Hit(
                f"{_both(pair)} are nearly one update (cosine {pair.cosine:.2f}): their weights add up along it.",
                {"first": pair.first, "second": pair.second, "cosine": pair.cosine},
            )


def scales(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield pairs of very different weighted norms."""
    for pair in report.pairs:
        if pair.scale_ratio is not None and pair.scale_ratio >= SCALE.value:
            yield Hit(
                f"{_both(pair)} differ {pair.scale_ratio:.1f} times in norm after their weights: the larger decides.",
                {"first": pair.first, "second": pair.second, "scale_ratio": pair.scale_ratio},
            )


def halved(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield adapters of which the sum keeps less than half of what their weight asks for."""
    for item in report.adapters:
        share = _share(item)
        if share is not None and share < HALVED.value:
            yield Hit(
                f"Of {item.adapter.name} the sum keeps {item.kept.coefficient:.2f} along its own update, where its "
                f"weight asks for {item.weight:.2f}: the others take away the rest.",
                {"adapter": item.adapter.name, "coefficient": item.kept.coefficient, "weight": item.weight},
            )


def _share(item: CheckedAdapter) -> float | None:
    if item.kept.coefficient is None or item.weight == 0.0:
        return None
    return item.kept.coefficient / item.weight


def cancelled(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield if most of the magnitude cancels, beyond the sample's error."""
    signs = report.signs
    if signs is not None and signs.cancelled - 2.0 * signs.cancelled_error > CANCELLED.value:
        yield Hit(
            f"{signs.cancelled:.0%} of the updates' magnitude cancels in their sum; {signs.conflict:.0%} of the "
            "entries have opposite signs.",
            {"cancelled": signs.cancelled, "conflict": signs.conflict},
        )


def shared(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield pairs that share directions on both sides, beyond chance, with a small cosine."""
    for pair in report.pairs:
        if pair.cosine is None or abs(pair.cosine) >= UNRELATED.value or not pair.output_side or not pair.input_side:
            continue
        out, inner = pair.output_side[-1], pair.input_side[-1]
        if all(side.phi > max(SHARED.value, side.chance + 3.0 * side.chance_sd) for side in (out, inner)):
            yield Hit(
                f"{_both(pair)} work in the same directions (phi({out.i}, {out.i}) {out.phi:.2f} of outputs and "
                f"{inner.phi:.2f} of inputs, by chance {out.chance:.2f} and {inner.chance:.2f}) though their cosine "
                f"is {pair.cosine:.2f}: what each does there, the other changes.",
                {"first": pair.first, "second": pair.second, "output": out.phi, "input": inner.phi},
            )


def bases(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield if the configs name several base models."""
    named = sorted({item.adapter.base_model for item in report.adapters if item.adapter.base_model})
    if len(named) > 1:
        yield Hit(f"The configs name {len(named)} base models: {', '.join(named)}.", {"base_models": named})


def obstacles(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield adapters that are no plain LoRA."""
    for item in report.adapters:
        if item.obstacles:
            yield Hit(
                f"{item.adapter.name} is no plain LoRA: {item.obstacles[0]}.",
                {"adapter": item.adapter.name, "obstacles": list(item.obstacles)},
            )


def _both(pair: CheckedPair) -> str:
    return f"{pair.first} and {pair.second}"


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
        opposed,
        0.7,
        (_TASK_VECTORS, _ALGEBRA),
        "Each takes away from the other what they have in common.",
        "See what the sum keeps of each; consider TIES, or serving them apart.",
        _LINEAR,
        _EVAL,
        (OPPOSED,),
    ),
    MergeRule(
        "MRG402",
        "warning",
        "updates of very different size",
        scales,
        0.6,
        (_ALGEBRA,),
        "A sum is mostly its largest member: another alpha, rank or learning rate can make an adapter large.",
        "Give the smaller a larger weight if it is meant to count as much.",
        _LINEAR,
        _EVAL,
        (SCALE,),
    ),
    MergeRule(
        "MRG403",
        "warning",
        "an adapter of which the sum keeps less than half",
        halved,
        0.7,
        (_ALGEBRA,),
        "The other updates have a part along this one's direction, of the opposite sign.",
        "Change the weights until the coefficients are what is wanted, or consider TIES.",
        _LINEAR,
        _EVAL,
        (HALVED,),
    ),
    MergeRule(
        "MRG404",
        "warning",
        "entries that cancel",
        cancelled,
        0.5,
        (_TIES,),
        "What cancels is lost to all of them.",
        "Consider TIES, which keeps the majority's sign.",
        _LINEAR,
        _EVAL,
        (CANCELLED,),
    ),
    MergeRule(
        "MRG405",
        "info",
        "updates that are nearly one",
        twins,
        0.8,
        (_ALGEBRA,),
        "With weights that sum to more than one the common update grows beyond either's.",
        "Let the weights of twins sum to one.",
        _LINEAR,
        _EVAL,
        (TWINS,),
    ),
    MergeRule(
        "MRG406",
        "info",
        "shared directions with another content",
        shared,
        0.4,
        (_PHI,),
        "A cosine near 0 says that the updates do not add up or cancel, not that they leave each other alone. Adapters "
        "that were started from one seed share input directions for that reason alone.",
        "Look at the modules with the largest overlap; evaluate both tasks.",
        _LINEAR,
        _EVAL,
        (SHARED, UNRELATED),
    ),
    MergeRule(
        "MRG407",
        "warning",
        "different base models",
        bases,
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
        obstacles,
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
    return by_severity(_finding(rule, hit) for rule in MERGE_RULES for hit in rule.condition(report))


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
