"""NUM101 and NUM102: numbers that are none, seen or hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from gradience.rules.evidence import MASKED, NAN_MONITORS, NAN_TRL
from gradience.rules.log.curve import median
from gradience.rules.log.detector import Detector, Sighting
from gradience.rules.log.facts import RunFacts
from gradience.rules.log.thresholds import MASKED_FALL, ROUNDS_TO_ZERO
from gradience.rules.rule import Unknown
from gradience.schema.scalars import Severity, as_float


def _non_finite(facts: RunFacts) -> Sighting | None:
    series = facts.series
    if not series.steps and not facts.history and not facts.evals:
        reason = "no loss was recorded"
        raise Unknown(reason)
    whole = len(facts.loss.values) == len(series.losses)
    losses = [] if whole else [i for i, x in enumerate(series.losses) if not math.isfinite(x)]
    norms = _bad_norms(facts)
    evals = [
        e
        for e in facts.history or facts.evals
        if e.metrics.loss is not None and not math.isfinite(as_float(e.metrics.loss))
    ]
    if not losses and not norms and not evals:
        return None
    where = [f"loss at step {facts.step(losses[0])}"] if losses else []
    where += [f"{evals[0].split} loss at step {evals[0].step}"] if evals else []
    where += [f"gradient norm at step {facts.step(norms[0])}"] if norms else []
    return Sighting(
        f"Not finite: {', '.join(where)} ({len(losses)} of {len(series.steps)} training rows).",
        {
            "rows": len(losses),
            "gradient_rows": len(norms),
            "eval_rows": len(evals),
            "first": where[0],
            "first_step": facts.step(losses[0]) if losses else None,
        },
        severity="error" if losses or evals else _of_norms(norms, facts.config.training.dtype),
        seen=(f"first non-finite value: {where[0]}",),
    )


def _bad_norms(facts: RunFacts) -> list[int]:
    """Return the rows whose gradient norm was recorded and is not finite; a fine million takes no loop of ours."""
    series = facts.series
    whole = len(facts.norm.values) == len(series.grad_norms)
    if not series.lost_norms and (whole or not any(map(math.isinf, series.grad_norms))):
        return []
    both = enumerate(zip(series.steps, series.grad_norms, strict=True))
    return [i for i, (step, norm) in both if math.isinf(norm) or step in series.lost_norms]


def _of_norms(norms: Sequence[int], dtype: str | None) -> Severity:
    """Return how bad it is: one step alone is skipped by fp16's loss scaling, two in a row are not."""
    if any(b - a == 1 for a, b in pairwise(norms)):
        return "error"
    return "info" if len(norms) == 1 or dtype == "float16" else "warning"


def _masked_nan(facts: RunFacts) -> Sighting | None:
    """A loss of exactly zero, or falling where the gradient is not finite: how a filtered NaN shows."""
    losses = facts.series.losses
    if not losses:
        reason = "no training loss was recorded"
        raise Unknown(reason)
    bad = _bad_norms(facts)
    zero = [i for i, loss in enumerate(losses) if loss == 0.0] if facts.loss.lowest <= 0.0 and 0.0 in losses else []
    with_bad = [i for i in zero if i in set(bad)]
    if facts.objective.kind == "rl":
        return _zeros(facts, with_bad, bad) if with_bad else None
    twice = [a for a, b in pairwise(zero) if b - a == 1]
    dead = [i for i in zero if facts.series.grad_norms[i] == 0.0]
    if with_bad or twice or dead:
        return _zeros(facts, zero, bad, certain=bool(with_bad or dead))
    fallen = [] if _of_norms(bad, facts.config.training.dtype) == "info" and len(bad) > 1 else _fallen(losses, bad)
    return _falls(facts, fallen) if fallen else None


def _zeros(facts: RunFacts, zero: Sequence[int], bad: Sequence[int], *, certain: bool = True) -> Sighting:
    losses, first = facts.series.losses, zero[0]
    before = median([x for x in losses[max(0, first - 8) : first] if math.isfinite(x)])
    rounded = not certain and before < ROUNDS_TO_ZERO.value
    if rounded:
        norms = [facts.series.grad_norms[i] for i in zero]
        rounded = all(norm > 0.0 for norm in norms)
    if rounded:
        return Sighting(
            f"The training loss is 0.0 from step {facts.step(first)} in {len(zero)} rows: rounded, after {before:.2g}.",
            {"rows": len(zero), "first_step": facts.step(first), "loss_before": before},
            severity="info",
            confidence=0.6,
            action="Nothing is left to learn from this data: stop earlier, or look for leaked answers.",
        )
    also = tuple(f"grad_norm not finite at step {facts.step(i)}" for i in bad[:1])
    return Sighting(
        f"The training loss is exactly 0.0 from step {facts.step(first)} in {len(zero)} rows: NaN is probably masked.",
        {"rows": len(zero), "first_step": facts.step(first), "gradient_rows": len(bad)},
        confidence=0.97 if bad else None,
        seen=(f"loss 0.0 at step {facts.step(first)}", *also),
    )


def _fallen(losses: Sequence[float], bad: Sequence[int]) -> list[int]:
    """Return the rows of a gradient not finite whose loss is well under the rows before."""
    fallen = []
    for i in bad:
        before = median([x for x in losses[max(0, i - 5) : i] if math.isfinite(x)])
        if losses[i] < (1.0 - MASKED_FALL.value) * before and before > 0.0:
            fallen.append(i)
    return fallen


def _falls(facts: RunFacts, fallen: Sequence[int]) -> Sighting:
    first = fallen[0]
    step, loss = facts.step(first), facts.series.losses[first]
    return Sighting(
        f"The loss falls to {loss:.4g} at step {step}, where the gradient is not finite: a NaN was averaged away.",
        {"rows": len(fallen), "first_step": step},
        confidence=0.85,
        seen=(f"loss {loss:.4g} with grad_norm not finite at step {step}",),
    )


DETECTORS = (
    Detector(
        id="NUM101",
        severity="error",
        title="not a number",
        condition=_non_finite,
        confidence=0.95,
        evidence=(NAN_MONITORS,),
        action="Go back to a checkpoint before it; look at the learning rate, the precision and the data there.",
        scope="any run",
        verify="Audit the adapter: non-finite weights confirm it.",
    ),
    Detector(
        id="NUM102",
        severity="error",
        title="masked NaN",
        condition=_masked_nan,
        confidence=0.9,
        evidence=(MASKED, NAN_TRL),
        rationale="The Hugging Face Trainer averages non-finite losses away by default: a broken run looks healthy.",
        action="Set logging_nan_inf_filter=False to see it, and audit the adapter for non-finite weights.",
        scope="losses that cannot be zero; under RL only where the gradient is not finite too",
        verify="Look at grad_norm in the same rows, and at the adapter's weights.",
        thresholds=(MASKED_FALL, ROUNDS_TO_ZERO),
    ),
)
