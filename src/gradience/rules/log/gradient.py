"""GRD107, GRD108 and LRS109: exploding or vanishing gradients, and a learning rate that was not as planned.

Gradient norms differ by orders of magnitude between models, so each norm is compared with its own past and not with a
fixed bound. Healthy norms have heavy tails, so a jump of one or two rows is reported only if the loss jumps with it.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from itertools import groupby, islice, pairwise
from typing import Final, NamedTuple

from gradience.rules import TRIAL, Observation, Sign, Threshold, Unknown
from gradience.rules.log.account import RISEN, account, rises_again
from gradience.rules.log.divergence import ABSURD_RATE, LEVEL
from gradience.rules.log.facts import LogRule, RunFacts, Values, last_part, seen, shown
from gradience.rules.log.learning import FITTED, learning
from gradience.rules.log.numbers import bad_norms, skipped_rows
from gradience.rules.log.preference import saturated
from gradience.rules.log.record import ENDED
from gradience.rules.log.rewards import ZERO_GROUPS
from gradience.rules.log.statistics import Bar, BlockedSeries, excesses, median, runs_of
from gradience.schema import Json, as_float
from gradience.schema.document import Finding
from gradience.telemetry.signals import EQUAL_GROUPS

JUMP_ROWS = Threshold("jump_rows", 8, "training rows with a gradient norm", "five before a jump, and three in it")
GRADIENT_K = Threshold("gradient_k", 8.0, "median |first difference| of ln(grad_norm)", "124 logs: no change from 4 on")
GRADIENT_FLOOR = Threshold("gradient_floor", 0.25, "in ln(grad_norm)", "74 trainings: no change from 0.07 on")
GRADIENT_RATIO = Threshold("gradient_ratio", 10.0, "times the median before", "Megatron: 10 x; proposal for 3 rows")
LASTING = Threshold("lasting", 3, "consecutive rows", "50 logs: no change from 2 on")
VANISHED_RATIO = Threshold("vanished_ratio", 1e-3, "of the early median", "155 logs: no change up to 0.01")
VANISHED_ROWS = Threshold("vanished_rows", 5, "consecutive rows", "105 RL trainings: no change from 2 to 20")
VANISHED_SHARE = Threshold(
    "vanished_share", 0.2, "of the rows, if norms of 0 are also elsewhere", "105 RL trainings: no change up to 0.8"
)
MEMORIZED = Threshold("memorized", 0.01, "of the early loss", "105 RL trainings: no change up to 1")


LONG_WARMUP = Threshold("long_warmup", 0.35, "of the steps", "50 logs: no change from 0.24 on")
LONG_ROWS = Threshold("long_rows", 3, "rows of a rising rate", "definition: a rise has a start, a middle and an end")
WARMUP_STEPS = Threshold("warmup_steps", 10, "steps that the run made", "50 logs: no change from 3 to 30")
ZERO_RATE_ROWS = Threshold("zero_rate_rows", 3, "consecutive rows", "124 logs: no change from 2 to 30")
ZERO_TAIL_SHARE = Threshold("zero_tail_share", 0.1, "fraction of the rows", "a judgement: a schedule ends at 0")
PEAK_SHARE = Threshold("peak_share", 0.5, "of the configured peak", "124 logs: no change up to 0.75")

_BEFORE: Final = 8  # rows before a jump that give its level
_MOST_PROCESSES: Final = 64


def _norms(facts: RunFacts, least: Threshold) -> BlockedSeries:
    curve = facts.norm
    if not curve.values:
        lost = len(bad_norms(facts))
        raise Unknown(f"none of {lost} recorded gradient norms is finite" if lost else "no gradient norm was recorded")
    if len(curve.values) < least.value:
        raise Unknown(f"{len(curve.values)} rows with a gradient norm; it needs {least.value:g}")
    return curve


@LogRule(
    "GRD107",
    severity="warning",
    confidence=0.8,
    signs=("large_gradients", Sign("exploding_gradients", frozenset({"warning"}))),
    phrase=lambda v: f"gradient norm jumps at step {v['step']}",
    thresholds=(GRADIENT_K, GRADIENT_FLOOR, GRADIENT_RATIO, LASTING, JUMP_ROWS),
    evidence=(TRIAL,),
)
def _explosion(facts: RunFacts) -> Observation | None:
    """exploding gradients

    grad_norm exceeds {gradient_ratio} times the median of the rows before for {lasting} rows; or ln(grad_norm)
    exceeds, but under RL, its median over the previous 8 rows by more than {gradient_k} times its median change (at
    least {gradient_floor}) for {lasting} rows; info if the loss ends no higher than before, or the median norm does

    Why: Clipping hides the size of such steps, not their direction; divergence often follows.
    Scope: any run that records grad_norm in 8 or more rows
    Action: Lower the learning rate, or warm up longer.
    Verify: See whether the loss rises in the rows after.
    Seen: https://github.com/huggingface/transformers/issues/45676 -- norms before clipping rise to thousands in
        LoRA training of one model
    Source: 63 trainings of a small encoder, 19 of them healthy -- a jump of one or two rows was seen in all 19, so
        it says nothing by itself
    Source: Megatron-LM is_unexpectedly_large; ZClip -- 10 x the largest of 100; z-score over 2.5
    """
    curve = _norms(facts, JUMP_ROWS)
    # A point stands for a block of rows, so fewer points are as many rows
    start = _grown(curve.points, math.ceil(LASTING.value / curve.block))
    if start is None:
        return _burst(facts, curve)
    step = facts.step(curve.row(start))
    before, after = median(curve.points[:start]), median(curve.points[start:])
    if facts.objective.kind == "rl" and after <= GRADIENT_RATIO.value * before:
        return None  # rows whose rewards differ among rows whose rewards are equal
    grows = "grows to" if after > before else "is, for some rows,"
    return Observation(
        f"The gradient norm {grows} over {GRADIENT_RATIO.value:g} x its earlier level from step {step} on (median "
        f"{before:.3g} before, {after:.3g} after).",
        {"step": step, "before": before, "after": after},
        severity=None if after > before and _loss_is_up(facts, curve.row(start)) else "info",
        evidence=seen(f"grad_norm over {GRADIENT_RATIO.value:g} x the median of the rows before, 3 rows and more"),
    )


def _loss_is_up(facts: RunFacts, row: int) -> bool:
    """Whether the loss of the last tenth of the rows is above that before a row: of a few rows, and of more."""
    losses = [loss for loss in facts.series.losses[max(0, row - LEVEL) : row] if math.isfinite(loss)]
    return bool(losses) and median(last_part(facts.loss.points, 10)) > max(median(losses[-_BEFORE:]), median(losses))


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
            # A norm far above is left out, else the level would follow a growth that lasts
            insort(before, norm)
    return None


def _burst(facts: RunFacts, curve: BlockedSeries) -> Observation | None:
    """A jump that lasts three rows or more. Shorter ones are seen in healthy runs."""
    if curve.lowest <= 0.0 or facts.objective.kind == "rl":
        return None  # zeros have no logarithm; GRD108 reports them. Under RL a norm follows the spread of the rewards
    places = [place for place, _ in excesses(curve, Bar(GRADIENT_K.value, GRADIENT_FLOOR.value, logarithmic=True))]
    longest = max(runs_of(places), key=len, default=[])
    if len(longest) < LASTING.value:
        return None
    step, norm = facts.step(curve.rows[longest[0]]), curve.values[longest[0]]
    usual = median(curve.values[max(0, longest[0] - _BEFORE) : longest[0]])
    return Observation(
        f"The gradient norm jumps to {norm:.3g} at step {step}, from {usual:.3g}, and stays high for {len(longest)} "
        "rows.",
        {"step": step, "norm": norm, "usual": usual, "longest": len(longest)},
        severity=None if _loss_is_up(facts, curve.rows[longest[0]]) else "info",
        confidence=0.75,
        evidence=seen(f"grad_norm {norm:.3g} at step {step}, {usual:.3g} in the rows before"),
    )


@LogRule(
    "GRD108",
    severity="warning",
    confidence=0.85,
    live=True,
    signs=("vanished_gradient", Sign("no_gradient", frozenset({"warning"}))),
    phrase=lambda v: f"no gradient from step {v['step']}",
    cause="no_gradient",
    thresholds=(VANISHED_RATIO, VANISHED_ROWS, VANISHED_SHARE, MEMORIZED, FITTED, ZERO_GROUPS),
    evidence=(TRIAL,),
)
def _vanishing(facts: RunFacts) -> Observation | None:
    """vanishing gradients

    grad_norm is 0, or under {vanished_ratio} of its early median, in {vanished_rows} consecutive rows while lr > 0
    (in {vanished_share} of all rows or to the end, if more rows have a norm of 0); info if the loss there is under
    {memorized} of the early loss, or under {fitted} nats. Under RL it must
    be 0 in rows of which under {zero_groups} of the groups have equal rewards

    Why: No gradient reaches the adapter: frozen parameters, a detached graph, or underflow in fp16.
    Scope: runs that record grad_norm; RL only where groups of equal rewards, whose gradient is 0, are logged; not
        saturated preferences
    Verify: Audit the adapter: B = 0 means untrained.
    Seen: https://github.com/huggingface/trl/issues/6700 -- a frozen adapter: grad_norm is 0 in every row
    """
    curve = _norms(facts, VANISHED_ROWS)
    if facts.objective.kind == "rl":
        return _none_of_mixed_groups(facts)
    if saturated(facts) is not None or not any(facts.loss.points):
        return None  # a saturated preference loss (PRF130) or labels that are all masked (NUM102) explain it
    rows = int(VANISHED_ROWS.value)
    early = median([x for x in islice(curve.points, max(5, len(curve.points) // 10)) if x > 0.0])
    bar = VANISHED_RATIO.value * early  # NaN if no early norm is over 0; no norm compares as less than NaN
    # The median of a block hides single rows of 0, so a log that has some is read row by row
    exact = curve.lowest <= 0.0 and 0.0 in curve.values
    values, block = (curve.values, 1) if exact else (curve.points, curve.block)
    low = runs_of([i for i, norm in enumerate(values) if norm == 0.0 or norm < bar])
    low = [run for run in (_with_rate(facts, curve, run, block) for run in low) if len(run) * block >= rows]
    if not low:
        return None
    run = max(low, key=len)
    passes = run[-1] < len(values) - 1 and len(run) < VANISHED_SHARE.value * len(values)
    if passes and sum(norm == 0.0 for norm in values) > 2 * len(run):
        return None  # single norms of 0 all along: of batches without a label, or of how the norm is logged
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


def _none_of_mixed_groups(facts: RunFacts) -> Observation | None:
    """The finding if the gradient norm is 0 in rows whose rewards should give one."""
    equal = facts.signals.get(EQUAL_GROUPS[0])
    if equal is None:
        raise Unknown("equal rewards give a gradient of 0, and how many groups have them was not logged")
    mixed = {step for step, share in zip(equal.steps, equal.values, strict=True) if share < ZERO_GROUPS.value}
    curve = facts.norm
    low = runs_of([i for i, norm in enumerate(curve.values) if norm == 0.0 and facts.step(curve.rows[i]) in mixed])
    run = max((_with_rate(facts, curve, each, 1) for each in low), key=len, default=[])
    if len(run) < max(VANISHED_ROWS.value, VANISHED_SHARE.value * len(curve.values)):
        return None
    step = facts.step(curve.rows[run[0]])
    return Observation(
        f"The gradient norm is exactly 0 from step {step} on in {len(run)} rows, while most groups have different "
        "rewards and the learning rate is not 0.",
        {"step": step, "rows": len(run)},
        evidence=seen(f"grad_norm 0 at step {step}, {EQUAL_GROUPS[0]} under {ZERO_GROUPS.value:g}"),
    )


def _with_rate(facts: RunFacts, curve: BlockedSeries, run: Sequence[int], block: int) -> list[int]:
    """The points of a run of low norms at which the learning rate is not known to be 0."""
    rates = facts.series.rates
    return [i for i in run if not rates or rates[curve.rows[i * block]] != 0.0]


def _fitted(facts: RunFacts, first: int, last: int) -> bool:
    """Whether the loss between two rows is close to 0 compared with the early loss."""
    losses = facts.series.losses
    early = median([x for x in losses[: max(5, len(losses) // 10)] if math.isfinite(x)])
    there = median([x for x in losses[first : last + 1] if math.isfinite(x)])
    # A loss of exactly 0 is not fitted, but a NaN that was masked, or a batch without labels (NUM102)
    return there != 0.0 and abs(there) < max(MEMORIZED.value * early, FITTED.value)


def _rate_says(v: Values) -> str | None:
    if v.get("throughout"):
        return "does not learn: the learning rate is 0"
    if "rows" in v:
        return f"learning rate 0 in {v['rows']} rows from step {v['step']}"
    if "high" in v:
        return f"learning rate up to {shown(v, 'peak', '.3g')}"
    return f"the learning rate rises again at step {v['step']}" if "times" in v else None


def _rate_zero(found: Finding) -> Mapping[str, Json]:
    zero = f"the learning rate was 0 in {found.values['rows']} rows"
    return {"rate_zero": zero, "not_learnt": zero}


@LogRule(
    "LRS109",
    severity="warning",
    confidence=0.85,
    signs=(Sign("rate_zero", frozenset({"rows"}), values=_rate_zero),),
    phrase=_rate_says,
    as_info=True,
    look=True,
    cause=lambda v: "rate_zero" if "throughout" in v else "rate_absurd" if "high" in v else None,
    thresholds=(ZERO_RATE_ROWS, ZERO_TAIL_SHARE, ABSURD_RATE, PEAK_SHARE, RISEN),
    evidence=(TRIAL,),
)
def _rate(facts: RunFacts) -> Observation | None:
    """learning rate not as planned

    lr is 0 in {zero_rate_rows} consecutive rows (not counting the end of a decay, or steps that the gradient scaler
    skipped); or it reaches {absurd_rate} with a LoRA; or it never reaches {peak_share} of the configured peak, in a
    log from the start; or it falls by {risen} and rises by as much again, of the highest, without a resume; as info,
    where it rises within a row and falls on from there

    Why: The learning rate that the optimizer was given decides, whatever the config says.
    Scope: runs that record lr; the first row at 0 and the final decay are ignored
    Action: See what the scheduler was made with: for how many steps, and what a resume restored of it.
    Verify: Plot lr over the steps.
    Seen: https://github.com/Lightricks/LTX-Video-Trainer/issues/67 -- on 4 GPUs the rate is at its end after a
        quarter of the run
    Source: transformers/optimization.py (5.24) -- schedules warm up once and decay; only *_with_restarts rise again
    """
    rates = facts.rate.values
    if len(rates) < ZERO_RATE_ROWS.value:
        raise Unknown(f"{len(rates) or 'no'} rows with a learning rate; it needs {ZERO_RATE_ROWS.value:g}")
    return _stuck(facts) or _too_high(facts) or _short_of_peak(facts) or _rises(facts)


class _Stretch(NamedTuple):
    start: int
    rows: int


def _stuck(facts: RunFacts) -> Observation | None:
    curve = facts.rate
    rates = curve.values
    # The Trainer logs the rate of the first group of the optimizer, which may be one whose rate is meant to be 0
    if curve.lowest > 0.0 or 0.0 not in rates or 0.0 in _groups(facts):
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
    times = _times_too_fast(facts, start) if start and start + rows == len(rates) else None
    why = f": the schedule ran {times} times too fast, as where each of {times} processes steps it" if times else ""
    return Observation(
        f"The learning rate is 0 in {rows} rows from step {step} on: nothing is learnt there{why}.",
        {"rows": rows, "step": step, "throughout": throughout, **({"too_fast": times} if times else {})},
        evidence=seen(f"lr 0 in {rows} of {len(rates)} rows"),
    )


def _times_too_fast(facts: RunFacts, start: int) -> int | None:
    """How many times too early the schedule ended, if a whole number of times is within two rows of its end."""
    planned, rows = facts.max_steps, facts.rate.rows
    if not planned:
        return None
    before, at = facts.step(rows[start - 1]), facts.step(rows[start])
    times = round(planned / at)
    return times if 2 <= times <= _MOST_PROCESSES and before < planned / times <= at else None


def _is_end(stretch: _Stretch, rows: int) -> bool:
    """Whether a stretch of zeros is just the end of a schedule that decays to 0."""
    at_end = stretch.start > 0 and stretch.start + stretch.rows == rows
    return at_end and stretch.rows <= max(ZERO_RATE_ROWS.value, ZERO_TAIL_SHARE.value * rows)


def _too_high(facts: RunFacts) -> Observation | None:
    """A rate far over any published one for a LoRA. Prompt and prefix tuning use such rates."""
    optimizer, lora = facts.config.optimizer, facts.config.lora
    of_lora = (lora.peft_type or "LORA") == "LORA" and lora.r is not None
    adam = (optimizer.name or "adamw").startswith(("adam", "paged_adam", "lion"))
    if not (of_lora and adam and facts.peak_rate >= ABSURD_RATE.value):
        return None
    return Observation(
        f"The learning rate goes up to {facts.peak_rate:.3g}; the highest published for a LoRA is about 1e-3.",
        {"peak": facts.peak_rate, "high": True},
        confidence=0.8,
        evidence=seen(f"highest lr {facts.peak_rate:.3g}"),
    )


def _short_of_peak(facts: RunFacts) -> Observation | None:
    schedule = account(facts).schedule
    peak, planned = schedule.logged_peak, schedule.peak
    if planned is None or peak is None or schedule.peak_from != "configured" or account(facts).starts_at is not None:
        return None
    planned = min([as_float(planned), *_groups(facts)])  # the rate logged is that of one group
    if schedule.in_warmup or not peak < PEAK_SHARE.value * as_float(planned):
        return None
    return Observation(
        f"The largest learning rate logged is {peak:.3g}; {as_float(planned):g} is configured.",
        {"peak": peak, "configured": as_float(planned)},
        confidence=0.8,
        evidence=seen(f"highest lr {peak:.3g}, configured {as_float(planned):g}"),
    )


def _groups(facts: RunFacts) -> Sequence[float]:
    """The rates of the optimizer's groups, where they differ; a Trainer logs that of the first group only."""
    rates = facts.config.optimizer.extras.get("lr_groups")
    if isinstance(rates, list):
        return [float(rate) for rate in rates if isinstance(rate, int | float)]
    optimizer = next((wiring.optimizer for wiring in facts.run.wirings if wiring.optimizer is not None), None)
    peaks = sorted({as_float(group.peak or group.lr) for group in optimizer.rates}) if optimizer is not None else []
    return peaks if len(peaks) > 1 else []


