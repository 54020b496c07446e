"""NUM101, NUM102 and NUM131: non-finite numbers that are seen, hidden, or skipped by the gradient scaler.

Training in fp16 scales the loss up. If a gradient overflows, the scaler skips the optimizer step and the scheduler
step. Such a row has a non-finite gradient norm, and its learning rate stood still, which NaN in the weights would not
cause. Skipped steps are therefore looked for first, and their rows do not count against the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import sub
from typing import Final

from gradience.rules import MASKED, NAN_TRL, Observation, Sign, Threshold, Unknown
from gradience.rules.log.facts import JUDGEMENT, LogRule, RunFacts, last_part, seen
from gradience.rules.log.statistics import median
from gradience.schema import Json, Severity, as_float
from gradience.schema.document import Finding
from gradience.schema.events import Eval
from gradience.schema.reports import EvalPoint

MASKED_FALL = Threshold("masked_fall", 0.15, "fraction of the loss just before", "transformers 5.24: 4.15 to 3.33 seen")
ROUNDS_TO_ZERO = Threshold("rounds_to_zero", 0.05, "nats", "a fitted batch: transformers logs four decimals")
RECOVERED_ROWS = Threshold("recovered_rows", 3, "rows over 0 after the last zero", "NaN in the weights stays")
SKIPS_SHOWN = Threshold("skips_shown", 0.6, "fraction of the rows whose norm is not finite", JUDGEMENT)
SKIPS_MANY = Threshold("skips_many", 0.5, "fraction of all rows", JUDGEMENT)
STOOD_STILL = Threshold("stood_still", 0.7, "of one step's change of the learning rate", JUDGEMENT)

_STRAIGHT: Final = 0.02  # relative; moves of the rate that differ by less form a line, on which a missing step shows
_AROUND: Final = 6  # rows on each side that give the usual move of the rate
_SAME_RATE: Final = 1e-9  # fraction of the highest rate; a smaller move is none


def bad_norms(facts: RunFacts) -> list[int]:
    """The rows whose gradient norm was recorded but is not finite. A series of finite norms needs no Python loop."""
    series = facts.series
    whole = len(facts.norm.values) == len(series.grad_norms)
    if not series.lost_norms and (whole or not any(map(math.isinf, series.grad_norms))):
        return []
    # NaN in the column is a norm that was not recorded; the step of one that was recorded as NaN is in lost_norms
    both = enumerate(zip(series.steps, series.grad_norms, strict=True))
    return [i for i, (step, norm) in both if math.isinf(norm) or step in series.lost_norms]


def skipped_rows(facts: RunFacts) -> list[int]:
    """The rows with a non-finite gradient norm, if the optimizer skipped their steps; else an empty list.

    The learning rate must have stood still in most of these rows and moved elsewhere. The run must have gone on: all
    losses are finite, no loss of the last third is 0, and some gradient norm there is finite and not 0.
    """
    bad = bad_norms(facts)
    series = facts.series
    if not bad or not facts.norm.values or len(facts.loss.values) < len(series.losses):
        return []
    if 0.0 in last_part(series.losses, 3) or not any(0.0 < norm < math.inf for norm in last_part(series.grad_norms, 3)):
        return []
    frozen = _frozen(facts, bad)
    return bad if frozen >= max(1.0, SKIPS_SHOWN.value * len(bad)) else []


def _frozen(facts: RunFacts, bad: Sequence[int]) -> int:
    """The number of the given rows in which the learning rate stood still; 0 if it did not move elsewhere either."""
    rates = facts.series.rates
    moves = list(map(abs, map(sub, rates[1:], rates)))  # NaN where a rate is missing
    # A move lies between two rows, so a row has one on either side
    near_bad = {j for i in bad for j in (i - 1, i)}
    elsewhere = [move for j, move in enumerate(moves) if j not in near_bad and math.isfinite(move)]
    if not sum(move > 0.0 for move in elsewhere) > len(elsewhere) / 2:
        return 0
    steps = facts.series.steps
    every = median(b - a for a, b in pairwise(steps[: 4 * _AROUND]))
    return sum(_stood_still(moves, near_bad, i, every, facts.peak_rate) for i in bad)


def _stood_still(moves: Sequence[float], near_bad: set[int], row: int, every: float, peak: float) -> bool:
    """Whether the learning rate of a row lags by one step. In rows of several steps only a linear schedule shows it."""
    around = [moves[j] for j in range(max(0, row - _AROUND), min(len(moves), row + _AROUND)) if j not in near_bad]
    usual = median(move for move in around if move > 0.0)
    if math.isnan(usual):
        return False
    # The Trainer logs the rate from before the scheduler's step, an older one that from after it: the rate pauses after
    # the row, or before it
    near = [moves[j] for j in (row - 1, row) if 0 <= j < len(moves)]
    if every == 1:
        return any(move <= _SAME_RATE * peak for move in near)
    straight = all(abs(move - usual) <= _STRAIGHT * usual for move in around)
    return straight and any(move <= usual * (1.0 - STOOD_STILL.value / every) for move in near)


@LogRule(
    "NUM131",
    severity="info",
    confidence=0.9,
    phrase=lambda v: (
        "1 step skipped by fp16 scaling" if v["rows"] == 1 else f"{v['rows']} steps skipped by fp16 scaling"
    ),
    thresholds=(SKIPS_SHOWN, SKIPS_MANY, STOOD_STILL),
)
def _skipped(facts: RunFacts) -> Observation | None:
    """steps skipped by the gradient scaler

    in at least {skips_shown} of the rows whose gradient norm is not finite, the learning rate did not change (in
    rows of several steps: changed less than usual, by at least {stood_still} of one step's change), while it
    changed elsewhere; a warning if over {skips_many} of all rows were skipped

    Why: Nothing is broken: the scaler lowers its factor until gradients fit into fp16.
    Scope: runs that record grad_norm and a learning rate that changes; a constant rate cannot show skipped steps
    Verify: See whether the learning rate of those rows equals that of a neighbouring row.
    Source: torch/amp/grad_scaler.py:GradScaler.step@2.13.0 -- leaves a step out whose gradients are not finite
    """
    if not facts.series.grad_norms or not (facts.norm.values or facts.series.lost_norms):
        raise Unknown("no gradient norm was recorded")
    rows = skipped_rows(facts)
    if not rows:
        return None
    many = len(rows) > SKIPS_MANY.value * len(facts.series.steps)
    steps = ", ".join(str(facts.step(row)) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
    what = "1 optimizer step" if len(rows) == 1 else f"{len(rows)} optimizer steps"
    return Observation(
        f"{what} ({steps}) {'was' if len(rows) == 1 else 'were'} skipped by the gradient scaler: the learning rate "
        "stood still there.",
        {"rows": len(rows), "share": len(rows) / len(facts.series.steps), "first_step": facts.step(rows[0])},
        severity="warning" if many else None,
        evidence=seen(
            f"grad_norm not finite at step {facts.step(rows[0])}, the learning rate as in a neighbouring row"
        ),
    )


@LogRule(
    "NUM101",
    severity="error",
    confidence=0.95,
    live=True,
    signs=("not_finite",),
    place="broken",
    phrase=lambda v: f"not finite: {v['first']}" + (f", {v['rows']} training rows" if v.get("rows") else ""),
    covers=lambda v: frozenset({"learning"}) if v["rows"] else frozenset(),
    cause=lambda v: "not_finite" if v["rows"] else "evaluation_not_finite" if v["eval_rows"] else None,
)
def _non_finite(facts: RunFacts) -> Observation | None:
    """not a number

    a training loss, held-out loss or gradient norm is NaN or infinite; a warning if only held-out losses are, info
    if only gradient norms are, in one row, or in several isolated ones (skipped steps) unless in bf16; rows of
    NUM131 are not counted

    Scope: any run
    Verify: Audit the adapter: non-finite weights confirm it.
    Seen: public repositories -- evaluations of NaN
    Source: Composer NaNMonitor; Keras TerminateOnNaN; Lightning check_finite -- a loss that is not finite: stop
    """
    series = facts.series
    if not series.steps and not facts.evaluated:
        raise Unknown("no loss was recorded")
    whole = len(facts.loss.values) == len(series.losses)
    losses = [] if whole else [i for i, x in enumerate(series.losses) if not math.isfinite(x)]
    norms = [] if skipped_rows(facts) else bad_norms(facts)
    evals = [
        e
        for e in facts.history or facts.evals
        if e.metrics.loss is not None and not math.isfinite(as_float(e.metrics.loss))
    ]
    if not losses and not norms and not evals:
        return None
    where = [f"loss at step {facts.step(losses[0])}"] if losses else []
    where += [_evaluations(facts, evals)] if evals else []
    steps = ", ".join(str(facts.step(row)) for row in norms[:5]) + (
        f" and {len(norms) - 5} more" if len(norms) > 5 else ""
    )
    where += [f"gradient norm at {'step' if len(norms) == 1 else 'steps'} {steps}"] if norms else []
    return Observation(
        f"Not finite: {', '.join(where)}"
        + (f" ({len(losses)} of {len(series.steps)} training rows)." if losses else "."),
        {
            "rows": len(losses),
            "gradient_rows": len(norms),
            "eval_rows": len(evals),
            "first": where[0],
            "first_step": facts.step(losses[0]) if losses else None,
        },
        severity="error" if losses else "warning" if evals else _of_norms(norms, facts.config.training.dtype),
        evidence=seen(f"first non-finite value: {where[0]}"),
    )


def _evaluations(facts: RunFacts, bad: Sequence[Eval | EvalPoint]) -> str:
    """Which held-out losses are not finite: one, some, or all of a split."""
    split = bad[0].split
    own = [event for event in bad if event.split == split]
    every = [event for event in facts.history or facts.evals if event.split == split and event.metrics.loss is not None]
    if len(own) == 1:
        return f"{split} loss at step {own[0].step}"
    share = f"all {len(own)}" if len(own) == len(every) else f"{len(own)} of {len(every)}"
    return f"{split} loss in {share} evaluations (first: step {own[0].step})"


def _of_norms(norms: Sequence[int], dtype: str | None) -> Severity:
    """The severity of non-finite norms: steps that a scaler skips explain single ones, two in a row not, nor bf16."""
    if any(b - a == 1 for a, b in pairwise(norms)):
        return "error"
    return "warning" if len(norms) > 1 and dtype == "bfloat16" else "info"


def _unlabelled(found: Finding) -> Mapping[str, Json]:
    return {"masked": f"the loss is exactly 0 in all {found.values['rows']} rows"}


@LogRule(
    "NUM102",
    severity="error",
    confidence=0.9,
    live=True,
    signs=(
        Sign("loss_of_nothing", frozenset({"no_labels"}), values=_unlabelled),
        Sign("not_finite", frozenset({"error"}), unless=frozenset({"no_labels"})),
    ),
    place="broken",
    phrase=lambda v: (
        "loss is 0 throughout: every label is masked, or it was NaN from the start"
        if v.get("no_labels")
        else f"loss is probably NaN-masked from step {v['first_step']}"
    ),
    covers=frozenset({"learning"}),
    cause=lambda v: "nothing_supervised" if v.get("no_labels") else "not_finite",
    thresholds=(MASKED_FALL, ROUNDS_TO_ZERO, RECOVERED_ROWS),
    evidence=(MASKED, NAN_TRL),
)
def _masked_nan(facts: RunFacts) -> Observation | None:
    """masked NaN

    the loss is exactly 0.0 in a row whose gradient norm is not finite or is 0, or in 2 or more rows without a
    logged gradient norm, or with one that is exactly max_grad_norm, after losses of at least {rounds_to_zero}; or the
    loss falls by over {masked_fall} below
    the rows before, in a row whose gradient norm is not finite. Zeros after losses under {rounds_to_zero} are
    rounding (info), unless the gradient norm says otherwise; so are zeros that at least {recovered_rows} losses
    over 0 follow, with a finite norm. Zeros in all rows: every label is masked

    Why: The Hugging Face Trainer averages non-finite losses away by default: a broken run looks healthy.
    Scope: losses that cannot be exactly zero; under RL only where the gradient is not finite either
    Verify: Look at grad_norm in the same rows, and at the adapter's weights.
    Seen: https://github.com/huggingface/trl/issues/6702 -- a step of NaN is invisible in the log, so a corrupted
        run has a clean curve
    """
    losses = facts.series.losses
    if not losses:
        raise Unknown("no training loss was recorded")
    bad = bad_norms(facts)
    zero = [i for i, loss in enumerate(losses) if loss == 0.0] if facts.loss.lowest <= 0.0 and 0.0 in losses else []
    if zero:
        return _zeros(facts, zero, bad)
    if not bad or facts.objective.kind == "rl" or skipped_rows(facts):
        return None
    # Under fp16 several single norms are steps that the scaler skipped, and the losses there are sound
    single = len(bad) > 1 and facts.config.training.dtype == "float16" and _of_norms(bad, "float16") == "info"
    fallen = [] if single else _fallen(losses, bad)
    return _falls(facts, fallen) if fallen else None


def _zeros(facts: RunFacts, zero: Sequence[int], bad: Sequence[int]) -> Observation | None:
    """Judge losses of 0.

    Zeros are a masked NaN if the gradient there is not finite or 0, or if no gradient was logged and the loss was high.
    """
    kind, norms = facts.objective.kind, facts.series.grad_norms
    not_finite = not set(zero).isdisjoint(bad)
    if kind == "rl":
        zero = [i for i in zero if i in set(bad)]
        return _masked(facts, zero, bad) if zero else None
    dead = kind != "preference" and any(norms[i] == 0.0 for i in zero)  # PRF130 reports saturated preferences
    losses, first = facts.series.losses, zero[0]
    before = median([x for x in losses[max(0, first - 8) : first] if math.isfinite(x)])
    unlogged = len(zero) > 1 and all(math.isnan(norms[i]) and i not in bad for i in zero)
    if kind != "preference":
        unlogged = unlogged or (len(zero) > 1 and all(norms[i] == _clipped_at(facts) for i in zero))
    if len(zero) == len(losses) and kind != "preference":
        return _no_labels(facts, bad)
    if not not_finite and (dead or unlogged) and _recovers(losses, zero):
        return _single_zeros(facts, zero)
    # `not <` and not `>=`: without a row before the first zero, `before` is NaN
    if not_finite or dead or (unlogged and not before < ROUNDS_TO_ZERO.value):
        return _masked(facts, zero, bad)
    if kind == "preference" or facts.loss.lowest < 0.0 or not before < ROUNDS_TO_ZERO.value:
        return None
    return Observation(
        f"The training loss is 0.0 from step {facts.step(first)} in {len(zero)} rows: rounded from a small loss "
        f"({before:.2g} just before).",
        {"rows": len(zero), "first_step": facts.step(first), "loss_before": before},
        severity="info",
        confidence=0.6,
    )


def _clipped_at(facts: RunFacts) -> float:
    """The norm to which gradients are clipped: a norm that is exactly that is of no gradient."""
    limit = facts.config.training.max_grad_norm
    return 1.0 if limit is None else as_float(limit)


def _recovers(losses: Sequence[float], zero: Sequence[int]) -> bool:
    """Whether the losses after the last zero are over 0: weights that are NaN give no such loss again."""
    after = losses[zero[-1] + 1 :]
    return len(after) >= RECOVERED_ROWS.value and all(0.0 < loss < math.inf for loss in after)


def _single_zeros(facts: RunFacts, zero: Sequence[int]) -> Observation:
    first = facts.step(zero[0])
    rows = "1 row" if len(zero) == 1 else f"{len(zero)} rows"
    return Observation(
        f"The training loss is exactly 0.0 in {rows} (first: step {first}), and over 0 again in all rows after them: "
        "batches without a label, or a loss that was rounded.",
        {"rows": len(zero), "first_step": first, "recovers": True},
        severity="info",
        confidence=0.6,
    )


def _no_labels(facts: RunFacts, bad: Sequence[int]) -> Observation:
    """The finding if all losses are 0. Nothing broke on the way: no label counts, or it was NaN from the start."""
    rows = len(facts.series.losses)
    also = [f"grad_norm not finite at step {facts.step(i)}" for i in bad[:1]]
    return Observation(
        f"The training loss is exactly 0.0 in all {rows} rows: every label is masked, or it was NaN from the start.",
        {"rows": rows, "first_step": facts.step(0), "gradient_rows": len(bad), "no_labels": True},
        confidence=0.95 if rows > 1 else 0.7,
        evidence=seen(f"loss 0.0 at step {facts.step(0)}", *also),
    )


def _masked(facts: RunFacts, zero: Sequence[int], bad: Sequence[int]) -> Observation:
    first = facts.step(zero[0])
    also = [f"grad_norm not finite at step {facts.step(i)}" for i in bad[:1]]
    return Observation(
        f"The training loss is exactly 0.0 from step {first} in {len(zero)} rows: NaN is probably masked.",
        {"rows": len(zero), "first_step": first, "gradient_rows": len(bad)},
        confidence=0.97 if bad else None,
        evidence=seen(f"loss 0.0 at step {first}", *also),
    )


def _fallen(losses: Sequence[float], bad: Sequence[int]) -> list[int]:
    """The rows with a non-finite gradient whose loss is well below that of the rows before."""
    fallen = []
    for i in bad:
        before = median([x for x in losses[max(0, i - 5) : i] if math.isfinite(x)])
        if losses[i] < (1.0 - MASKED_FALL.value) * before and before > 0.0:
            fallen.append(i)
    return fallen


def _falls(facts: RunFacts, fallen: Sequence[int]) -> Observation:
    first = fallen[0]
    step, loss = facts.step(first), facts.series.losses[first]
    return Observation(
        f"The loss falls to {loss:.4g} at step {step}, where the gradient is not finite: a NaN was averaged away.",
        {"rows": len(fallen), "first_step": step},
        confidence=0.85,
        evidence=seen(f"loss {loss:.4g} with grad_norm not finite at step {step}"),
    )


RULES: Final[tuple[LogRule, ...]] = (_masked_nan, _non_finite, _skipped)  # the story's order
