"""Rules on adapters that may be merged: what `gradience merge-check` says about a weighted sum before it is made.

They read the numbers of one `MergeCheckReport` (cosines, norms, how much of each adapter the sum keeps) and open no
file. The thresholds are heuristics and are called so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gradience.rules import Observation, Rule, Threshold, Unknown, cite, premise
from gradience.schema.document import RuleGroup
from gradience.schema.merge import CheckedPair, MergeCheckReport

OPPOSED = Threshold(
    "opposed", -0.1, "cosine", "heuristic: independent updates of real sizes lie within a few 1e-3 of 0"
)
TWINS = Threshold("twins", 0.9, "cosine", "heuristic: nine tenths of each is along the other")
DROWNED = Threshold(
    "drowned", 0.8, "share of norm(M)^2 that is orthogonal to an update", "measured: benchmarks/merge_outcome.py"
)
ODDS: Final = (
    "Of 36 such adapters in merges of four small models, 15 kept 35 % of their gain or less; of 76 others 1 did."
)
"""What was measured at the threshold."""
CANCELLED = Threshold(
    "cancelled",
    0.5,
    "share of magnitude",
    "heuristic: independent Gaussian entries of one size cancel 1 - 1/sqrt(2) = .29 by chance",
)
SHARED = Threshold("shared", 0.5, "phi(k, k)", "heuristic: on average half of the directions in common")
UNRELATED = Threshold("unrelated", 0.3, "absolute cosine", "heuristic")


def _opposed(report: MergeCheckReport) -> Iterator[Observation]:
    for pair in report.pairs:
        if pair.cosine is not None and pair.cosine <= OPPOSED.value:
            yield Observation(
                f"{_both(pair)} point against each other: cosine {pair.cosine:.2f} of their weighted updates.",
                {"first": pair.first, "second": pair.second, "cosine": pair.cosine},
            )


def _twins(report: MergeCheckReport) -> Iterator[Observation]:
    for pair in report.pairs:
        if pair.cosine is not None and pair.cosine >= TWINS.value:
            yield Observation(
                f"{_both(pair)} are nearly identical updates (cosine {pair.cosine:.2f}): their weights add up.",
                {"first": pair.first, "second": pair.second, "cosine": pair.cosine},
            )


def _drowned(report: MergeCheckReport) -> Iterator[Observation]:
    for item in report.adapters:
        others = item.kept.other
        if others is not None and item.weight != 0.0 and others >= DROWNED.value:
            yield Observation(
                f"{others:.0%} of the sum is orthogonal to the update of {item.adapter.name}: the others drown it. "
                f"{ODDS}",
                {"adapter": item.adapter.name, "other": others},
            )


def _cancelled(report: MergeCheckReport) -> Iterator[Observation]:
    signs = report.signs
    if (
        signs is not None and signs.cancelled - 2.0 * signs.cancelled_error > CANCELLED.value
    ):  # beyond the sample's error
        yield Observation(
            f"{signs.cancelled:.0%} of the updates' magnitude cancels in their sum; {signs.conflict:.0%} of the "
            "entries have opposite signs.",
            {"cancelled": signs.cancelled, "conflict": signs.conflict},
        )


def _shared(report: MergeCheckReport) -> Iterator[Observation]:
    for pair in report.pairs:
        if pair.cosine is None or abs(pair.cosine) >= UNRELATED.value or not pair.output_side or not pair.input_side:
            continue
        out, inner = pair.output_side[-1], pair.input_side[-1]
        if all(side.phi > max(SHARED.value, side.chance + 3.0 * side.chance_sd) for side in (out, inner)):
            yield Observation(
                f"{_both(pair)} work in the same directions (phi({out.i}, {out.i}) {out.phi:.2f} of outputs and "
                f"{inner.phi:.2f} of inputs, by chance {out.chance:.2f} and {inner.chance:.2f}) though their cosine is "
                f"{pair.cosine:.2f}.",
                {"first": pair.first, "second": pair.second, "output": out.phi, "input": inner.phi},
            )


def _bases(report: MergeCheckReport) -> Iterator[Observation]:
    named = sorted({item.adapter.base_model for item in report.adapters if item.adapter.base_model})
    if len(named) > 1:
        yield Observation(f"The configs name {len(named)} base models: {', '.join(named)}.", {"base_models": named})
    if unnamed := sum(not item.adapter.base_model for item in report.adapters):
        raise Unknown(f"{unnamed} of the configs name no base model")


def _obstacles(report: MergeCheckReport) -> Iterator[Observation]:
    for item in report.adapters:
        if item.obstacles:
            yield Observation(
                f"{item.adapter.name} is not plain LoRA: {item.obstacles[0]}.",
                {"adapter": item.adapter.name, "obstacles": list(item.obstacles)},
            )


def _both(pair: CheckedPair) -> str:
    return f"{pair.first} and {pair.second}"


@premise("the adapters have modules in common")
def _modules_in_common(report: MergeCheckReport) -> str | None:
    return None if report.modules else "no module in two of the adapters"


_ALGEBRA = cite("definition", "M = sum w_i dW_i holds <M, dW_i> / norm(dW_i)^2 of adapter i's own update")
_FILES = cite("the adapters' files", "config and tensors")


@dataclass(frozen=True, kw_only=True)
class _MergeRule(Rule[MergeCheckReport]):
    """A rule that `gradience merge-check` applies, by default to a sum of trained adapters."""

    groups: tuple[RuleGroup, ...] = ("merge",)
    scope: str = "weighted sums of trained LoRA adapters"
    verify: str = "Compare the merge with each adapter alone at its weight on held-out data: 'gradience bench merge'."


MERGE_RULES: Final[tuple[Rule[MergeCheckReport], ...]] = (
    _MergeRule(
        id="MRG409",
        severity="warning",
        title="an adapter that the others drown",
        condition="at least {drowned} of norm(M)^2 is orthogonal to the adapter's update",
        observe=_drowned,
        confidence=0.5,
        evidence=(cite("benchmarks/merge_outcome.py", ODDS), _ALGEBRA),
        scope="measured on sums of two adapters at a half; of more adapters, or other weights, by the same algebra",
        rationale="The sum moves the model, and little of it is this adapter's: its gain is lost in the others' part.",
        action="Weigh it up, the others down, or serve them apart; then measure: 'gradience bench merge'.",
        thresholds=(DROWNED,),
    ),
    _MergeRule(
        id="MRG401",
        severity="warning",
        title="updates that point against each other",
        condition="cosine of two weighted updates <= {opposed}",
        observe=_opposed,
        confidence=0.7,
        evidence=(
            cite(
                "Ilharco et al. 2022, arXiv 2212.04089",
                "fine-tuned updates of different tasks are close to orthogonal; those that are not belong to "
                "related tasks",
            ),
            _ALGEBRA,
        ),
        rationale="Each cancels what it has in common with the other.",
        action="See what the sum keeps of each; consider TIES, or serving them apart.",
        thresholds=(OPPOSED,),
        needs=(_modules_in_common,),
    ),
    _MergeRule(
        id="MRG404",
        severity="warning",
        title="entries that cancel",
        condition="over {cancelled} of the updates' magnitude cancels, by two standard errors",
        observe=_cancelled,
        confidence=0.5,
        evidence=(
            cite(
                "TIES, Yadav et al. 2023, arXiv 2306.01708",
                "values of opposite sign, and redundant small ones, are what a plain mean of updates loses",
            ),
        ),
        rationale="What cancels is lost to all of them.",
        action="Consider TIES, which keeps the majority's sign.",
        thresholds=(CANCELLED,),
        needs=(_modules_in_common,),
    ),
    _MergeRule(
        id="MRG405",
        severity="info",
        title="updates that are nearly identical",
        condition="cosine of two weighted updates >= {twins}",
        observe=_twins,
        confidence=0.8,
        evidence=(_ALGEBRA,),
        rationale="With weights that sum to more than one the common update grows beyond either's.",
        action="Let the weights of such adapters sum to one.",
        thresholds=(TWINS,),
        needs=(_modules_in_common,),
    ),
    _MergeRule(
        id="MRG406",
        severity="info",
        title="same directions, different updates",
        condition="the subspace overlap phi is over {shared} and above chance, for outputs and for inputs, at an "
        "absolute cosine under {unrelated}",
        observe=_shared,
        confidence=0.4,
        evidence=(
            cite(
                "LoRA, Hu et al. 2021, arXiv 2106.09685, section 7.2",
                "phi(i, j) between two runs of one task: only the leading directions are shared, the rest is near "
                "chance",
            ),
        ),
        rationale="A cosine near 0 says that the updates do not add up or cancel, not that they leave each other "
        "alone. Adapters initialised from the same seed share input directions for that reason alone.",
        action="Look at the modules with the largest overlap; evaluate both tasks.",
        thresholds=(SHARED, UNRELATED),
        needs=(_modules_in_common,),
    ),
    _MergeRule(
        id="MRG407",
        severity="warning",
        title="different base models",
        condition="the configs name different base models",
        observe=_bases,
        confidence=0.8,
        evidence=(_FILES,),
        rationale="An update is made for the weights it was trained on.",
        action="Check that these are names of one base.",
        scope="configs that name their base",
        verify="Compare the bases' files.",
    ),
    _MergeRule(
        id="MRG408",
        severity="warning",
        title="an adapter other than plain LoRA",
        condition="an adapter's update is not just s B A",
        observe=_obstacles,
        confidence=0.95,
        evidence=(_FILES,),
        rationale="'gradience merge' sums s B A, and refuses adapters whose update is not just that.",
        action="Turn it into a plain LoRA first: 'gradience convert --help'.",
        scope="PEFT adapters",
        verify="'gradience merge --dry-run' says what it refuses.",
    ),
)
