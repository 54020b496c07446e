"""Turn evaluations into results and a verdict: how much worse than its reference each candidate can be.

A candidate holds if its worst plausible loss is within the tolerance on every task. The bounds are simultaneous
over the candidates of a task. No correction is made over tasks, because a candidate must hold on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from gradience.errors import GradienceError
from gradience.schema import real
from gradience.schema.compare import BenchCandidate, BenchMetric, BenchResult, BenchTask, BenchVerdict, Outcome, Role
from gradience.spectral.grams import Floats
from gradience.verbs.bench.store import Evaluation
from gradience.verbs.bench.trial import CONFIDENCE, Bounds, Sample, bounds, capped_bounds, needed, sample_of

BASE: Final = "base"
_WORST_FIRST: Final[tuple[Outcome, ...]] = ("not_finite", "over", "open", "within", "reference", "anchor")
RARE: Final = 0.01  # share of examples with a failure, of which the chance to miss it is told
_BINARY: Final = (0.0, 1.0)
_UNDECIDED: Final = "as measured all lose more than the tolerance, but that is not shown either"


class Tolerance(NamedTuple):
    """How much worse is acceptable: a share of the reference's score, or a difference in the metric's unit."""

    value: float
    relative: bool


def tolerance_of(text: str) -> Tolerance:
    """Parse a tolerance such as `1%` or `0.01`.

    Raises:
        GradienceError: it is neither, or not above 0.
    """
    number, relative = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100.0 if relative else 1.0)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0.0):
        raise GradienceError(
            f"the tolerance is {text!r}, expected such as 1% (of the adapter's score) or 0.01 (in the metric's unit)"
        )
    return Tolerance(value, relative)


class Contender(NamedTuple):
    """One adapter in the trial, and its role."""

    name: str
    role: Role
    folder: Path
    made: str = ""
    params: int = 0
    """Number of parameters of its factors; 0 until they are counted."""


class Task(NamedTuple):
    """A data set, the contender that is the reference on it, and each contender's evaluation by name.

    `alone` names, for each merge, the contender that is the reference alone at its weight in the merge.
    """

    name: str
    data: str
    digest: str
    reference: str
    evaluations: Mapping[str, Evaluation]
    alone: Mapping[str, str] | None = None


class TrialResult(NamedTuple):
    """The results and the verdict of a trial."""

    tasks: list[BenchTask]
    candidates: list[BenchCandidate]
    verdict: BenchVerdict


class LossRule(NamedTuple):
    """What counts as a loss: more than the tolerance, with each example capped, in the metric's unit, if it has no end.

    `seed` is of random draws. `heaviest` is the largest weight that an example could have, drawn or not.
    """

    tolerance: Tolerance
    cap: float | None
    seed: int
    heaviest: float = 1.0


def judge(contenders: Sequence[Contender], tasks: Sequence[Task], metric: BenchMetric, rule: LossRule) -> TrialResult:
    """The results of all contenders on all tasks, and the verdict.

    Raises:
        GradienceError: a reference has no finite score, or its evaluation cannot be paired with another.
    """
    judged = [_on_task(task, contenders, metric, rule) for task in tasks]
    whole = max((c.params for c in contenders if c.role == "reference"), default=0)
    candidates = [_candidate(c, [rows[c.name] for _, rows in judged if c.name in rows], whole) for c in contenders]
    order = {"reference": 0, "anchor": 2}
    candidates.sort(key=lambda c: (order.get(c.role, 1), -c.params))
    described = [task for task, _ in judged]
    return TrialResult(described, candidates, _verdict(described, candidates))


def _on_task(
    task: Task, contenders: Sequence[Contender], metric: BenchMetric, rule: LossRule
) -> tuple[BenchTask, dict[str, BenchResult]]:
    reference = task.evaluations[task.reference]
    weight = np.asarray(reference.weights)
    own = reference.values
    if not np.isfinite(own).all():
        raise GradienceError(f"{task.reference} has no finite score on {task.name}: nothing can be compared with it")
    score = reference.mean
    tolerance = rule.tolerance
    margin = np.full(len(own), tolerance.value)
    if tolerance.relative:
        # A share of a negative score is still an allowance
        margin = tolerance.value * own * math.copysign(1.0, score)
    contenders = [c for c in contenders if c.name in task.evaluations]
    rows = {c.name: _plain(task, c.name, "not_finite" if c.role == "candidate" else "anchor") for c in contenders}
    rows[task.reference] = _plain(task, task.reference, "reference")
    for group in (True, False):  # anchors are judged apart: simultaneous bounds are for candidates
        compared = [
            c
            for c in contenders
            if (c.role == "candidate") is group and c.name != task.reference and _is_finite(task.evaluations[c.name])
        ]
        rows |= _compared(task, compared, metric, margin, rule)
    for name, alone in (task.alone or {}).items():
        diluted = 0.0 if alone == task.reference else rows[alone].harm
        rows[name] = msgspec.structs.replace(rows[name], diluted=diluted)
    described = BenchTask(
        name=task.name,
        data=task.data,
        digest=task.digest,
        reference=task.reference,
        n=len(own),
        score=score,
        margin=abs(float(weight @ margin / weight.sum())),
        missed=(1.0 - RARE) ** len(own),
        # The Clopper-Pearson limit of a share of which none was seen in n examples.
        seen_from=1.0 - (1.0 - CONFIDENCE) ** (1.0 / len(own)),
    )
    base = rows.get(BASE)
    if base is not None and base.low is not None:
        described = msgspec.structs.replace(described, has_contrast=float(base.low) > described.margin)
    return described, rows


def _compared(
    task: Task, compared: Sequence[Contender], metric: BenchMetric, margin: Floats, rule: LossRule
) -> dict[str, BenchResult]:
    """The results of the given contenders, with bounds that hold for all of them at once."""
    if not compared:
        return {}
    reference = task.evaluations[task.reference]
    harms = [_harm(reference, task.evaluations[c.name], metric, task, c.name) for c in compared]
    largest = 1.0 if _is_binary(task) else None
    cap = 1.0 if metric.name == "accuracy" else rule.cap
    weight, harm = np.asarray(reference.weights), np.stack(harms, axis=1)
    sample = sample_of(harm, weight, margin, largest=largest, cap=cap, heaviest=rule.heaviest)
    limits = bounds(sample, seed=rule.seed) if sample.cap is None else capped_bounds(sample)
    return {
        c.name: _result(task.evaluations[c.name], task.name, c.role, sample=sample, limits=limits, column=column)
        for column, c in enumerate(compared)
    }


def _result(
    evaluation: Evaluation, task: str, role: Role, *, sample: Sample, limits: Bounds, column: int
) -> BenchResult:
    harm = float(sample.mean[column]) + sample.margin
    low, high = (float(side[column]) + sample.margin for side in (limits.lower, limits.upper))
    outcome: Outcome = "anchor"
    if role == "candidate":
        outcome = "within" if limits.upper[column] <= 0.0 else "over" if limits.lower[column] > 0.0 else "open"
    more = needed(sample, column, limits.level) if outcome == "open" else None
    return BenchResult(
        task=task,
        score=real(evaluation.mean),
        harm=harm,
        low=low,
        worst=high,
        outcome=outcome,
        needed_from=None if more is None else more.least,
        needed=None if more is None else more.most,
        kl=evaluation.kl,
        flips=evaluation.flips,
    )


def _plain(task: Task, name: str, outcome: Outcome) -> BenchResult:
    evaluation = task.evaluations[name]
    return BenchResult(task=task.name, score=real(evaluation.mean), outcome=outcome)


def _is_finite(evaluation: Evaluation) -> bool:
    return bool(np.isfinite(evaluation.values).all())


def _is_binary(task: Task) -> bool:
    """Whether all scores are 0 or 1, so that no example can be worse by more than 1."""
    return all(score in _BINARY for evaluation in task.evaluations.values() for score in evaluation.scores)


def _harm(reference: Evaluation, other: Evaluation, metric: BenchMetric, task: Task, name: str) -> Floats:
    """How much worse each example is under the other evaluation.

    Raises:
        GradienceError: the evaluations have different numbers of examples.
    """
    if len(reference.scores) != len(other.scores):
        raise GradienceError(
            f"{name} has {len(other.scores)} scores on {task.name}, and {task.reference} {len(reference.scores)}",
            advice="the evaluator has to score the same examples for every adapter, in the same order",
        )
    sign = 1.0 if metric.higher_is_better else -1.0
    return sign * (reference.values - other.values)


def _candidate(contender: Contender, results: list[BenchResult], whole: int) -> BenchCandidate:
    outcomes = [row.outcome for row in results if row.outcome != "reference"]
    outcome = min(outcomes, key=_WORST_FIRST.index) if outcomes else "reference"
    return BenchCandidate(
        name=contender.name,
        role=contender.role,
        made=contender.made,
        folder=str(contender.folder),
        params=contender.params,
        share=contender.params / whole if whole else None,
        outcome=outcome,
        results=results,
    )


def _verdict(tasks: Sequence[BenchTask], candidates: Sequence[BenchCandidate]) -> BenchVerdict:
    n = min(task.n for task in tasks)
    contenders = [c for c in candidates if c.role == "candidate"]
    blind = [task.name for task in tasks if task.has_contrast is False]
    if blind:
        says = f"on {', '.join(blind)} the base without any adapter may be as good, so a loss would not show"
        return BenchVerdict(state="no_contrast", n=n, says=says)
    holding = [c for c in contenders if c.outcome == "within"]
    if holding:
        least = min(holding, key=lambda c: (c.params, _worst(c)))
        says = f"{least.name} holds: the smallest whose worst plausible loss is within the tolerance"
        return BenchVerdict(state="holds", candidate=least.name, n=n, says=says)
    left = [c for c in contenders if c.outcome == "open"]
    if not left:
        return BenchVerdict(state="none", n=n, says="no candidate holds: all lose more than the tolerance")
    wants = [most for c in left if (most := _needed(c)) is not None]
    more = f"{min(wants)} examples would do in 80 % of trials" if wants else _UNDECIDED
    return BenchVerdict(
        state="not_decided", n=n, needed=min(wants, default=None), says=f"not decided with n = {n}: {more}"
    )


def _needed(candidate: BenchCandidate) -> int | None:
    """The number of examples that all open tasks of a candidate need; None if it is unknown for one of them."""
    wants = [row.needed for row in candidate.results if row.outcome == "open"]
    return None if None in wants else max((want for want in wants if want is not None), default=None)


def _worst(candidate: BenchCandidate) -> float:
    return max((float(row.worst) for row in candidate.results if row.worst is not None), default=math.inf)
