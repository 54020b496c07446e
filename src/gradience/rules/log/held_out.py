"""OVF110, HLD146, GAP111, CHN112, SML113, UND126 and EVL134: what held-out data say, and with what certainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gradience.rules import INSTRUCT_GPT, KARPATHY, PRECHELT, TINKER_STEPS, TRIAL, Observation, Sign, Threshold, Unknown
from gradience.rules.log.account import LEAST_EVALS, account, decisive_metric, gain, kept_step, task_metric, values_of
from gradience.rules.log.divergence import divergence, other_scale
from gradience.rules.log.facts import (
    EVAL_NOISE,
    JUDGEMENT,
    LOSS_GAP,
    UNFINISHED_FALL,
    HeldOutCurve,
    LogRule,
    RunFacts,
    Values,
    not_under,
    once,
    seen,
    shown,
)
from gradience.rules.log.learning import (
    ALL_WRONG,
    CHANCE_NEAR,
    CLEAR_FALL,
    FITTED,
    HELD_STILL,
    LATE_EVALS,
    LATE_FALL,
    LEARNT,
    OVERFIT_RISE,
    Still,
    held_still,
    learning,
    memorises,
    too_little,
)
from gradience.rules.log.preference import SWAPPED, in_order, swapped
from gradience.rules.log.statistics import median
from gradience.schema import Json, as_float
from gradience.schema.events import Eval
from gradience.schema.reports import EvalPoint, LossPair, MetricAccount, RunAccount

OVERFIT_EVALS = Threshold("overfit_evals", 2, "last evaluations in succession", "Prechelt: UP_s, s = 2")
GAP_TIMES = Threshold("gap_times", 2.0, "held-out over training loss", "124 logs: no change up to 20")
GAP_NATS = Threshold("gap_nats", 0.1, "nats between them", "50 logs: no change up to 0.2")
SMALL_EVAL = Threshold("small_eval", 0.03, "half-width of a 95 % interval", JUDGEMENT)
CHANCE_Z = Threshold("chance_z", 1.64, "standard deviations", "one-sided 95 %")
CHANCE_MARGIN = Threshold("chance_margin", 0.03, "accuracy, where n is unknown", "arithmetic: 1.64 errors of 750 rows")
PAIR_EVALS = Threshold("pair_evals", 4, "evaluations", "a judgement: two make the second half")

_MANY: Final = 1000.0  # times that are printed
_CLASSES: Final = range(2, 21)
_LAST: Final = 0.25  # last part of the run, over which UND126 asks whether the held-out loss still falls


class _Onset(NamedTuple):
    curve: HeldOutCurve
    best: int  # index of the lowest loss, E_opt
    rise: float  # E / E_opt - 1 at the end
    noise: float  # standard deviation of one evaluation, as a fraction of E_opt


def _overfits_says(v: Values) -> str:
    if "rise" not in v:
        name = str(v["metric"])
        best, last = _of(v, name, "best"), _of(v, name, "last")
        return f"{v['split']} {name} was best at step {v['best_step']} ({best}; {last} at the end)"
    gained = v.get("metric_gained")
    what = "overfits" if v.get("fits", True) else f"{v['split']} loss rises" if gained else "gets worse held out"
    says = f"{what} from step {v['lowest_step']} ({v['split']} loss +{shown(v, 'rise', '.1%')} since)"
    return f"{says}, but {v['metric']} still gained" if gained else says


@LogRule(
    "OVF110",
    severity="warning",
    confidence=0.85,
    needs=(not_under("rl"),),
    signs=(Sign("overfits", unless=frozenset({"info"})),),  # as info, its own sentence says what to do
    place="shape",
    phrase=_overfits_says,
    as_info=True,
    look=True,
    covers=lambda v: frozenset({"improving"} if "rise" in v else {"improving", "accuracy"}),
    live=True,
    cause="overfits",
    thresholds=(OVERFIT_RISE, EVAL_NOISE, OVERFIT_EVALS, LEAST_EVALS),
    evidence=(PRECHELT, INSTRUCT_GPT, TRIAL),
)
@once
def overfitting(facts: RunFacts) -> Observation | None:
    """overfitting

    each of the last {overfit_evals} held-out losses is above the lowest by more than {overfit_rise} of it and more
    than {eval_noise} times the noise between evaluations; it overfits if the training loss fell, and gets worse if
    it did not, or was not logged; info if the best weights were restored, or if the task metric that decides gained
    since by more than chance explains. Or, from {least_evals} evaluations on, the last {overfit_evals} are worse
    than the best in that metric by more than chance explains

    Why: From that step on the run fitted its training data at the cost of held-out data.
    Scope: held-out values of one data set
    Verify: Compare the task metric of the best checkpoint with that of the last.
    Seen: https://github.com/aigoncharov/trainer_state_viz -- 30 epochs, held-out losses best after the first and
        2.5 times as high at the end
    """
    if swapped(facts) is not None:
        return None
    curves = [curve for curve in facts.curves if len(curve.losses) >= LEAST_EVALS.value]
    onsets = [onset for curve in curves if (onset := _onset(curve)) is not None]
    lost = _lost(facts)
    if not curves and lost is None:
        most = max((len(curve.losses) for curve in facts.curves), default=0)
        raise Unknown(f"{most} held-out losses of one split; it needs {LEAST_EVALS.value:g}")
    if onsets:
        first = onsets[0]
        fits = None
        if facts.loss.points or facts.series.steps:
            fits = _train_falls(facts, first.curve.steps[first.best], first.curve.steps[-1])
        if fits or divergence(facts) is None:
            return _overfits(facts, first, [onset.curve.split for onset in onsets[1:]], fits=fits)
    if (
        lost is not None
        and lost.best_step is not None
        and _train_falls(facts, lost.best_step, facts.run.last_step or 0)
    ):
        return _metric_lost(lost)
    return None


def _lost(facts: RunFacts) -> MetricAccount | None:
    """The decisive task metric, if the last evaluations are all worse than the best by more than chance explains."""
    metric = decisive_metric(account(facts))
    if metric is None or metric.best is None or metric.count < LEAST_EVALS.value:
        return None
    last = [
        values[metric.name]
        for event in facts.evaluations
        if event.split == metric.split and metric.name in (values := values_of(event.metrics))
    ][-int(OVERFIT_EVALS.value) :]
    worst = max(gain(metric, metric.best, value) for value in last)
    return metric if worst < -metric.error else None


def _metric_lost(metric: MetricAccount) -> Observation:
    best, last = of_metric(metric.name, metric.best), of_metric(metric.name, metric.last)
    return Observation(
        f"{metric.split.capitalize()} {metric.name} was best at step {metric.best_step} ({best}) and is {last} at the "
        "end, while training loss fell.",
        {
            "split": metric.split,
            "metric": metric.name,
            "best_step": metric.best_step,
            "from_step": metric.best_step,
            "best": metric.best,
            "last": metric.last,
            "error": metric.error,
        },
        evidence=seen(f"differences of up to {metric.error:.2g} may be chance"),
    )


def of_metric(name: str, value: float | None) -> str:
    """A task metric as text: an accuracy as per cent."""
    if value is None:
        return "-"
    return f"{value:.1%}" if "acc" in name.lower() and 0.0 <= value <= 1.0 else f"{value:.4g}"


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
    """Whether the training loss is lower at the end than around the best evaluation, and than at the start.

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
    return median(after) < min(median(around), points[0])


