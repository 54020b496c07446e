"""The account of a run: what it was and did, derived once from its facts. Rules, cells and the story read it.

What the log does not establish is None there, and whatever needs it stays silent. The step of a checkpoint that was
restored at the end, the training loss beside a held-out one, and the metric that decides are worked out here only.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

from gradience.rules import Threshold
from gradience.rules.log.facts import EVAL_NOISE, FEW_EVALS, HeldOutCurve, RunFacts, loss_of, once
from gradience.rules.log.statistics import mean, median, noise
from gradience.schema import as_float, number_in
from gradience.schema.events import EvalMetrics
from gradience.schema.reports import (
    Ending,
    EvalPoint,
    LossKind,
    LossPair,
    MetricAccount,
    RunAccount,
    Saving,
    Schedule,
    Selection,
)

NEAR = Threshold("near", 0.05, "of the logged steps, before an evaluation", "training rows averaged beside it")
DECAYED = Threshold("decayed", 0.5, "of the highest rate before", "50 logs: no change from 0.01 to 1")
RISEN = Threshold(
    "risen", 0.1, "of the highest rate before", "474 logs: one more than at a half, whose schedule was started anew"
)
MANY_CLASSES = Threshold("many_classes", 4, "values whose names end alike", "a judgement: then they are of classes")
UNLIKE = Threshold("unlike", 0.03, "of 1, or of the largest value", "a judgement, where n and noise are unknown")
LN_VOCABULARY = Threshold(
    "ln_vocabulary", math.log(262_144), "nats", "definition: equal odds over the largest vocabulary in use, 262144"
)
LEAST_EVALS = Threshold("least_evals", 3, "evaluations of one split", "definition: one before and after the best")
LATE_START = Threshold("late_start", 5.0, "logging intervals before the first row", "a judgement")
_MOST_ROWS: Final = 200  # training rows averaged beside an evaluation

_LOSS: Final = "loss"
_TOKENS: Final = re.compile(r"(mean_)?token_acc(uracy)?")
_OPERATIONAL: Final = re.compile(
    r"n|n_derived_from|epoch|.*runtime|.*per_second|.*_time|.*time_.*|.*mem(ory)?_.*|num_.*|total_flos|.*gen_len.*|"
    r".*samples|entropy|.*(step|steps|seconds|tokens_seen|gpu|cpu)|.*support|perplexity|ppl|.*loss.*|learning_rate|lr"
)
_FALLS: Final = re.compile(
    r"(^|_)([wcmtp]er|wil|eer|ece|fid|kid|nll|mae|mse|rmse|rmsle|mape|smape|medae|bpb|brier|hamming|perplexity|ppl|loss)(_|$)"
    r"|(^|_)(error|errors|err|error_rate|distance|false_\w+|fpr|fnr|hallucination\w*|toxicity)(_|$)"
)
_RISES: Final = re.compile(
    r"acc(uracy)?(_|$|\d)|(^|_)(micro|macro|weighted)?f(1|_?beta|_?score|05|2)(_|$)|f1|precision|recall|rouge|bleu|chrf|"
    r"meteor|(^|_)m?ap(_?\d+|_|$)|(^|_)(mrr|ndcg|hit|hits|top)(_?\w+)?(_|$)|auc|auroc|roc|matthews|(^|_)mcc(_|$)|pearson|"
    r"spearman|(^|_)r2(_|$)|r_squared|iou|dice|exact_match|(^|_)em(_|$)|pass(_?at)?_?k?\d*(_|$)|bertscore|(^|_)comet|"
    r"kappa|success|^reward$|win_rate|psnr|ssim|cider|spice|jaccard|specificity|sensitivity|correlation|combined_score|kendall"
)
_CLASSES: Final = re.compile(r"acc(uracy)?(_|$)|f1|f_?score|precision|recall|auc|auroc|matthews|(^|_)mcc(_|$)|kappa")
_NUMBERS: Final = re.compile(r"(^|_)r?mse(_|$)|(^|_)mae(_|$)|(^|_)r2(_|$)|r_squared|pearson|spearman")
_PARTIAL: Final = re.compile(r"precision|recall|sensitivity|specificity", re.IGNORECASE)
_WHOLE: Final = re.compile(r"overall|macro|micro|weighted|mean|average|avg|total|^[^_]+$", re.IGNORECASE)
_ENTITIES: Final = re.compile(r"overall_f1|seqeval", re.IGNORECASE)
_CAUSAL: Final = re.compile(
    r"llama|mistral|mixtral|qwen|gemma|phi|gpt|falcon|pythia|(^|[/_-])opt[_-]|bloom|mpt-|deepseek|smollm|olmo|"
    r"starcoder|vicuna|zephyr|stablelm|internlm|baichuan|chatglm|causal|granite|(^|[/_-])yi-"
)


def is_token_accuracy(name: str) -> bool:
    """Whether a held-out value is the share of tokens that were right."""
    return _TOKENS.fullmatch(name) is not None


def higher_is_better(name: str) -> bool | None:
    """Whether more of a held-out value is better, by its name; None if the name does not tell.

    >>> [higher_is_better(name) for name in ("wer", "overall_f1", "pass@1", "loss", "rouge-l", "temperature")]
    [False, True, True, False, True, None]
    """
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    # Asked first, because names such as top_5_error and auc_loss have words of both
    if _FALLS.search(plain):
        return False
    return True if _RISES.search(plain) else None


@once
def account(facts: RunFacts) -> RunAccount:
    """The account of the run."""
    curve = facts.held_out_curve
    split = curve.split if curve is not None else facts.held_out.split if facts.held_out is not None else None
    every = list(_metrics(facts, split))
    metrics = [metric for metric in every if metric.name != _LOSS]
    selection = _selection(facts, metrics, curve)
    decisive = _decisive(metrics, selection, curve)
    objective, loss = _kinds(facts, metrics)
    best = _best_step(decisive, metrics, curve)
    return RunAccount(
        objective=objective,
        loss=loss,
        floor=_floor(facts, loss),
        adapter=True if facts.config.lora.r is not None or facts.config.lora.peft_type is not None else None,
        passes=_passes(facts),
        split=split,
        evaluations=len({event.step for event in facts.evaluations if event.split == split}),
        held_out_loss=next((metric for metric in every if metric.name == _LOSS), None),
        metrics=metrics,
        decisive=decisive,
        best_step=best,
        shown_step=_shown_step(facts, split, selection.step if selection.step is not None else best),
        last_pair=_pair(facts, curve, -1),
        selection=selection,
        saving=_saving(facts),
        schedule=_schedule(facts),
        resumed_from=list(facts.run.record.resumed_from),
        starts_at=_starts_at(facts),
        ending=_ending(facts),
    )


def _passes(facts: RunFacts) -> float | None:
    """The passes over the data by the newest row or, if it is of a later step, the newest evaluation."""
    evaluated = [as_float(n) for event in facts.history if (n := number_in(event.metrics.extras, "epoch")) is not None]
    known = [n for n in (facts.run.last_epoch, max(evaluated, default=None)) if n is not None and math.isfinite(n)]
    return max(known) if known else _passes_of_rows(facts)


def _passes_of_rows(facts: RunFacts) -> float | None:
    """The passes by the rows of a step and of the data set, where the loop was watched and logs no epoch."""
    step, looks = facts.run.last_step, [wiring.data for wiring in facts.run.wirings if wiring.data is not None]
    data = looks[-1] if looks else None
    if step is None or data is None or not data.rows or not data.batch_size:
        return None
    return step * data.batch_size * (data.accumulation or 1) * (data.world_size or 1) / data.rows


def _kinds(facts: RunFacts, metrics: Sequence[MetricAccount]) -> tuple[str, LossKind]:
    """The objective, and what the loss measures: by the config, then by what was logged, then by the model's name."""
    kind = facts.objective.kind
    if kind in {"preference", "reward", "rl"}:
        return kind, kind
    if _of_numbers(facts, metrics):
        return kind if kind == "classification" else "unknown", "regression"
    names = [metric.name for metric in metrics if not _TOKENS.search(metric.name)]
    of_classes = any(_CLASSES.search(name.lower()) for name in names)
    if kind == "classification":
        return kind, "classification"
    if kind == "unknown" and of_classes:
        return "classification", "classification"
    of_tokens = any(_TOKENS.search(metric.name) for metric in metrics) or bool(
        _CAUSAL.search((facts.config.model_name or "").lower())
    )
    if kind == "sft" or of_tokens:
        judged = any(metric.higher_is_better is not None for metric in metrics if metric.name in names)
        return "sft", "tokens" if judged or facts.config.lora.task_type == "SEQ_2_SEQ_LM" else "language_model"
    return kind, "unknown"


