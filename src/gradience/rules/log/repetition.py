"""REP128, MEM127 and LEK185: data seen many times or hardly, and held-out data that was trained on."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

from gradience.rules import TRIAL, Observation, Threshold, Unknown
from gradience.rules.log.account import LEAST_EVALS, account
from gradience.rules.log.divergence import divergence
from gradience.rules.log.facts import JUDGEMENT, LogRule, RunFacts, last_part, not_under, positive_loss, seen, shown
from gradience.rules.log.learning import FITTED
from gradience.rules.log.preference import saturated
from gradience.rules.log.statistics import NORMAL_95, mean, median, median_error, noise
from gradience.schema import number_in

MANY_EPOCHS = Threshold("many_epochs", 10.0, "epochs", "published runs: 20 epochs to 0.07")
MANY_LEVEL = Threshold("many_level", 0.65, "of the first loss, or nats", "published runs: 50 epochs to 0.74 of 1.2")
SAME_ROWS = Threshold("same_rows", 3, "equal rows", "a judgement: one may be a common short text")
SAME_SHARE = Threshold("same_share", 0.1, "of the evaluation, estimated", "arithmetic: lifts an accuracy of 0.7 by .03")
PERFECT = Threshold("perfect", 0.99, "accuracy", "124 logs: no change from 0.9 on")
PERFECT_BY = Threshold("perfect_by", 0.25, "of the planned steps", JUDGEMENT)
FEW_EPOCHS = Threshold("few_epochs", 3.5, "epochs, more than", "50 logs: no change from 2.4 to 4.3")
FEW_LEVEL = Threshold("few_level", 0.1, "of the first loss, or nats", "published runs: 6 epochs to 0.006")

EPOCH_DROP = Threshold("epoch_drop", 0.05, "fraction of the level before the end of an epoch", JUDGEMENT)
EPOCH_ERRORS = Threshold("epoch_errors", 3.0, "standard errors of the mean of those fractions", "trial")
EPOCH_SHARE = Threshold("epoch_share", 0.25, "of an epoch, before and after its end", JUDGEMENT)
EPOCH_ROWS = Threshold("epoch_rows", 2, "points before and after", JUDGEMENT)
EPOCHS_MANY = Threshold(
    "epochs_many", 4, "ends of epochs, of which one may show no step", "the last one, at a rate of 0"
)


LITTLE_SEEN = Threshold("little_seen", 0.1, "of one pass over the data, under", JUDGEMENT)


@LogRule(
    "REP128",
    severity="info",
    confidence=0.8,
    needs=(not_under("rl"), positive_loss),
    place="objective",
    phrase=lambda v: f"the same data {shown(v, 'epochs', '.0f')} times, no held-out signal",
    as_info=True,
    look=True,
    covers=frozenset({"no_held_out"}),
    thresholds=(MANY_EPOCHS, MANY_LEVEL, FEW_EPOCHS, FEW_LEVEL),
)
def _repeated(facts: RunFacts) -> Observation | None:
    """repeated data, nothing held out

    no evaluation, and at least {many_epochs} epochs, with the training loss down to {many_level} of its start or
    {many_level} nats; or over {few_epochs} epochs, with the training loss down to {few_level} of its start or
    {few_level} nats

    Why: The training loss of data seen many times falls whether the model learns or memorizes it.
    Scope: runs without any evaluation that log their epoch; not saturated preference training (PRF130)
    Verify: Compare the held-out loss of the last checkpoint with that of an earlier one.
    Seen: https://github.com/samyakshrestha/grpo-verified-reasoner -- 60 steps are 4.6 passes: 0.66 to 0.06 with
        nothing held out
    Source: published runs without evaluations -- 100 epochs to 0.008, 50 to 0.74, 24 to 0.03, 20 to 0.07, 6 of a
        full fine-tune to 0.006
    """
    if facts.evaluated or saturated(facts) is not None or divergence(facts) is not None:
        return None
    epochs, trend = account(facts).passes, facts.trend
    if epochs is None or trend is None:
        raise Unknown("the log does not say how often the data was seen")
    few = epochs > FEW_EPOCHS.value and _down_to(trend.start, trend.end, FEW_LEVEL.value)
    many = epochs >= MANY_EPOCHS.value and _down_to(trend.start, trend.end, MANY_LEVEL.value)
    if not (few or many):
        return None
    low = epochs >= MANY_EPOCHS.value and trend.end <= FEW_LEVEL.value * trend.start
    return Observation(
        f"The data was seen {epochs:.0f} times, training loss is down to {trend.end:.2g}, and nothing is held out: "
        "this log cannot tell memorizing from learning.",
        {"epochs": epochs, "first": trend.start, "last": trend.end},
        confidence=0.9 if low else None,
        evidence=seen(f"epoch {epochs:.4g}, training loss {trend.start:.4g} to {trend.end:.4g}, no evaluation"),
    )


def _down_to(start: float, end: float, level: float) -> bool:
    return end <= level * max(1.0, start)


class _Step(NamedTuple):
    drop: float  # fall, as a fraction of the level before
    error: float  # standard error of `drop`


@LogRule(
    "MEM127",
    severity="info",
    confidence=0.6,
    needs=(not_under("rl"), positive_loss),
    signs=("memorizes",),
    phrase=lambda _: "steps down with each epoch",
    as_info=True,
    look=True,
    thresholds=(
        EPOCH_DROP,
        EPOCH_ERRORS,
        EPOCH_SHARE,
        EPOCH_ROWS,
        EPOCHS_MANY,
    ),
    evidence=(TRIAL,),
)
def _epoch_steps(facts: RunFacts) -> Observation | None:
    """steps at the ends of epochs

    at the ends of epochs, the training loss falls by over {epoch_drop} and {epoch_errors} standard errors on
    average, beyond its fall just before, and at none of them surely by less (from {epochs_many} ends on, the
    smallest fall is left out); not if the held-out loss is at its best at the end

    Why: Within an epoch every example is new, so a step between two epochs is what was memorized; from then on the
        training loss says little about new data.
    Scope: positive losses, data seen more than once in an order of its own
    Verify: Held-out loss over the same steps.
    Seen: https://github.com/syGOAT/Mistral-v0.2-Translator-bf16 -- four epochs, a step down by a quarter to a third
        at each end
    Source: fast.ai, Can LLMs learn from a single example? (2023) -- the training loss falls in steps at the ends of
        epochs: examples are memorized after one sight
    """
    curve, epochs = facts.loss, facts.run.last_epoch
    if epochs is None or facts.run.last_step is None:
        raise Unknown("the log does not say how often the data was seen")
    whole = math.ceil(epochs - EPOCH_SHARE.value) - 1  # ends of epochs with enough rows after them
    if whole < 1:
        return None
    width = int(EPOCH_SHARE.value * len(curve.points) / epochs)
    if width < EPOCH_ROWS.value:
        raise Unknown(f"{width} points make {EPOCH_SHARE.value:.0%} of an epoch; it needs {EPOCH_ROWS.value:g}")
    rows = [facts.step(curve.row(point)) for point in range(len(curve.points))]
    ends = [facts.run.last_step * k / epochs for k in range(1, whole + 1)]
    error = median_error(noise(curve.points), width, width)
    steps = [_step(curve.points, bisect_left(rows, end), width, error) for end in ends]
    if not _all_step_down(steps):
        return None
    drops = [step.drop for step in steps]
    if (why := _learns_still(facts)) is not None:
        raise Unknown(why)
    shown = ", ".join(f"{drop:.0%}" for drop in drops[:5] if drop > 0.0)
    return Observation(
        f"The training loss steps down where an epoch ends (by {shown}): the model remembers the examples.",
        {"drops": drops, "epochs": epochs},
        evidence=seen(f"medians of {width} points before and after each of {len(steps)} ends of epochs"),
    )


def _all_step_down(steps: Sequence[_Step]) -> bool:
    """Whether the loss steps down at the ends of epochs: surely so in the mean, and no single end surely by less.

    From four ends on, the smallest step is left out.

    Raises:
        Unknown: the mean step may be large enough, but noise hides it.
    """
    spared = 1 if len(steps) >= EPOCHS_MANY.value else 0
    # Steps are sorted by their drop first: the smallest is the one that is spared
    judged = sorted(step for step in steps if math.isfinite(step.error))[spared:]
    if not judged or len(judged) < len(steps) - spared:
        return False
    drop = mean([step.drop for step in judged])
    error = math.hypot(*(step.error for step in judged)) / len(judged)
    if any(step.drop + 2.0 * step.error <= EPOCH_DROP.value for step in judged):
        return False
    seen_from = max(EPOCH_DROP.value, EPOCH_ERRORS.value * error)
    if drop > seen_from:
        return True
    if drop + NORMAL_95 * error > EPOCH_DROP.value:
        raise Unknown(f"a step of under {seen_from:.0%} at the ends of epochs would be hidden by the noise")
    return False


def _step(points: Sequence[float], end: int, width: int, error: float) -> _Step:
    """The fall of the loss over the end of an epoch, less its fall just before that end."""
    earlier, before = median(points[max(0, end - 2 * width) : max(0, end - width)]), median(points[end - width : end])
    # A row is the mean over the steps before it, so the point at the end itself is of both epochs
    after = median(points[end + 1 : end + 1 + width])
    if end < 2 * width or not min(earlier, before) > 0.0 or math.isnan(after):
        return _Step(0.0, math.inf)
    # A rise just before the end of the epoch does not make the step larger
    return _Step(min(1.0, before / earlier) - after / before, error / before)


def _learns_still(facts: RunFacts) -> str | None:
    """Why steps of the training loss are not memorization: the held-out loss gains too. None if it does not."""
    curve = facts.held_out_curve
    if curve is None or len(curve.losses) < 2:
        return None
    last, best = curve.losses[-1], min(curve.losses)
    if last - best <= curve.noise:
        return f"{curve.split} loss is at its best at the end ({last:.4g}): repeated data still helps on new data"
    return None


@LogRule(
    "LEK184",
    severity="warning",
    confidence=0.9,
    place="meaning",
    phrase=lambda v: f"about {shown(v, 'share', '.0%')} of the evaluation was trained on",
    thresholds=(SAME_ROWS, SAME_SHARE),
)
def _same_rows(facts: RunFacts) -> Observation | None:
    """evaluation on training rows

    {same_rows} or more rows of the evaluation are equal, token by token, to rows of the watched training batches,
    which stands for {same_share} or more of the evaluation

    Why: A score on rows that were trained on says nothing of new ones.
    Scope: runs whose recorder saw both; packed batches are not compared
    Action: Evaluate on rows that are not in the training set; gradience check --data finds the others.
    Verify: gradience check --data TRAIN --eval-data HELDOUT lists the equal rows.
    Source: the recorder -- hashes of the tokens of each row; no token is kept
    Source: arithmetic -- an evaluation on rows of the training measures no other rows
    """
    data = facts.data or {}
    known, evaluated, both = (number_in(data, name) for name in ("rows_known", "eval_rows", "eval_rows_trained"))
    if not known or not evaluated or both is None:
        raise Unknown("the recorder saw no rows of an evaluation beside those of training")
    total = next((w.data.rows for w in facts.run.wirings if w.data is not None and w.data.rows), None)
    seen_share = min(1.0, known / total) if total else 1.0
    # Training rows that the recorder did not see are taken to be in the evaluation as often as those it saw
    share = min(1.0, both / (evaluated * seen_share))
    if both < SAME_ROWS.value or share < SAME_SHARE.value:
        return None
    of = f"{known:g} of {total} training rows" if total else f"{known:g} training rows"
    return Observation(
        f"{both:g} of {evaluated:g} evaluation rows are among the {of} that the recorder saw: about {share:.0%} of "
        "the evaluation was trained on.",
        {"rows": both, "evaluated": evaluated, "share": share},
        evidence=seen(f"{both:g} equal rows of tokens"),
    )


@LogRule(
    "LEK185",
    severity="info",
    confidence=0.5,
    needs=(not_under("rl", "preference"),),
    phrase=lambda v: (
        f"the loss is {shown(v, 'loss', '.2g')} within the first pass over the data"
        if "loss" in v
        else f"accuracy {shown(v, 'accuracy', '.1%')} at step {shown(v, 'step', 'd')} already"
    ),
    as_info=True,
    look=True,
    thresholds=(PERFECT, PERFECT_BY, FITTED),
)
def _at_once(facts: RunFacts) -> Observation | None:
    """nearly perfect at once

    the first evaluation, within {perfect_by} of the planned steps, has an accuracy of {perfect} or more, and none
    was made before training; or, as info, the training loss is at most {fitted} within the first pass over the
    data, and so is the held-out loss

    Why: Real tasks are seldom solved at once; a label that is in the input is.
    Scope: classification; an easy task looks the same
    Action: Look at some inputs for the answer: a column too many, or a template with the label.
    Verify: Train on the same labels with inputs shuffled within each class: does the accuracy stay?
    Seen: public repositories -- losses near 0 within the first pass
    Source: published runs -- a loss of .003 in the first pass: answers of one word, or a template's labels
    """
    of = account(facts)
    if (solved := _solved_at_once(facts)) is not None:
        return solved
    metric = next((each for each in of.metrics if each.name == "accuracy"), None)
    planned = facts.max_steps or facts.run.last_step
    if metric is None or not planned:
        raise Unknown("no accuracy of an evaluation was logged")
    steps = sorted(event.step for event in facts.evaluations if event.split == metric.split and event.step is not None)
    if not steps or steps[0] == 0:
        raise Unknown("the first evaluation is of the model before training")
    per_cent = 100.0 if metric.first > 1.0 else 1.0
    if metric.first < PERFECT.value * per_cent or steps[0] > PERFECT_BY.value * planned:
        return None
    return Observation(
        f"{metric.split.capitalize()} accuracy is {metric.first / per_cent:.1%} at step {steps[0]} of {planned}: the "
        "task is that easy, or the answer is in the input, of training and of held-out rows alike.",
        {"accuracy": metric.first / per_cent, "step": steps[0]},
        evidence=seen(f"accuracy {metric.first:.4g} in the first evaluation"),
    )


def _solved_at_once(facts: RunFacts) -> Observation | None:
    """A training loss that is nearly 0 within the first pass over the data, and held-out losses as low."""
    passes, last, curve = account(facts).passes, facts.run.last_step, facts.held_out_curve
    if not passes or not last or account(facts).loss not in {"language_model", "tokens", "unknown", "classification"}:
        return None
    end = min(1.0, 1.0 / passes) * last
    first = [loss for row, loss in zip(facts.loss.rows, facts.loss.values, strict=True) if facts.step(row) <= end]
    if len(first) < LEAST_EVALS.value or (curve is not None and curve.losses[-1] > FITTED.value):
        return None
    low = median(last_part(first, 5))
    if not 0.0 < low <= FITTED.value:
        return None
    held_out = "" if curve is None else f", and {curve.split} loss at {curve.losses[-1]:.2g}"
    return Observation(
        f"The training loss is down to {low:.2g} within the first pass over the "
        f"data{held_out}: too good for most tasks.",
        {"loss": low, "passes": passes},
        severity="info",
        action="Decode a batch: are the labels what the model should answer, and is the answer in the input?",
        evidence=seen(f"median of the last fifth of {len(first)} rows of the first pass"),
    )


@LogRule(
    "COV142",
    severity="info",
    reading=True,
    confidence=0.9,
    needs=(not_under("rl"),),
    phrase=lambda v: f"{v['passes']:.2%} of the data seen",
    as_info=True,
    thresholds=(LITTLE_SEEN,),
)
def _little_seen(facts: RunFacts) -> Observation | None:
    """little of the data seen

    the run made its planned steps, and the logged epoch is under {little_seen}

    Why: A limit on steps that was set for a trial ends the run long before it has seen the data.
    Scope: runs that log a fraction of an epoch; of a large data set a part may be meant
    Action: Leave max_steps unset, or raise it, if the run was meant to see the data.
    Verify: Steps of one pass: examples over the sequences of an optimizer step.
    Source: transformers TrainingArguments (5.24) -- max_steps overrides num_train_epochs, and is a trial's limit
    Source: published runs -- 60 steps at epoch 0.0012, 2 at 0.0058, 500 at 0.095: each ended as planned
    """
    of = account(facts)
    step, passes = of.ending.step, of.passes
    if passes is None or step is None:
        raise Unknown("the log does not say how much of the data was seen")
    if not of.ending.finished:
        raise Unknown("the run has not made its planned steps: it may see more of the data")
    if passes <= 0.0:
        raise Unknown("the log counts whole epochs")
    if passes >= LITTLE_SEEN.value:
        return None
    whole = step / passes
    if not math.isfinite(whole):
        raise Unknown("the logged epoch is too small for a number of steps")
    return Observation(
        f"The run ended after {step} steps, {passes:.2%} of one pass over the data, which takes about {whole:.3g}.",
        {"step": step, "passes": passes, "steps_of_a_pass": round(whole)},
        evidence=seen(f"epoch {passes:.3g} at step {step}"),
    )


RULES: Final[tuple[LogRule, ...]] = (_repeated, _epoch_steps, _same_rows, _at_once, _little_seen)