def _overfits(facts: RunFacts, onset: _Onset, others: Sequence[str], *, fits: bool | None) -> Observation:
    curve, best = onset.curve, onset.best
    step, loss, end = curve.steps[best], curve.losses[best], curve.steps[-1]
    of = account(facts)
    metric = task_metric(facts) if of.split == curve.split else None
    gained = metric is not None and gained_since(facts, metric, step)
    also = f" So do {', '.join(others[:3])}." if others else ""
    beside = "while training loss fell" if fits else "while training loss did not fall"
    what = "Overfits" if fits else f"{curve.split.capitalize()} loss rises" if gained else "Gets worse"
    beside = "and no training loss was logged" if fits is None else beside
    return Observation(
        f"{what}: {curve.split} loss was lowest at step {step} ({loss:.4g}) and is "
        f"{onset.rise:.1%} higher at step {end}, {beside}.{_beside(facts, metric, step)}{also}{_kept(facts)}",
        {
            "fits": bool(fits),
            "split": curve.split,
            "best_step": of.best_step if metric is not None else step,
            "lowest_step": step,
            "from_step": step,
            "best_loss": loss,
            "last_step": end,
            "last_loss": curve.losses[-1],
            "rise": onset.rise,
            "noise": onset.noise,
            "metric": metric.name if metric is not None else None,
            "metric_last": metric.last if metric is not None else None,
            "metric_best": metric.best if metric is not None else None,
            "metric_gained": gained,
        },
        severity="info" if gained or _restored(facts) else "warning",
        confidence=0.6 if gained else 0.85,
        evidence=seen(f"{curve.split} loss {loss:.4g} at step {step}, {curve.losses[-1]:.4g} at step {end}"),
    )


