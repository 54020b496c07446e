"""GRD107 and GRD108: gradients that explode or vanish. No fixed bound: norms differ by orders of magnitude."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from itertools import islice

from gradience.rules.evidence import CLIP, MEGATRON, SPIKE_TRIAL, TRIAL
from gradience.rules.log import thresholds as t
from gradience.rules.log.curve import Curve, excesses, median, runs_of
from gradience.rules.log.detector import Detector, Sighting
from gradience.rules.log.facts import RunFacts
from gradience.rules.rule import Unknown
from gradience.schema.scalars import as_float


def _norms(facts: RunFacts) -> Curve:
    curve = facts.norm
    if not curve.values:
        reason = "no gradient norm was recorded"
        raise Unknown(reason)
    if len(curve.values) < t.GRADIENT_ROWS.value:
        reason = f"{len(curve.values)} rows with a gradient norm; it needs {t.GRADIENT_ROWS.value:g}"
        raise Unknown(reason)
    return curve


def _explosion(facts: RunFacts) -> Sighting | None:
    curve = _norms(facts)
    start = _grown(curve.points, math.ceil(t.SPIKE_ROWS.value / curve.block))
    if start is not None:
        row = curve.rows[start * curve.block]
        before, after = median(curve.points[:start]), median(curve.points[start:])
        return Sighting(
            f"The gradient norm grows over {t.GRADIENT_RATIO.value:g} x its level from step {facts.step(row)} on "
            f"(median {before:.3g} before, {after:.3g} after).",
            {"step": facts.step(row), "before": before, "after": after},
            seen=(f"grad_norm over {t.GRADIENT_RATIO.value:g} x the median of the rows before, 3 rows and more",),
        )
    return _burst(facts, curve) or _clipped(facts, curve)


def _grown(points: Sequence[float], rows: int) -> int | None:
    """Return where the norm stays over 10 x the median of all points before it, or None."""
    before: list[float] = []
    run = 0
    least = max(5, len(points) // 10)
    for i, norm in enumerate(points):
        level = before[len(before) // 2] if len(before) >= least else math.inf
        if norm > t.GRADIENT_RATIO.value * level and level > 0.0:
            run += 1
            if run >= rows:
                return i - run + 1
        else:
            run = 0
            insort(before, norm)
    return None


def _burst(facts: RunFacts, curve: Curve) -> Sighting | None:
    if curve.lowest <= 0.0:
        return None  # GRD108 speaks of zeros; a logarithm has none
    found = excesses(curve, t.GRADIENT_K.value, t.GRADIENT_FLOOR.value, logarithmic=True)
    if not found:
        return None
    bursts = runs_of([row for row, _ in found])
    longest = max(bursts, key=len)
    lasting = len(longest) >= t.SPIKE_ROWS.value
    at = longest[0] if lasting else max(found, key=lambda pair: curve.values[pair[0]])[0]
    step, norm = facts.step(curve.rows[at]), curve.values[at]
    usual = median(curve.values[max(0, at - 8) : at])
    return Sighting(
        f"The gradient norm jumps to {norm:.3g} at step {step}, from {usual:.3g} ({len(bursts)} such bursts, "
        f"the longest of {len(longest)} rows).",
        {"step": step, "norm": norm, "usual": usual, "bursts": len(bursts), "longest": len(longest)},
        severity="warning" if lasting else "info",
        confidence=0.75 if lasting else 0.5,
        seen=(f"grad_norm {norm:.3g} at step {step}, {usual:.3g} in the rows before",),
    )


def _clipped(facts: RunFacts, curve: Curve) -> Sighting | None:
    bound = facts.config.training.max_grad_norm
    if bound is None or not 0.0 < as_float(bound) < math.inf:
        return None
    share = sum(norm > as_float(bound) for norm in curve.points) / len(curve.points)
    if share <= t.CLIPPED_SHARE.value:
        return None
    return Sighting(
        f"{share:.0%} of the rows are clipped: their gradient norm is over max_grad_norm {as_float(bound):g}.",
        {"share": share, "max_grad_norm": as_float(bound)},
        severity="info",
        confidence=0.6,
        action="Nothing is broken, but the bound, not the loss, sets the size of every step: raise it or lower lr.",
        seen=(f"median grad_norm {median(curve.points):.3g}",),
    )


def _vanishing(facts: RunFacts) -> Sighting | None:
    curve = _norms(facts)
    rows = int(t.VANISHED_ROWS.value)
    early = median([x for x in islice(curve.points, max(5, len(curve.points) // 10)) if x > 0.0])
    bar = t.VANISHED_RATIO.value * early if early > 0.0 else 0.0
    exact = curve.lowest <= 0.0 and 0.0 in curve.values
    values, block = (curve.values, 1) if exact else (curve.points, curve.block)
    low = runs_of([i for i, norm in enumerate(values) if norm == 0.0 or norm < bar])
    low = [run for run in (_with_rate(facts, curve, run, block) for run in low) if len(run) * block >= rows]
    if not low:
        return None
    run = max(low, key=len)
    step = facts.step(curve.rows[run[0] * block])
    zeros = all(values[i] == 0.0 for i in run)
    fitted = _fitted(facts, curve.rows[run[0] * block], curve.rows[min(run[-1] * block, len(curve.rows) - 1)])
    what = "exactly 0" if zeros else f"under {t.VANISHED_RATIO.value:g} x its early level"
    return Sighting(
        f"The gradient norm is {what} from step {step} on in {len(run) * block} rows"
        + (": the loss is almost 0, nothing is left to learn." if fitted else " while the learning rate is not 0."),
        {"step": step, "rows": len(run) * block, "early": max(0.0, early)},
        severity="info" if fitted else None,
        seen=(f"grad_norm {values[run[0]]:.3g} at step {step}",),
    )


def _with_rate(facts: RunFacts, curve: Curve, run: Sequence[int], block: int) -> list[int]:
    """Return the points of a stretch where the learning rate is not known to be 0."""
    rates = facts.series.rates
    return [i for i in run if not rates or rates[curve.rows[i * block]] != 0.0]


def _fitted(facts: RunFacts, first: int, last: int) -> bool:
    """Whether the loss between two rows is almost nothing of what it was early on."""
    losses = facts.series.losses
    early = median([x for x in losses[: max(5, len(losses) // 10)] if math.isfinite(x)])
    there = median([x for x in losses[first : last + 1] if math.isfinite(x)])
    return abs(there) < t.MEMORIZED.value * early and there != 0.0


DETECTORS = (
    Detector(
        id="GRD107",
        severity="warning",
        title="exploding gradients",
        condition=_explosion,
        confidence=0.8,
        evidence=(SPIKE_TRIAL, MEGATRON, CLIP, TRIAL),
        rationale="Clipping hides the size of such steps, not their direction; divergence often follows.",
        action="Lower the learning rate, lengthen warmup, or look at the data of those steps.",
        scope="any run that records grad_norm; one row alone is info",
        verify="See whether the loss rises in the rows after.",
        thresholds=(t.GRADIENT_K, t.GRADIENT_FLOOR, t.GRADIENT_RATIO, t.SPIKE_ROWS, t.CLIPPED_SHARE, t.GRADIENT_ROWS),
    ),
    Detector(
        id="GRD108",
        severity="warning",
        title="vanishing gradients",
        condition=_vanishing,
        confidence=0.85,
        evidence=(TRIAL,),
        rationale="No gradient reaches the adapter: frozen parameters, a detached graph, or underflow in fp16.",
        action="Check requires_grad of the adapter, enable_input_require_grads with checkpointing, and the precision.",
        scope="runs that record grad_norm; not RL, where equal rewards give a gradient of 0",
        verify="Audit the adapter: B = 0 means untrained.",
        thresholds=(t.VANISHED_RATIO, t.VANISHED_ROWS, t.MEMORIZED, t.GRADIENT_ROWS),
        not_for=("rl",),
    ),
)