def _of_numbers(facts: RunFacts, metrics: Sequence[MetricAccount]) -> bool:
    """Whether the loss is a mean squared error or its like, not nats: by the labels, the metrics, or its size."""
    if facts.num_labels == 1 or any(_NUMBERS.search(metric.name.lower()) for metric in metrics):
        return True
    if facts.objective.kind != "unknown" or facts.held_out_curve is None:
        return False
    return min(facts.held_out_curve.losses) > LN_VOCABULARY.value and not any(map(_named_by_class, metrics))


def _named_by_class(metric: MetricAccount) -> bool:
    return _CLASSES.search(metric.name.lower()) is not None or _TOKENS.search(metric.name) is not None


def _floor(facts: RunFacts, loss: LossKind) -> float | None:
    """The entropy of the smoothed target; None if the number of classes is not known."""
    smoothed = as_float(facts.config.training.label_smoothing_factor or 0.0)
    if not 0.0 < smoothed < 1.0:
        return 0.0
    if loss != "classification" or not facts.num_labels or facts.num_labels < 2:
        return None
    # The smoothed target is 1 - s + s / K for the label, and s / K for each other class
    rest = smoothed / facts.num_labels
    true = 1.0 - smoothed + rest
    return -true * math.log(true) - (facts.num_labels - 1) * rest * math.log(rest)