def gained_since(facts: RunFacts, metric: MetricAccount, step: int) -> bool:
    """Whether a metric is better at the end than at a step, by more than chance explains."""
    then = value_at(facts, metric, step)
    return then is not None and gain(metric, then, metric.last) > metric.error


def value_at(facts: RunFacts, metric: MetricAccount, step: int) -> float | None:
    """A metric's value in the evaluation of a step; None if that evaluation lacks it."""
    here = (event for event in facts.evaluations if event.split == metric.split and event.step == step)
    values = [values_of(event.metrics) for event in here]
    return next((each[metric.name] for each in values if metric.name in each), None)


def _beside(facts: RunFacts, metric: MetricAccount | None, step: int) -> str:
    """What the task metric that decides did since the lowest loss, and what follows for the choice."""
    if metric is None or (then := value_at(facts, metric, step)) is None:
        return ""
    before, last = of_metric(metric.name, then), of_metric(metric.name, metric.last)
    change, name = gain(metric, then, metric.last), metric.name.capitalize()
    if change > metric.error:
        return f" {name} still gained ({before} -> {last}): compare both checkpoints on what you need."
    if change < -metric.error:
        return f" {name} was lost too ({before} -> {last})."
    return f" {name} did not gain ({before} -> {last}, within chance)."


def _of(v: Values, name: str, key: str) -> str:
    value = v.get(key)
    return of_metric(name, value if isinstance(value, float) else None)


def _gap_says(v: Values) -> str | None:
    if v.get("rises"):
        return f"gap {_ratio(float(shown(v, 'nats', 'g')))}"
    best = f" (best {shown(v, 'lowest')} at step {v['lowest_step']})" if "lowest" in v else ""
    return f"{v['split']} loss {shown(v, 'held_out')}{best} against {shown(v, 'train')} in training"


def _still_says(v: Values) -> str:
    what = v.get("what")
    if v.get("how") == "late":
        return f"{what} has not improved since step {v['step']}"
    if v.get("memorises"):
        return f"memorises; {what} did not improve"
    return f"the training loss falls, but {what} does not improve" if v.get("falls") else f"{what} does not improve"


