"""Reinforcement learning: what rewards, entropy, KL, clipping and the lengths of the completions say of a run.

RWD122, RWD221, RWN139 and RWS143 judge the reward, ZVR123 its groups, ENT135 the entropy, KLD124 and KLZ138 the
distance from the reference, CLF137 the size of the updates, CLP125 and LEN136 the lengths, CRT219 the critic, RAT141
the learning rate. `told` says in the story whether the reward rises. Under RL a loss near 0 is normal and says nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from gradience.rules import TRIAL, Observation, Premise, Sign, Threshold, Unknown, cite
from gradience.rules.log.account import account
from gradience.rules.log.divergence import divergence
from gradience.rules.log.facts import (
    JUDGEMENT,
    START,
    Logged,
    LogRule,
    Place,
    RunFacts,
    Topic,
    Values,
    find,
    last_part,
    logged,
    once,
    seen,
    shown,
    under,
)
from gradience.rules.log.preference import ALPHA, FEW_ROWS, MANY_ROWS
from gradience.rules.log.statistics import levels_error, mann_kendall, mean_error, median, median_error, noise
from gradience.schema import number_in
from gradience.schema.reports import StoryPart
from gradience.telemetry.signals import (
    ANSWER_KL,
    CLIPPED,
    COMPONENT,
    CUT_OFF as CUT_NAMES,
    ENDED,
    ENDED_LENGTH,
    ENTROPY,
    EQUAL_GROUPS,
    EXPLAINED,
    HIGHEST_REWARD,
    LENGTH,
    LOWEST_REWARD,
    MIXED_GROUPS,
    REWARD,
    REWARD_STD,
    TOKEN_KL,
)

RL_RUNS: Final = "tuning seeds of the trainings of benchmarks/rl_runs.py"

REWARD_SHOWN = Threshold("reward_shown", 3.0, "standard errors of the difference", "3 of 1000 flat columns")
REWARD_ERRORS = Threshold(
    "reward_errors", 4.0, "standard errors of the difference", "105 RL trainings: no change from 1.4 on"
)
SOME_ROWS = Threshold("some_rows", 10, "rows that logged it", "five levels of two rows")
SURE_ERRORS = Threshold("sure_errors", 8.0, "standard errors", "a judgement: few rows know their noise badly")
REWARD_LOST = Threshold("reward_lost", 0.5, "fraction of the gain that was lost again", "definition: the greater part")
REWARD_FLAT = Threshold(
    "reward_flat",
    0.1,
    "of the level: the change and two of its standard errors",
    "105 RL trainings: no change from 0.09 to 0.11",
)

RESCALED = Threshold("rescaled", 2.0, "times", "116 RL trainings: no change from 1.6 on")
SAME_FACTOR = Threshold(
    "same_factor", 1.5, "times, one factor over the other", "116 RL trainings: none speaks up to 1.5"
)

HELD_OUT_ROWS = Threshold("held_out_rows", 6, "evaluations", "a judgement: three at the end, three before")

RATE_LOW = Threshold("rate_low", 2e-6, "peak learning rate of LoRA", "half the lowest published one; see LR004")

NULL_ROWS = Threshold(
    "null_rows", 0.1, "fraction of the rows without a reward", "105 RL trainings: no change from 0.067 to 0.2"
)

ZERO_GROUPS = Threshold("zero_groups", 0.5, "fraction of the groups", "arithmetic: half of the answers teach nothing")
ZERO_GROUPS_MOST = Threshold(
    "zero_groups_most", 0.9, "fraction of the groups", "105 RL trainings: no change from 0.72 on"
)

COLLAPSED = Threshold("collapsed", 0.1, "entropy at the end over that of the first rows", RL_RUNS)
NARROWED = Threshold(
    "narrowed", 0.25, "entropy at the end over that of the first rows", "105 RL trainings: no change from 0.17 to 0.37"
)
SPREAD_OUT = Threshold(
    "spread_out", 3.0, "entropy at the end over that of the first rows", "105 RL trainings: no change from 1.5 on"
)
RANDOM = Threshold("random", 2.0, "nats a token", "a judgement: some seven equally likely tokens")

KL_LATE = Threshold("kl_late", 1.0, "nats a token, median of the last third", JUDGEMENT)
KL_ANSWER = Threshold(
    "kl_answer", 100.0, "nats a completion, median of the last third", "Gao et al. 2022, figure 1: past the best reward"
)
KL_ROW = Threshold("kl_row", 10.0, "nats a token, one row", JUDGEMENT)
KL_START = Threshold("kl_start", 0.2, "nats a token, first rows", "before the first step it is 0: both are one model")
KL_START_ANSWER = Threshold("kl_start_answer", 10.0, "nats a completion, first rows", JUDGEMENT)
KL_STAYS = Threshold("kl_stays", 0.2, "of the first rows' KL, late on", "a judgement: bursts of the first rows pass")
KL_BELOW = Threshold("kl_below", -0.05, "nats a token, median of the last third", "a judgement: noise is a tenth")
KL_BELOW_ANSWER = Threshold("kl_below_answer", -2.0, "nats a completion, the same", JUDGEMENT)
KL_NONE = Threshold("kl_none", 1e-6, "nats a token, in every row", "rounding in float32")
KL_ROWS = Threshold("kl_rows", 5, "rows with kl", "the first steps of a warm-up hardly move")

CLIPPED_MUCH = Threshold("clipped_much", 0.3, "fraction of the tokens, mean of a third of the rows", RL_RUNS)

CUT_OFF = Threshold("cut_off", 0.5, "fraction of the completions", "105 RL trainings: no change from 0.5 to 0.75")

EXPLAINS_NOTHING = Threshold("explains_nothing", 0.0, "explained variance", "definition: that of a constant")

RATE_OF_WEIGHTS = Threshold(
    "rate_of_weights", 0.05, "learning rate", "weights start at a deviation of 0.02 (initializer_range), so twice that"
)

LONGER = Threshold(
    "longer", 2.0, "length at the end over that of the first rows", "105 RL trainings: healthy ones up to 2.2"
)
LONGER_CUT = Threshold("longer_cut", 1.5, "the same, if most completions are cut off at the end", RL_RUNS)
MUCH_LONGER = Threshold(
    "much_longer", 4.0, "the same, while the reward rises", "105 RL trainings: no change from 2.7 on"
)
SHORTER = Threshold(
    "shorter", 0.5, "length at the end over that of the first rows", "105 RL trainings: no change from 0.4 to 1"
)

_THIRD: Final = 3
_SCALE_ROWS: Final = 5  # rows on both sides of a change of scale
_PARTS: Final = 5
_NEWEST: Final = 3  # evaluations that give the level at the end
_OF_TRL: Final = frozenset({"frac_reward_zero_std", "completions/mean_length"})
_HELD_OUT: Final = re.compile(r"(^|/)(reward|acc|score)($|/mean)")  # TRL's eval_reward, verl's DATA/reward/mean@8
_RL: Final = under("rl")


@dataclass(frozen=True, kw_only=True)
class _RewardRule(LogRule):
    """A rule on reinforcement learning."""

    place: Place = "objective"
    meant_for: Premise[RunFacts] | None = _RL


_GAO: Final = cite(
    "Gao et al., Scaling laws for reward model overoptimization, arXiv 2210.10760",
    "the gold reward peaks and falls as the KL from the initial policy grows",
)
_TRL_KL: Final = cite(
    "TRL 1.16, grpo_trainer.py (read)", "kl: mean over the tokens against the reference; only with beta > 0"
)


class RewardChange(NamedTuple):
    """How the reward went from the first fifth of the rows to the last.

    Attributes:
        how: `flat` if a change of a tenth can be excluded; `unknown` if noise would hide one.
        first: median of the first fifth; of the first two rows if there are under 20.
        last: median of the last fifth; of the last two rows if there are under 20.
        error: standard error of the difference.
        rows: number of rows in each of both medians.
    """

    how: Literal["rises", "falls", "flat", "unknown"]
    first: float
    last: float
    error: float
    rows: int


def change_of(values: Sequence[float]) -> RewardChange:
    """How a column changes; for at least one value."""
    n = len(values)
    rows = min(n, max(2, n // _PARTS))
    first, last = median(values[:rows]), median(values[-rows:])
    error = levels_error(values, rows)
    rises = _in_order(values, first, last, error)
    falls = _in_order([-value for value in values], -first, -last, error)
    if rises or falls:
        return RewardChange("rises" if rises else "falls", first, last, error, rows)
    if n < MANY_ROWS.value:
        flat = min(values) == max(values)
    else:
        flat = abs(last - first) + 2.0 * error <= REWARD_FLAT.value * max(abs(first), abs(last))
    return RewardChange("flat" if flat else "unknown", first, last, error, rows)


def _in_order(values: Sequence[float], first: float, last: float, error: float) -> bool:
    """Whether a column rises by more than chance explains."""
    if len(values) >= MANY_ROWS.value:
        return last > first and last - first > REWARD_SHOWN.value * error
    return last > first and mann_kendall([-value for value in values]) <= ALPHA.value


@once
def _equal_groups(facts: RunFacts) -> tuple[str, float, int] | None:
    """The share of the groups with equal rewards in the last third, with its column and first step; None if unknown.

    Trainers that do not log it may show that all rewards of a batch are equal, which they are in all its groups then.
    """
    column = find(facts, EQUAL_GROUPS, FEW_ROWS.value)
    if column is None and (mixed := find(facts, MIXED_GROUPS, FEW_ROWS.value)) is not None:
        column = Logged(mixed.name, mixed.steps, [1.0 - value for value in mixed.values])
    if column is not None:
        late = last_part(column.values, _THIRD, 3)
        return column.name, mean_error(late)[0], column.steps[-len(late)]
    spread = find(facts, REWARD_STD, FEW_ROWS.value)
    if spread is None:
        high, low = find(facts, HIGHEST_REWARD, FEW_ROWS.value), find(facts, LOWEST_REWARD, FEW_ROWS.value)
        if high is None or low is None or high.steps != low.steps:
            return None
        spread = Logged(high.name, high.steps, [a - b for a, b in zip(high.values, low.values, strict=True)])
    late = last_part(spread.values, _THIRD, 3)
    return spread.name, sum(value == 0.0 for value in late) / len(late), spread.steps[-len(late)]


def _teaches_nothing(facts: RunFacts) -> bool:
    equal = _equal_groups(facts)
    return equal is not None and equal[1] >= ZERO_GROUPS_MOST.value


class Rescaled(NamedTuple):
    """A change of scale: its step, and the factor of the reward's deviation."""

    step: int
    factor: float


