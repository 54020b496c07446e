"""SEL190 to CON193: which weights a run leaves, how they were chosen, and whether they were measured.

`marks` lists the evaluations that such a choice rests on: the best by loss and by the task's metric, the last one, and
the one whose weights were restored, each with what chance explains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log
from typing import Final

from gradience.rules import SAVE_FLOW, Observation, Threshold, Unknown
from gradience.rules.log.account import account, gain, higher_is_better, kept_step, task_metric, values_of
from gradience.rules.log.facts import JUDGEMENT, HeldOutCurve, LogRule, RunFacts, not_under, seen, shown
from gradience.rules.log.held_out import of_metric, overfits, value_at
from gradience.schema.reports import EvaluationMark, MetricAccount, RunAccount

UNMEASURED = Threshold("unmeasured", 0.05, "of the steps, after the last evaluation", JUDGEMENT)
CURVED = Threshold("curved", 0.1, "of the lowest loss", "a judgement: so large, it is of the curve, not of chance")
EQUAL_EVALS = Threshold("equal_evals", 4, "evaluations in succession with one value", "74 trainings: no change up to 4")
OF_ONE_CLASS = Threshold("of_one_class", 1e-4, "from 1 / K", "recall averaged over K classes, of one answer for all")
_CLASSES: Final = range(2, 21)
_RECALL: Final = ("recall_macro", "macro_recall", "recall")
_POSITIVE: Final = ("f1", "recall", "precision")


def marks(facts: RunFacts) -> list[EvaluationMark]:
    """The evaluations that the choice of weights rests on, by step; empty for fewer than two evaluations."""
    of, curve, metric = account(facts), facts.held_out_curve, task_metric(facts)
    roles: dict[int, list[str]] = {}
    for step, role in _roles(of, curve, metric):
        if step is not None:
            roles.setdefault(step, []).append(role)
    rows = [_mark(facts, curve, metric, step, roles[step]) for step in sorted(roles)]
    return rows if len(rows) > 1 else []


def _roles(
    of: RunAccount, curve: HeldOutCurve | None, metric: MetricAccount | None
) -> Iterator[tuple[int | None, str]]:
    if curve is not None and len(curve.losses) > 1:
        yield curve.steps[curve.best], "lowest loss"
        yield curve.steps[-1], "last"
    if metric is not None and metric.count > 1:
        yield metric.best_step, f"best {metric.name}"
    if of.selection.step is not None:
        yield of.selection.step, "restored" if of.selection.restored and of.ending.finished else "the trainer's best"


def _mark(
    facts: RunFacts, curve: HeldOutCurve | None, metric: MetricAccount | None, step: int, roles: Sequence[str]
) -> EvaluationMark:
    loss = dict(zip(curve.steps, curve.losses, strict=True)).get(step) if curve is not None else None
    value = value_at(facts, metric, step) if metric is not None else None
    least = min(curve.losses) if curve is not None else None
    noise = curve.noise if curve is not None and 0.0 < curve.noise < CURVED.value * min(curve.losses) else None
    best = metric.best if metric is not None else None
    return EvaluationMark(
        step=step,
        roles=list(roles),
        loss=loss,
        loss_noise=noise,
        loss_ties=None if None in {loss, least, noise} else (loss or 0.0) - (least or 0.0) <= (noise or 0.0),
        metric=metric.name if metric is not None else None,
        value=value,
        value_noise=metric.error if metric is not None else None,
        value_ties=None
        if metric is None or value is None or best is None
        else gain(metric, value, best) <= metric.error,
    )


@LogRule(
    "SEL190",
    severity="info",
    confidence=0.7,
    needs=(not_under("rl", "preference"),),
    phrase=lambda v: f"{v['metric']} was better at step {v['best_step']} than at step {v['step']}, which was kept",
    as_info=True,
    look=True,
)
def _weights(facts: RunFacts) -> Observation | None:
    """the weights that were kept are not the best

    the weights that the run leaves (restored, or the last) are worse in the task's metric than those of another
    evaluation by more than chance explains, and OVF110 does not say so

    Why: Loss and metric often are best at different steps; the trainer keeps what it was told to choose by.
    Scope: finished runs whose settings tell which weights were kept
    Verify: Evaluate both checkpoints on further rows.
    Source: transformers/training_args.py:TrainingArguments@5.24.0 -- load_best_model_at_end chooses by the loss
        unless told
    """
    of, metric = account(facts), task_metric(facts)
    step = kept_step(of)
    if step is None:
        raise Unknown("the settings do not tell which weights the run left")
    if metric is None or metric.best is None or metric.best_step is None:
        raise Unknown("no task metric was evaluated")
    value = value_at(facts, metric, step) if of.selection.restored else metric.last
    if value is None or gain(metric, value, metric.best) <= metric.error:
        return None
    if not of.selection.restored and overfits(facts):
        return None
    how = (
        f"Step {step} was restored by {of.selection.by}: its"
        if of.selection.restored
        else "The last weights were kept: their"
    )
    return Observation(
        f"{how} {metric.name} is {of_metric(metric.name, value)}, and was "
        f"{of_metric(metric.name, metric.best)} at step {metric.best_step}.",
        {"step": step, "metric": metric.name, "value": value, "best": metric.best, "best_step": metric.best_step},
        action=None
        if of.selection.restored is False
        else f"Set metric_for_best_model='{metric.name}' if that is what you need.",
        evidence=seen(f"differences of up to {metric.error:.2g} may be chance"),
    )


@LogRule(
    "EVL191", severity="info", confidence=0.9, needs=(not_under("rl"),), thresholds=(UNMEASURED,), evidence=(SAVE_FLOW,)
)
def _never_measured(facts: RunFacts) -> Observation | None:
    """final weights not evaluated

    the run ended more than {unmeasured} of its steps after the last evaluation, not by the interval between
    evaluations, and its best checkpoint was not restored

    Why: What is used is not what was measured.
    Scope: finished runs with evaluations
    Action: Evaluate once after training, or save at the steps of evaluations.
    Verify: The step of the newest evaluation beside the last step.
    Seen: public repositories -- runs whose last evaluation is long before their end
    """
    of = account(facts)
    last, restored = of.ending.step, of.selection.restored
    if not of.ending.finished or last is None or restored:
        raise Unknown("the run has not ended with the weights of its last step, as far as the log shows")
    events = [event for event in facts.history if event.split != "train"]
    if not events:
        raise Unknown("nothing held out was evaluated")
    steps = [event.step for event in events]
    newest = max((step for step in steps if step is not None), default=0)
    if None in steps or last - newest <= UNMEASURED.value * last:
        return None
    every = newest - max((step for step in steps if step is not None and step < newest), default=0)
    if abs(last - newest - every) <= 1:  # the steps of an epoch may be uneven by one
        raise Unknown(f"one is due at step {last}, and may have come after this file was written")
    return Observation(
        f"The final weights, of step {last}, were not evaluated: the last evaluation is of step {newest}.",
        {"step": last, "evaluated": newest},
        evidence=seen(f"evaluations of steps {min(step or 0 for step in steps)} to {newest}"),
    )


@LogRule(
    "SEL192",
    severity="warning",
    confidence=0.95,
    place="meaning",
    phrase=lambda v: f"its best checkpoint is its worst in {v['metric']}",
)
def _turned(facts: RunFacts) -> Observation | None:
    """the best checkpoint is chosen the wrong way round

    greater_is_better contradicts the name of metric_for_best_model

    Why: load_best_model_at_end then restores the worst checkpoint, and the limit on checkpoints deletes the best.
    Scope: metrics whose name tells what is better
    Action: Leave greater_is_better unset, or turn it.
    Verify: Compare best_metric in trainer_state.json with the evaluations.
    Seen: https://github.com/huggingface/transformers/pull/31142 -- after 7 hours of training the worst model was
        kept
    Source: transformers TrainingArguments (5.24) -- greater_is_better says whether more is better
    """
    training = facts.config.training
    name = (training.metric_for_best_model or "").removeprefix("eval_")
    if not name or training.greater_is_better is None:
        raise Unknown("the settings do not say how the best checkpoint is chosen")
    known = higher_is_better(name)
    if known is None or known == training.greater_is_better:
        return None
    return Observation(
        f"greater_is_better={training.greater_is_better} with metric_for_best_model={name}: the trainer's best "
        "checkpoint is its worst.",
        {"metric": name, "greater_is_better": training.greater_is_better},
        evidence=seen("both settings"),
    )


@LogRule(
    "CON193",
    severity="warning",
    confidence=0.8,
    needs=(not_under("rl", "preference", "reward"),),
    place="shape",
    phrase=lambda v: (
        f"the same {v['metric']} at every evaluation ({shown(v, 'value', '.3g')})"
        if "evaluations" in v
        else f"one answer to every row ({v['metric']} {shown(v, 'value', '.3g')})"
    ),
    thresholds=(EQUAL_EVALS, OF_ONE_CLASS),
)
def _one_answer(facts: RunFacts) -> Observation | None:
    """one answer to every row

    the task's metric has one value at {equal_evals} or more evaluations, and no loss is below the entropy of that
    share; or, in the newest one, recall and F1 are 0, or recall is within {of_one_class} of 1 / K, for a K of 2 to
    20, below the accuracy

    Why: The score of a majority class looks like learning where classes are uneven.
    Scope: metrics of classes
    Action: Look at the predictions of an evaluation, and at the share of its largest class.
    Verify: Count the classes predicted on one evaluation.
    Seen: https://github.com/huggingface/transformers/issues/4036 -- a fine-tuned classifier gives one output to
        whatever text
    Source: definition -- of K classes, one answer to all rows has a recall of 1 / K on average
    """
    of, metric = account(facts), task_metric(facts)
    if metric is None:
        raise Unknown("no task metric was evaluated")
    if of.loss == "regression" or metric.name.rpartition("_")[2] in {"wer", "cer"}:
        raise Unknown("the metric is not of classes")
    scores = _scores(facts, metric)
    # A score of 0 or 1 is of no majority, and `_tells_rows_apart` takes the logarithm of both shares
    if len(scores) >= EQUAL_EVALS.value and len(set(scores)) == 1 and 0.0 < scores[0] < 1.0:
        if _tells_rows_apart(facts, scores[0]):
            return None
        return Observation(
            f"{metric.split.capitalize()} {metric.name} is {of_metric(metric.name, scores[0])} at each of "
            f"{len(scores)} evaluations: one answer to every row gives just that.",
            {"metric": metric.name, "value": scores[0], "evaluations": len(scores)},
            evidence=seen(f"{len(scores)} equal values"),
        )
    return _of_one_class(facts)


def _tells_rows_apart(facts: RunFacts, score: float) -> bool:
    """Whether a loss is lower than one answer can have, which is the entropy of the share of rows it is right for."""
    curve = facts.held_out_curve
    entropy = -score * log(score) - (1.0 - score) * log(1.0 - score)
    return curve is not None and min(curve.losses, default=entropy) < entropy


def _scores(facts: RunFacts, metric: MetricAccount) -> list[float]:
    values = (values_of(event.metrics) for event in facts.evaluations if event.split == metric.split)
    return [each[metric.name] for each in values if metric.name in each]


def _of_one_class(facts: RunFacts) -> Observation | None:
    """Scores of the newest evaluation that a model has which gives all rows one class."""
    point = facts.held_out
    values = values_of(point.metrics) if point is not None else {}
    accuracy, recall = values.get("accuracy"), next((values[name] for name in _RECALL if name in values), None)
    if accuracy is None or recall is None or point is None:
        return None
    none = all(values.get(name) == 0.0 for name in _POSITIVE if name in values)
    classes = next((k for k in _CLASSES if abs(recall - 1.0 / k) < OF_ONE_CLASS.value), None)
    if none:
        says = "recall and F1 are 0: the model never gives the positive class"
    elif classes is not None and accuracy > recall:
        says = f"recall is 1 / {classes}: the model gives one class to every row"
    else:
        return None
    return Observation(
        f"{point.split.capitalize()} accuracy is {accuracy:.1%}, and {says}.",
        {"accuracy": accuracy, "recall": recall, "metric": "recall", "value": recall},
        evidence=seen(f"accuracy {accuracy:.4g}, recall {recall:.4g}"),
    )


RULES: Final[tuple[LogRule, ...]] = (_weights, _never_measured, _turned, _one_answer)