@LogRule(
    "HLD146",
    severity="warning",
    confidence=0.8,
    needs=(not_under("rl", "preference", "reward"),),
    place="shape",
    phrase=_still_says,
    as_info=True,
    look=True,
    live=True,
    covers=lambda v: frozenset({"learning"}) if v.get("falls") and v.get("how") != "late" else frozenset(),
    thresholds=(
        *(ALL_WRONG, LEAST_EVALS, HELD_STILL, CLEAR_FALL, LEARNT),
        *(LATE_EVALS, LATE_FALL, EVAL_NOISE),
    ),
    evidence=(KARPATHY,),
)
def _held_out_still(facts: RunFacts) -> Observation | None:
    """held-out data do not improve

    a metric has nothing right at every evaluation (0, or an error rate of {all_wrong} or more); or, while the training
    loss falls, from {least_evals} evaluations on the held-out loss never is {held_still} or its noise below
    the first one, which was over {learnt} of the first training loss, or the task's metric never better than at first:
    a warning if the training loss fell by {clear_fall}. Info: fewer evaluations of a run that goes on; both end worse
    than they began; or, from {late_evals}
    evaluations on, the held-out loss has not improved by {held_still} or {eval_noise} times its noise since one of
    them, and the training loss fell to {late_fall} since

    Why: What is learnt there is learnt of the training rows alone, or what is evaluated is not what trains.
    Scope: supervised training; not where OVF110 speaks
    Verify: Evaluate the base model on the same rows, and the trained one on 32 rows of training.
    Seen: https://github.com/aigoncharov/trainer_state_viz -- 30 epochs, held-out losses best after the first
    Source: definition -- a loss that is no lower on other rows is of the training rows
    """
    if not facts.evaluations:
        raise Unknown("nothing held out was evaluated")
    still = held_still(facts)
    if still is None or (still.how in {"first", "lost", "late"} and overfits(facts)):
        return None
    memorised, few = memorises(facts), still.evaluations < LEAST_EVALS.value and facts.in_mid_run
    return Observation(
        _still_message(still),
        {
            **still._asdict(),
            "memorises": memorised,
            "falls": bool(facts.series.steps) and learning(facts).shown,
        },
        severity=None if memorised or (still.how == "dead" and not few and not _other_metrics_gain(facts)) else "info",
        action=_STILL_ACTIONS.get(still.how),
        evidence=seen(f"{still.evaluations} evaluations"),
    )


def _other_metrics_gain(facts: RunFacts) -> bool:
    """Whether some metric got better from the first evaluation by more than chance explains."""
    return any(gain(m, m.first, m.best) > m.error for m in account(facts).metrics if m.best is not None)


_STILL_ACTIONS: Final = {
    "dead": "Read some of its answers beside the labels: the metric, the labels or the output format do not fit.",
    "first": "Fewer passes over more or other data; see that held-out rows are of the task that is trained.",
    "lost": "Keep the checkpoint of the best evaluation.",
}


def _still_message(still: Still) -> str:
    what, name = still.what[:1].upper() + still.what[1:], still.what.partition(" ")[2]
    first, best, last = (of_metric(name, value) for value in (still.first, still.best, still.last))
    if still.how == "dead":
        return f"{what} is {best} at best of {still.evaluations} evaluations: nothing is right."
    if still.how == "late":
        return (
            f"{what} has not improved since step {still.step} ({first} there, {best} at best of "
            f"{still.evaluations} evaluations), while the training loss fell on: about {still.step} steps would have "
            "done."
        )
    if still.how == "lost":
        return f"{what} ends worse than it began: {first}, then {last}, while the training loss falls."
    return f"{what} never was better than at first ({first}, {best} at best), while the training loss falls."


