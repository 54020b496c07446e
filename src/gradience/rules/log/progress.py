"""UND126 and MEM127: a run that ended while it still got better, and one whose loss steps down with each epoch."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from gradience.rules.evidence import EPOCH_STEPS, TINKER_STEPS, TRIAL
from gradience.rules.log import thresholds as t
from gradience.rules.log.curve import median, noise
from gradience.rules.log.detector import Detector, Sighting
from gradience.rules.log.facts import RunFacts
from gradience.rules.log.overfitting import evaluation_noise, held_out_curve
from gradience.rules.rule import Unknown

_MEDIAN_ERROR = 1.2533  # standard error of a median over that of a mean
_QUARTER = 0.25


def _unfinished(facts: RunFacts) -> Sighting | None:
    curve = held_out_curve(facts)
    count = len(curve.losses) if curve else 0
    if curve is None or count < t.UNFINISHED_EVALS.value:
        reason = f"{count} held-out losses of one split; it needs {t.UNFINISHED_EVALS.value:g}"
        raise Unknown(reason)
    losses, steps = curve.losses, curve.steps
    since = steps[-1] - _QUARTER * (steps[-1] - steps[0])
    at = min(bisect_left(steps, since), count - 2)
    fall = 1.0 - losses[-1] / losses[at] if losses[at] > 0.0 else 0.0
    error = evaluation_noise(losses) / losses[at] if losses[at] > 0.0 else math.inf
    if losses[-1] > min(losses) or fall <= max(t.UNFINISHED_FALL.value, t.OVERFIT_NOISE.value * error):
        return None
    return Sighting(
        f"The {curve.split} loss still falls at the end: {losses[at]:.4g} at step {steps[at]}, {losses[-1]:.4g} at "
        f"step {steps[-1]}, its best.",
        {"split": curve.split, "fall": fall, "from_step": steps[at], "to_step": steps[-1], "error": error},
        seen=(f"{fall:.1%} lower over the last quarter",),
    )


class _Step(NamedTuple):
    drop: float  # of the level before, as a fraction
    error: float  # of that fraction


def _epoch_steps(facts: RunFacts) -> Sighting | None:
    curve, epochs = facts.loss, facts.epoch
    if median(curve.points) <= 0.0:
        reason = "the loss is not positive: ratios of it mean nothing"
        raise Unknown(reason)
    if epochs is None or facts.last_step is None:
        reason = "the log does not say how often the data was seen"
        raise Unknown(reason)
    whole = math.ceil(epochs - t.EPOCH_REST.value) - 1  # boundaries with something behind them
    width = int(t.EPOCH_SHARE.value * len(curve.points) / epochs) if epochs > 0.0 else 0
    if whole < 1:
        return None
    if width < t.EPOCH_ROWS.value:
        reason = f"{width} points make {t.EPOCH_SHARE.value:.0%} of an epoch; it needs {t.EPOCH_ROWS.value:g}"
        raise Unknown(reason)
    rows = [facts.step(curve.row(point)) for point in range(len(curve.points))]
    ends = [bisect_left(rows, facts.last_step * k / epochs) for k in range(1, whole + 1)]
    error = _MEDIAN_ERROR * noise(curve.points) * math.sqrt(2.0 / width)
    steps = [_step(curve.points, end, width, error) for end in ends]
    if any(step.drop <= max(t.EPOCH_DROP.value, t.EPOCH_ERRORS.value * step.error) for step in steps):
        return None
    drops = ", ".join(f"{step.drop:.0%}" for step in steps[:5])
    return Sighting(
        f"The training loss steps down where an epoch ends (by {drops}): it remembers what it saw.",
        {"drops": [step.drop for step in steps], "epochs": epochs},
        seen=(f"medians of {width} points before and after each of {len(steps)} ends of epochs",),
    )


def _step(points: Sequence[float], end: int, width: int, error: float) -> _Step:
    """Return by how much the loss falls over the end of an epoch, less what it fell just before anyway."""
    earlier, before = median(points[max(0, end - 2 * width) : max(0, end - width)]), median(points[end - width : end])
    after = median(points[end + 1 : end + 1 + width])
    if end < 2 * width or not min(earlier, before) > 0.0 or math.isnan(after):
        return _Step(0.0, math.inf)
    return _Step(before / earlier - after / before if before < earlier else 1.0 - after / before, error / before)


DETECTORS = (
    Detector(
        id="UND126",
        severity="info",
        title="ended while getting better",
        condition=_unfinished,
        confidence=0.5,
        evidence=(TINKER_STEPS, TRIAL),
        rationale="A held-out loss that is at its best at the end says that the run stopped before it had to.",
        action="Consider more steps, or a schedule that decays later; the fall may also end at once.",
        scope="held-out losses of one data set",
        verify="Train longer, and look where the held-out loss turns.",
        thresholds=(t.UNFINISHED_EVALS, t.UNFINISHED_FALL, t.OVERFIT_NOISE),
        not_for=("rl",),
    ),
    Detector(
        id="MEM127",
        severity="info",
        title="steps at the ends of epochs",
        condition=_epoch_steps,
        confidence=0.6,
        evidence=(EPOCH_STEPS, TRIAL),
        rationale="Within an epoch every example is new, so a step between two epochs is what was memorized; from then "
        "on the training loss says little of new data.",
        action="Evaluate on held-out data: whether this is harmful, training loss cannot tell.",
        scope="positive losses, data seen more than once in an order of its own",
        verify="Held-out loss over the same steps.",
        thresholds=(t.EPOCH_DROP, t.EPOCH_ERRORS, t.EPOCH_SHARE, t.EPOCH_ROWS, t.EPOCH_REST),
        not_for=("rl",),
        least_rows=t.FEW_ROWS,
    ),
)
