"""OVF110: held-out loss that rises while training loss falls, and the step where it was best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from gradience.rules.evidence import INSTRUCT_GPT, PRECHELT, TRIAL
from gradience.rules.log import thresholds as t
from gradience.rules.log.curve import median
from gradience.rules.log.detector import Detector, Sighting
from gradience.rules.log.facts import RunFacts
from gradience.rules.rule import Unknown
from gradience.schema.events import Eval
from gradience.schema.scalars import as_float

_SECOND: Final = 0.6053  # standard deviation over the median |second difference|: 1 / (0.6745 sqrt 6)
_TASK: Final = ("accuracy", "f1", "exact_match", "rewards/accuracies", "rouge1", "rougeL", "bleu")


class HeldOutCurve(NamedTuple):
    """The evaluations of one split by step; of two at one step, the later."""

    split: str
    evals: Sequence[Eval]
    steps: Sequence[int]
    losses: Sequence[float]


class _Onset(NamedTuple):
    curve: HeldOutCurve
    best: int  # place of the lowest loss
    rise: float  # E / E_opt - 1 at the end
    noise: float  # of one evaluation, as a fraction of E_opt


def _overfitting(facts: RunFacts) -> Sighting | None:
    curves = [curve for curve in _curves(facts) if len(curve.losses) >= t.LEAST_EVALS.value]
    if not curves:
        most = max((len(curve.losses) for curve in _curves(facts)), default=0)
        reason = f"{most} held-out losses of one split; it needs {t.LEAST_EVALS.value:g}"
        raise Unknown(reason)
    onsets = [onset for curve in curves if (onset := _onset(curve)) is not None]
    if not onsets:
        return None
    first = onsets[0]
    if not _train_falls(facts, first.curve.steps[first.best], first.curve.steps[-1]):
        return None
    return _sighting(facts, first, [onset.curve.split for onset in onsets[1:]])


def held_out_curve(facts: RunFacts) -> HeldOutCurve | None:
    """Return the losses of the held-out split that the report shows, None where it has none."""
    shown = facts.held_out.split if facts.held_out else None
    return next((curve for curve in _curves(facts) if curve.split == shown and curve.losses), None)


def _curves(facts: RunFacts) -> list[HeldOutCurve]:
    """Return the losses of every held-out split, the one that the report shows first."""
    named: dict[str, dict[int, Eval]] = {}
    for event in facts.history:
        if event.split != "train":
            of_split = named.setdefault(event.split, {})
            if event.step is not None and _loss(event) > 0.0:
                of_split[event.step] = event
    shown = facts.held_out.split if facts.held_out else None
    curves = []
    for split in sorted(named, key=lambda name: name != shown):
        events = named[split]
        steps = sorted(events)
        evals = [events[step] for step in steps]
        curves.append(HeldOutCurve(split, evals, steps, [_loss(e) for e in evals]))
    return curves


def _loss(event: Eval) -> float:
    """Return the loss, or 0 where it is missing or no number: such a row is left out."""
    value = as_float(event.metrics.loss) if event.metrics.loss is not None else 0.0
    return value if math.isfinite(value) else 0.0


def _onset(curve: HeldOutCurve) -> _Onset | None:
    losses = curve.losses
    best = min(range(len(losses)), key=losses.__getitem__)
    lowest = losses[best]
    last = losses[max(best + 1, len(losses) - int(t.OVERFIT_EVALS.value)) :]
    noise = evaluation_noise(losses) / lowest
    bar = max(t.OVERFIT_RISE.value, t.OVERFIT_NOISE.value * noise)
    if len(last) < t.OVERFIT_EVALS.value or min(last) / lowest - 1.0 <= bar:
        return None
    return _Onset(curve, best, losses[-1] / lowest - 1.0, noise)


def evaluation_noise(losses: Sequence[float]) -> float:
    """Return the noise between evaluations: second differences, which a steady rise leaves at 0."""
    if len(losses) < 5:  # three second differences at least
        return 0.0
    first = [b - a for a, b in pairwise(losses)]
    return _SECOND * median(abs(b - a) for a, b in pairwise(first))


def _train_falls(facts: RunFacts, best: int, end: int) -> bool:
    """Whether training loss is at the end no higher than around the best evaluation."""
    steps = facts.series.steps
    rows = [facts.step(facts.loss.row(point)) for point in range(len(facts.loss.points))]
    pairs = list(zip(rows, facts.loss.points, strict=True))
    if not steps or not pairs:
        reason = "no training loss was recorded: overfitting cannot be told from divergence"
        raise Unknown(reason)
    reach = max(1, (end - best) // 2)
    around = [loss for step, loss in pairs if best - reach < step <= best + reach // 2]
    after = [loss for step, loss in pairs if end - reach < step]
    if not around or not after:
        reason = "too few training rows around the best evaluation"
        raise Unknown(reason)
    return median(after) < median(around)


def _sighting(facts: RunFacts, onset: _Onset, others: Sequence[str]) -> Sighting:
    curve, best = onset.curve, onset.best
    step, loss, end = curve.steps[best], curve.losses[best], curve.steps[-1]
    much = onset.rise > t.OVERFIT_MUCH.value
    also = f" So do {', '.join(others[:3])}." if others else ""
    task = _still_rising(curve.evals, best)
    disagree = f" The task metric may disagree: {task} kept rising." if task else ""
    saved = _saved_near(facts, step)
    keep = f"Keep the checkpoint of step {saved}" if saved is not None else f"Keep a checkpoint near step {step}"
    return Sighting(
        f"Overfits: {curve.split} loss was best at step {step} ({loss:.4g}), {onset.rise:.1%} higher at step {end} "
        f"while training loss fell; {end - step} steps were wasted.{also}{disagree}",
        {
            "split": curve.split,
            "best_step": step,
            "best_loss": loss,
            "last_step": end,
            "last_loss": curve.losses[-1],
            "rise": onset.rise,
            "noise": onset.noise,
            "wasted_steps": end - step,
            "checkpoint_step": saved,
            "task_metric_rising": task,
        },
        severity="warning" if much else "info",
        confidence=0.6 if task else 0.85 if much else 0.6,
        action=f"{keep}, and stop earlier; fewer epochs or more data come before less rank.",
        seen=(f"{curve.split} loss {loss:.4g} at step {step}, {curve.losses[-1]:.4g} at step {end}",),
    )


def _still_rising(evals: Sequence[Eval], best: int) -> str | None:
    """Return the name of a task metric that is higher at the end than at the best loss, or None."""
    then, last = evals[best].metrics, evals[-1].metrics
    for name in _TASK:
        before, after = (m.accuracy if name == "accuracy" else m.extras.get(name) for m in (then, last))
        if isinstance(before, (int, float)) and isinstance(after, (int, float)) and after > before:
            return name
    return None


def _saved_near(facts: RunFacts, step: int) -> int | None:
    """Return the checkpoint nearest a step, where the config says how often one is saved."""
    training = facts.config.training
    every = training.save_steps
    if training.save_strategy not in {None, "steps"} or not isinstance(every, (int, float)) or every < 1:
        return None
    return max(1, round(step / every)) * int(every)


DETECTORS = (
    Detector(
        id="OVF110",
        severity="warning",
        title="overfitting",
        condition=_overfitting,
        confidence=0.85,
        evidence=(PRECHELT, INSTRUCT_GPT, TRIAL),
        rationale="From that step on the run fitted its training data at the cost of held-out data.",
        action="Keep the checkpoint with the best held-out loss, and stop earlier.",
        scope="held-out losses of one data set; up to 10 % is info",
        verify="Compare the task metric of the best checkpoint with that of the last.",
        thresholds=(t.OVERFIT_RISE, t.OVERFIT_MUCH, t.OVERFIT_NOISE, t.OVERFIT_EVALS, t.LEAST_EVALS),
        not_for=("rl",),
    ),
)