@LogRule(
    "GAP111",
    severity="warning",
    confidence=0.6,
    live=True,
    needs=(not_under("rl", "preference", "reward"),),
    signs=("gap",),
    phrase=_gap_says,
    as_info=True,
    look=True,
    covers=lambda v: frozenset() if v.get("rises") else frozenset({"held_out"}),
    cause="gap",
    thresholds=(LOSS_GAP, GAP_TIMES, GAP_NATS),
    evidence=(INSTRUCT_GPT,),
)
def _gap(facts: RunFacts) -> Observation | None:
    """gap between train and held-out

    at the newest evaluation with training rows of its step, held-out perplexity is over {loss_gap} times the
    training perplexity; or, while it does not rise again, held-out loss is over {gap_times} times the training loss
    and {gap_nats} nats above. Info while the data has not repeated, while the held-out loss is at its best, if the best
    weights were restored, or if the task metric that decides gained since it was

    Why: A model that fits its training data much better than held-out data has begun to memorize it.
    Scope: cross-entropy on one scale; not if the run diverged
    Verify: Compare the task metric of the best checkpoint with that of the last.
    Seen: https://github.com/aigoncharov/trainer_state_viz -- training loss 0.05 beside held-out 2.7
    """
    of = account(facts)
    pair = of.last_pair
    if pair is None:
        raise Unknown("needs a held-out loss and a training loss of the same step")
    if (lacking := _no_gap(facts, of)) is not None:
        raise Unknown(lacking)
    nats = pair.held_out - pair.train
    over = nats > math.log(facts.gap_threshold)
    if not (over or _far(facts, of)):
        return None
    repeated = of.passes is None or of.passes > 1.0
    means = "probably memorizing" if repeated else "in the first pass over the data, so it is of another kind"
    low = _lowest(facts)
    says = [
        f"Gap {_ratio(nats)}, over {facts.gap_threshold:g}x: {means}." if over else "",
        _losses(pair, with_ratio=not over),
        f"It was lowest at step {low['lowest_step']} ({low['lowest']:.4g})." if low and not overfits(facts) else "",
        "" if overfits(facts) else _kept(facts).strip(),
    ]
    return Observation(
        " ".join(filter(None, says)),
        {
            "split": pair.split,
            "held_out": pair.held_out,
            "train": pair.train,
            "step": pair.step,
            "ratio": math.exp(min(nats, 700.0)),
            "nats": nats,
            "threshold": facts.gap_threshold,
            "rises": overfits(facts),
            **low,
        },
        severity="info" if not repeated or _harmless(facts) else "warning",
        confidence=0.6 if repeated else 0.4,
        evidence=seen(f"training rows of steps {pair.first_step} to {pair.last_step}"),
    )


def _no_gap(facts: RunFacts, of: RunAccount) -> str | None:
    """The reason why the log holds no gap to judge, or None."""
    if of.loss == "regression":
        return "the loss is no cross-entropy: a gap in nats has no meaning"
    if of.floor is None:
        return "label smoothing raises both losses by an amount that is not known"
    if other_scale.observe(facts) is not None:
        return "training and held-out loss are on different scales (see SCL129)"
    return "the run diverged (see DIV104)" if divergence(facts) is not None else None


def _losses(pair: LossPair, *, with_ratio: bool) -> str:
    times = f" ({_times(pair.held_out, pair.train)})" if with_ratio else ""
    says = f"loss is {pair.held_out:.4g} against {pair.train:.4g} in training at step {pair.step}{times}."
    return f"{pair.split.capitalize()} {says}"


def _far(facts: RunFacts, of: RunAccount) -> bool:
    """Whether losses that are too low for a gap in perplexity are far apart all the same."""
    pair, floor = of.last_pair, of.floor or 0.0
    if pair is None or overfits(facts):
        return False
    nats, train = pair.held_out - pair.train, max(pair.train - floor, 0.0)
    return GAP_NATS.value < nats <= math.log(LOSS_GAP.value) and pair.held_out - floor > GAP_TIMES.value * train


def _harmless(facts: RunFacts) -> bool:
    """Whether held-out data did not suffer: the loss is at its best, or the deciding metric gained since it was."""
    curve, metric = facts.held_out_curve, decisive_metric(account(facts))
    if _restored(facts):
        return True
    if metric is not None and metric.count == 1:
        return True  # nothing was seen to stand still
    if curve is not None and len(curve.losses) >= LEAST_EVALS.value and curve.best == len(curve.losses) - 1:
        return True
    if metric is None or metric.best is None:
        return False
    since = curve.steps[curve.best] if curve is not None and len(curve.losses) > 1 else None
    if since is None or since == metric.best_step:
        return gain(metric, metric.first, metric.last) > metric.error and metric.best == metric.last
    return gained_since(facts, metric, since)