@once
def _rescaled(facts: RunFacts) -> Rescaled | None:
    """Where the reward and its deviation are multiplied at once by about the same factor; the largest such place."""
    reward, spread = find(facts, REWARD), find(facts, REWARD_STD)
    if reward is None or spread is None or list(reward.steps) != list(spread.steps):
        return None
    found = Rescaled(0, 1.0)
    for row in range(_SCALE_ROWS, len(spread.values) - _SCALE_ROWS + 1):
        before, after = slice(row - _SCALE_ROWS, row), slice(row, row + _SCALE_ROWS)
        low, high = spread.values[before], spread.values[after]
        of_low, of_high = median(reward.values[before]), median(reward.values[after])
        if not (min(low) > 0.0 < min(high) and of_low * of_high > 0.0):  # a factor leaves the sign as it was
            continue
        factor, apart = median(high) / median(low), min(high) > max(low) or min(low) > max(high)
        same = abs(math.log(of_high / of_low / factor)) <= math.log(SAME_FACTOR.value)
        if same and apart and abs(math.log(factor)) > abs(math.log(found.factor)):
            found = Rescaled(reward.steps[row], factor)
    return found if max(found.factor, 1.0 / found.factor) >= RESCALED.value else None


@_RewardRule(
    "RWS143",
    severity="warning",
    confidence=0.8,
    phrase=lambda v: f"the reward changes its scale at step {v['step']}",
    look=True,
    covers=frozenset({"reward"}),
    thresholds=(RESCALED, SAME_FACTOR),
)
def _scale(facts: RunFacts) -> Observation | None:
    """the reward changes its scale

    from one row to the next the reward and its deviation are both {rescaled} times as large or as small, by factors
    that agree to {same_factor} times; five deviations on one side are all above five on the other

    Why: The rows on both sides are not comparable: what looks like a rise or a fall is another unit, as after a change
        of reward_weights, of a function or of its normalisation.
    Scope: RL that logs the reward and its deviation
    Action: Compare rows on one side of that step only, and what was changed there: reward_weights, a function.
    Verify: The functions of the reward before and after that step.
    Source: arithmetic -- a factor on every reward multiplies their mean and their standard deviation alike; of shares
        of 0 and 1, which rise from p to q, the deviation grows by less than the mean
    """
    if find(facts, REWARD) is None or find(facts, REWARD_STD) is None:
        raise Unknown("the reward and its deviation were not both logged")
    change = _rescaled(facts)
    if change is None:
        return None
    how = f"{change.factor:.2g} times as large" if change.factor > 1.0 else f"{1 / change.factor:.2g} times as small"
    return Observation(
        f"At step {change.step} the reward and its deviation become {how} at once, as by another scale. Rows "
        "before and after it are not comparable.",
        {"step": change.step, "factor": change.factor},
        evidence=seen(f"{_SCALE_ROWS} rows on both sides"),
    )


