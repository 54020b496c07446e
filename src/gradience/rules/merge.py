"""Rules on adapters that may be merged: what `gradience merge --check` says about a weighted sum before it is made.

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

OPPOSED = Threshold("opposed", -0.1, "cosine", "arithmetic: 3 deviations for 1000 entries")
TWINS = Threshold("twins", 0.9, "cosine", "heuristic: nine tenths of each is along the other")
_ALGEBRA = cite("definition", "M = sum w_i dW_i holds <M, dW_i> / norm(dW_i)^2 of adapter i's own update")
_FILES = cite("the adapters' files", "config and tensors")


@dataclass(frozen=True, kw_only=True)
class _MergeRule(Rule[MergeCheckReport]):
    """A rule that `gradience merge --check` applies, by default to a sum of trained adapters."""

    groups: tuple[RuleGroup, ...] = ("merge",)
    scope: str = "weighted sums of trained LoRA adapters"
    verify: str = "Compare the merge with each adapter alone at its weight on held-out data: 'gradience bench merge'."


@premise("the adapters have modules in common")
def _modules_in_common(report: MergeCheckReport) -> str | None:
    return None if report.modules else "no module in two of the adapters"


@_MergeRule(
    "MRG401",
    severity="warning",
    confidence=0.7,
    needs=(_modules_in_common,),
    thresholds=(OPPOSED,),
    evidence=(_ALGEBRA,),
)
def _opposed(report: MergeCheckReport) -> Iterator[Observation]:
    """updates that point against each other

    cosine of two weighted updates <= {opposed}

    Why: Each cancels what it has in common with the other.
    Action: See what the sum keeps of each; consider TIES, or serving them apart.
    Source: arithmetic -- what two updates have in common with opposite signs is lost: an adapter and its negative
        add up to zero
    Source: Ilharco et al. 2022, arXiv 2212.04089 -- fine-tuned updates of different tasks are close to orthogonal;
        those that are not belong to related tasks
    """
    for pair in report.pairs:
        if pair.cosine is not None and pair.cosine <= OPPOSED.value:
            yield Observation(
                f"{_both(pair)} point against each other: cosine {pair.cosine:.2f} of their weighted updates.",
                {"first": pair.first, "second": pair.second, "cosine": pair.cosine},
            )


@_MergeRule("MRG407", severity="warning", confidence=0.8, evidence=(_FILES,))
def _bases(report: MergeCheckReport) -> Iterator[Observation]:
    """different base models

    the configs name different base models

    Why: An update is made for the weights it was trained on.
    Scope: configs that name their base
    Action: Check that these are names of one base.
    Verify: Compare the bases' files.
    Source: peft/tuners/lora/model.py:LoraModel.add_weighted_adapter@0.21.2 -- adds adapters of one base model
    """
    named = sorted({item.adapter.base_model for item in report.adapters if item.adapter.base_model})
    if len(named) > 1:
        yield Observation(f"The configs name {len(named)} base models: {', '.join(named)}.", {"base_models": named})
    if unnamed := sum(not item.adapter.base_model for item in report.adapters):
        raise Unknown(f"{unnamed} of the configs name no base model")


@_MergeRule("MRG408", severity="warning", confidence=0.95, evidence=(_FILES,))
def _obstacles(report: MergeCheckReport) -> Iterator[Observation]:
    """an adapter other than plain LoRA

    an adapter's update is not just s B A

    Why: 'gradience merge' sums s B A, and refuses adapters whose update is not just that.
    Scope: PEFT adapters
    Action: Turn it into a plain LoRA first: 'gradience convert --help'.
    Verify: 'gradience merge --dry-run' says what it refuses.
    Source: peft/tuners/lora/model.py:LoraModel._check_add_weighted_adapter@0.21.2 -- raises for parameters, and for
        modules that both save whole
    """
    for item in report.adapters:
        if item.obstacles:
            yield Observation(
                f"{item.adapter.name} is not plain LoRA: {item.obstacles[0]}.",
                {"adapter": item.adapter.name, "obstacles": list(item.obstacles)},
            )


def _both(pair: CheckedPair) -> str:
    return f"{pair.first} and {pair.second}"


MERGE_RULES: Final[tuple[Rule[MergeCheckReport], ...]] = (
    _opposed,
    _bases,
    _obstacles,
)