def _restored(facts: RunFacts) -> bool:
    """Whether the run left the weights of its best evaluation, not those of its last step."""
    of = account(facts)
    return of.selection.restored is True and kept_step(of) is not None and kept_step(of) == of.best_step


def _kept(facts: RunFacts) -> str:
    """A sentence on the weights that were restored at the end."""
    return f" The weights of step {kept_step(account(facts))} were restored at the end." if _restored(facts) else ""


def _ratio(nats: float) -> str:
    # exp of much more than 700 is more than a float holds
    ratio = math.exp(min(nats, 700.0))
    return f"{ratio:.2f}x" if ratio < _MANY else f"over {_MANY:g}x"


def _lowest(facts: RunFacts) -> dict[str, Json]:
    """The lowest held-out loss and its step, if it is not the last."""
    curve = facts.held_out_curve
    # As text: a lowest loss that prints like the last one would be told as another
    if curve is None or f"{curve.losses[curve.best]:.4g}" == f"{curve.losses[-1]:.4g}":
        return {}
    return {"lowest": curve.losses[curve.best], "lowest_step": curve.steps[curve.best]}


def _times(held_out: float, train: float) -> str:
    return f"{held_out / train:.1f} times" if train > 0.0 and held_out / train < _MANY else "many times"


def overfits(facts: RunFacts) -> bool:
    """Whether OVF110 speaks of the run."""
    try:
        return overfitting.observe(facts) is not None
    except Unknown:
        return False


def _holds_a_value(event: Eval) -> bool:
    """Whether an evaluation has a loss, be it finite or not, or a metric."""
    return event.metrics.loss is not None or event.metrics.ppl is not None or bool(values_of(event.metrics))


@LogRule(
    "EVL134",
    severity="warning",
    confidence=0.95,
    phrase=lambda _: "its evaluations hold no loss and no metric",
    covers=frozenset({"no_held_out"}),
    cause="evaluations_empty",
)
def _without_values(facts: RunFacts) -> Observation | None:
    """evaluations without a value

    evaluations were recorded, and none holds a loss or a metric

    Why: The time was spent, and nothing can be told from it.
    Scope: logs with evaluations
    Verify: Look at the keys of one evaluation.
    Seen: https://github.com/huggingface/transformers/issues/38130 -- a PEFT model without label_names is evaluated
        without eval_loss
    Source: transformers Trainer (5.24) -- eval_loss is logged only if the model returns a loss for the labels
    """
    events = [event for event in facts.history if event.split != "train"]
    if not events or any(map(_holds_a_value, events)):
        return None
    return Observation(
        f"None of {len(events)} evaluations holds a loss or a metric, only how long it took."
        if len(events) > 1
        else "The evaluation holds no loss and no metric, only how long it took.",
        {"evaluations": len(events)},
        evidence=seen(f"values of the first: {', '.join(list(events[0].metrics.extras)[:5]) or 'none'}"),
    )