@_RewardRule(
    "RWD122",
    severity="warning",
    confidence=0.7,
    phrase=lambda v: f"the reward fell from {shown(v, 'best')} around step {v['best_step']}" if "best" in v else None,
    signs=(Sign("reward_fell", frozenset({"best"})),),  # one that only fails to rise has no best step
    covers=frozenset({"reward"}),
    thresholds=(
        *(FEW_ROWS, MANY_ROWS, ALPHA, REWARD_SHOWN, REWARD_ERRORS),
        *(REWARD_LOST, REWARD_FLAT, RATE_LOW, SOME_ROWS, SURE_ERRORS),
    ),
    evidence=(TRIAL,),
)
def _reward(facts: RunFacts) -> Observation | None:
    """reward falls

    the last fifth of the rows is below the best fifth by over {reward_errors} standard errors and {reward_flat} of
    the best level, and over {reward_lost} of the gain is lost; {reward_shown} errors are enough if {reward_lost} of the
    best level was lost on the way, by {sure_errors}; under {many_rows} rows: a fall of over {reward_flat}, with p <=
    {alpha} by Mann-Kendall, or from {some_rows} rows on as in many, by {sure_errors} errors. A reward whose change with
    2 standard errors is at most {reward_flat} of its level is info; a warning where LoRA was trained at {rate_low} or
    less to the end, and no rise shows

    Why: The reward is what is optimised: under RL a loss near 0 is normal and says nothing.
    Scope: RL that logs its reward; info where it only fails to rise
    Action: Go back to the checkpoint of the best reward, with a lower learning rate or a higher beta.
    Verify: Read completions of both ends; evaluate on held-out prompts.
    Seen: https://github.com/huggingface/open-r1/issues/257 -- the reward rises, is 0 at the end, and the KL is
        large
    Source: definition -- the policy gradient's loss is 0 on average where advantages are centred
    """
    column = logged(facts, REWARD, FEW_ROWS.value)
    if scaled := _rescaled(facts):
        raise Unknown(f"the reward changes its scale at step {scaled.step} (RWS143)")
    values, change = column.values, change_of(column.values)
    if len(values) < MANY_ROWS.value:
        some = len(values) >= SOME_ROWS.value
        fell = _fell_from_best(column, change, SURE_ERRORS.value) if some else None
        return fell or (
            _no_rise(facts, column, change) if some and _rate_too_low(facts) else _few_rewards(column, change)
        )
    if (fell := _fell_from_best(column, change, REWARD_ERRORS.value)) is not None:
        return fell
    return _no_rise(facts, column, change)


def _no_rise(facts: RunFacts, column: Logged, change: RewardChange) -> Observation | None:
    """The finding if the reward does not rise, or shows no rise at a rate at which LoRA learns nothing."""
    width = len(column.values) // _PARTS
    too_low = _rate_too_low(facts)
    if change.how == "unknown" and not too_low:
        raise Unknown(f"too noisy: a reward change of {REWARD_SHOWN.value * change.error:.2g} would not show")
    if change.how not in {"flat", "unknown"} or _teaches_nothing(facts):  # ZVR123 says why it does not rise
        return None
    rate = f" at a learning rate of {facts.peak_rate:.2g}, far below any published for LoRA" if too_low else ""
    return Observation(
        f"The reward {'does not rise' if change.how == 'flat' else 'shows no rise'}{rate}: {change.first:.4g} in the "
        f"first fifth of the rows, {change.last:.4g} in the last (+/- {change.error:.2g}).",
        {"first": change.first, "last": change.last, "error": change.error},
        severity="warning" if too_low else "info",
        confidence=0.5,
        evidence=seen(f"medians of {width} rows of {column.name} each"),
    )


def _rate_too_low(facts: RunFacts) -> bool:
    """Whether LoRA was trained to the end at a rate at which it hardly moves."""
    return facts.config.lora.r is not None and facts.peak_rate <= RATE_LOW.value and facts.status == "ok"


