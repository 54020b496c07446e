"""GRD107, GRD108 and LRS109: exploding or vanishing gradients, and a learning rate that was not as planned.

Gradient norms differ by orders of magnitude between models, so each norm is compared with its own past and not with a
fixed bound. Healthy norms have heavy tails, so a jump of one or two rows is reported only if the loss jumps with it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import groupby, islice
from typing import Final, NamedTuple

from gradience.rules import TRIAL, Observation, Rule, Threshold, Unknown, cite
from gradience.rules.log.divergence import loss_bar
from gradience.rules.log.facts import JUDGEMENT, LogRule, RunFacts, not_under, seen
from gradience.rules.log.numbers import bad_norms, skipped_rows
from gradience.rules.log.preference import saturated
from gradience.rules.log.statistics import Bar, Curve, excesses, median, runs_of, stands_out
from gradience.schema import as_float

JUMP_ROWS = Threshold("jump_rows", 8, "training rows with a gradient norm", "five before a jump, and three in it")
GRADIENT_K = Threshold(
    "gradient_k", 8.0, "median |first difference| of ln(grad_norm)", "spike trial; proposal for norms"
)
GRADIENT_FLOOR = Threshold("gradient_floor", 0.25, "in ln(grad_norm)", "trial: 8 x 0.25 is a factor of 7")
GRADIENT_RATIO = Threshold("gradient_ratio", 10.0, "times the median before", "Megatron: 10 x; proposal for 3 rows")
LASTING = Threshold("lasting", 3, "consecutive rows", "trial: one row alone is often a heavy tail")
ANSWER_K = Threshold("answer_k", 4.0, "usual changes by which the loss of that row or the next rises", JUDGEMENT)
CLIPPED_SHARE = Threshold("clipped_share", 0.9, "fraction of the rows", "proposal of the project's design")
VANISHED_RATIO = Threshold("vanished_ratio", 1e-3, "of the early median", "proposal of the project's design")
VANISHED_ROWS = Threshold("vanished_rows", 5, "consecutive rows", "proposal of the project's design")
MEMORIZED = Threshold("memorized", 0.01, "of the early loss", "a judgement: a fitted model has no gradient left")

ZERO_RATE_ROWS = Threshold("zero_rate_rows", 3, "consecutive rows", "proposal: warmup starts at 0 for one row")
ZERO_TAIL_SHARE = Threshold("zero_tail_share", 0.1, "fraction of the rows", "a judgement: a schedule ends at 0")
PEAK_SHARE = Threshold("peak_share", 0.5, "of the configured peak", "proposal of the project's design")
DECAYED = Threshold("decayed", 0.5, "of the highest rate before", JUDGEMENT)
RISEN = Threshold("risen", 2.0, "times the lowest rate since, and 10 % of the highest", JUDGEMENT)


def _norms(facts: RunFacts, least: Threshold) -> Curve:
    curve = facts.norm
    if not curve.values:
        lost = len(bad_norms(facts))
        raise Unknown(f"none of {lost} recorded gradient norms is finite" if lost else "no gradient norm was recorded")
    if len(curve.values) < least.value:
        raise Unknown(f"{len(curve.values)} rows with a gradient norm; it needs {least.value:g}")
    return curve


def _explosion(facts: RunFacts) -> Observation | None:
    curve = _norms(facts, JUMP_ROWS)
    start = _grown(curve.points, math.ceil(LASTING.value / curve.block))
    if start is None:
        return _burst(facts, curve) or _clipped(facts, curve)
    step = facts.step(curve.row(start))
    before, after = median(curve.points[:start]), median(curve.points[start:])
    return Observation(
        f"The gradient norm grows to over {GRADIENT_RATIO.value:g} x its earlier level from step {step} on (median "
        f"{before:.3g} before, {after:.3g} after).",
        {"step": step, "before": before, "after": after},
        evidence=seen(f"grad_norm over {GRADIENT_RATIO.value:g} x the median of the rows before, 3 rows and more"),
    )


def _grown(points: Sequence[float], rows: int) -> int | None:
    """The index from which `rows` points in a row exceed 10 x the median of all points before them, or None."""
    before: list[float] = []
    run = 0
    least = max(5, len(points) // 10)
    for i, norm in enumerate(points):
        level = before[len(before) // 2] if len(before) >= least else math.inf
        if norm > GRADIENT_RATIO.value * level and level > 0.0:
            run += 1
            if run >= rows:
                return i - run + 1
        else:
            run = 0
            insort(before, norm)
    return None


def _burst(facts: RunFacts, curve: Curve) -> Observation | None:
    """A jump that lasts three rows, or a shorter one with which the loss rises."""
    if curve.lowest <= 0.0:
        return None  # zeros have no logarithm; GRD108 reports them
    found = [place for place, _ in excesses(curve, Bar(GRADIENT_K.value, GRADIENT_FLOOR.value, logarithmic=True))]
    bursts = runs_of(found)
    longest = max(bursts, key=len, default=[])
    lasting = len(longest) >= LASTING.value
    counted = longest if lasting else [place for burst in bursts for place in burst if _answered(facts, curve, place)]
    if not counted:
        return None
    at = counted[0] if lasting else max(counted, key=curve.values.__getitem__)
    step, norm = facts.step(curve.rows[at]), curve.values[at]
    usual = median(curve.values[max(0, at - 8) : at])
    answer = "" if lasting else ", and the loss rises with it"
    return Observation(
        f"The gradient norm jumps to {norm:.3g} at step {step}, from {usual:.3g}{answer} ({len(bursts)} such bursts, "
        f"the longest of {len(longest)} rows).",
        {"step": step, "norm": norm, "usual": usual, "bursts": len(bursts), "longest": len(longest)},
        severity="warning" if lasting else "info",
        confidence=0.75 if lasting else 0.5,
        evidence=seen(f"grad_norm {norm:.3g} at step {step}, {usual:.3g} in the rows before"),
    )


def _answered(facts: RunFacts, curve: Curve, place: int) -> bool:
    """Whether the loss of that row, or of the next one, rises above its own noise."""
    if not facts.loss.values or median(facts.loss.points) <= 0.0:
        return False
    bar, at = loss_bar(facts, ANSWER_K.value), bisect_left(facts.loss.rows, curve.rows[place])
    return any(stands_out(facts.loss, near, bar) for near in (at, at + 1))


def _clipped(facts: RunFacts, curve: Curve) -> Observation | None:
    bound = facts.config.training.max_grad_norm
    if bound is None or not 0.0 < as_float(bound) < math.inf:
        return None
    share = sum(norm > as_float(bound) for norm in curve.points) / len(curve.points)
    if share <= CLIPPED_SHARE.value:
        return None
    return Observation(
        f"{share:.0%} of the rows are clipped: their gradient norm is over max_grad_norm {as_float(bound):g}.",
        {"share": share, "max_grad_norm": as_float(bound)},
        severity="info",
        confidence=0.6,
        action="Nothing is broken, but max_grad_norm, not the loss, sets the size of most steps: raise it or lower lr.",
        evidence=seen(f"median grad_norm {median(curve.points):.3g}"),
    )


def _vanishing(facts: RunFacts) -> Observation | None:
    curve = _norms(facts, VANISHED_ROWS)
    if saturated(facts) is not None:
        return None  # a saturated preference loss explains it, and PRF130 reports that
    rows = int(VANISHED_ROWS.value)
    early = median([x for x in islice(curve.points, max(5, len(curve.points) // 10)) if x > 0.0])
    bar = VANISHED_RATIO.value * early  # NaN if no early norm is over 0; no norm compares as less than NaN
    exact = curve.lowest <= 0.0 and 0.0 in curve.values
    values, block = (curve.values, 1) if exact else (curve.points, curve.block)
    low = runs_of([i for i, norm in enumerate(values) if norm == 0.0 or norm < bar])
    low = [run for run in (_with_rate(facts, curve, run, block) for run in low) if len(run) * block >= rows]
    if not low:
        return None
    run = max(low, key=len)
    step = facts.step(curve.rows[run[0] * block])
    zeros = all(values[i] == 0.0 for i in run)
    fitted = _fitted(facts, curve.rows[run[0] * block], curve.rows[run[-1] * block])
    what = "exactly 0" if zeros else f"under {VANISHED_RATIO.value:g} x its early level"
    return Observation(
        f"The gradient norm is {what} from step {step} on in {len(run) * block} rows"
        + (": the loss is almost 0, nothing is left to learn." if fitted else " while the learning rate is not 0."),
        {"step": step, "rows": len(run) * block, "early": max(0.0, early)},
        severity="info" if fitted else None,
        evidence=seen(f"grad_norm {values[run[0]]:.3g} at step {step}"),
    )


def _with_rate(facts: RunFacts, curve: Curve, run: Sequence[int], block: int) -> list[int]:
    """The points of a run of low norms at which the learning rate is not known to be 0."""
    rates = facts.series.rates
    return [i for i in run if not rates or rates[curve.rows[i * block]] != 0.0]


def _fitted(facts: RunFacts, first: int, last: int) -> bool:
    """Whether the loss between two rows is close to 0 compared with the early loss."""
    losses = facts.series.losses
    early = median([x for x in losses[: max(5, len(losses) // 10)] if math.isfinite(x)])
    there = median([x for x in losses[first : last + 1] if math.isfinite(x)])
    return abs(there) < MEMORIZED.value * early and there != 0.0


def _rate(facts: RunFacts) -> Observation | None:
    rates = facts.rate.values
    if len(rates) < ZERO_RATE_ROWS.value:
        raise Unknown(f"{len(rates) or 'no'} rows with a learning rate; it needs {ZERO_RATE_ROWS.value:g}")
    return _stuck(facts) or _short_of_peak(facts) or _rises(facts)


class _Stretch(NamedTuple):
    start: int
    rows: int


def _stuck(facts: RunFacts) -> Observation | None:
    curve = facts.rate
    rates = curve.values
    if curve.lowest > 0.0 or 0.0 not in rates:
        return None
    skipped = set(skipped_rows(facts))  # the optimizer step was skipped, so the learning rate stood still
    stretches, at = [], 0
    for zero, group in groupby(rates, key=(0.0).__eq__):
        length = len(list(group))
        counted = length - len(skipped.intersection(curve.rows[at : at + length])) if skipped else length
        if zero and counted >= ZERO_RATE_ROWS.value:
            stretches.append(_Stretch(at, length))
        at += length
    stretches = [stretch for stretch in stretches if not _is_end(stretch, len(rates))]
    if not stretches:
        return None
    start, rows = max(stretches, key=lambda stretch: stretch.rows)
    step = facts.step(curve.rows[start])
    throughout = facts.peak_rate <= 0.0
    return Observation(
        f"The learning rate is 0 in {rows} rows from step {step} on: nothing is learnt there.",
        {"rows": rows, "step": step, "throughout": throughout},
        evidence=seen(f"lr 0 in {rows} of {len(rates)} rows"),
    )


def _is_end(stretch: _Stretch, rows: int) -> bool:
    """Whether a stretch of zeros is just the end of a schedule that decays to 0."""
    at_end = stretch.start > 0 and stretch.start + stretch.rows == rows
    return at_end and stretch.rows <= max(ZERO_RATE_ROWS.value, ZERO_TAIL_SHARE.value * rows)


def _short_of_peak(facts: RunFacts) -> Observation | None:
    planned = facts.config.optimizer.lr
    peak = facts.peak_rate
    if planned is None or not peak < PEAK_SHARE.value * as_float(planned):
        return None
    if facts.status == "no_run_end" and facts.rate.values[-1] == peak:
        return None  # the run may still be warming up
    return Observation(
        f"The learning rate never came near its configured {as_float(planned):g}: {peak:.3g} at most.",
        {"peak": peak, "configured": as_float(planned)},
        confidence=0.8,
        action="Check warmup against the number of steps that were really taken, and the scheduler.",
        evidence=seen(f"highest lr {peak:.3g}, configured {as_float(planned):g}"),
    )


def _rises(facts: RunFacts) -> Observation | None:
    scheduler = (facts.config.training.lr_scheduler or "").lower()
    if facts.record.resumed_from or len(facts.record.sessions) > 1 or "restart" in scheduler or "cycl" in scheduler:
        return None
    points, risen = facts.rate.points, []
    highest = lowest = points[0]
    for i, rate in enumerate(points):
        lowest = min(lowest, rate)
        decayed = lowest < DECAYED.value * highest
        if decayed and rate > RISEN.value * lowest and rate - lowest > 0.1 * highest:
            risen.append(i)
            highest = lowest = rate
        elif rate > highest:
            highest = lowest = rate
    if not risen:
        return None
    step = facts.step(facts.rate.row(risen[0]))
    planned = len(risen) > 1
    return Observation(
        f"The learning rate rises again at step {step} after it had decayed"
        + (f", {len(risen)} times: restarts, perhaps as planned." if planned else ", and the log records no resume."),
        {"step": step, "times": len(risen)},
        severity="info" if planned else None,
        confidence=0.4 if planned else 0.6,
        action="If no restarts were planned: the run was restarted with a fresh scheduler.",
        evidence=seen(f"lr {points[risen[0]]:.3g} at step {step}"),
    )


RULES: Final[Sequence[Rule[RunFacts]]] = (
    LogRule(
        id="GRD107",
        title="exploding gradients",
        severity="warning",
        condition="grad_norm exceeds {gradient_ratio} times the median of the rows before for {lasting} rows; or "
        "ln(grad_norm) exceeds its median over the previous 8 rows by more than {gradient_k} times its median change "
        "(at least {gradient_floor}) for {lasting} rows. Info: fewer rows, if the loss rises there by more than "
        "{answer_k} times its usual change; or over {clipped_share} of the rows are clipped",
        observe=_explosion,
        confidence=0.8,
        evidence=(
            cite(
                "63 trainings of a small encoder, 19 of them healthy",
                "a jump of one or two rows was seen in all 19, so it says nothing by itself",
            ),
            cite("Megatron-LM is_unexpectedly_large; ZClip", "10 x the largest of 100; z-score over 2.5"),
            cite("definition", "above max_grad_norm only the direction of the gradient is used"),
            TRIAL,
        ),
        rationale="Clipping hides the size of such steps, not their direction; divergence often follows.",
        action="Lower the learning rate, lengthen warmup, or look at the data of those steps.",
        scope="any run that records grad_norm in 8 or more rows; one row alone only if the loss rises with it",
        verify="See whether the loss rises in the rows after.",
        thresholds=(GRADIENT_K, GRADIENT_FLOOR, GRADIENT_RATIO, LASTING, ANSWER_K, CLIPPED_SHARE, JUMP_ROWS),
    ),
    LogRule(
        id="GRD108",
        title="vanishing gradients",
        severity="warning",
        condition="grad_norm is 0, or under {vanished_ratio} of its early median, in {vanished_rows} consecutive rows "
        "while lr > 0; info if the loss there is under {memorized} of the early loss",
        observe=_vanishing,
        needs=(not_under("rl"),),
        confidence=0.85,
        evidence=(TRIAL,),
        rationale="No gradient reaches the adapter: frozen parameters, a detached graph, or underflow in fp16.",
        action="Check requires_grad of the adapter, enable_input_require_grads with checkpointing, and the precision.",
        scope="runs that record grad_norm; not RL, where equal rewards give a gradient of 0, nor saturated preferences",
        verify="Audit the adapter: B = 0 means untrained.",
        thresholds=(VANISHED_RATIO, VANISHED_ROWS, MEMORIZED),
    ),
    LogRule(
        id="LRS109",
        title="learning rate not as planned",
        severity="warning",
        condition="lr is 0 in {zero_rate_rows} consecutive rows (not counting the end of a decay, or steps that the "
        "gradient scaler skipped); or it never reaches {peak_share} of the configured peak; or it rises to over "
        "{risen} times its lowest value after a decay, without a resume",
        observe=_rate,
        confidence=0.85,
        evidence=(
            cite(
                "transformers/optimization.py (5.24)",
                "schedules warm up once and decay; only *_with_restarts rise again",
            ),
            TRIAL,
        ),
        rationale="The learning rate that the optimizer was given decides, whatever the config says.",
        action="Check the scheduler, its number of steps, and that it is stepped once per optimizer step.",
        scope="runs that record lr; the first row at 0 and the final decay are ignored",
        verify="Plot lr over the steps.",
        thresholds=(ZERO_RATE_ROWS, ZERO_TAIL_SHARE, PEAK_SHARE, DECAYED, RISEN),
    ),
)
