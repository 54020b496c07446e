"""DIV103, DIV104, PLT105 and NOL106: what the training loss does."""

from __future__ import annotations

import math
from typing import NamedTuple

from gradience.rules.evidence import DIVERGENCE, KARPATHY, NEMOTRON, PLATEAU, SPIKE_PEERS, SPIKE_TRIAL, TRIAL
from gradience.rules.log import thresholds as t
from gradience.rules.log.curve import Curve, excesses, median, noise, runs_of, spread, theil_sen, thin
from gradience.rules.log.detector import Detector, Sighting
from gradience.rules.log.facts import RunFacts
from gradience.rules.rule import Unknown

_MEDIAN_ERROR = 1.2533  # standard error of a median over that of a mean
_CLASSES = 2  # fewer is no classification


def window(points: int) -> int:
    """Return how many points make a level: 5 %, at least 5."""
    return max(5, math.ceil(t.WINDOW_SHARE.value * points))


def _positive(curve: Curve) -> None:
    if median(curve.points) <= 0.0:
        reason = "the loss is not positive: ratios of it mean nothing"
        raise Unknown(reason)


def _spike(facts: RunFacts) -> Sighting | None:
    curve = facts.loss
    _positive(curve)
    logarithmic = spread(curve.points) > t.NOISY.value * median(curve.points) and curve.lowest > 0.0
    found = excesses(curve, t.SPIKE_K.value, t.SPIKE_FLOOR.value, logarithmic=logarithmic)
    if not found:
        return None
    times = dict(found)
    spikes = runs_of([row for row, _ in found])
    longest = max(spikes, key=len)
    lasting = len(longest) >= t.SPIKE_ROWS.value
    worst = longest[0] if lasting else max(times, key=times.__getitem__)
    step, loss = facts.step(curve.rows[worst]), curve.values[worst]
    told = f"{len(longest)} rows long" if lasting else "one of" if len(spikes) > 1 else "over at once"
    many = f" {len(spikes)} spikes" if len(spikes) > 1 else ""
    return Sighting(
        f"The loss spikes to {loss:.4g} at step {step} ({told}{many}; {times[worst]:.1f} times its usual change).",
        {"spikes": len(spikes), "longest": len(longest), "step": step, "loss": loss, "times": times[worst]},
        severity="warning" if lasting else "info",
        confidence=0.8 if lasting else 0.5,
        seen=(f"loss {loss:.4g} at step {step}, {median(curve.values[max(0, worst - 8) : worst]):.4g} just before",),
    )


class _Levels(NamedTuple):
    first: float
    lowest: float
    at: int  # the point where the lowest window begins
    last: float
    error: float  # standard error of one level