def _fell_from_best(column: Logged, change: RewardChange, errors: float) -> Observation | None:
    values, width = column.values, len(column.values) // _PARTS
    starts = range(0, len(values) - width + 1, max(1, width // 2))
    levels = {start: median(values[start : start + width]) for start in starts}
    at = max(levels, key=levels.__getitem__)
    best, step = levels[at], column.steps[at + width // 2]
    low = min(levels[start] for start in starts if start >= at)
    deep = best - low > max(SURE_ERRORS.value * change.error, REWARD_LOST.value * abs(best))  # and came back in part
    least = (REWARD_SHOWN.value if deep else errors) * change.error
    fallen = best - change.last > max(least, REWARD_FLAT.value * abs(best))
    if not fallen or best - change.last <= REWARD_LOST.value * (best - change.first):
        return None
    return Observation(
        f"The reward fell: {best:.4g} around step {step}, {change.last:.4g} in the last fifth of the rows "
        f"(+/- {change.error:.2g}).",
        {"first": change.first, "best": best, "best_step": step, "last": change.last, "error": change.error},
        evidence=seen(f"medians of {width} rows of {column.name} each"),
    )


def _few_rewards(column: Logged, change: RewardChange) -> Observation | None:
    """Judge few rows by their order: whether chance explains as many falling pairs."""
    values, first = column.values, change.first
    if change.how == "falls" and first - change.last > REWARD_FLAT.value * abs(first):
        return Observation(
            f"The reward fell: {first:.4g} in the first rows, {change.last:.4g} in the last (p = "
            f"{mann_kendall(values):.2g} for {len(values)} rows).",
            {"first": first, "best": first, "best_step": column.steps[0], "last": change.last},
            evidence=seen(f"{len(values)} rows of {column.name}, from {values[0]:.4g} to {values[-1]:.4g}"),
        )
    if change.how != "unknown":
        return None
    raise Unknown(f"{len(values)} rows: a reward change of {2.0 * change.error:.2g} would not show")


@_RewardRule(
    "RWN139",
    severity="warning",
    confidence=0.9,
    place="broken",
    phrase=lambda v: f"no {v.get('name', 'reward')} in {v['missing']} of {v['rows']} rows",
    thresholds=(NULL_ROWS, FEW_ROWS),
)
def _no_reward(facts: RunFacts) -> Observation | None:
    """rewards are not numbers

    in at least {null_rows} of the rows that logged the completions there is no finite reward, or none of its only
    function, or of one of several to the end, from {few_rows} such rows on; info if it is fewer of them, or one of
    several functions now and then; an error if there is none at all

    Why: A completion without a reward has an advantage of 0: it teaches nothing.
    Scope: trainers that log a reward with every row, as TRL does
    Action: Return a number for every completion, and see which ones have none.
    Verify: Call the reward function on one completion and look at what it returns.
    Source: trl/trainer/grpo_trainer.py:GRPOTrainer._calculate_rewards@1.16.0 -- a reward that is None becomes NaN
    """
    # TRL logs null for a metric that is NaN, so a missing reward shows only beside other columns
    beside = find(facts, (*EQUAL_GROUPS, *LENGTH, *ENTROPY, *TOKEN_KL), FEW_ROWS.value)
    if beside is None:
        raise Unknown("nothing that is logged beside a reward was logged")
    column = find(facts, REWARD)
    rows, of = len(column.values) if column else 0, len(beside.values)
    if column is None and not (facts.logged & {*_OF_TRL, *REWARD}):
        raise Unknown("the trainer may log no reward")
    missing = of - rows
    if missing <= 0:
        return _no_number(facts, beside)
    which = f"all {of} logged rows" if not rows else f"{missing} of {of} logged rows"
    return Observation(
        f"In {which} the reward is not a number: no completion there got one from the reward function.",
        {"missing": missing, "rows": of},
        severity="error" if not rows else "info" if missing < NULL_ROWS.value * of else None,
        evidence=seen(f"{of} rows with {beside.name}, {rows} with a reward"),
    )


def _no_number(facts: RunFacts, beside: Logged) -> Observation | None:
    """The finding if one function of the reward is not a number where the reward is: TRL adds up what is."""
    of = len(beside.values)
    means = {name: facts.signals.get(name) for name in sorted(facts.logged) if COMPONENT.fullmatch(name)}
    rows = {name: len(each.values) if each else 0 for name, each in means.items()}
    name = min(rows, key=rows.__getitem__, default="")
    missing = of - rows.get(name, of)
    if missing <= 0:
        return None
    each = means[name] if rows[name] else None
    last = each.steps[rows[name] - 1] if each else -1
    after = [step for step in beside.steps if step > last]
    many = missing >= NULL_ROWS.value * of
    if ended := len(after) >= NULL_ROWS.value * of:
        which = f"From step {after[0]} on" if each else f"In all {of} logged rows"
    else:
        which = f"In {missing} of {of} logged rows"
    return Observation(
        f"{which} {name} is not a number: no completion there got one from this function.",
        {"missing": missing, "rows": of, "name": name.removesuffix("/mean")},
        severity=None if ended or (many and len(means) == 1) else "info",
        evidence=seen(f"{of} rows with a reward, {rows[name]} with {name}"),
    )


@_RewardRule(
    "ZVR123",
    severity="warning",
    confidence=0.85,
    phrase=lambda v: f"{shown(v, 'share', '.0%')} of the groups have equal rewards late on",
    as_info=True,
    look=True,
    signs=("equal_rewards",),
    thresholds=(ZERO_GROUPS, ZERO_GROUPS_MOST, FEW_ROWS),
    evidence=(TRIAL,),
)
def _zero_variance(facts: RunFacts) -> Observation | None:
    """groups without variance

    in the last third of the rows at least {zero_groups} of the groups have equal rewards, by frac_reward_zero_std,
    or by a spread of 0 over the batch; a warning from {zero_groups_most}

    Why: The advantage is the reward less its group's mean: equal rewards give no gradient.
    Scope: GRPO and similar methods; info under nine groups of ten
    Action: Leave out prompts that are always solved or never; sample more completions, at a higher temperature.
    Verify: See whether the reward of these groups is all right or all wrong.
    Seen: https://github.com/huggingface/trl/issues/3857 -- the reward has no deviation within groups: loss and
        gradient are 0
    Source: DAPO, arXiv 2503.14476 (abstract; method through reviews) -- groups that are all right or all wrong have
        no gradient; dynamic sampling leaves them out
    """
    equal = _equal_groups(facts)
    if equal is None:
        logged(facts, EQUAL_GROUPS, FEW_ROWS.value)  # raises Unknown with what there is
        return None
    name, share, from_step = equal
    if share < ZERO_GROUPS.value:
        return None
    most = share >= ZERO_GROUPS_MOST.value
    column = find(facts, REWARD, FEW_ROWS.value)
    late = last_part(column.values, _THIRD, 3) if column else ()
    each = f", all {late[-1]:.4g}" if late and most and min(late) == max(late) else ""
    return Observation(
        f"In the last third of the rows {share:.0%} of the groups have equal rewards{each}: they teach nothing.",
        {"share": share, "from_step": from_step},
        severity="warning" if most else "info",
        confidence=0.85 if most else 0.6,
        evidence=seen(f"{name}, mean of the last third: {share:.3f} of the groups"),
    )


@_RewardRule(
    "ENT135",
    severity="warning",
    confidence=0.8,
    phrase=lambda v: f"entropy {v['how']} from {shown(v, 'first', '.3g')} to {shown(v, 'last', '.2g')} nats a token",
    thresholds=(COLLAPSED, NARROWED, SPREAD_OUT, RANDOM, FEW_ROWS),
    evidence=(TRIAL,),
)
def _entropy(facts: RunFacts) -> Observation | None:
    """entropy collapsed or rose

    the entropy of the last fifth of the rows is at most {narrowed} of that of the first three (a warning from
    {collapsed}), or at least {spread_out} times it and {random} nats a token

    Why: Groups are compared within: where all completions are alike, there is nothing to prefer.
    Scope: RL that logs the entropy of its tokens, from six rows on; a task with one short answer ends there
    Action: Lower the learning rate, or hold the policy nearer to its reference (beta).
    Verify: Sample one prompt eight times, and count the different completions.
    Seen: https://github.com/verl-project/verl/issues/5953 -- the entropy collapses in RL training
    Source: The Entropy Mechanism of RL for reasoning models, arXiv 2505.22617 (abstract) -- policy entropy drops
        sharply early in training, and performance saturates with it
    """
    column = logged(facts, ENTROPY, 2 * FEW_ROWS.value)
    first, last = column.start, column.end
    if first <= 0.0:
        raise Unknown("the entropy starts at 0")
    values = {"first": first, "last": last, "step": column.steps[0]}
    if last <= NARROWED.value * first:
        collapsed = last <= COLLAPSED.value * first
        return Observation(
            f"The entropy {'collapsed' if collapsed else 'fell'} from {first:.3g} to {last:.2g} nats a token, "
            f"{last / first:.1%} of the first level: completions of one prompt vary less and less.",
            {**values, "how": "collapsed" if collapsed else "fell"},
            severity="warning" if collapsed else "info",
            evidence=seen(f"{column.name}: the first {START} rows and the median of the last fifth"),
        )
    if last >= SPREAD_OUT.value * first and last >= RANDOM.value:
        return Observation(
            f"The entropy rose from {first:.3g} to {last:.3g} nats a token: the policy writes ever more at random.",
            {**values, "how": "rose"},
            evidence=seen(f"{column.name}: the first {START} rows and the median of the last fifth"),
        )
    return None


@_RewardRule(
    "KLD124",
    severity="info",
    confidence=0.5,
    phrase=lambda v: f"KL {shown(v, 'late', '.3g')} nats {v.get('unit', 'a token')} from the reference",
    signs=("far_from_reference",),
    thresholds=(
        *(KL_LATE, KL_ANSWER, KL_ROW, KL_START, KL_START_ANSWER, KL_STAYS),
        *(KL_BELOW, KL_BELOW_ANSWER, FEW_ROWS),
    ),
    evidence=(_TRL_KL, _GAO, TRIAL),
)
def _kl(facts: RunFacts) -> Observation | None:
    """far from the reference

    in the last third of the rows the median KL is over {kl_late} nats a token, or over {kl_answer} nats a
    completion where it is logged so; or it is over {kl_start} nats a token, or {kl_start_answer} a completion, in the
    first row and the median of the first three, of a log that begins with the run, and keeps {kl_stays} of that; or
    over {kl_row} nats a token in one row; or the median of the last third is under {kl_below} nats a token, or
    {kl_below_answer} a completion

    Why: Far from its reference a policy may be exploiting flaws of the reward. For one high row, one token that the
        reference finds impossible is enough.
    Scope: RL that logs the KL from its reference; a single row is info
    Verify: Read completions; evaluate on held-out prompts.
    Seen: https://github.com/samyakshrestha/grpo-verified-reasoner -- a KL of up to 197 in early rows
    Source: definition -- a KL is at least 0, and so is its estimate in the mean over the policy's own completions
    """
    column = find(facts, TOKEN_KL, FEW_ROWS.value)
    if column is None and (whole := find(facts, ANSWER_KL, FEW_ROWS.value)) is not None:
        late = median(last_part(whole.values, _THIRD, 3))
        far = _far(whole, late, "a completion") if late > KL_ANSWER.value else None
        far = far or (_below_zero(whole, late, "a completion") if late < KL_BELOW_ANSWER.value else None)
        return far or _apart_at_once(whole, KL_START_ANSWER.value, "a completion")
    column = logged(facts, TOKEN_KL, FEW_ROWS.value)
    late = median(last_part(column.values, _THIRD, 3))
    if (first := _apart_at_once(column, KL_START.value, "a token")) is not None:
        return first
    if late > KL_LATE.value:
        return _far(column, late, "a token")
    if late < KL_BELOW.value:
        return _below_zero(column, late, "a token")
    highest = max(column.values)
    if highest <= KL_ROW.value:
        return None
    step = column.steps[column.values.index(highest)]
    rows = sum(value > KL_ROW.value for value in column.values)
    return Observation(
        f"KL jumps to {highest:.3g} nats a token at step {step} ({rows} such rows), and comes back to {late:.3g}.",
        {"highest": highest, "step": step, "rows": rows, "late": late},
        evidence=seen(f"{column.name} {highest:.4g} at step {step}"),
    )


def _apart_at_once(column: Logged, most: float, unit: str) -> Observation | None:
    """The finding if the KL is large where both models should be one; None of a log that begins later."""
    first, level = column.values[0], median(column.values[:START])
    stays = median(last_part(column.values, _THIRD, 3)) >= KL_STAYS.value * level
    if min(first, level) <= most or not stays or column.steps[0] > column.steps[1] - column.steps[0]:
        return None
    return Observation(
        f"KL is {first:.3g} nats {unit} in the first row, where policy and reference should be the same: the "
        "reference is another model than the run began with (with PEFT, the base without the adapter), or reads "
        "another template.",
        {"late": first, "unit": f"{unit} from the first row on,"},
        severity="warning",
        confidence=0.7,
        action="Compare the log-probabilities of both models for one completion before the first step.",
        evidence=seen(f"{column.name} {first:.3g} at step {column.steps[0]}, {level:.3g} in the first rows"),
    )


def _below_zero(column: Logged, late: float, unit: str) -> Observation:
    return Observation(
        f"The KL from the reference is {late:.3g} nats {unit} in the last third of the rows, where no KL is below 0: "
        "the completions are not drawn from the policy whose probabilities are taken.",
        {"late": late, "unit": unit},
        severity="warning",
        confidence=0.7,
        action="Sample at temperature 1 without top_k, top_p or a least length; mask what follows the end token.",
        evidence=seen(f"median {column.name} {late:.4g}"),
    )


def _far(column: Logged, late: float, unit: str) -> Observation:
    return Observation(
        f"The policy is far from its reference: KL {late:.3g} nats {unit} in the last third of the rows, "
        f"{column.start:.2g} in the first.",
        {"late": late, "unit": unit},
        severity="warning",
        confidence=0.6,
        evidence=seen(f"median {column.name} {late:.4g}"),
    )


@_RewardRule(
    "KLZ138",
    severity="warning",
    confidence=0.8,
    phrase=lambda _: "KL from the reference is 0 throughout",
    thresholds=(KL_NONE, KL_ROWS, FEW_ROWS, ZERO_GROUPS_MOST),
    evidence=(_TRL_KL,),
)
def _kl_zero(facts: RunFacts) -> Observation | None:
    """no distance from the reference

    KL is at most {kl_none} nats a token in every row, from {kl_rows} rows on, while gradients, learning rate and
    rewards say that something is trained

    Why: A reference that follows the policy holds nothing back: beta has no effect.
    Scope: TRL, which logs kl only with beta > 0
    Action: Set beta to 0 if no reference is meant; else give the trainer one that does not train.
    Verify: Compare a weight of the reference with that of the policy before the first step and after ten.
    Source: trl/trainer/grpo_trainer.py:GRPOTrainer._compute_loss@1.16.0 -- kl is the mean over the tokens against
        the reference: 0 where both are one model
    """
    column = logged(facts, TOKEN_KL, KL_ROWS.value)
    if any(abs(value) > KL_NONE.value for value in column.values):
        return None
    if column.name == "kl" and not facts.logged & _OF_TRL:
        raise Unknown("this trainer may log a KL of 0 where it has no reference")
    if column.name != "kl":
        raise Unknown(f"{column.name} is 0 where its coefficient is 0, too")
    if not any(facts.norm.values) or not any(facts.rate.values) or _teaches_nothing(facts):
        raise Unknown("nothing was trained, or no gradient was logged")
    return Observation(
        f"KL from the reference is exactly 0 in all {len(column.values)} rows, although gradients are not: the "
        "reference changes with the policy, or the optimizer does not reach the policy's weights.",
        {"rows": len(column.values)},
        evidence=seen(
            f"{column.name} at most {max(map(abs, column.values)):.1g}, gradient norms up to "
            f"{max(facts.norm.values):.3g}"
        ),
    )


@_RewardRule(
    "CLF137",
    severity="warning",
    confidence=0.7,
    phrase=lambda v: f"{shown(v, 'share', '.0%')} of the tokens clipped from step {v['first_step']}",
    thresholds=(CLIPPED_MUCH, FEW_ROWS),
    evidence=(TRIAL,),
)
def _updates_clipped(facts: RunFacts) -> Observation | None:
    """updates clipped

    in some third of the rows the mean fraction of clipped tokens is at least {clipped_much}

    Why: Several passes over a batch, or a high learning rate, take the policy away from the one that wrote the
        completions; what it learns then is of a policy that is no more.
    Scope: PPO, GRPO and RLOO that log the fraction of clipped tokens; 0 with one pass over each batch
    Action: Make fewer passes over a batch, or lower the learning rate.
    Verify: See whether it falls with the learning rate.
    Source: PPO, arXiv 1707.06347, section 3 -- the objective is clipped where the ratio leaves 1 +/- epsilon
    Source: trl/trainer/grpo_trainer.py:GRPOTrainer._compute_loss@1.16.0 -- a token whose ratio leaves 1 +/- epsilon
        is clipped
    """
    column = logged(facts, CLIPPED, FEW_ROWS.value)
    width = max(int(FEW_ROWS.value), len(column.values) // _THIRD)
    starts = range(0, len(column.values) - width + 1, max(1, width // 2))
    shares = {start: mean_error(column.values[start : start + width])[0] for start in starts}
    at = max(shares, key=shares.__getitem__)
    if shares[at] < CLIPPED_MUCH.value:
        return None
    first, last = column.steps[at], column.steps[at + width - 1]
    return Observation(
        f"From step {first} to {last}, {shares[at]:.0%} of the tokens are clipped in the mean: one batch moves the "
        "policy out of the range that clipping allows, and these tokens have no gradient.",
        {"share": shares[at], "first_step": first, "last_step": last},
        evidence=seen(f"{column.name}: mean of {width} rows {shares[at]:.3f}"),
    )


@_RewardRule(
    "RAT141",
    severity="warning",
    confidence=0.8,
    phrase=lambda v: f"a learning rate of {shown(v, 'peak_rate', '.3g')}",
    meant_for=under("rl", "preference"),
    thresholds=(RATE_OF_WEIGHTS,),
    evidence=(TRIAL,),
)
def _absurd_rate(facts: RunFacts) -> Observation | None:
    """learning rate over any published one

    the largest logged learning rate is at least {rate_of_weights}, with another optimizer than SGD

    Why: The first steps destroy what the base model knew; rewards that rise later are of another model.
    Scope: RL and preference training that logs its rate; silent where DIV104 or LRS109 names it
    Action: Lower the learning rate: 1e-5 to 4e-5 is usual for a LoRA under RL.
    Verify: Sample the base model and the trained one with one prompt.
    Source: TRL 1.16, GRPOConfig, RLOOConfig, DPOConfig, KTOConfig (read) -- learning_rate 1e-6 by default
    Source: trl/trainer/grpo_config.py:GRPOConfig@1.16.0 -- learning_rate is 1e-6 by default
    """
    if not facts.rate.values:
        raise Unknown("no learning rate was logged")
    rate = facts.peak_rate
    if "sgd" in (facts.config.optimizer.name or "").lower():
        raise Unknown("the rates of SGD are of another size")
    if rate < RATE_OF_WEIGHTS.value or divergence(facts) is not None or account(facts).adapter:
        return None  # DIV104 names the rate, or LRS109 that of an adapter
    return Observation(
        f"The learning rate reached {rate:.3g}: Adam moves each weight by about that much in a step, more than most "
        "weights are large. TRL's default is 1e-6 for RL and for preferences.",
        {"peak_rate": rate},
        evidence=seen(f"largest logged learning rate {rate:.4g}"),
    )


def _late_cut(facts: RunFacts) -> float | None:
    column = find(facts, CUT_NAMES, FEW_ROWS.value)
    return mean_error(last_part(column.values, _THIRD, 3))[0] if column else None


@_RewardRule(
    "CLP125",
    severity="warning",
    confidence=0.7,
    phrase=lambda v: f"{shown(v, 'share', '.0%')} of the completions are cut off",
    signs=("cut_completions",),
    thresholds=(CUT_OFF, FEW_ROWS),
    evidence=(TRIAL,),
)
def _cut_off(facts: RunFacts) -> Observation | None:
    """completions cut off

    in the last third of the rows at least {cut_off} of the completions are cut off in the mean, or, where the end
    tokens are counted, there is none

    Why: An answer that was cut off is graded as wrong even if it was right so far: noise in the reward.
    Scope: RL that logs how many completions are cut off, from three rows on
    Verify: Read completions that were cut off.
    Seen: https://github.com/huggingface/trl/issues/5697 -- all completions are cut at 256 tokens, and the reward is
        0 for hours
    Source: DAPO, arXiv 2503.14476 (through reviews) -- punishing answers that were cut off adds noise to the reward
    """
    ends = find(facts, ENDED, FEW_ROWS.value)
    if ends is not None:
        return None if any(last_part(ends.values, _THIRD, 3)) else _never_ends(ends)
    column = logged(facts, CUT_NAMES, FEW_ROWS.value)
    late = last_part(column.values, _THIRD, 3)
    share = mean_error(late)[0]
    if share < CUT_OFF.value:
        return None
    return Observation(
        f"In the last third of the rows {share:.0%} of the completions are cut off at their maximal length.",
        {"share": share},
        evidence=seen(f"{column.name} {share:.3f} in {len(late)} rows"),
    )


def _never_ends(column: Logged) -> Observation:
    return Observation(
        "In the last third of the rows no completion holds an end token: all are cut off at their maximal length.",
        {"share": 1.0},
        confidence=0.6,
        evidence=seen(f"{column.name} 0 from step {column.steps[-len(last_part(column.values, _THIRD, 3))]} on"),
    )


def _lengths_says(v: Values) -> str:
    beside = " while the reward rose" if v.get("reward_rises") else ""
    return f"completions {v['how']} from {shown(v, 'first')} to {shown(v, 'last')} tokens{beside}"


@_RewardRule(
    "LEN136",
    severity="warning",
    confidence=0.6,
    phrase=_lengths_says,
    thresholds=(LONGER, LONGER_CUT, MUCH_LONGER, SHORTER, CUT_OFF, FEW_ROWS, REWARD_SHOWN),
    evidence=(TRIAL,),
)
def _lengths(facts: RunFacts) -> Observation | None:
    """completions of another length

    the mean length of the last fifth of the rows is at least {longer} times that of the first three ({longer_cut}
    times if at least {cut_off} of the completions are cut off in the last third), or at most {shorter} of it, also
    without the completions that were cut off, and by over {reward_shown} standard errors; info where they grew by less
    than {much_longer} times while the reward rose, and fewer are cut off

    Why: Length is the easiest thing to learn: a reward that pays for it is learnt before the task.
    Scope: RL that logs the lengths of its completions, from six rows on; reasoning may grow them by right
    Action: Read completions of both lengths, and take what length earns out of the reward.
    Verify: Compare the reward of long and short completions of one prompt.
    Seen: https://github.com/samyakshrestha/grpo-verified-reasoner -- completions grow from 170 to 639 tokens
    Source: Singhal et al., A long way to go: length correlations in RLHF, arXiv 2310.03716 (abstract) -- much of
        the reward's gain is in longer outputs
    """
    column = logged(facts, LENGTH, 2 * FEW_ROWS.value)
    first, last = column.start, column.end
    if first <= 0.0:
        raise Unknown("the completions start empty")
    cut = _late_cut(facts)
    most_cut = cut is not None and cut >= CUT_OFF.value
    if abs(last - first) <= REWARD_SHOWN.value * _error(column.values):
        return None
    if last >= (LONGER_CUT if most_cut else LONGER).value * first:
        return _other_length(facts, column, "grew", f" ({cut:.0%} of them are cut off there)" if most_cut else "")
    ended = find(facts, ENDED_LENGTH, 2 * FEW_ROWS.value)
    if ended is not None and ended.start > 0.0:  # without those cut off, whose number may have fallen
        first, last = ended.start, ended.end
    if 0.0 < last <= SHORTER.value * first and column.end <= SHORTER.value * column.start:
        return _other_length(facts, column, "shrank", "")
    return None


def _error(values: Sequence[float]) -> float:
    """The standard error of the difference between a first row, which the start may be, and the last fifth."""
    return median_error(noise(values), 1, max(START, len(values) // _PARTS))


def _other_length(facts: RunFacts, column: Logged, how: str, there: str) -> Observation:
    gain = _gain(facts)
    beside = f", while the reward rose from {gain[0]:.4g} to {gain[1]:.4g}" if gain else _no_gain(facts)
    may_be_right = gain is not None and not there and column.start < column.end < MUCH_LONGER.value * column.start
    asks = ": see whether the reward pays for length instead of the task" if gain else ""
    return Observation(
        f"The completions {how} from {column.start:.4g} to {column.end:.4g} tokens{there}{beside}{asks}.",
        {"first": column.start, "last": column.end, "how": how, "reward_rises": gain is not None},
        severity="info" if may_be_right else None,
        evidence=seen(f"{column.name}: the first {START} rows and the median of the last fifth"),
    )


def _no_gain(facts: RunFacts) -> str:
    column = find(facts, REWARD, MANY_ROWS.value)
    still = column is not None and change_of(column.values).how in {"flat", "falls"}
    return ", and the reward did not rise" if still else ""


def _gain(facts: RunFacts) -> tuple[float, float] | None:
    """The reward at both ends if it rose, by the fifths or within the first of them; None if not."""
    column = find(facts, REWARD, 2 * FEW_ROWS.value)
    if column is None:
        return None
    change = change_of(column.values)
    if change.how == "rises":
        return change.first, change.last
    early = change.how == "flat" and max(column.values[:START]) < change.last
    return (column.start, column.end) if early else None


@_RewardRule(
    "RWD221",
    severity="warning",
    confidence=0.7,
    phrase=lambda v: f"the held-out reward fell from {shown(v, 'best', '.3g')} around step {v['best_step']}",
    thresholds=(HELD_OUT_ROWS, REWARD_ERRORS, REWARD_FLAT, REWARD_LOST),
)
def _held_out_reward(facts: RunFacts) -> Observation | None:
    """held-out reward falls while that of training does not

    from {held_out_rows} evaluations on, the median of the last three is below the best by over {reward_errors}
    standard errors, {reward_flat} of the best and {reward_lost} of the gain, and the reward of training did not fall

    Why: What is learnt after the best evaluation is of the training prompts, or of a flaw of their reward.
    Scope: RL with evaluations whose metrics are named reward, acc or score
    Action: Take the checkpoint of the best evaluation.
    Verify: Read completions of held-out prompts at both steps.
    Seen: https://github.com/rllm-org/rllm/issues/143 -- the return of training rises fast, and that of evaluation
        falls
    """
    column = logged(facts, REWARD, FEW_ROWS.value)
    test = _held_out(facts)
    if test is None:
        raise Unknown(f"no held-out reward in {HELD_OUT_ROWS.value:g} evaluations")
    at = max(range(len(test.values)), key=test.values.__getitem__)
    best, last = test.values[at], median(test.values[-_NEWEST:])
    error = median_error(noise(test.values), 1, _NEWEST)
    least = max(REWARD_ERRORS.value * error, REWARD_FLAT.value * abs(best), REWARD_LOST.value * (best - test.values[0]))
    change = change_of(column.values)
    fell = change.how == "falls" or _fell_from_best(column, change, REWARD_ERRORS.value) is not None
    if best - last <= least or fell:
        return None
    return Observation(
        f"The held-out {test.name} fell from {best:.3g} at step {test.steps[at]} to {last:.3g} at the end, while the "
        "reward of training did not.",
        {"best": best, "best_step": test.steps[at], "last": last},
        evidence=seen(f"{len(test.values)} evaluations, an error of {error:.2g}"),
    )


def _held_out(facts: RunFacts) -> Logged | None:
    """The first held-out reward of enough evaluations."""
    columns: dict[str, list[tuple[int, float]]] = {}
    for event in facts.evaluations:
        for name in event.metrics.extras:
            value = number_in(event.metrics.extras, name)
            if value is not None and event.step is not None and _HELD_OUT.search(name):
                columns.setdefault(name, []).append((event.step, value))
    for name, rows in columns.items():
        if len(rows) >= HELD_OUT_ROWS.value:
            return Logged(name, [step for step, _ in rows], [value for _, value in rows])
    return None


@_RewardRule(
    "CRT219",
    severity="warning",
    confidence=0.7,
    phrase=lambda v: f"the critic explains {shown(v, 'explained', '.0%')} of the returns' variance",
    thresholds=(EXPLAINS_NOTHING, MANY_ROWS, REWARD_SHOWN),
)
def _critic(facts: RunFacts) -> Observation | None:
    """critic does not predict the returns

    from {many_rows} rows on, the explained variance of the last third is under {explains_nothing} by {reward_shown}
    standard errors

    Why: The advantage is the return less the critic's value: a bad critic adds noise to every step.
    Scope: PPO with a critic that logs its explained variance
    Action: Train the critic alone first, at a rate of its own, or normalise the rewards.
    Verify: Plot values against returns for one batch.
    Seen: https://github.com/DLR-RM/stable-baselines3/issues/2240 -- explained variance of 0 throughout training
    Source: definition -- explained variance is 0 for a constant
    """
    explained = logged(facts, EXPLAINED, MANY_ROWS.value)
    level, error = mean_error(last_part(explained.values, _THIRD))
    if level + REWARD_SHOWN.value * error >= EXPLAINS_NOTHING.value:
        return None
    return Observation(
        f"The critic's values explain {level:.0%} of the variance of the returns in the last third of the rows: a "
        "constant would do better.",
        {"explained": level},
        evidence=seen(f"mean {explained.name} {level:.3g}"),
    )


def told(facts: RunFacts, covered: frozenset[Topic]) -> Iterator[StoryPart]:
    """Whether the reward rises, for the story; only its levels if a finding told there says how it went."""
    column = find(facts, REWARD)
    if column is None:
        return
    how, first, last, error, rows = change_of(column.values)
    levels = f"{first:.4g} -> {last:.4g} ({'median' if rows > 1 else 'value'}s of {rows} rows)"
    values = {"first": first, "last": last, "rows": rows}
    if "reward" in covered or how == "flat":
        yield StoryPart(says=f"reward {levels}", values=values)
    elif how != "unknown":
        yield StoryPart(says=f"the reward {how}: {levels}", values=values)
    elif len(column.values) >= MANY_ROWS.value:
        hidden = REWARD_SHOWN.value * error
        says = f"cannot tell whether the reward rises: {levels}; its noise hides a change under {hidden:.2g}"
        yield StoryPart(says=says, values={**values, "least_seen": hidden}, doubt=True)
    else:
        says = f"cannot tell whether the reward rises: {levels}; {len(column.values)} rows show no order"
        yield StoryPart(says=says, values=values, doubt=True)


RULES: Final[tuple[LogRule, ...]] = (
    _no_reward,
    _scale,
    _reward,
    _zero_variance,
    _entropy,
    _kl,
    _kl_zero,
    _updates_clipped,
    _cut_off,
    _lengths,
    _held_out_reward,
    _critic,
    _absurd_rate,
)