def values_of(metrics: EvalMetrics) -> Mapping[str, float]:
    """The finite numbers of an evaluation that say how good the model is, by name; the loss among them."""
    named = {_LOSS: metrics.loss, "accuracy": metrics.accuracy}
    numbers = {name: as_float(value) for name, value in named.items() if value is not None}
    extras = metrics.extras  # made anew whenever it is asked for
    for name in extras:
        value = number_in(extras, name)
        if value is not None and not _OPERATIONAL.fullmatch(name.lower()):
            numbers.setdefault(name, value)
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _metrics(facts: RunFacts, split: str | None) -> Iterator[MetricAccount]:
    columns: dict[str, list[tuple[int | None, float]]] = {}
    for event in facts.evaluations:
        if event.split == split:
            for name, value in values_of(event.metrics).items():
                columns.setdefault(name, []).append((event.step, value))
    stated = (facts.config.training.metric_for_best_model or "").removeprefix("eval_")
    for name, rows in columns.items():
        up = higher_is_better(name)
        up = facts.config.training.greater_is_better if up is None and name == stated else up
        best = None if up is None else (max if up else min)(rows, key=lambda row: row[1])
        yield MetricAccount(
            name=name,
            split=split or "",
            higher_is_better=up,
            count=len(rows),
            first=rows[0][1],
            last=rows[-1][1],
            best=None if best is None else best[1],
            best_step=None if best is None else best[0],
            error=_error([value for _, value in rows], facts.held_out),
        )