def _levels(curve: Curve) -> _Levels:
    points = curve.points
    width = window(len(points))
    starts = range(0, len(points) - width + 1, max(1, width // 5))
    windows = [median(points[i : i + width]) for i in starts]
    at = min(range(len(windows)), key=windows.__getitem__)
    first = min(windows[0], points[0])  # a run may diverge within its first window
    last = median(points[-width:])
    return _Levels(first, min(windows[at], first), starts[at], last, _MEDIAN_ERROR * noise(points) / math.sqrt(width))


def _divergence(facts: RunFacts) -> Sighting | None:
    curve = facts.loss
    _positive(curve)
    first, lowest, at, last, error = _levels(curve)
    surely = last - lowest > t.DIVERGED_NOISE.value * math.sqrt(2.0) * error
    if not (surely and last > t.DIVERGED_RATIO.value * lowest):
        return None
    lost = (last - lowest) / (first - lowest) if first > lowest else math.inf
    if lost <= t.LOST_SHARE.value:
        return None
    step = facts.step(curve.row(at))
    over = last > first
    how = "above its start" if over else f"{lost:.0%} of what it had learnt is lost"
    return Sighting(
        f"The loss diverged: {last:.4g} at the end, {lowest:.4g} around step {step}; {how}, and it did not recover.",
        {"first": first, "lowest": lowest, "lowest_step": step, "last": last},
        severity="error" if over else "warning",
        confidence=0.9 if over else 0.7,
        seen=(f"median of the last {window(len(curve.points)) * curve.block} rows {last:.4g}, lowest {lowest:.4g}",),
    )


def _plateau(facts: RunFacts) -> Sighting | None:
    _positive(facts.loss)
    n = len(facts.loss.points)
    for share in (t.PLATEAU_SPAN.value, t.PLATEAU_LONG.value):
        start = n - math.ceil(share * n)
        if not _idle(facts, facts.loss.row(start)):
            return _flat_from(facts, start, share)
    return None


def _flat_from(facts: RunFacts, start: int, share: float) -> Sighting | None:
    curve = facts.loss
    n = len(curve.points)
    span = thin(curve.points[start:], 60)
    level = median(span)
    if level <= 0.0:
        return None
    drop = -theil_sen(span) * (len(span) - 1) / level
    least = t.PLATEAU_DROP.value * share / t.PLATEAU_SPAN.value
    # of the slope; the noise of the second half, for the span of a short log has too few differences
    error = _MEDIAN_ERROR * _relative(noise(curve.points[n // 2 :]), level) * math.sqrt(12.0 / (n - start))
    if error > t.PLATEAU_ERROR.value:
        reason = f"too noisy: a fall of {2 * error:.1%} over the last {share:.0%} could not be seen"
        raise Unknown(reason)
    doubt = t.FALLING.value * error if share == t.PLATEAU_SPAN.value else 0.0  # a longer look has to be sure
    if not -t.RISING.value * error <= drop + least or drop > least + doubt:
        return None
    step = facts.step(curve.row(start))
    return Sighting(
        f"The loss is flat from step {step} on: it fell {drop:.2%} (+/- {error:.2%}) over the last {share:.0%} of "
        "the rows, at a learning rate that still counts.",
        {"drop": drop, "error": error, "level": level, "from_step": step},
        seen=(f"Theil-Sen slope over {len(span)} points from step {step}",),
    )


def _relative(value: float, level: float) -> float:
    return value / level if level > 0.0 else math.inf


def _idle(facts: RunFacts, row: int) -> bool:
    """Whether the learning rate from a row on is, in the median, too low to expect progress."""
    rates = [rate for rate in thin(facts.series.rates[row:], 64) if math.isfinite(rate)]
    return bool(rates) and median(rates) <= t.PLATEAU_LR.value * facts.peak_rate


def _no_learning(facts: RunFacts) -> Sighting | None:
    curve = facts.loss
    _positive(curve)
    _warmed_up(facts)
    points = curve.points
    head, tail = points[: max(3, len(points) // 5)], points[len(points) // 2 :]
    first, last = median(head), median(tail)
    if first <= 0.0:
        return None
    drop = 1.0 - last / first
    share = _MEDIAN_ERROR * math.sqrt(1.0 / len(head) + 1.0 / len(tail))
    error = share * noise(points) / first
    chance = _chance_level(facts, first, last)
    if error > t.NO_LEARNING_ERROR.value and drop < t.NO_LEARNING_DROP.value + 2.0 * error:
        reason = f"too noisy: a fall of the loss by {2 * error:.1%} could not be seen"
        raise Unknown(reason)
    if drop > t.NO_LEARNING_DROP.value + 0.5 * error:
        return None
    hint = f" It sits at {chance}: the level of knowing nothing." if chance else ""
    return Sighting(
        f"The loss does not fall: {first:.4g} in the first rows, {last:.4g} in the second half.{hint}",
        {"first": first, "last": last, "drop": drop, "error": error},
        confidence=0.9 if chance else None,
        seen=(f"medians of {len(head) * curve.block} first and {len(tail) * curve.block} last rows",),
    )


def _warmed_up(facts: RunFacts) -> None:
    """Abstain while the learning rate still rises at the end of the log, or is nowhere above 0."""
    rates = facts.rate.points
    if rates and facts.peak_rate <= 0.0:
        reason = "the learning rate is 0 (see LRS109)"
        raise Unknown(reason)
    if len(rates) > 1 and rates[-1] == max(rates) and rates[-1] > rates[len(rates) // 2]:
        reason = "the learning rate had not reached its peak yet"
        raise Unknown(reason)


def _chance_level(facts: RunFacts, first: float, last: float) -> str | None:
    """Return the name of the level of knowing nothing, if the loss sits there all along."""
    classes = 2 if facts.objective.kind == "preference" else facts.num_labels
    if not classes or classes < _CLASSES:
        return None
    level = math.log(classes)
    near = max(abs(first - level), abs(last - level)) <= t.AT_CHANCE.value * level
    return f"ln {classes} = {level:.4f}" if near else None


DETECTORS = (
    Detector(
        id="DIV103",
        severity="warning",
        title="loss spike",
        condition=_spike,
        confidence=0.8,
        evidence=(SPIKE_TRIAL, SPIKE_PEERS, TRIAL),
        rationale="A spike of one row is mostly its data; one that lasts has damaged the weights.",
        action="Look at the data of those steps, and at the learning rate; clip gradients.",
        scope="positive losses; the first 8 rows are not judged; one row alone is info",
        verify="See whether grad_norm jumps in the same rows or just before.",
        thresholds=(t.SPIKE_K, t.SPIKE_FLOOR, t.SPIKE_ROWS, t.NOISY),
        not_for=("rl",),
        least_rows=t.FEW_ROWS,
    ),
    Detector(
        id="DIV104",
        severity="error",
        title="divergence",
        condition=_divergence,
        confidence=0.9,
        evidence=(DIVERGENCE, TRIAL),
        rationale="A run that ends above where it began has unlearnt what the base model knew.",
        action="Go back to the checkpoint nearest the lowest loss; lower the learning rate or lengthen warmup.",
        scope="positive losses",
        verify="Held-out loss of that checkpoint against the last.",
        thresholds=(t.DIVERGED_RATIO, t.DIVERGED_NOISE, t.LOST_SHARE, t.WINDOW_SHARE),
        not_for=("rl",),
        least_rows=t.FEW_ROWS,
    ),
    Detector(
        id="PLT105",
        severity="info",
        title="plateau",
        condition=_plateau,
        confidence=0.5,
        evidence=(PLATEAU, TRIAL),
        rationale="Steps on a plateau cost as much as others; flat is also what a finished run looks like.",
        action="Stop here, or decay the learning rate; held-out loss decides.",
        scope="positive losses, learning rate above 10 % of its peak",
        verify="Held-out loss over the same steps.",
        thresholds=(t.PLATEAU_SPAN, t.PLATEAU_LONG, t.PLATEAU_DROP, t.FALLING, t.RISING, t.PLATEAU_ERROR, t.PLATEAU_LR),
        not_for=("rl",),
        least_rows=t.FEW_ROWS,
    ),
    Detector(
        id="NOL106",
        severity="warning",
        title="no learning",
        condition=_no_learning,
        confidence=0.75,
        evidence=(NEMOTRON, KARPATHY, TRIAL),
        rationale="The adapter may be frozen, detached, on few layers, or the learning rate far too low.",
        action="Check that the adapter's parameters require gradients, what target_modules hit, and the learning rate.",
        scope="positive losses after warmup",
        verify="Audit the adapter: B = 0 means untrained. Overfit 32 examples on purpose.",
        thresholds=(t.NO_LEARNING_ROWS, t.NO_LEARNING_DROP, t.NO_LEARNING_ERROR, t.AT_CHANCE),
        not_for=("rl",),
        least_rows=t.NO_LEARNING_ROWS,
    ),
)
