"""OVF110, GAP111, CHN112, SML113 and UND126: what held-out data say about the run, and with what certainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gradience.rules import (
    INSTRUCT_GPT,
    KARPATHY,
    PRECHELT,
    TINKER_STEPS,
    TRIAL,
    Observation,
    Rule,
    Threshold,
    Unknown,
    cite,
)
from gradience.rules.log.divergence import divergence, other_scale
from gradience.rules.log.facts import (
    EVAL_NOISE,
    JUDGEMENT,
    LOSS_GAP,
    REAL_RUNS,
    UNFINISHED_FALL,
    HeldOutCurve,
    LogRule,
    RunFacts,
    not_under,
    seen,
)
from gradience.rules.log.learning import LEAST_EVALS
from gradience.rules.log.statistics import median
from gradience.schema import as_float
from gradience.schema.events import Eval
from gradience.schema.reports import EvalPoint

OVERFIT_RISE = Threshold("overfit_rise", 0.02, "generalisation loss E / E_opt - 1", "Prechelt: GL, alpha = 2")
OVERFIT_MUCH = Threshold("overfit_much", 0.10, "generalisation loss E / E_opt - 1", "proposal of the project's design")
OVERFIT_EVALS = Threshold("overfit_evals", 2, "last evaluations in succession", "proposal; Prechelt: UP_s, s = 2")
SMALL_EVAL = Threshold("small_eval", 0.03, "half-width of a 95 % interval", JUDGEMENT)
CHANCE_Z = Threshold("chance_z", 1.64, "standard deviations", "one-sided 95 %")
CHANCE_MARGIN = Threshold("chance_margin", 0.03, "accuracy, where n is unknown", JUDGEMENT)
CHANCE_LOSS = Threshold("chance_loss", 0.98, "of ln K", "proposal of the project's design")
CHANCE_BAND = Threshold(
    "chance_band", 1.96, "standard deviations to both sides of 1 / K, K not known", "two-sided 95 %"
)
CHANCE_NEAR = Threshold("chance_near", 0.02, "fraction of ln K, to both sides, K not known", REAL_RUNS)

_TASK: Final = ("accuracy", "f1", "exact_match", "rewards/accuracies", "rouge1", "rougeL", "bleu")
_CLASSES: Final = range(2, 21)
_LAST: Final = 0.25  # last part of the run, over which UND126 asks whether the held-out loss still falls


class _Onset(NamedTuple):
    curve: HeldOutCurve
    best: int  # index of the lowest loss, E_opt
    rise: float  # E / E_opt - 1 at the end
    noise: float  # standard deviation of one evaluation, as a fraction of E_opt


def _overfitting(facts: RunFacts) -> Observation | None:
    curves = [curve for curve in facts.curves if len(curve.losses) >= LEAST_EVALS.value]
    if not curves:
        most = max((len(curve.losses) for curve in facts.curves), default=0)
        raise Unknown(f"{most} held-out losses of one split; it needs {LEAST_EVALS.value:g}")
    onsets = [onset for curve in curves if (onset := _onset(curve)) is not None]
    if not onsets:
        return None
    first = onsets[0]
    if not _train_falls(facts, first.curve.steps[first.best], first.curve.steps[-1]):
        return None
    return _overfits(facts, first, [onset.curve.split for onset in onsets[1:]])


def _onset(curve: HeldOutCurve) -> _Onset | None:
    losses = curve.losses
    best = min(range(len(losses)), key=losses.__getitem__)
    lowest = losses[best]
    last = min(losses[-int(OVERFIT_EVALS.value) :])  # the lowest itself, where that is among them
    noise = curve.noise / lowest
    if last / lowest - 1.0 <= max(OVERFIT_RISE.value, EVAL_NOISE.value * noise):
        return None
    return _Onset(curve, best, losses[-1] / lowest - 1.0, noise)


def _train_falls(facts: RunFacts, best: int, end: int) -> bool:
    """Whether the training loss is lower at the end than around the best evaluation.

    Raises:
        Unknown: no training loss, or too few rows around the best evaluation.
    """
    points = facts.loss.points
    if not points:
        raise Unknown("no training loss was recorded: overfitting cannot be told from divergence")
    steps = [facts.step(facts.loss.row(point)) for point in range(len(points))]
    pairs = list(zip(steps, points, strict=True))
    reach = max(1, (end - best) // 2)
    around = [loss for step, loss in pairs if best - reach < step <= best + reach // 2]
    after = [loss for step, loss in pairs if end - reach < step]
    if not around or not after:
        raise Unknown("too few training rows around the best evaluation")
    return median(after) < median(around)


def _overfits(facts: RunFacts, onset: _Onset, others: Sequence[str]) -> Observation:
    curve, best = onset.curve, onset.best
    step, loss, end = curve.steps[best], curve.losses[best], curve.steps[-1]
    much = onset.rise > OVERFIT_MUCH.value
    also = f" Also overfit: {', '.join(others[:3])}." if others else ""
    task = _still_rising(curve.evals, best)
    disagree = f" The task metric may disagree: {task} kept rising." if task else ""
    saved = _saved_near(facts, step)
    keep = f"Keep the checkpoint of step {saved}" if saved is not None else f"Keep a checkpoint near step {step}"
    return Observation(
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
        action=f"{keep}, and stop earlier; try fewer epochs or more data before a lower rank.",
        evidence=seen(f"{curve.split} loss {loss:.4g} at step {step}, {curve.losses[-1]:.4g} at step {end}"),
    )


def _still_rising(evals: Sequence[Eval], best: int) -> str | None:
    """The name of a task metric that is higher at the end than at the best held-out loss, or None."""
    then, last = evals[best].metrics, evals[-1].metrics
    for name in _TASK:
        before, after = (m.accuracy if name == "accuracy" else m.extras.get(name) for m in (then, last))
        if isinstance(before, (int, float)) and isinstance(after, (int, float)) and after > before:
            return name
    return None


def _saved_near(facts: RunFacts, step: int) -> int | None:
    """The step of the checkpoint nearest to `step`, up to the last step logged.

    None if there is none yet, or if the config does not say that one is saved every N steps.
    """
    training = facts.config.training
    every = training.save_steps
    if training.save_strategy not in {None, "steps"} or not isinstance(every, (int, float)) or every < 1:
        return None
    nearest = max(1, round(step / every))
    most = nearest if facts.last_step is None else facts.last_step // int(every)
    return min(nearest, most) * int(every) or None


def _gap(facts: RunFacts) -> Observation | None:
    gap = facts.gap
    if gap is None:
        raise Unknown("needs a loss or perplexity on train and on a held-out split")
    if other_scale(facts) is not None:
        raise Unknown("training and held-out loss are on different scales (see SCL129)")
    if divergence(facts) is not None:
        raise Unknown("the run diverged (see DIV104)")
    ratio = as_float(gap.ratio)
    if not ratio > facts.gap_threshold:
        return None
    repeated = facts.epoch is None or facts.epoch > 1.0
    return Observation(
        f"Gap is {ratio:.2f}x ({gap.test_split} over {gap.train_split} perplexity), over {facts.gap_threshold:g}x: "
        + ("probably memorizing." if repeated else "but the data has not repeated yet, so not memorization."),
        {"ratio": gap.ratio, "nats": gap.nats, "threshold": facts.gap_threshold},
        severity="warning" if repeated else "info",
        confidence=0.6 if repeated and gap.same_step else 0.4,
    )


def _small_eval(facts: RunFacts) -> Observation | None:
    point = facts.held_out
    if point is None or point.metrics.accuracy is None or not point.metrics.n:
        raise Unknown("needs a held-out accuracy and the number of examples (n)")
    p, n = as_float(point.metrics.accuracy), point.metrics.n
    if not 0.0 <= p <= 1.0:
        raise Unknown(f"an accuracy of {p} is not a fraction")
    half = 1.96 * math.sqrt(max(p * (1.0 - p), 1.0 / (4.0 * n)) / n)
    if half <= SMALL_EVAL.value:
        return None
    return Observation(
        f"{n} held-out examples give the accuracy an uncertainty of +/- {half * 100:.1f} points.",
        {"n": n, "half_width": half},
        evidence=seen(f"1.96 sqrt(p (1 - p) / n) = {half:.4f}"),
    )


def _unfinished(facts: RunFacts) -> Observation | None:
    curve = facts.held_out_curve
    count = len(curve.losses) if curve else 0
    if curve is None or count < LEAST_EVALS.value:
        raise Unknown(f"{count} held-out losses of one split; it needs {LEAST_EVALS.value:g}")
    if facts.warming_up:
        raise Unknown("the learning rate had not reached its peak yet")
    if facts.in_mid_run:
        raise Unknown(f"the log ends at step {facts.last_step} of {facts.max_steps}")
    losses, steps = curve.losses, curve.steps
    since = steps[-1] - _LAST * (steps[-1] - steps[0])
    if not curve.still_falls(since) or divergence(facts) is not None:
        return None
    at, bar = curve.since(since), curve.least_fall(since)
    fall, error = 1.0 - losses[-1] / losses[at], curve.noise / losses[at]
    return Observation(
        f"The {curve.split} loss still falls at the end: {losses[at]:.4g} at step {steps[at]}, {losses[-1]:.4g} at "
        f"step {steps[-1]}, its best.",
        {"split": curve.split, "fall": fall, "from_step": steps[at], "to_step": steps[-1], "error": error},
        evidence=seen(f"{fall:.1%} lower over the last quarter; over {bar:.1%} counts as a fall"),
    )


def _at_chance(facts: RunFacts) -> Observation | None:
    # a reward model's accuracy is over two answers
    point, classes = facts.held_out, 2 if facts.objective.kind == "reward" else facts.num_labels
    if point is None or (point.metrics.accuracy is None and point.metrics.loss is None):
        raise Unknown("no held-out accuracy was recorded")
    if point.metrics.accuracy is None:
        if facts.objective.kind != "classification" or not classes or classes < _CLASSES.start:
            raise Unknown("no held-out accuracy was recorded")
        return _chance_loss(point, classes)
    accuracy = as_float(point.metrics.accuracy)
    accuracy = accuracy / 100.0 if accuracy > 1.0 else accuracy  # over 1 it must be in per cent
    if not classes or classes < _CLASSES.start:
        return _of_unknown_classes(point, accuracy)
    chance, n = 1.0 / classes, point.metrics.n
    margin = CHANCE_Z.value * math.sqrt(chance * (1.0 - chance) / n) if n else CHANCE_MARGIN.value
    if not accuracy <= chance + margin:
        return None
    return Observation(
        f"{point.split.capitalize()} accuracy {accuracy:.1%} is not above chance ({chance:.1%} for {classes} classes"
        + (f", n={n})." if n else ", n unknown)."),
        {"accuracy": accuracy, "chance": chance, "margin": margin},
        confidence=0.85 if n else 0.6,
        evidence=seen(f"chance {chance:.3f} plus margin {margin:.3f} is {chance + margin:.3f}"),
    )


def _chance_loss(point: EvalPoint, classes: int) -> Observation | None:
    """Compare the held-out loss with ln K, that of equal odds. Used only if no accuracy was recorded."""
    loss, level = as_float(point.metrics.loss or 0.0), math.log(classes)
    if not CHANCE_LOSS.value * level <= loss < math.inf:
        return None
    return Observation(
        f"{point.split.capitalize()} loss {loss:.4g} is not below ln {classes} = {level:.4g}: no better than chance.",
        {"loss": loss, "chance_loss": level},
        confidence=0.6,
        evidence=seen(f"loss {loss:.4g}, {CHANCE_LOSS.value:g} ln {classes} = {CHANCE_LOSS.value * level:.4g}"),
    )


def _of_unknown_classes(point: EvalPoint, accuracy: float) -> Observation | None:
    """Report chance level if loss and accuracy both fit equal odds among the same number of classes."""
    loss, n = as_float(point.metrics.loss if point.metrics.loss is not None else math.nan), point.metrics.n
    classes = min(_fitting(loss, accuracy, n), key=lambda k: abs(loss - math.log(k)), default=None)
    if classes is None:
        raise Unknown(
            "the number of classes is unknown (num_labels in the run's config); loss and accuracy are at chance for "
            "none"
        )
    return Observation(
        f"{point.split.capitalize()} accuracy {accuracy:.1%} and loss {loss:.4g} are at chance among {classes} classes "
        f"({1 / classes:.1%}, ln {classes} = {math.log(classes):.4g}); the log does not say how many classes there "
        "are.",
        {"accuracy": accuracy, "chance": 1.0 / classes, "loss": loss, "chance_loss": math.log(classes)},
        confidence=0.6,
        evidence=seen(f"accuracy {accuracy:.3f}, loss {loss:.4g}"),
    )


def _fitting(loss: float, accuracy: float, n: int | None) -> Iterator[int]:
    for classes in _CLASSES:
        chance, level = 1.0 / classes, math.log(classes)
        margin = CHANCE_BAND.value * math.sqrt(chance * (1.0 - chance) / n) if n else CHANCE_MARGIN.value
        if abs(loss - level) <= CHANCE_NEAR.value * level and abs(accuracy - chance) <= margin:
            yield classes


RULES: Final[Sequence[Rule[RunFacts]]] = (
    LogRule(
        id="OVF110",
        title="overfitting",
        severity="warning",
        condition="each of the last {overfit_evals} held-out losses is above the lowest by more than {overfit_rise} of "
        "it and more than {eval_noise} times the noise between evaluations, while the training loss fell; a warning if "
        "the last is more than {overfit_much} above",
        observe=_overfitting,
        needs=(not_under("rl"),),
        confidence=0.85,
        evidence=(PRECHELT, INSTRUCT_GPT, TRIAL),
        rationale="From that step on the run fitted its training data at the cost of held-out data.",
        action="Keep the checkpoint with the best held-out loss, and stop earlier.",
        scope="held-out losses of one data set; up to 10 % is info",
        verify="Compare the task metric of the best checkpoint with that of the last.",
        thresholds=(OVERFIT_RISE, OVERFIT_MUCH, EVAL_NOISE, OVERFIT_EVALS, LEAST_EVALS),
    ),
    LogRule(
        id="GAP111",
        title="gap between train and held-out",
        severity="warning",
        condition="held-out perplexity is over {loss_gap} times the training perplexity; info while the data has not "
        "repeated",
        observe=_gap,
        needs=(not_under("rl", "preference", "reward"),),
        confidence=0.6,
        evidence=(
            cite("project convention", "gap over 1.5x, that is 0.41 nats; no source for the number"),
            INSTRUCT_GPT,
        ),
        rationale="A model that fits its training data much better than held-out data has begun to memorize it.",
        action="Use the checkpoint with the best held-out loss; try fewer epochs or more data before a lower rank.",
        scope="token-level or class cross-entropy on one scale, data seen more than once; not if the run diverged",
        verify="Compare the task metric of the best checkpoint with that of the last.",
        thresholds=(LOSS_GAP,),
    ),
    LogRule(
        id="SML113",
        title="few held-out examples",
        severity="info",
        condition="half-width of the accuracy's 95 % interval > {small_eval}",
        observe=_small_eval,
        confidence=0.95,
        evidence=(cite("binomial 95 % interval", "1.96 sqrt(p (1 - p) / n)"),),
        action="Differences smaller than that say nothing; evaluate on more examples before comparing runs.",
        scope="accuracies",
        rationale="The accuracy on few examples varies by several points by chance alone.",
        verify="Evaluate the same checkpoint on other examples of the same kind: the accuracy varies by as much.",
        thresholds=(SMALL_EVAL,),
    ),
    LogRule(
        id="UND126",
        title="ended while still improving",
        severity="info",
        condition="the last of {least_evals} or more evaluations is the best, and in the last quarter the held-out "
        "loss fell by over {unfinished_fall} and over {eval_noise} times its noise",
        observe=_unfinished,
        needs=(not_under("rl"),),
        confidence=0.5,
        evidence=(TINKER_STEPS, TRIAL),
        rationale="A held-out loss that is at its best at the end says that more training may still have helped.",
        action="Consider more steps, or a schedule that decays later; the fall may also end soon.",
        scope="held-out losses of one data set; not in mid-run, in warmup or where the run diverged",
        verify="Train longer, and see where the held-out loss starts to rise.",
        thresholds=(LEAST_EVALS, UNFINISHED_FALL, EVAL_NOISE),
    ),
    LogRule(
        id="CHN112",
        title="chance level",
        severity="warning",
        condition="the held-out accuracy is at most chance plus {chance_z} standard deviations (plus {chance_margin} "
        "if n is unknown), or, if no accuracy is logged, the loss is at least {chance_loss} x ln K; if K is unknown, "
        "accuracy is within {chance_band} standard deviations of 1 / K and loss within {chance_near} x ln K of ln K, "
        "for a K of 2 to 20",
        observe=_at_chance,
        needs=(not_under("rl", "preference"),),
        confidence=0.85,
        evidence=(cite("binomial test, one-sided 95 %", "chance plus 1.64 sqrt(p (1 - p) / n)"), KARPATHY),
        rationale="At chance level no other number about this run means much.",
        action="Fix the task set-up before tuning LoRA: labels, prompt or head, learning rate, number of steps.",
        scope="classification with balanced classes",
        verify="Overfit 32 examples on purpose: if training accuracy cannot reach 100 %, the set-up is broken.",
        thresholds=(CHANCE_Z, CHANCE_MARGIN, CHANCE_LOSS, CHANCE_BAND, CHANCE_NEAR),
    ),
)