def _error(values: Sequence[float], shown: EvalPoint | None) -> float:
    """The difference that chance explains: by the number of examples, else by the noise between evaluations."""
    fraction = all(0.0 <= value <= 1.0 for value in values)
    n = shown.metrics.n if shown is not None else None
    if fraction and n:
        middle = median(values)
        # Half an example at least, because the binomial error is 0 at a share of 0 or 1
        return 1.96 * math.sqrt(max(middle * (1.0 - middle), 0.25 / n) / n)
    if len(values) >= FEW_EVALS:  # of a curve that is steep at first, the second half
        return EVAL_NOISE.value * min(
            noise(part, few=0) for part in (values, values[len(values) // 2 :]) if len(part) > 3
        )
    return UNLIKE.value * (1.0 if fraction else max(map(abs, values)))


def decisive_metric(of: RunAccount) -> MetricAccount | None:
    """The task metric that decides which checkpoint is best; None if the loss does, or nothing."""
    return next((metric for metric in of.metrics if metric.name == of.decisive), None)


def task_metric(facts: RunFacts) -> MetricAccount | None:
    """The task metric that stands for what the run is for, whatever the trainer chose by; None without one."""
    of = account(facts)
    if (chosen := decisive_metric(of)) is not None:
        return chosen
    name = _decisive(of.metrics, Selection(), None) or next((m.name for m in of.metrics if _stands_still(m)), None)
    return next((metric for metric in of.metrics if metric.name == name), None)


def kept_step(of: RunAccount) -> int | None:
    """The step of the weights that a finished run leaves, as its settings tell; None if they do not."""
    known = None if of.selection.by is None else higher_is_better(of.selection.by)
    turned = known is not None and of.selection.higher_is_better not in {None, known}
    if not of.ending.finished or of.selection.restored is None or (of.selection.restored and turned):
        return None
    if not of.selection.restored:
        return of.ending.step
    return of.selection.step if of.selection.step is not None else of.best_step


def gain(metric: MetricAccount, before: float, after: float) -> float:
    """How much better the later value is; negative if it is worse."""
    return after - before if metric.higher_is_better else before - after


def _selection(facts: RunFacts, metrics: Sequence[MetricAccount], curve: HeldOutCurve | None) -> Selection:
    training, chosen = facts.config.training, facts.chosen
    value, step = number_in(chosen, "best_metric"), number_in(chosen, "best_step")
    by = (training.metric_for_best_model or "").removeprefix("eval_") or None
    # trainer_state.json has the best value, and not of what: so it is what had this value
    if by is None and value is not None:
        names = [metric.name for metric in metrics if metric.best is not None and math.isclose(metric.best, value)]
        of_loss = curve is not None and any(math.isclose(loss, value) for loss in curve.losses)
        by = _LOSS if of_loss else names[0] if names else None
    if by is None and training.load_best_model_at_end:
        by = _LOSS
    up = training.greater_is_better
    return Selection(
        by=by,
        higher_is_better=higher_is_better(by) if up is None and by is not None else up,
        value=value,
        step=None if step is None else int(step),
        restored=training.load_best_model_at_end,
    )


def _decisive(metrics: Sequence[MetricAccount], selection: Selection, curve: HeldOutCurve | None) -> str | None:
    """What says which checkpoint is best: what the trainer chose by, else the first task metric, else the loss."""
    still = {metric.name for metric in metrics if metric.count >= LEAST_EVALS.value and _stands_still(metric)}
    judged = [metric.name for metric in metrics if metric.higher_is_better is not None and metric.name not in still]
    if selection.by in judged or (selection.by == _LOSS and curve is not None):
        return selection.by
    of_classes = _of_classes(judged)
    whole = [name for name in judged if not _TOKENS.search(name) and name not in of_classes]
    task = sorted(whole, key=partial(_rank, frozenset(judged)))
    return task[0] if task else _LOSS if curve is not None else None


def _stands_still(metric: MetricAccount) -> bool:
    """Whether a metric never got better nor ended worse: it tells no checkpoint from another."""
    return metric.first == metric.best == metric.last


def _of_classes(names: Sequence[str]) -> frozenset[str]:
    """The names of values of single classes: many that end alike, of which those of all classes are no part."""
    endings = Counter(name.rpartition("_")[2] for name in names if "_" in name and not _WHOLE.search(name))
    return frozenset(
        name for name in names if endings[name.rpartition("_")[2]] >= MANY_CLASSES.value and not _WHOLE.search(name)
    )


def _rank(names: frozenset[str], name: str) -> int:
    """The place of a task metric among those logged: half of another one comes last, one of most tokens before."""
    if _PARTIAL.search(name):
        return 2
    return int("acc" in name and any(_ENTITIES.search(other) for other in names))


def _best_step(decisive: str | None, metrics: Sequence[MetricAccount], curve: HeldOutCurve | None) -> int | None:
    if decisive == _LOSS and curve is not None:
        return curve.steps[curve.best]
    return next((metric.best_step for metric in metrics if metric.name == decisive), None)


def _shown_step(facts: RunFacts, split: str | None, best: int | None) -> int | None:
    """The step of the weights that the newest evaluation measured: the best one's, if they were restored before it."""
    newest = next((event for event in reversed(facts.history) if event.split == split), None)
    if newest is None:
        return None
    return best if facts.is_restored(newest) else newest.step


def _pair(facts: RunFacts, curve: HeldOutCurve | None, place: int) -> LossPair | None:
    """The held-out loss at a place of the curve, and the training loss of the rows up to its step."""
    if curve is None:
        return None
    step, held_out = curve.steps[place], curve.losses[place]
    own = _evaluated_on_train(facts, step)
    if own is not None:
        return LossPair(
            split=curve.split, step=step, held_out=held_out, train=own, rows=0, first_step=step, last_step=step
        )
    near = _rows_near(facts, step)
    # A loss of exactly 0 is a NaN that was masked, or a batch without labels
    losses = [loss for row in near if (loss := facts.series.losses[row]) and math.isfinite(loss)]
    if not losses:
        return None
    return LossPair(
        split=curve.split,
        step=step,
        held_out=held_out,
        train=mean(losses),
        rows=len(losses),
        first_step=facts.step(near[0]),
        last_step=facts.step(near[-1]),
    )


def _evaluated_on_train(facts: RunFacts, step: int) -> float | None:
    """The newest loss of the train split itself at a step; None if it was not evaluated there."""
    events = (event for event in reversed(facts.history) if event.split == "train" and event.step == step)
    return next((loss for event in events if (loss := loss_of(event)) > 0.0), None)


def _rows_near(facts: RunFacts, step: int) -> range:
    """The training rows of the last twentieth of the steps up to a step; if there is none, the next one if it is near.

    A row is the mean over the interval before it, so one that is more than half of an interval away tells of other
    steps.
    """
    steps = facts.series.steps
    if not steps:
        return range(0)
    near = interval(facts) / 2.0
    reach = max(near, NEAR.value * (steps[-1] - steps[0]))
    start, end = bisect_left(steps, step - reach), bisect_right(steps, step)
    if start == end < len(steps) and steps[end] - step <= near:
        end += 1
    return range(max(start, end - _MOST_ROWS), end)


def interval(facts: RunFacts) -> float:
    """The usual number of steps between two training rows; that of the config for fewer than two rows."""
    steps = facts.series.steps
    if len(steps) > 1:
        return max(1.0, median(b - a for a, b in pairwise(steps[:_MOST_ROWS])))
    configured = facts.config.training.logging_steps
    return max(1.0, as_float(configured)) if configured is not None and as_float(configured) < math.inf else 1.0


def _saving(facts: RunFacts) -> Saving:
    training = facts.config.training
    every = as_float(training.save_steps) if training.save_steps is not None else 0.0
    if 0.0 < every < 1.0 and facts.max_steps:
        every = math.ceil(every * facts.max_steps)
    steps = training.save_strategy in {None, "steps"} and 1.0 <= every < math.inf
    limit = training.save_total_limit
    return Saving(
        every=int(every) if steps else None,
        most=limit if limit is not None and limit > 0 else None,
    )


def _schedule(facts: RunFacts) -> Schedule:
    training, optimizer = facts.config.training, facts.config.optimizer
    points = facts.rate.points
    logged = facts.peak_rate if facts.rate.values else None
    # With lr_from the settings were made of the log, and their rate is the largest that was logged
    configured = None if optimizer.lr is None or "lr_from" in optimizer.extras else as_float(optimizer.lr)
    if configured is not None and logged is not None and logged > configured * 1.01:
        configured = None  # of another run, or scaled by the trainer
    peak = logged if configured is None else configured
    warmup = as_float(training.warmup_steps or 0.0)
    ratio = as_float(training.warmup_ratio or 0.0) or (warmup if warmup < 1.0 else 0.0)
    planned = facts.max_steps
    steps = warmup if warmup >= 1.0 else math.ceil(ratio * planned) if 0.0 < ratio <= 1.0 and planned else 0.0
    under = configured is not None and len(points) == 1 and points[0] < configured
    in_settings = under and facts.run.last_step is not None and facts.run.last_step < steps  # one rate shows no rise
    return Schedule(
        name=training.lr_scheduler,
        peak=peak,
        peak_from=None if peak is None else "logged" if configured is None else "configured",
        logged_peak=logged,
        last=facts.rate.values[-1] if facts.rate.values else None,
        warmup_steps=int(steps) if 0.0 < steps < math.inf else None,
        in_warmup=facts.warming_up or in_settings,
        restarts=len(rises_again(points)),
    )


def rate_of_run(schedule: Schedule) -> float | None:
    """The learning rate by which a run is known: the peak, or the largest logged where the run never came near it."""
    peak, logged = schedule.peak, schedule.logged_peak
    if peak is None or (logged is not None and logged < DECAYED.value * as_float(peak) and not schedule.in_warmup):
        return logged
    return as_float(peak)


def rises_again(points: Sequence[float]) -> list[int]:
    """The places at which the learning rate is up again after it had decayed."""
    risen: list[int] = []
    highest = lowest = points[0] if points else 0.0
    for place, rate in enumerate(points):
        lowest = min(lowest, rate)
        if min(rate, highest) - lowest > RISEN.value * highest:
            risen.append(place)
            highest = lowest = rate
        elif rate > highest:
            highest = lowest = rate
    return risen


def _starts_at(facts: RunFacts) -> int | None:
    """The first logged step, if the log begins in mid-run: far from step 0, or at a rate that had decayed before."""
    steps, rates = facts.series.steps, facts.rate.values
    if not steps:
        return None
    configured = facts.config.optimizer
    peak = 0.0 if configured.lr is None or "lr_from" in configured.extras else as_float(configured.lr)
    decayed = len(rates) > 2 and 0.0 < rates[0] < DECAYED.value * peak and max(rates) == rates[0] > rates[-1]
    return steps[0] if decayed or steps[0] > LATE_START.value * interval(facts) else None


def _ending(facts: RunFacts) -> Ending:
    planned, step = facts.max_steps, facts.run.last_step
    made = planned is not None and step is not None and step >= planned
    return Ending(status=facts.status, step=step, planned=planned, finished=facts.status == "ok" or made)
