"""Whether a run learns, and NOL106 and PLT105: a loss that never fell, or no longer falls.

The rules compare the size of an effect with its bound and do not require a number of rows. An exact test of the order
serves for few rows, Theil-Sen's slope and its interval for the size. If neither "it falls" nor "it does not fall" can
be shown, the report says so and names the fall that would have been seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from gradience.rules import KARPATHY, NEMOTRON, TRIAL, Observation, Sign, Threshold, Unknown
from gradience.rules.log.account import (
    LEAST_EVALS,
    account,
    decisive_metric,
    gain,
    is_token_accuracy,
    task_metric,
    values_of,
)
from gradience.rules.log.divergence import MANY_ROWS, STILL_BOUND, divergence, fell_before
from gradience.rules.log.facts import (
    EVAL_NOISE,
    JUDGEMENT,
    MOVED,
    REAL_RUNS,
    START,
    HeldOutCurve,
    LogRule,
    RunFacts,
    not_under,
    once,
    positive_loss,
    seen,
)
from gradience.rules.log.numbers import bad_norms, skipped_rows
from gradience.rules.log.preference import separation, some_margin
from gradience.rules.log.statistics import (
    FEW_POINTS,
    Trend,
    mann_kendall,
    median,
    median_error,
    theil_sen,
    thin,
    trend_of,
    without_saw,
)
from gradience.schema.document import Evidence
from gradience.schema.reports import MetricAccount, RunAccount

ALPHA = Threshold("alpha", 0.01, "one-sided p of the order of the rows", "1 of 100 flat logs")
ALPHA_MOVED = Threshold("alpha_moved", 0.05, "the same, where the gradient norm has a trend", REAL_RUNS)
LEAST_FALL = Threshold("least_fall", 0.02, "fraction of the start", "10 idle trainings fell to 0.005, others by 0.045")
LEARNT = Threshold(
    "learnt", 0.9, "of the first training loss, at the first evaluation", "74 trainings: at most 0.78, or 0.91 and more"
)
GUESS = Threshold("guess", 10.0, "nats, where no training loss was logged", "ln 30522 = 10.3, the smallest vocabulary")
ALL_WRONG = Threshold("all_wrong", 0.95, "error rate", "50 logs: no change from 0.24 on")

HELD_STILL = Threshold("held_still", 0.003, "fraction, first to best held-out loss", "63 real runs: 14 of 14")
OVERFIT_RISE = Threshold("overfit_rise", 0.02, "generalisation loss E / E_opt - 1", "Prechelt: GL, alpha = 2")
LATE_EVALS = Threshold("late_evals", 5, "evaluations", "their noise is known from five on")
LATE_FALL = Threshold("late_fall", 0.6, "of the training loss at that evaluation", "124 logs: no change up to 0.75")
CLEAR_FALL = Threshold(
    "clear_fall", 0.2, "fall of the training loss, of the start", "40 times what 10 idle trainings fell by"
)
AT_ONCE = Threshold("at_once", 5.0, "standard deviations of a row that all others are below the first", JUDGEMENT)
STILL_ROWS = Threshold("still_rows", 8, "training rows", "below it the bound is never under 6 %")
SHORT_RUN = Threshold("short_run", 30, "steps", "sound trainings of 8 to 20 steps moved no loss by 6 %")
CHANCE_NEAR = Threshold("chance_near", 0.02, "fraction of ln K", REAL_RUNS)
AT_LN_K_ROWS = Threshold("at_ln_k_rows", 0.8, "of the second half of the rows", "a judgement: guesses are alike")

FLAT = Threshold("flat", 0.015, "fraction: fall over the span, by Theil-Sen and by medians of thirds", "published runs")
FLAT_BOUND = Threshold("flat_bound", 0.04, "fraction: 95 % upper bound of that fall", "published runs")
STILL_FALLS = Threshold("still_falls", 0.007, "fraction, as flat: 95 % lower bound of the fall", "published runs")
FLAT_POINTS = Threshold("flat_points", 6, "points of the span", "fewer points give Theil-Sen no bound")
FITTED = Threshold("fitted", 0.02, "nats", "a judgement: below it little is left to fall")
IDLE_RATE = Threshold("idle_rate", 0.1, "fraction of the peak learning rate", "proposal of the project's design")

_FEW: Final = 9  # rows from which the trend alone decides
_FEW_P: Final = {4: 0.17, 5: 0.1, 6: 0.05, 7: 0.05, 8: 0.05}  # rows: largest p; with 4 rows, one pair may rise
_FEW_FALL: Final = {2: 0.6, 3: 0.4}  # rows: fall that counts even if their noise is not known to be low; else 0.2
_STEP_NOISE: Final = 0.2  # noise of a row of one step over the level: 10 to 20 % in the real logs at hand
_QUANTILE: Final = 2.326  # normal quantile, one-sided 1 %
_SPANS: Final = (0.9, 0.65, 0.5, 0.3)  # last fractions of the rows that are searched for a plateau


class Learning(NamedTuple):
    """Whether the losses show that the run learns, and the least fall that this log would have shown.

    `trend` is None, and `least` NaN, if fewer than two rows have a training loss or half of them are 0.
    """

    shown: bool
    trend: Trend | None
    least: float
    rows: int
    zeros: int = 0

    @property
    def says(self) -> str:
        """The reason why it stays undecided, with the size of the effect that would have been seen."""
        if self.trend is None and self.rows > 1:
            return f"the training loss is 0 in {self.zeros} of {self.rows} rows"
        if self.trend is None:
            return "fewer than two rows have a training loss"
        rows, fall = self.rows, self.trend.fall
        if rows < _FEW and fall > 0.0:  # the noise of so few rows is not measured, but taken from other logs
            return f"{rows} rows are too few to tell a fall of {fall:.0%} from noise"
        if fall > self.least:
            return f"{rows} rows; the last are {fall:.0%} lower than the first, but those between fall in no order"
        return f"{rows} rows; their noise would hide a fall of under {max(self.least, abs(fall)):.0%}"


@once
def learning(facts: RunFacts) -> Learning:
    """Whether held-out or training loss fell by more than chance explains."""
    values = facts.outline.points
    trend = facts.trend
    by_held_out = not too_little(facts) and (_held_out_fell(facts) or _task_improved(facts))
    if trend is None:
        zeros = sum(value == 0.0 for value in facts.loss.values)
        return Learning(by_held_out, None, math.nan, len(facts.loss.values), zeros)
    rows = len(facts.loss.values)
    least = trend.least if rows >= _FEW else _few_least(rows, _steps_per_row(facts), trend.noise)
    if rows < _FEW:
        halved = rows >= 3 and values[-1] < values[0] / 2
        ordered = trend.p <= _FEW_P[rows] if rows in _FEW_P else all(b < a for a, b in pairwise(values))
        if halved or (ordered and trend.fall >= least):
            return Learning(shown=True, trend=trend, least=least, rows=rows)
    alpha = ALPHA_MOVED if facts.moved else ALPHA
    even = without_saw(values)
    seen_even = trend if even is values else trend_of(even)
    # Either may show it: the teeth of a saw hide a fall, and pairs of rows are half as many
    in_order = any(each and each.p <= alpha.value and each.fall >= LEAST_FALL.value for each in (trend, seen_even))
    return Learning(by_held_out or in_order or (rows >= _FEW and _at_once(even, seen_even)), trend, least, rows)


def _at_once(values: Sequence[float], trend: Trend | None) -> bool:
    """Whether the series fell within its first row: all others are far below it, in whatever order."""
    if trend is None or trend.fall < CLEAR_FALL.value:
        return False
    return values[0] - max(values[1:]) >= AT_ONCE.value * trend.noise * trend.end


def _steps_per_row(facts: RunFacts) -> float:
    steps = facts.series.steps
    return max(1.0, (steps[-1] - steps[0]) / (len(steps) - 1))


def _few_least(rows: int, every: float, noise: float) -> float:
    """The least fall that counts for few rows: a fixed share, or less if their noise allows it."""
    # A row is the mean over its interval: its noise falls with the root of the steps in it
    usual = _STEP_NOISE / math.sqrt(every) * (0.5 if rows >= 6 else 1.0)  # 4 second differences measure it
    quantile = _QUANTILE * (1.3 if rows < 4 else 1.0)  # stricter: so few rows get no test of their order
    return min(_FEW_FALL.get(rows, 0.2), max(0.05, quantile * math.sqrt(2.0) * max(noise, usual)))


@once
def _held_out_fell(facts: RunFacts) -> bool:
    curve = facts.held_out_curve
    if curve is None or len(curve.losses) < LEAST_EVALS.value:
        return False
    first, last, best = curve.losses[0], curve.losses[-1], min(curve.losses)
    in_order = 1.0 - best / first >= HELD_STILL.value and mann_kendall(curve.losses) <= ALPHA.value
    far = first - best > max(LEAST_FALL.value * first, EVAL_NOISE.value * curve.noise)
    return (far or in_order) and last < first


def too_little(facts: RunFacts) -> bool:
    """Whether only held-out data could show that it learns, and are at the loss of a uniform guess."""
    curve = facts.held_out_curve
    return len(facts.loss.values) < 2 and curve is not None and curve.losses[-1] > GUESS.value


class Still(NamedTuple):
    """Held-out data that do not improve while the run trains.

    Attributes:
        what: the split and the value, as in "eval f1".
        how: `dead` if it never was better than nothing right; `first` if it never was better than at first; `lost` if
            it ends worse than it began; `late` if it has stood still since `step`, and the training loss has not.
        step: the step of the first evaluation, or that from which it stands still.
        first: its value there.
        best: its best value since.
        last: its last value.
        evaluations: how many there were, from `step` on.
    """

    what: str
    how: Literal["dead", "first", "lost", "late"]
    step: int | None
    first: float
    best: float
    last: float
    evaluations: int


@once
def held_still(facts: RunFacts) -> Still | None:
    """What does not improve held out, while the training goes on; None if nothing, or where that cannot be told.

    Of training that had learnt before the first evaluation, only `dead` and `late` can be told.
    """
    of, curve = account(facts), facts.held_out_curve
    worst = next((each for each in of.metrics if each.count > 1 and _at_its_worst(each)), None)
    if worst is not None:
        return _of_metric(worst, "dead")
    if not learning(facts).shown:
        return None
    late = None if curve is None else _late(facts, curve)
    if curve is not None and facts.loss.points and curve.losses[0] < LEARNT.value * facts.loss.points[0]:
        return late  # it had learnt before the first evaluation
    metric = task_metric(facts)
    if metric is not None and metric.best is not None and metric.count > 1:
        still = curve is not None and gain(metric, metric.first, metric.best) <= 0.0
        lost = gain(metric, metric.first, metric.last) < -metric.error
        if _solved(metric) or not (still or lost):
            return None
        return _of_metric(metric, "first" if still else "lost")
    return None if curve is None else _loss_or_tokens(of, curve) or late


def memorises(facts: RunFacts) -> bool:
    """Whether the training loss fell clearly, and held-out data never were better than at the first evaluation."""
    still, trend, curve = held_still(facts), learning(facts).trend, facts.held_out_curve
    if still is None or still.how != "first" or trend is None or trend.fall <= CLEAR_FALL.value:
        return False
    return curve is None or _never_better(curve)


def _of_metric(metric: MetricAccount, how: Literal["dead", "first", "lost"]) -> Still:
    best = metric.first if metric.best is None else metric.best
    return Still(f"{metric.split} {metric.name}", how, None, metric.first, best, metric.last, metric.count)


def _of_curve(curve: HeldOutCurve, how: Literal["first", "lost", "late"], at: int = 0) -> Still:
    losses = curve.losses[at:]
    return Still(f"{curve.split} loss", how, curve.steps[at], losses[0], min(losses), losses[-1], len(losses))


def _late(facts: RunFacts, curve: HeldOutCurve) -> Still | None:
    """The earliest evaluation that no later one is better than, where training went on to fall by half."""
    n = len(curve.losses)
    if n < LATE_EVALS.value or not facts.loss.points:
        return None
    # Of a curve that was steep at first the noise is known badly: what fell by as much has improved
    lowest = min(curve.losses)
    least = max(HELD_STILL.value * lowest, min(EVAL_NOISE.value * curve.noise, OVERFIT_RISE.value * lowest))
    at = next(i for i in range(n) if curve.losses[i] - min(curve.losses[i:]) <= least)
    if n - at < LATE_EVALS.value or _task_gains(facts, curve.steps[at]):
        return None
    then, now = (median(facts.losses_until(step, START)) for step in (curve.steps[at], curve.steps[-1]))
    return _of_curve(curve, "late", at) if 0.0 < now < LATE_FALL.value * then else None


def _never_better(curve: HeldOutCurve) -> bool:
    """Whether no loss is below the first one by more than noise."""
    first = curve.losses[0]
    # Of evaluations that jump, the noise is no reason to deny a loss that is clearly lower
    return first - min(curve.losses) <= max(HELD_STILL.value * first, min(curve.noise, OVERFIT_RISE.value * first))


def _loss_or_tokens(of: RunAccount, curve: HeldOutCurve) -> Still | None:
    """Which of both does not improve, where no task metric decides: the held-out loss, or the tokens that are right."""
    if len(curve.losses) >= LEAST_EVALS.value and _never_better(curve):
        return _of_curve(curve, "first")
    if curve.losses[-1] > curve.losses[0] + curve.noise:
        return _of_curve(curve, "lost")
    tokens = next((each for each in of.metrics if is_token_accuracy(each.name)), None)
    if tokens is None or tokens.count < LEAST_EVALS.value or tokens.best != tokens.first:
        return None
    return _of_metric(tokens, "first")


def _at_its_worst(metric: MetricAccount) -> bool:
    """Whether a metric never was better than nothing right: 0 of what should rise, or an error rate of nearly 1."""
    if metric.best is None:
        return False
    if metric.higher_is_better:
        return metric.best <= 0.0 and metric.first <= 0.0 <= metric.last
    rate = re.search(r"(^|_)[wcmtp]er(_|$)", metric.name.lower()) is not None
    per_cent = metric.best > 2.0  # noqa: PLR2004  # no fraction
    return rate and metric.best >= (100.0 if per_cent else 1.0) * ALL_WRONG.value


def _solved(metric: MetricAccount) -> bool:
    """Whether the best value leaves nothing to improve: of 1, or of 100."""
    best = metric.best or 0.0
    left = 1.0 - ALL_WRONG.value
    if metric.higher_is_better:
        return 1.0 - left <= best <= 1.0 or 100.0 * (1.0 - left) <= best <= 100.0  # noqa: PLR2004  # per cent
    return best <= left


def _task_improved(facts: RunFacts) -> bool:
    """Whether the decisive task metric improved from the first evaluation by more than chance explains."""
    metric = task_metric(facts)
    if metric is None or metric.best is None:
        return False
    return gain(metric, metric.first, metric.best) > metric.error


@once
def not_finite(facts: RunFacts) -> bool:
    """Whether a loss is not finite, or two successive gradient norms outside skipped steps: shapes mean little then."""
    if len(facts.loss.values) < len(facts.series.losses):
        return True
    bad = [] if skipped_rows(facts) else bad_norms(facts)
    return any(b - a == 1 for a, b in pairwise(bad))


@once
def no_learning(facts: RunFacts) -> Observation | None:
    """The finding that nothing is learnt, by held-out loss, learning rate or bounds of the fall; None if not shown."""
    result = learning(facts)
    trend = result.trend
    surely = trend is not None and trend.p <= MOVED.value and trend.fall > LEAST_FALL.value
    if trend is None or facts.peak_rate <= 0.0 or _margin_grows(facts) or divergence(facts) is not None:
        return None
    # What was learnt and lost again is no standstill
    stays = None if fell_before(facts) else _stays(facts, result, trend, surely=surely)
    return stays or _comes_to_a_guess(facts, trend)


def _stays(facts: RunFacts, result: Learning, trend: Trend, *, surely: bool) -> Observation | None:
    if result.shown and (surely or not facts.evaluated or _held_out_fell(facts)):
        return None
    curve = facts.held_out_curve
    if curve is not None and not surely and (still := _held_out_still(facts, curve, trend)) is not None:
        return still
    return None if result.shown else _bounded(facts, trend)


def _comes_to_a_guess(facts: RunFacts, trend: Trend) -> Observation | None:
    """The finding if the second half of the rows is the loss of equal odds, whatever it fell from."""
    points, curve = facts.loss.values[len(facts.loss.values) // 2 :], facts.held_out_curve
    language = account(facts).loss == "language_model" and facts.objective.kind not in {"preference", "reward"}
    known = _classes(facts)
    classes = known or (None if language else 2)
    if len(facts.loss.values) < MANY_ROWS.value or classes is None:
        return None
    level, middle = math.log(classes), median(points)
    alike = sum(abs(loss - level) <= CHANCE_NEAR.value / 2.0 * level for loss in points)
    lower = curve is not None and curve.losses[-1] < (1.0 - CHANCE_NEAR.value / 2.0) * level
    if lower or alike < AT_LN_K_ROWS.value * len(points) or abs(middle - level) > CHANCE_NEAR.value / 4.0 * level:
        return None
    guess = "a random guess" if known else "a random guess, if it chooses"
    return Observation(
        f"The loss comes to ln {classes} = {level:.4f}, that of {guess} among {classes}: {middle:.4g} in the second "
        "half of the rows (median).",
        {"first": trend.start, "last": trend.end, "drop": trend.fall, "classes": classes, "known": known is not None},
        severity="info" if known is None or (facts.run.last_step or 0) < SHORT_RUN.value else None,
        evidence=seen(f"{alike} of {len(points)} rows within {CHANCE_NEAR.value / 2.0:.0%} of it"),
    )


def _held_out_still(facts: RunFacts, curve: HeldOutCurve, trend: Trend) -> Observation | None:
    first, best, last = curve.losses[0], min(curve.losses), curve.losses[-1]
    if len(curve.losses) < 2 or 1.0 - best / first >= HELD_STILL.value:
        return None
    if last / first - 1.0 > OVERFIT_RISE.value or trend.fall > CLEAR_FALL.value:
        return None  # it learns, and overfits from the start
    return _does_not_fall(
        facts,
        trend,
        f"The loss does not fall: {curve.split} loss {first:.4g} at first and {best:.4g} at best of "
        f"{len(curve.losses)} evaluations",
        seen(f"{1.0 - best / first:.2%} lower at best"),
    )


def _bounded(facts: RunFacts, trend: Trend) -> Observation | None:
    """The finding if the fall is surely small, by the slope over all rows and by early and late medians."""
    points = facts.outline.points
    n = len(points)
    if len(facts.loss.values) < STILL_ROWS.value or trend.start <= 0.0 or facts.moved:
        return None
    low = theil_sen(points).low
    head = points[: max(3, n // 5)]
    if median(head) <= 0.0 or trend.fall >= STILL_BOUND.value:  # it may have fallen in its first rows
        return None
    fall = 1.0 - median(points[n // 2 :]) / median(head)
    # 0.0 - low and not -low, which is -0.0 of a flat loss; 1.645: one-sided 95 %
    most = max(0.0 - low * (n - 1) / trend.start, fall + 1.645 * median_error(trend.noise, len(head), n / 2))
    if most >= STILL_BOUND.value:
        return None
    says = (
        f"The loss does not fall: {median(head):.4g} in the first fifth of the rows, {median(points[n // 2 :]):.4g} in "
        "the second half (medians)"
    )
    return _does_not_fall(facts, trend, says, seen(f"the true fall is {max(0.0, most):.1%} at most"), most=most)


def _does_not_fall(
    facts: RunFacts, trend: Trend, says: str, evidence: tuple[Evidence, ...], *, most: float | None = None
) -> Observation:
    chance = _chance_level(facts)
    hint = f" It sits at {chance}: the loss of a random guess." if chance else ""
    norms = facts.norm.points
    if norms and (norm := median(norms)) > 0.0:
        hint += f" Gradients arrive (norm {norm:.2g}), and the loss stays."
    return Observation(
        f"{says}.{hint}",
        {"first": trend.start, "last": trend.end, "drop": trend.fall, "most": most},
        severity="info" if (facts.run.last_step or 0) < SHORT_RUN.value else None,
        confidence=0.9 if chance else None,
        evidence=evidence,
    )


def _margin_grows(facts: RunFacts) -> bool:
    """Whether chosen and rejected answers are separated in the second half. The loss alone may hide that."""
    apart = separation(facts) if facts.objective.kind == "preference" else None
    return apart is not None and apart.surely


def _classes(facts: RunFacts) -> int | None:
    """How many answers there are to choose from; None if that is not known."""
    classes = 2 if facts.objective.kind in {"preference", "reward"} else facts.num_labels
    return classes if classes and classes > 1 else None


def _chance_level(facts: RunFacts) -> str | None:
    """The loss of equal odds (ln K) as text, if the loss stays at it from start to end, else None."""
    classes = _classes(facts)
    if classes is None:
        return None
    level, points = math.log(classes), facts.outline.points
    first, last = median(points[: max(3, len(points) // 5)]), median(points[len(points) // 2 :])
    near = max(abs(first - level), abs(last - level)) <= CHANCE_NEAR.value * level
    return f"ln {classes} = {level:.4f}" if near else None


@LogRule(
    "NOL106",
    severity="warning",
    confidence=0.75,
    needs=(not_under("rl"), positive_loss, some_margin),
    signs=(
        Sign("no_learning", unless=frozenset({"classes"}), values=lambda _: {"not_learnt": "the loss does not fall"}),
    ),
    place="shape",
    phrase=lambda v: (
        f"the loss comes to ln {v['classes']}, {'a random guess' if v['known'] else 'as by a guess among so many'}"
        if "classes" in v
        else "the loss does not fall"
    ),
    as_info=True,
    covers=frozenset({"learning"}),
    cause="no_learning",
    thresholds=(
        HELD_STILL,
        OVERFIT_RISE,
        CLEAR_FALL,
        STILL_ROWS,
        STILL_BOUND,
        SHORT_RUN,
        MOVED,
        AT_LN_K_ROWS,
        MANY_ROWS,
        CHANCE_NEAR,
        ALPHA,
        ALPHA_MOVED,
        LEAST_FALL,
        LEAST_EVALS,
        EVAL_NOISE,
        GUESS,
    ),
    evidence=(NEMOTRON, KARPATHY, TRIAL),
)
def _no_learning(facts: RunFacts) -> Observation | None:
    """no learning

    from first to best, the held-out loss falls by under {held_still}, it does not rise by over {overfit_rise}, and
    the training loss does not fall significantly, nor by over {clear_fall}; or, from {still_rows} rows on, the fall
    from start to end is under {still_bound}, and so are the 95 % upper bounds of the Theil-Sen slope over all rows
    and of the fall from the first fifth to the second half, and the gradient norm has no trend; and not if a fifth
    of the rows was once further below the start; or {at_ln_k_rows} of the second half of {many_rows} rows or more
    are within half of {chance_near} of ln K, K being 2 where it is not known (then info), but of language models; info
    in a run of under {short_run} steps, few of which need show what is learnt. Without a training loss, held-out
    losses over {guess} nats show no learning

    Why: The adapter may be frozen, detached, on few layers, or the learning rate far too low.
    Scope: positive losses after warmup; preference training whose margin grows counts as learning
    Verify: Audit the adapter: B = 0 means untrained. Overfit 32 examples on purpose.
    Seen: https://github.com/huggingface/peft/issues/3554 -- the loss stayed at ln 2 for all of DPO
    """
    if facts.rate.values and facts.peak_rate <= 0.0:
        raise Unknown("the learning rate is 0 (see LRS109)")
    observation = no_learning(facts)
    if observation is not None and facts.warming_up:
        raise Unknown("the learning rate had not reached its peak yet")
    result = learning(facts)
    if observation is None and not result.shown and not _margin_grows(facts) and divergence(facts) is None:
        raise Unknown(f"cannot tell: {result.says}")
    return observation


@LogRule(
    "PLT105",
    severity="info",
    reading=True,
    confidence=0.5,
    needs=(not_under("rl"), positive_loss, some_margin),
    signs=("plateau",),
    place="shape",
    phrase=lambda v: f"the loss {v['how']} from step {v['from_step']}",
    as_info=True,
    thresholds=(FLAT, FLAT_BOUND, STILL_FALLS, FLAT_POINTS, FITTED, IDLE_RATE),
    evidence=(TRIAL,),
)
def _plateau(facts: RunFacts) -> Observation | None:
    """plateau

    over the last 90, 65, 50 or 30 % of the rows, the fall by Theil-Sen and by medians is at most {flat} of the
    loss, its 95 % bounds at most {flat_bound} and {still_falls}, and held-out data do not gain, while the learning
    rate is over {idle_rate} of its peak and the loss over {fitted}

    Why: Steps on a plateau cost as much as others; flat is also what a finished run looks like.
    Scope: positive loss, at a learning rate high enough to learn; not in mid-run or warmup
    Verify: Held-out loss over the same steps.
    Source: torch ReduceLROnPlateau -- no relative improvement over 1e-4 in 10 checks
    Source: Sen 1968 -- an interval of the median slope from the order of the slopes of pairs
    """
    if facts.warming_up:
        raise Unknown("the learning rate had not reached its peak yet")
    if facts.in_mid_run:
        raise Unknown(f"the log ends at step {facts.run.last_step} of {facts.max_steps}")
    if not_finite(facts) or divergence(facts) is not None or no_learning(facts) is not None:
        return None
    n = len(facts.loss.points)
    reasons: list[str] = []
    # The longest first, so that a plateau is said from where it began
    for share in _SPANS:
        start = n - math.ceil(share * n)
        if not _idle(facts, facts.loss.row(start)) and (flat := _flat_from(facts, start, share, reasons)):
            return flat
    if reasons:
        raise Unknown(reasons[-1])
    return None


def _flat_from(facts: RunFacts, start: int, share: float, reasons: list[str]) -> Observation | None:
    """The finding if the fall over the last span is surely small. If noise prevents a verdict, append the reason."""
    # Half of the points has a quarter of the pairs, and four spans are looked at
    span = thin(facts.loss.points[start:], FEW_POINTS // 2)
    level = median(span)
    if level <= FITTED.value:
        return None
    if len(span) < FLAT_POINTS.value:
        reasons.append(
            f"{len(span)} points in the last {share:.0%} of the rows are too few for a confidence bound on the slope"
        )
        return None
    slope, low, high = theil_sen(span)
    fall, most, least = (0.0 - each * (len(span) - 1) / level for each in (slope, low, high))  # never -0.0
    third = len(span) // 3
    early, late = median(span[:third]), median(span[-third:])
    if most > FLAT_BOUND.value:
        if least < FLAT.value:
            reasons.append(f"too noisy: a fall of {most:.1%} over the last {share:.0%} of the rows cannot be ruled out")
        return None
    falls = least > STILL_FALLS.value or max(fall * level, early - late) > FLAT.value * level
    if falls:
        return None
    step = facts.step(facts.loss.row(start))
    if _gains_held_out(facts, step):
        return None  # the run still learns
    verb = "hardly falls" if late < early else "no longer falls"
    return Observation(
        f"The loss {verb} from step {step} on: {early:.4g} in the first third of the rows since, {late:.4g} "
        "in the last (medians).",
        {"drop": fall, "most": most, "level": level, "from_step": step, "how": verb},
        evidence=seen(f"Theil-Sen slope over {len(span)} points: it fell {fall:.1%}, {most:.1%} at most"),
    )


def _gains_held_out(facts: RunFacts, step: int) -> bool:
    curve = facts.held_out_curve
    return (curve is not None and curve.still_falls(step)) or _task_gains(facts, step)


def _task_gains(facts: RunFacts, step: int) -> bool:
    """Whether the decisive task metric was at its best after a step, and better than before by more than chance."""
    metric = decisive_metric(account(facts))
    if metric is None or metric.best is None or metric.best_step is None or metric.best_step <= step:
        return False
    before = [
        value
        for event in facts.evaluations
        if event.split == metric.split and event.step is not None and event.step <= step
        for name, value in values_of(event.metrics).items()
        if name == metric.name
    ]
    return gain(metric, before[-1] if before else metric.first, metric.best) > metric.error


def _idle(facts: RunFacts, row: int) -> bool:
    """Whether the median learning rate from a row on is too low to expect progress."""
    if account(facts).schedule.restarts:
        return False  # low rates are of no one schedule's end
    rates = [rate for rate in thin(facts.series.rates[row:], FEW_POINTS // 2) if math.isfinite(rate)]
    return bool(rates) and median(rates) <= IDLE_RATE.value * facts.peak_rate


RULES: Final[tuple[LogRule, ...]] = (_no_learning, _plateau)