@LogRule(
    "SML113",
    severity="info",
    confidence=0.95,
    thresholds=(SMALL_EVAL,),
)
def _small_eval(facts: RunFacts) -> Observation | None:
    """few held-out examples

    half-width of the accuracy's 95 % interval > {small_eval}

    Why: The accuracy on few examples varies by several points by chance alone.
    Scope: accuracies
    Verify: Evaluate the same checkpoint on other examples of the same kind: the accuracy varies by as much.
    Seen: https://github.com/Franmartin09/Requirement-Classification-Fine-Tuning -- accuracies of a small held-out
        set
    Source: binomial 95 % interval -- 1.96 sqrt(p (1 - p) / n)
    """
    point = facts.held_out
    if point is None or point.metrics.accuracy is None or not point.metrics.n:
        raise Unknown("needs a held-out accuracy and the number of examples (n)")
    p, n = as_float(point.metrics.accuracy), point.metrics.n
    if not 0.0 <= p <= 1.0:
        raise Unknown(f"an accuracy of {p} is not a fraction")
    # At an accuracy of 0 or 1 the formula knows no uncertainty: it is taken to be half an example at least
    half = 1.96 * math.sqrt(max(p * (1.0 - p), 1.0 / (4.0 * n)) / n)
    if half <= SMALL_EVAL.value:
        return None
    return Observation(
        f"{n} held-out examples give the accuracy an uncertainty of +/- {half * 100:.1f} points: smaller differences "
        "say nothing.",
        {"n": n, "half_width": half},
        evidence=seen(f"1.96 sqrt(p (1 - p) / n) = {half:.4f}"),
    )


@LogRule(
    "UND126",
    severity="info",
    reading=True,
    confidence=0.5,
    needs=(not_under("rl"),),
    phrase=lambda v: f"{v['split']} loss still falls at the end",
    as_info=True,
    cause="unfinished",
    thresholds=(LEAST_EVALS, UNFINISHED_FALL, EVAL_NOISE, FITTED),
    evidence=(TINKER_STEPS, TRIAL),
)
def _unfinished(facts: RunFacts) -> Observation | None:
    """ended while still improving

    the last of {least_evals} or more evaluations is the best, and in the last quarter the held-out loss fell by
    over {unfinished_fall} and over {eval_noise} times its noise, to over {fitted}

    Why: A held-out loss that is at its best at the end says that more training may still have helped.
    Scope: held-out losses of one data set; not in mid-run, in warmup or where the run diverged
    Verify: Train longer, and see where the held-out loss starts to rise.
    """
    curve = facts.held_out_curve
    count = len(curve.losses) if curve else 0
    if curve is None or count < LEAST_EVALS.value:
        raise Unknown(f"{count} held-out losses of one split; it needs {LEAST_EVALS.value:g}")
    if facts.warming_up:
        raise Unknown("the learning rate had not reached its peak yet")
    if too_little(facts):
        raise Unknown("few steps, or the loss of a uniform guess: held-out data alone do not show that it learns")
    if facts.in_mid_run:
        raise Unknown(f"the log ends at step {facts.run.last_step} of {facts.max_steps}")
    losses, steps = curve.losses, curve.steps
    since = steps[-1] - _LAST * (steps[-1] - steps[0])
    if (
        losses[-1] <= FITTED.value
        or not curve.still_falls(since)
        or divergence(facts) is not None
        or _metric_lost_again(facts)
    ):
        return None
    at, bar = curve.since(since), curve.least_fall(since)
    fall, error = 1.0 - losses[-1] / losses[at], curve.noise / losses[at]
    return Observation(
        f"The {curve.split} loss still falls at the end: {losses[at]:.4g} at step {steps[at]}, {losses[-1]:.4g} at "
        f"step {steps[-1]}, its best.",
        {"split": curve.split, "fall": fall, "from_step": steps[at], "to_step": steps[-1], "error": error},
        evidence=seen(f"{fall:.1%} lower over the last quarter; over {bar:.1%} counts as a fall"),
    )


def _metric_lost_again(facts: RunFacts) -> bool:
    """Whether the task metric that decides is worse at the end than at its best, by more than chance explains."""
    metric = decisive_metric(account(facts))
    return metric is not None and metric.best is not None and gain(metric, metric.best, metric.last) < -metric.error


def _chance_says(v: Values) -> str:
    if "pairs" in v:
        return f"held-out pairs at chance ({shown(v, 'pairs', '.0%')} in order)"
    return "held-out accuracy at chance" if "accuracy" in v else "held-out loss no better than chance"