def _rises(facts: RunFacts) -> Observation | None:
    scheduler = (facts.config.training.lr_scheduler or "").lower()
    if (
        facts.run.record.resumed_from
        or len(facts.run.record.sessions) > 1
        or "restart" in scheduler
        or "cycl" in scheduler
    ):
        return None
    points = facts.rate.points
    risen = rises_again(points)
    if not risen or len(_groups(facts)) > 1:  # a log may name the rates of the groups in turn
        return None
    step = facts.step(facts.rate.row(risen[0]))
    times = "once" if len(risen) == 1 else f"{len(risen)} times"
    longer = all(place + 1 < len(points) and points[place] > points[place + 1] for place in risen)
    how = "computed anew, as for more steps" if longer else "started or computed anew"
    return Observation(
        f"The learning rate rises again after it had decayed, {times}, first at step {step}: the schedule was {how}.",
        {"step": step, "times": len(risen)},
        severity="info" if longer else None,  # a plan that was made longer; a schedule that begins anew warms up
        confidence=0.6,
        evidence=seen(f"lr {points[risen[0]]:.3g} at step {step}"),
    )


@LogRule(
    "LRS133",
    severity="warning",
    confidence=0.9,
    phrase=lambda v: (
        f"the warm-up took {shown(v, 'share', '.0%')} of it"
        if "share" in v
        else f"ended inside its warm-up: the learning rate reached {shown(v, 'peak', '.3g')}"
    ),
    as_info=True,
    look=True,
    signs=("long_warmup",),
    cause="in_warmup",
    thresholds=(ENDED, WARMUP_STEPS, LONG_WARMUP, LONG_ROWS),
)
def _in_warmup(facts: RunFacts) -> Observation | None:
    """ended inside its warm-up

    the run of at least {warmup_steps} steps ended, or made {ended} of them, while the learning rate was still
    rising, or before the warm-up of its settings was over, as info where it learnt; or, as info, the rate rose from
    row to row over more than {long_warmup} of a finished run, and {long_rows} rows or more

    Why: The learning rate that was chosen was never used.
    Scope: runs that record lr and have ended
    Verify: Plot lr over the steps.
    Seen: https://github.com/MohamedYoussef06/ai201-project3-takemeter -- 30 steps, all of them in a warm-up of 50
    Source: definition -- the highest learning rate is that of the last row, above that in the middle
    """
    of = account(facts)
    schedule, ending = of.schedule, of.ending
    if schedule.logged_peak is None:
        raise Unknown("no learning rate was recorded")
    if ending.step is None or ending.step < WARMUP_STEPS.value:
        return None
    if not schedule.in_warmup:
        return _long_warmup(facts, ending.step) if ending.finished else None
    if not ending.finished and ending.step < ENDED.value * (ending.planned or math.inf):
        return None  # it may still reach its peak
    configured = schedule.peak_from == "configured" and schedule.peak is not None
    planned = f" of the configured {as_float(schedule.peak or 0.0):.3g}" if configured else ""
    warmup = f" (warm-up {schedule.warmup_steps} steps)" if schedule.warmup_steps else ""
    return Observation(
        f"The run ended at step {ending.step} while the learning rate still rose{warmup}: it reached "
        f"{schedule.logged_peak:.3g}{planned}.",
        {"step": ending.step, "peak": schedule.logged_peak, "warmup_steps": schedule.warmup_steps},
        severity="info" if learning(facts).shown else None,
        evidence=seen(f"lr {schedule.logged_peak:.3g} in the last row is the highest"),
    )


def _long_warmup(facts: RunFacts, last: int) -> Observation | None:
    """A learning rate that rose over more than a third of a run that then went on."""
    rates = facts.rate.values
    top = rates.index(max(rates))
    if top < LONG_ROWS.value or account(facts).schedule.restarts or any(b < a for a, b in pairwise(rates[: top + 1])):
        return None
    step = facts.step(facts.rate.rows[top])
    if rates[top] <= 2.0 * rates[0] or step <= LONG_WARMUP.value * last:
        return None
    return Observation(
        f"The learning rate rose until step {step} of {last}: the warm-up took {step / last:.0%} of it.",
        {"step": step, "share": step / last, "peak": rates[top]},
        severity="info",
        evidence=seen(f"lr {rates[0]:.3g} at first, {rates[top]:.3g} at step {step}"),
    )


RULES: Final[tuple[LogRule, ...]] = (_explosion, _vanishing, _rate, _in_warmup)
