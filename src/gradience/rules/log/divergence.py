"""DIV103, DIV104, UNS198 and SCL129: a loss that spikes, leaves its level, or is on another scale.

Divergence is judged from three rows up: ratios of levels are compared with the noise of the logarithm of the loss.
There are several conditions, because a run that explodes at once looks different from one that turns late or recovers
as its learning rate decays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gradience.rules import DIVERGENCE, TRIAL, Observation, Threshold, Unknown
from gradience.rules.log.account import LEAST_EVALS, LN_VOCABULARY, account
from gradience.rules.log.facts import (
    REAL_RUNS,
    LogRule,
    RunFacts,
    Values,
    last_part,
    not_under,
    once,
    positive_loss,
    seen,
    shown,
)
from gradience.rules.log.order import by_class
from gradience.rules.log.statistics import Bar, excesses, median, median_error, noise, runs_of, spread
from gradience.schema import Severity

SPIKE_K = Threshold(
    "spike_k",
    6.0,
    "median |first difference| of 32 rows, at least 5 % of the level",
    "124 logs: no change from 5.4 to 6",
)
SPIKE_FLOOR = Threshold("spike_floor", 0.05, "fraction of the level", "50 logs: no change up to 0.1")
SPIKE_START = Threshold("spike_start", 0.05, "of the first loss", "124 logs: no change up to 0.2")
NOISY = Threshold("noisy", 0.25, "median |first difference| over the median", "50 logs: no change from 0.2 to 0.37")
MANY_ROWS = Threshold("many_rows", 20, "training rows", "with fewer, the spread of the rows before is not known")

DIVERGED_ROWS = Threshold("diverged_rows", 3, "training rows", "two rows show no lasting level")
DIVERGED_RATIO = Threshold("diverged_ratio", 1.5, "end over the first three rows, or over the lowest window", REAL_RUNS)
DIVERGED_NOISE = Threshold(
    "diverged_noise", 6.0, "standard errors of the difference", "74 trainings: no change from 5.4 to 9"
)
EXPLODED = Threshold("exploded", 2.0, "highest level of 3 rows over the start", REAL_RUNS)
LOST_SHARE = Threshold("lost_share", 0.5, "fraction of the whole fall that was lost again", "definition: most of it")
LOST_LEVEL = Threshold("lost_level", 0.05, "nats", "50 logs: no change from 0.034 on")
RELAPSED = Threshold(
    "relapsed", 1.15, "end over the lowest window, if it ends above its start", "known causes, trained"
)
STILL_BOUND = Threshold("still_bound", 0.06, "fraction: 95 % upper bounds of both falls", REAL_RUNS)
ABSURD_RATE = Threshold("absurd_rate", 1e-2, "learning rate", "10 x 1e-3, the highest of the sweep's good rates")

SCALE_RATIO = Threshold("scale_ratio", 3.0, "training over held-out loss", "50 logs: no change from 1.5 to 12")
SCALE_NATS = Threshold("scale_nats", 1.0, "nats between them", "a judgement: ratios of small losses are no scale")
HIGH_START = Threshold("high_start", 7.5, "nats, first training row", "published runs: at 5.5 at most, or from 8.1 on")
SECOND_ROW = Threshold("second_row", 0.4, "second row over the first", "one high first row alone: 14.8, then 0.9")

_FIFTH: Final = 5
_WINDOW: Final = 3  # least number of rows in a level; 5 % of the rows, if more
LEVEL: Final = 32  # rows before a jump that tell the level: the few just before may be a trough
_AFTER: Final = 32  # rows after a spike whose level tells whether it came back
_SPIKES: Final = 100  # spikes listed by their steps at most
_ACCUMULATED: Final = (2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128, 256)


@LogRule(
    "DIV103",
    severity="warning",
    confidence=0.8,
    needs=(not_under("rl"), positive_loss),
    signs=("spike",),
    phrase=lambda v: f"loss spike at step {v['step']}",
    thresholds=(
        SPIKE_K,
        SPIKE_FLOOR,
        SPIKE_START,
        LOST_LEVEL,
        NOISY,
        MANY_ROWS,
    ),
    evidence=(TRIAL,),
)
def _spike(facts: RunFacts) -> Observation | None:
    """loss spike

    from {many_rows} rows on, the loss exceeds the median of the previous 8 rows by more than {spike_k} times the
    median change over 32 rows (at least {spike_floor} of the level) and by {spike_start} of the first loss; a warning
    if the rows after it, and the last ones, stay above the level before, by {spike_floor} of it and {lost_level} nats;
    else none if a later row is higher and no spike, since the rows are noisier there

    Why: A spike of one row usually comes from its data; a spike that lasts has damaged the weights.
    Scope: positive losses; the first rows are not judged
    Verify: See whether grad_norm jumps in the same rows or just before.
    Seen: public repositories -- losses that jump
    Source: spike trial, 200 clean and 200 spiked curves -- k = 6: 161 found, 4 false alarms; mean + 6 sigma of 128
        rows: 135 and 0, and 0 of 200 in logs of 60 rows
    Source: OLMo-core SkipStepOptimizer; llm-foundry KillLossSpike; Lightning SpikeDetection -- mean + 6 sigma of
        128 rows; 2 x the mean of 100 rows, more than 4 in a row; 2 x the mean of 10
    """
    curve, rows = facts.loss, len(facts.loss.values)
    if rows < MANY_ROWS.value:
        raise Unknown(f"{rows} training rows: too few to tell a spike from the curve; it takes {MANY_ROWS.value:g}")
    peaks = excesses(curve, loss_bar(facts, SPIKE_K.value))
    if not peaks:
        return None
    times = dict(peaks)
    spikes = runs_of([place for place, _ in peaks])
    worst = max(times, key=times.__getitem__)
    step, loss = facts.step(curve.rows[worst]), curve.values[worst]
    before, start = median(curve.values[max(0, worst - 8) : worst]), median(curve.values[:3])
    if loss - before < SPIKE_START.value * start:
        return None  # of a loss near 0
    many = f"; {len(spikes)} spikes in all" if len(spikes) > 1 else ""
    burst = {"steps": [facts.step(curve.rows[spike[0]]) for spike in spikes[:_SPIKES]]} if len(spikes) > 1 else {}
    later = list(enumerate(curve.values))[worst + 1 :]
    least = max(LOST_LEVEL.value, SPIKE_FLOOR.value * before)
    after = median(curve.values[worst + 1 : worst + 1 + _AFTER])
    level = max(before, median(curve.values[max(0, worst - LEVEL) : worst]))
    kept = min(after, median(last_part(curve.points, 10))) - level > least
    if not kept and max((value for place, value in later if place not in times), default=0.0) > loss:
        return None  # the rows after it are noisier, so that higher ones are no spikes
    return Observation(
        f"The loss spikes to {loss:.4g} at step {step}, from {before:.4g} in the rows before{many}"
        + (", and ends above that." if kept else "."),
        {
            "spikes": len(spikes),
            "longest": max(map(len, spikes)),
            "step": step,
            "loss": loss,
            "times": times[worst],
            **burst,
        },
        severity="warning" if kept else "info",
        confidence=0.8 if kept else 0.5,
        action="Look at the rows of that step; then lower the learning rate, or clip gradients." if kept else None,
        evidence=seen(f"{times[worst]:.1f} times the usual row-to-row change"),
    )


def loss_bar(facts: RunFacts, k: float) -> Bar:
    """The bar for a rise of the loss by k times its usual change; for a very noisy loss, on the logarithm."""
    curve = facts.loss
    logarithmic = spread(curve.points) > NOISY.value * median(curve.points) and curve.lowest > 0.0
    return Bar(k, SPIKE_FLOOR.value, logarithmic)


class _Levels(NamedTuple):
    """Levels of the outlined loss, and the noise of its logarithm after the first row."""

    points: Sequence[float]
    places: Sequence[int]  # index of each point in the outline of the loss
    first: float  # the first point
    first_three: float
    last: float  # median of the last fifth
    fifth: int  # number of points in the last fifth
    sigma: float

    @property
    def start(self) -> float:
        return min(self.first, self.first_three)


@once
def divergence(facts: RunFacts) -> Observation | None:
    """How the loss diverged, by the first condition that holds; None if it did not, or if that cannot be judged."""
    levels = _levels(facts)
    if levels is None:
        return None
    return next((found for asked in _DIVERGES if (found := asked(facts, levels)) is not None), None)


@once
def _levels(facts: RunFacts) -> _Levels | None:
    kept = [(i, point) for i, point in enumerate(facts.outline.points) if point > 0.0]  # 0: see NUM102
    places, points = [i for i, _ in kept], [point for _, point in kept]
    if len(points) < DIVERGED_ROWS.value or facts.loss.lowest < 0.0 or facts.objective.kind == "rl":
        return None
    if by_class(facts) is not None:
        return None  # the loss jumps with the class of the rows
    fifth = max(1, len(points) // _FIFTH)
    # Without the first row: a jump right after it, which `_at_once` looks for, would count as noise and hide itself
    sigma = noise([math.log(point) for point in points[1:]])
    # Of three rows the first two, so that the end is no part of the start
    first_three = median(points[: min(3, len(points) - 1)])
    return _Levels(points, places, points[0], first_three, median(points[-fifth:]), fifth, sigma)


def _at_the_end(facts: RunFacts, of: _Levels) -> Observation | None:
    error = median_error(of.sigma, min(3, len(of.points) - 1), of.fifth)
    if of.last <= DIVERGED_RATIO.value * of.first_three:
        return None
    if math.log(of.last / of.first_three) <= DIVERGED_NOISE.value * error:
        return None
    return _diverged(
        facts,
        of,
        f"The loss diverged: {of.first_three:.4g} in the first {min(3, len(of.points) - 1)} rows, {of.last:.4g} in the "
        "last fifth",
    )


def _at_once(facts: RunFacts, of: _Levels) -> Observation | None:
    """A jump right after the first row to a level that stays."""
    later, rise = min(of.points[1:]), of.last / of.first
    if later > DIVERGED_RATIO.value * of.first and math.log(rise) > DIVERGED_NOISE.value * of.sigma:
        return _diverged(
            facts, of, f"The loss diverged at once: {of.first:.4g} in the first row, {of.last:.4g} at the end"
        )
    return None


def _top(of: _Levels) -> float | None:
    """The highest level in the middle if it is far above the start, over several points; None if it is not."""
    n = len(of.points)
    if n < 5:  # a start, a level that stood, an end
        return None
    width = max(1, min(3, n // _FIFTH))
    top = max(median(of.points[i : i + width]) for i in range(1, max(2, n - width)))
    high = top > EXPLODED.value * of.start and math.log(top / of.start) > DIVERGED_NOISE.value * of.sigma
    return top if high else None


def _exploded(facts: RunFacts, of: _Levels) -> Observation | None:
    """A warning if the loss is high over several points in the middle and ends no lower than it started."""
    top = _top(of)
    if top is None or of.last < of.start:
        return None
    says = f"The loss exploded to {top:.4g} from {of.start:.4g} and ended no lower ({of.last:.4g})"
    return _diverged(facts, of, says, severity="warning")


def _late(facts: RunFacts, of: _Levels) -> Observation | None:
    """A rise from the lowest level to above the start, or, as a warning, over half of the way back to it.

    It is looked for in short windows, and in windows of a fifth, whose level is known better where rows are noisy.
    """
    rises = (_risen(facts, of, width) for width in dict.fromkeys((_WINDOW, max(_WINDOW, of.fifth))))
    return next((each for each in rises if each is not None), None)


def _risen(facts: RunFacts, of: _Levels, width: int) -> Observation | None:
    if len(of.points) < 2 * width + 2:
        return None
    lowest, last = min(_windows(of.points, width)), median(of.points[-width:])
    error = median_error(of.sigma, width, width)
    learnt = lowest < (1.0 - STILL_BOUND.value) * of.start and width >= of.fifth
    relapsed = learnt and last > max(of.start, RELAPSED.value * lowest)
    if last <= DIVERGED_RATIO.value * lowest and not relapsed:
        return None
    if math.log(last / lowest) <= DIVERGED_NOISE.value * error:
        return None
    says = (
        f"The loss diverged: {last:.4g} at the end, {min(lowest, of.start):.4g} around step {_lowest_step(facts, of)}"
    )
    if last > of.start:
        return _diverged(facts, of, f"{says}; it ended above its start and did not recover")
    lost = (last - lowest) / (of.first - lowest)  # no division by 0: first >= start >= last > lowest
    if len(facts.loss.values) < MANY_ROWS.value or lost <= LOST_SHARE.value or last < LOST_LEVEL.value:
        return None
    return _diverged(facts, of, f"{says}; {lost:.0%} of what it had learnt is lost", severity="warning")


@once
def fell_before(facts: RunFacts) -> bool:
    """Whether the loss was once clearly under its start, whatever came later: such a run did learn something."""
    points = [point for point in facts.outline.points if point > 0.0]
    width = max(_WINDOW, len(points) // _FIFTH)
    if len(points) < 2 * width:
        return False
    start, lowest = median(points[:_WINDOW]), min(_windows(points, width))
    error = median_error(noise([math.log(point) for point in points]), _WINDOW, width)
    return lowest < (1.0 - STILL_BOUND.value) * start and math.log(start / lowest) > DIVERGED_NOISE.value * error


def _worse(facts: RunFacts, of: _Levels) -> Observation | None:
    """A warning if training ends over its first row, under which it never was, and held-out data over their first."""
    curve = facts.held_out_curve
    if curve is None or len(curve.losses) < LEAST_EVALS.value or min(of.points) < of.first:
        return None
    first, later = curve.losses[0], min(curve.losses[1:])
    if of.last <= RELAPSED.value * of.first or later <= RELAPSED.value * first:
        return None
    says = f"The loss diverged: {of.first:.4g} in the first row, {of.last:.4g} at the end, and {curve.split} loss"
    return _diverged(facts, of, f"{says} {first:.4g} at first, {later:.4g} or more since", severity="warning")


_DIVERGES: Final = (_at_the_end, _at_once, _exploded, _late, _worse)


def _windows(points: Sequence[float], width: int) -> Iterator[float]:
    return (median(points[i : i + width]) for i in range(len(points) - width + 1))


def _lowest_step(facts: RunFacts, of: _Levels) -> int:
    """The step of the lowest point within the lowest level, which is the start if no later level is lower."""
    width = min(_WINDOW, len(of.points))
    windows = list(_windows(of.points, width))
    at = 0 if of.start <= min(windows) else windows.index(min(windows))
    lowest = min(range(at, at + width), key=of.points.__getitem__)
    return facts.step(facts.outline.row(of.places[lowest]))


def _diverged(facts: RunFacts, of: _Levels, says: str, *, severity: Severity = "error") -> Observation:
    rate = facts.peak_rate
    absurd = rate >= ABSURD_RATE.value
    lowest = min(of.start, *_windows(of.points, min(_WINDOW, len(of.points))))
    grave = severity == "error"
    return Observation(
        says + (f"; the learning rate of {rate:.3g} is over any published one." if absurd else "."),
        {
            "first": of.start,
            "lowest": lowest,
            "lowest_step": _lowest_step(facts, of),
            "last": of.last,
            "peak_rate": rate if math.isfinite(rate) else None,
        },
        severity=severity,
        confidence=(0.95 if absurd else 0.9) if grave else 0.7,
        evidence=seen(f"median of the last fifth {of.last:.4g}, of the first rows {of.first_three:.4g}"),
    )


def _diverged_says(v: Values) -> str:
    why = f", at a learning rate of {shown(v, 'peak_rate', '.3g')}" if _is_absurd(v) else ""
    return f"diverged: lowest loss {shown(v, 'lowest')} around step {v['lowest_step']}{why}"


@LogRule(
    "DIV104",
    severity="error",
    confidence=0.9,
    needs=(not_under("rl"), positive_loss),
    live=True,
    signs=("diverged",),
    place="broken",
    phrase=_diverged_says,
    covers=frozenset({"learning"}),
    cause=lambda v: "rate_absurd" if _is_absurd(v) else "diverged",
    thresholds=(
        DIVERGED_RATIO,
        ABSURD_RATE,
        DIVERGED_NOISE,
        EXPLODED,
        LOST_SHARE,
        LOST_LEVEL,
        RELAPSED,
        STILL_BOUND,
        DIVERGED_ROWS,
        LEAST_EVALS,
    ),
    evidence=(DIVERGENCE, TRIAL),
)
def _divergence(facts: RunFacts) -> Observation | None:
    """divergence

    the median of the last fifth is over {diverged_ratio} times that of the first three rows, by more than
    {diverged_noise} standard errors; or every later row is over {diverged_ratio} times the first; or the last rows
    are over {diverged_ratio} times the lowest window by more than {diverged_noise} standard errors, and above the
    start; or over {relapsed} times it, if it was {still_bound} under the start (the last and the lowest fifth); not
    where ORD186 speaks. A warning: the loss exceeds {exploded} times its start in the middle and ends no lower than
    it started; or over {lost_share} of its fall is lost again, to {lost_level} or more; or no row is under the first,
    the last fifth is over {relapsed} times it, and so are all of {least_evals} held-out losses over theirs; surer at a
    learning rate of {absurd_rate} or more

    Why: A run that ends above where it began has unlearnt what the base model knew.
    Scope: positive losses, from three rows on
    Verify: Compare the held-out loss of that checkpoint with that of the last.
    Seen: https://github.com/paiml/aprender/pull/2258 -- loss 4.31, 1.44, then 7.08, 15.06, 16.02
    """
    rows = len(facts.loss.values)
    if rows < DIVERGED_ROWS.value:
        raise Unknown(f"{rows} training rows: too few to see a lasting level; it takes {DIVERGED_ROWS.value:g}")
    return divergence(facts)


@LogRule(
    "UNS198",
    severity="warning",
    confidence=0.7,
    needs=(not_under("rl"), positive_loss),
    place="shape",
    phrase=lambda v: f"unstable: the loss rose to {shown(v, 'top')} on its way from {shown(v, 'first')}",
    thresholds=(EXPLODED, DIVERGED_NOISE, DIVERGED_ROWS),
)
def _unstable(facts: RunFacts) -> Observation | None:
    """unstable on the way

    the loss exceeds {exploded} times its start over three rows in the middle, by {diverged_noise} deviations, and ends
    lower than it started; not where DIV104 speaks

    Why: What the base model knew was lost on the way; a loss that comes back does not show what of it came back too.
    Scope: positive losses, from three rows on; not RL
    Action: Lower the learning rate, warm up longer, or clip gradients.
    Verify: Compare the held-out loss of a checkpoint before the rise with the last, on other tasks too.
    Seen: https://github.com/haotian-liu/LLaVA/issues/918 -- the loss rises to 6.66 in the middle of the run
    Source: definition -- a loss over its start is worse than the base model's on the same rows
    """
    if len(facts.loss.values) < DIVERGED_ROWS.value:
        raise Unknown(f"{len(facts.loss.values)} training rows; it takes {DIVERGED_ROWS.value:g}")
    levels = _levels(facts)
    top = levels and _top(levels)
    if not levels or top is None or divergence(facts) is not None:
        return None
    return Observation(
        f"The loss was unstable: it rose from {levels.start:.4g} to {top:.4g} and came down to {levels.last:.4g}.",
        {"first": levels.start, "top": top, "last": levels.last},
        evidence=seen(f"loss {levels.start:.4g} -> {top:.4g} -> {levels.last:.4g}"),
    )


def _scale_says(v: Values) -> str:
    if "factor" in v:
        return f"training loss is {shown(v, 'factor', '.1f')} times the held-out loss: another scale"
    return f"loss starts at {shown(v, 'first')}, above that of a uniform guess over any vocabulary"


@LogRule(
    "SCL129",
    severity="warning",
    confidence=0.85,
    needs=(not_under("rl", "preference", "reward"), positive_loss),
    place="meaning",
    phrase=_scale_says,
    as_info=True,
    look=True,
    cause="other_scale",
    thresholds=(SCALE_RATIO, SCALE_NATS, LN_VOCABULARY, SECOND_ROW, MANY_ROWS),
)
@once
def other_scale(facts: RunFacts) -> Observation | None:
    """training loss on another scale

    the training loss is at least {scale_ratio} times the held-out loss and {scale_nats} nats above it, at the first
    evaluation and at all evaluations of the last half; otherwise, the first training row is over {ln_vocabulary} nats
    and the second, if there is one, at least {second_row} of the first: info, unless the last of {many_rows} rows or
    more is over it, too

    Why: A loss on another scale cannot be compared with the held-out loss, and if the gradient is summed too, steps
        are larger by the same factor.
    Scope: token-level or class cross-entropy; silent where the run diverged
    Verify: Evaluate on training data: the loss there is on the scale of the evaluation.
    Seen: https://github.com/huggingface/transformers/pull/35438 -- with 2 accumulation steps the logged loss is
        twice as high
    Source: definition -- equal odds over K words cost ln K nats
    """
    # GAP111 and the report call this function itself, without the needs of its rule
    if facts.objective.kind in {"rl", "preference"} or not facts.loss.values or divergence(facts) is not None:
        return None
    curve = facts.held_out_curve
    if curve is None:
        return _above_equal_odds(facts)
    # Where evaluations are so dense, three rows reach back beyond the one before, to the losses of its steps
    dense = len(curve.losses) >= len(facts.loss.values) / 3
    pairs = [
        (losses[-1] if dense else median(losses), held_out)
        for step, held_out in zip(curve.steps, curve.losses, strict=True)
        for losses in [facts.losses_until(step, 3)]
    ]
    late = pairs[-max(1, (len(pairs) + 1) // 2) :]
    apart = all(
        train >= SCALE_RATIO.value * held_out and train - held_out >= SCALE_NATS.value
        for train, held_out in (pairs[0], *late)
    )
    if not apart:
        return _above_equal_odds(facts)
    factor = median(train / held_out for train, held_out in late[-3:])
    accumulated = facts.config.training.gradient_accumulation
    steps = min(_ACCUMULATED, key=lambda count: abs(math.log(factor / count)))
    known = f"; gradient_accumulation_steps is {accumulated}" if accumulated else ""
    return Observation(
        f"Training loss is {factor:.1f} times the held-out loss (about {steps}): summed over accumulation "
        f"steps{known}.",
        {
            "factor": factor,
            "nearest": steps,
            "accumulation": accumulated,
            "train": late[-1][0],
            "held_out": late[-1][1],
        },
        evidence=seen(f"training loss {late[-1][0]:.4g}, {curve.split} loss {late[-1][1]:.4g}"),
    )


def _above_equal_odds(facts: RunFacts) -> Observation | None:
    values = facts.loss.values
    first = values[0]
    if first <= LN_VOCABULARY.value or (len(values) > 1 and values[1] < SECOND_ROW.value * first):
        return None
    if account(facts).loss == "regression":
        return None  # no nats
    curve = facts.held_out_curve
    if curve is not None and median(last_part(facts.loss.points, 10)) < SCALE_RATIO.value * curve.losses[-1]:
        return None  # on one scale at the end
    return Observation(
        f"The training loss starts at {first:.4g}, above that of a uniform guess over any vocabulary "
        f"({LN_VOCABULARY.value:.1f}): a sum over several losses or steps, or labels, template or tokenizer that do "
        "not match the model.",
        {"first": first, "second": values[1] if len(values) > 1 else None},
        severity=None if len(values) >= MANY_ROWS.value and values[-1] > LN_VOCABULARY.value else "info",
        confidence=0.6,
        evidence=seen(f"first rows {', '.join(f'{value:.4g}' for value in values[:2])}"),
    )


@LogRule(
    "INI195",
    severity="info",
    reading=True,
    confidence=0.6,
    needs=(not_under("rl", "preference", "reward"), positive_loss),
    phrase=lambda v: f"starts at {shown(v, 'first')} nats, a pretrained model at 1 to 5",
    as_info=True,
    thresholds=(HIGH_START, LN_VOCABULARY),
)
def _starts_high(facts: RunFacts) -> Observation | None:
    """a start as of a model that knows nothing

    the first training row of a loss that is not of classes or numbers is from {high_start} nats to {ln_vocabulary}

    Why: Padding in the loss, another model's tokenizer or template, or weights that were not loaded.
    Scope: losses of tokens; a row is the mean over its logging interval; new embeddings start high, too
    Action: Decode the labels of a batch: is padding among them? And see that the pretrained weights were loaded.
    Verify: The loss of the base on some rows, padding masked.
    Source: published runs -- seven of some 60 start at 8.1 to 11 nats, the others at 5.5 at most
    Source: definition -- a uniform guess over 50257 tokens costs 10.8 nats
    """
    kind = account(facts).loss
    if kind in {"classification", "regression"}:
        raise Unknown("the loss is not a language model's")
    first = facts.loss.values[0]
    if not HIGH_START.value <= first <= LN_VOCABULARY.value:
        return None
    whose = "" if kind == "language_model" else ", in nats if it is of tokens"
    return Observation(
        f"The loss starts at {first:.4g}{whose}: a pretrained model starts at 1 to 5.",
        {"first": first},
        evidence=seen(f"first row {first:.4g}"),
    )


def _is_absurd(v: Values) -> bool:
    rate = v.get("peak_rate")
    return isinstance(rate, float) and rate >= ABSURD_RATE.value


RULES: Final[tuple[LogRule, ...]] = (_spike, _divergence, _unstable, other_scale, _starts_high)