@LogRule(
    "CHN112",
    severity="warning",
    confidence=0.85,
    needs=(not_under("rl"),),
    signs=(Sign("at_chance", unless=frozenset({"pairs"})),),
    place="shape",
    phrase=_chance_says,
    covers=frozenset({"accuracy"}),
    cause=lambda v: None if "pairs" in v else "at_chance",
    thresholds=(CHANCE_Z, CHANCE_MARGIN, CHANCE_NEAR, SWAPPED, PAIR_EVALS),
    evidence=(KARPATHY,),
)
def _at_chance(facts: RunFacts) -> Observation | None:
    """chance level

    the held-out accuracy is at most chance plus {chance_z} standard deviations (plus {chance_margin} if n is
    unknown), or, if no accuracy is logged, the loss is less than {chance_near} of ln K below it; if K is unknown,
    accuracy is within as much of 1 / K and loss of ln K, for a K of 2 to 20. Of preferences: in the second half of
    {pair_evals} evaluations or more the median rewards/accuracies is at most one half plus {chance_margin} (and over
    {swapped}), while that of training is at least 1 less {swapped}

    Why: At chance level no other number about this run means much.
    Scope: classification with balanced classes; pairs of preferences
    Verify: Overfit 32 examples on purpose: if training accuracy cannot reach 100 %, the set-up is broken.
    Seen: https://github.com/facebookresearch/fairseq/issues/1987 -- accuracy of two classes stays at 50 %
    Source: binomial test, one-sided 95 % -- chance plus 1.64 sqrt(p (1 - p) / n)
    """
    if facts.objective.kind == "preference":
        return _pairs_at_chance(facts)
    if swapped(facts) is not None:
        return None  # PRF194 says it: far below chance is no chance
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


def _pairs_at_chance(facts: RunFacts) -> Observation | None:
    """The finding if pairs of training are told apart and those held out are not."""
    shares = in_order(facts)
    if shares is None or len(shares.held_out) < PAIR_EVALS.value:
        raise Unknown("no reward accuracies of training and of several evaluations")
    level = median(shares.held_out[len(shares.held_out) // 2 :])
    orders_training = shares.trained >= 1.0 - SWAPPED.value
    if not orders_training or not SWAPPED.value < level <= 0.5 + CHANCE_MARGIN.value:
        return None
    return Observation(
        f"{level:.0%} of the held-out pairs are in the order of their labels, no more than by chance, and "
        f"{shares.trained:.0%} of those of training: what was learnt is of the training pairs alone, or the held-out "
        "ones are labelled by another rule.",
        {"pairs": level, "train": shares.trained},
        confidence=0.7,
        evidence=seen(f"median of the last {len(shares.held_out) - len(shares.held_out) // 2} evaluations"),
    )


def _chance_loss(point: EvalPoint, classes: int) -> Observation | None:
    """Compare the held-out loss with ln K, that of equal odds. Used only if no accuracy was recorded."""
    loss, level = as_float(point.metrics.loss or 0.0), math.log(classes)
    least = (1.0 - CHANCE_NEAR.value) * level
    if not least <= loss < math.inf:
        return None
    return Observation(
        f"{point.split.capitalize()} loss {loss:.4g} is not below ln {classes} = {level:.4g}: no better than chance.",
        {"loss": loss, "chance_loss": level},
        confidence=0.6,
        evidence=seen(f"loss {loss:.4g}, {1.0 - CHANCE_NEAR.value:g} ln {classes} = {least:.4g}"),
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
        margin = CHANCE_Z.value * math.sqrt(chance * (1.0 - chance) / n) if n else CHANCE_MARGIN.value
        if abs(loss - level) <= CHANCE_NEAR.value * level and abs(accuracy - chance) <= margin:
            yield classes


RULES: Final[tuple[LogRule, ...]] = (
    overfitting,
    _held_out_still,
    _gap,
    _without_values,
    _small_eval,
    _unfinished,
    _at_chance,
)
