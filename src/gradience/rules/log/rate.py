"""LRS109: a learning rate that did not do what was planned."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from gradience.rules.evidence import SCHEDULE, TRIAL
from gradience.rules.log import thresholds as t
from gradience.rules.log.detector import Detector, Sighting
from gradience.rules.log.facts import RunFacts
from gradience.rules.rule import Unknown
from gradience.schema.scalars import as_float


def _rate(facts: RunFacts) -> Sighting | None:
    rates = facts.rate.values
    if len(rates) < t.RATE_ROWS.value:
        reason = f"{len(rates) or 'no'} rows with a learning rate; it needs {t.RATE_ROWS.value:g}"
        raise Unknown(reason)
    return _stuck(facts) or _short_of_peak(facts) or _rises(facts)


class _Stretch(NamedTuple):
    start: int
    rows: int


def _stuck(facts: RunFacts) -> Sighting | None:
    curve = facts.rate
    rates = curve.values
    if curve.lowest > 0.0 or 0.0 not in rates:
        return None
    stretches, at = [], 0
    for zero, group in groupby(rates, key=(0.0).__eq__):
        length = len(list(group))
        if zero and length >= t.ZERO_RATE_ROWS.value:
            stretches.append(_Stretch(at, length))
        at += length
    counted = [s for s in stretches if not _is_end(s, len(rates))]
    if not counted:
        return None
    start, rows = max(counted, key=lambda s: s.rows)
    step = facts.step(curve.rows[start])
    return Sighting(
        f"The learning rate is 0 in {rows} rows from step {step} on: nothing is learnt there.",
        {"rows": rows, "step": step},
        seen=(f"lr 0 in {rows} of {len(rates)} rows",),
    )


def _is_end(stretch: _Stretch, rows: int) -> bool:
    """Whether it is no more than the last rows of a schedule that decays to 0."""
    at_end = stretch.start > 0 and stretch.start + stretch.rows == rows
    return at_end and stretch.rows <= max(t.ZERO_RATE_ROWS.value, t.ZERO_TAIL_SHARE.value * rows)


def _short_of_peak(facts: RunFacts) -> Sighting | None:
    planned = facts.config.optimizer.lr
    peak = facts.peak_rate
    if planned is None or not as_float(planned) > 0.0 or peak >= t.PEAK_SHARE.value * as_float(planned):
        return None
    if facts.status == "no_run_end" and facts.rate.values[-1] == peak:
        return None  # perhaps still running, and warming up
    return Sighting(
        f"The learning rate never came near its configured {as_float(planned):g}: {peak:.3g} at most.",
        {"peak": peak, "configured": as_float(planned)},
        confidence=0.8,
        action="Check warmup against the number of steps that were really taken, and the scheduler.",
        seen=(f"highest lr {peak:.3g}, configured {as_float(planned):g}",),
    )


def _rises(facts: RunFacts) -> Sighting | None:
    scheduler = (facts.config.training.lr_scheduler or "").lower()
    if facts.resumed_from or facts.sessions > 1 or "restart" in scheduler or "cycl" in scheduler:
        return None
    points, risen = facts.rate.points, []
    highest = lowest = points[0]
    for i, rate in enumerate(points):
        lowest = min(lowest, rate)
        decayed = lowest < t.DECAYED.value * highest
        if decayed and rate > t.RISEN.value * lowest and rate - lowest > 0.1 * highest:
            risen.append(i)
            highest = lowest = rate
        elif rate > highest:
            highest = lowest = rate
    if not risen:
        return None
    step = facts.step(facts.rate.row(risen[0]))
    planned = len(risen) > 1
    return Sighting(
        f"The learning rate rises again at step {step} after it had decayed"
        + (f", {len(risen)} times: restarts, perhaps as planned." if planned else ", and the log knows of no resume."),
        {"step": step, "times": len(risen)},
        severity="info" if planned else None,
        confidence=0.4 if planned else 0.6,
        action="If no restarts were planned: the run was restarted with a fresh scheduler.",
        seen=(f"lr {points[risen[0]]:.3g} at step {step}",),
    )


DETECTORS = (
    Detector(
        id="LRS109",
        severity="warning",
        title="learning rate not as planned",
        condition=_rate,
        confidence=0.85,
        evidence=(SCHEDULE, TRIAL),
        rationale="What the optimizer was given is what trains, whatever the config says.",
        action="Check the scheduler, its number of steps, and that it is stepped once per optimizer step.",
        scope="runs that record lr; the first row at 0 and the final decay are ignored",
        verify="Plot lr over the steps.",
        thresholds=(t.RATE_ROWS, t.ZERO_RATE_ROWS, t.ZERO_TAIL_SHARE, t.PEAK_SHARE, t.DECAYED, t.RISEN),
    ),
)
