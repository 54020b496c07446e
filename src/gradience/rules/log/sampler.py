"""Reinforcement learning: does the engine that samples compute the same probabilities as the trainer?

An engine writes the completions and another program scores them again. Where both differ, training is off its policy
without anything that says so: SMP196 judges the difference, SMP197 what a correction of it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from gradience.rules import Observation, Threshold, Unknown, cite
from gradience.rules.log.facts import Logged, LogRule, RunFacts, Values, find, last_part, logged, seen, shown, under
from gradience.rules.log.preference import FEW_ROWS
from gradience.rules.log.statistics import median
from gradience.telemetry.signals import (
    SAMPLER_FACTOR,
    SAMPLER_GAP,
    SAMPLER_KL,
    SAMPLER_PROBABILITIES,
    SAMPLER_RATIO,
    Names,
)

GAP = Threshold("gap", 0.1, "nats a token", "bfloat16 noise 0.01 to 0.06; 0.2 to 0.4 in a run that hardly converged")
GAP_KL = Threshold("gap_kl", 0.01, "nats a token", "that of a gap of 0.1: half of the log-ratio's variance")
GAP_SHARE = Threshold("gap_share", 0.05, "probability", "a judgement: that of a gap of 0.1 at usual probabilities")
FALLS = Threshold("falls", 3, "falls to under half at equal distances", "a judgement: two may be chance")
RATIO_LOW = Threshold("ratio_low", 0.5, "mean importance ratio", "without a difference it is 1")

_THIRD: Final = 3
_ENGINES: Final = cite(
    "TRL issue 6789 (vLLM beside a bfloat16 trainer, same weights)",
    "log-probabilities differ by a deviation of 0.05 nats; 0.055 between two chunks of the trainer alone",
)
_FAR: Final = cite(
    "OpenClaw-RL issue 69, RLinf pull request 1534", "0.2 to 0.4 nats in a run that hardly converged; 0.064 under AMP"
)


class _Measure(NamedTuple):
    """One way to log the difference of sampler and trainer, in words, with the level that is too much."""

    names: Names
    says: str
    most: Threshold


_MEASURES: Final = (
    _Measure(SAMPLER_GAP, "{:.2g} nats a token", GAP),
    _Measure(SAMPLER_KL, "KL {:.2g} nats a token", GAP_KL),
    _Measure(SAMPLER_PROBABILITIES, "{:.2g} in probability", GAP_SHARE),
)
_CAUSES: Final = {
    "first": "another dtype, engine or chat template, or sampling cut by top_p, top_k or min_p",
    "cycles": "weights that the sampler is given only so often",
    "grows": "weights that no longer reach the sampler, or a policy that has moved to tokens of low probability",
}


def _cycle(values: Sequence[float]) -> int | None:
    """The rows from one fall to under half of the row before to the next, if there are several at equal distances."""
    falls = [row for row in range(1, len(values)) if values[row] < values[row - 1] / 2.0]
    apart = {later - earlier for earlier, later in pairwise(falls)}
    # Falls from row to row, one row apart, are one long fall and no cycle
    return apart.pop() if len(falls) >= FALLS.value and len(apart) == 1 and apart != {1} else None


def _cause(column: Logged, most: float) -> str:
    if _cycle(column.values) is not None:
        return "cycles"
    return "grows" if column.start < most else "first"


def _apart_says(v: Values) -> str:
    return f"sampler and trainer differ by {v['level']}" + (", from the first row on" if v["cause"] == "first" else "")


@LogRule(
    "SMP196",
    severity="warning",
    confidence=0.75,
    place="objective",
    phrase=_apart_says,
    meant_for=under("rl"),
    thresholds=(GAP, GAP_KL, GAP_SHARE, FALLS, FEW_ROWS),
    evidence=(_ENGINES, _FAR),
)
def _apart(facts: RunFacts) -> Observation | None:
    """sampler and trainer disagree

    in the last third of the rows the log-probabilities that the sampler and the trainer give the same tokens differ by
    at least {gap} nats a token (or a factor of as much), or by a KL of {gap_kl}, or their probabilities by
    {gap_share}, whichever is logged; the message tells whether it was so from the first row on, grew, or falls to
    under half {falls} times at equal distances

    Why: The gradient is then of another policy than the one that wrote the completions; such runs have collapsed.
    Scope: RL whose trainer logs both: TRL, verl, OpenRLHF, slime, SkyRL, ms-swift, prime-rl, NeMo-RL, Tinker
    Action: Score some completions with both programs before the first step; where they agree, it is the weights.
    Verify: The same column at a learning rate of 0: what is left is no drift of the policy.
    Seen: https://github.com/verl-project/verl/issues/7495 -- the sampler keeps the initial weights, and its
        distance grows 36 times
    Source: Diagnosing Training Inference Mismatch in LLM Reinforcement Learning, arXiv 2605.14220 (abstract) -- small
        disagreements on tokens can by themselves make training collapse
    """
    columns = [(column, each) for each in _MEASURES if (column := find(facts, each.names, FEW_ROWS.value))]
    if (factors := find(facts, SAMPLER_FACTOR, FEW_ROWS.value)) is not None:
        nats = [math.log(max(1.0, factor)) for factor in factors.values]
        columns.append((Logged(factors.name, factors.steps, nats), _MEASURES[0]))
    if not columns:
        raise Unknown("no difference between sampler and trainer was logged, or in too few rows")
    for column, (_, says, most) in columns:
        late = median(last_part(column.values, _THIRD, int(FEW_ROWS.value)))
        if late < most.value:
            continue
        cause, level = _cause(column, most.value), says.format(late)
        how = {
            "first": "from the first row on",
            "cycles": f"falling back every {_cycle(column.values)} rows",
            "grows": f"from {column.start:.2g} in the first rows",
        }[cause]
        return Observation(
            f"Sampler and trainer give the same tokens other probabilities: {level}, {how}. Usual: {_CAUSES[cause]}.",
            {"level": level, "late": late, "start": column.start, "cause": cause},
            evidence=seen(f"{column.name} {column.start:.3g} -> {late:.3g}"),
        )
    return None


@LogRule(
    "SMP197",
    severity="warning",
    confidence=0.6,
    place="objective",
    phrase=lambda v: f"a mean importance ratio of {shown(v, 'late', '.2g')}",
    meant_for=under("rl"),
    thresholds=(RATIO_LOW, FEW_ROWS),
)
def _cut(facts: RunFacts) -> Observation | None:
    """the correction of the sampler takes half of the gradient

    in the last third of the rows the mean importance ratio of trainer over sampler is at most {ratio_low}

    Why: A completion whose ratio is masked or near 0 counts for nothing, so the step is that of a smaller batch.
    Scope: TRL with vllm_importance_sampling_correction, which logs the ratio after it is cut
    Action: Try vllm_importance_sampling_mode="token_truncate", or mend the difference itself
    Verify: The same ratio in the first row, where both have the same weights.
    Seen: https://github.com/huggingface/trl/issues/5814 -- the mean ratio is 0.4 to 0.7 although single tokens
        agree
    """
    column = logged(facts, SAMPLER_RATIO, FEW_ROWS.value)
    late = median(last_part(column.values, _THIRD, int(FEW_ROWS.value)))
    if late > RATIO_LOW.value:
        return None
    return Observation(
        f"The mean importance ratio of trainer over sampler is {late:.2g}: the gradient is that much smaller.",
        {"late": late},
        evidence=seen(f"{column.name} {column.start:.3g} -> {late:.3g}"),
    )


RULES: Final[tuple[LogRule, ...]] = (_apart, _cut)
