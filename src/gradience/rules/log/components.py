"""RWC199: are the functions whose sum is the reward in balance?

TRL logs the mean and the standard deviation of each function over the batch, `rewards/NAME/mean` and `/std`; before
0.16 the mean alone, `rewards/NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gradience.errors import few
from gradience.rules import Observation, Threshold, Unknown
from gradience.rules.log.facts import LogRule, RunFacts, Values, find, last_part, once, seen, shown, under
from gradience.rules.log.preference import ALPHA, MANY_ROWS
from gradience.rules.log.rewards import REWARD_SHOWN, change_of
from gradience.rules.log.statistics import mean_error, median
from gradience.telemetry.signals import COMPONENTS, REWARD

DROWNED = Threshold("drowned", 10.0, "standard deviation over that of each other function", "99 % of the variance")
CONSTANT_ROWS = Threshold("constant_rows", 10, "rows", "105 RL trainings: no change up to 40")
LEVELLED = Threshold("levelled", 0.1, "of its mean, standard deviation", "105 RL trainings: no change up to 0.4")
AGAINST = Threshold("against", 0.33, "of its first level", "105 RL trainings: no change up to 0.41")
AGAINST_SPREAD = Threshold("against_spread", 0.5, "of its standard deviation", "105 RL trainings: no change up to 0.75")
SUM_ERROR = Threshold("sum_error", 0.05, "of the largest deviation", "rounding; a weight of 0.9 shows")

_THIRD: Final = 3
_PENALTY: Final = re.compile("penal|punish|overlong|repeti")  # 0 is what it should be


class Component(NamedTuple):
    """One function of the reward: its mean and its standard deviation over the batch, by row; no deviations if old."""

    name: str
    means: Sequence[float]
    stds: Sequence[float]

    @property
    def constant(self) -> bool:
        """Whether it never told two completions apart."""
        return min(self.means) == max(self.means) and not any(self.stds)

    @property
    def spread(self) -> tuple[float, float]:
        """The median standard deviation in the first and in the last third of the rows."""
        return median(self.stds[: max(1, len(self.stds) // _THIRD)]), median(last_part(self.stds, _THIRD))


@once
def components(facts: RunFacts) -> list[Component]:
    """The functions of the reward that were logged, in order of their names."""
    of = {
        name.removeprefix(COMPONENTS): each.values
        for name, each in facts.signals.items()
        if name.startswith(COMPONENTS)
    }
    names = sorted({name.removesuffix("/mean") for name in of if not name.endswith("/std")})
    return [Component(name, of.get(f"{name}/mean", of.get(name, ())), of.get(f"{name}/std", ())) for name in names]


def _balance_says(v: Values) -> str:
    if v["how"] == "drowned":
        return f"rewards/{v['name']} has nearly all of the reward's variance"
    if v["how"] == "constant":
        return f"rewards/{v['name']} is {shown(v, 'level')} for every completion"
    return f"rewards/{v['name']} falls at the cost of what rises"


@LogRule(
    "RWC199",
    severity="warning",
    confidence=0.7,
    place="objective",
    phrase=_balance_says,
    look=True,
    meant_for=under("rl"),
    thresholds=(DROWNED, LEVELLED, CONSTANT_ROWS, AGAINST, AGAINST_SPREAD, SUM_ERROR, MANY_ROWS, REWARD_SHOWN, ALPHA),
)
def _balance(facts: RunFacts) -> Iterator[Observation]:
    """reward functions out of balance

    in the first and in the last third of the rows one function's median standard deviation is at least {drowned} times
    that of each other one, of which none that is constant or under {levelled} of its own mean counts, and the reward is
    their plain sum (to {sum_error}); or one gives the same value to every completion in {constant_rows} rows or more
    (info unless it is 0 or less, and no penalty); or one falls by {against} of its first level, and {against_spread} of
    its deviation if it leaves 0 to 1, while the reward or another one rises and the reward does not fall, all by
    {reward_shown} standard errors, or under {many_rows} rows by p <= {alpha}

    Why: The advantage is of the sum: a function in units of its own outweighs the others, and a constant one teaches
        nothing.
    Scope: RL with several reward functions, as TRL logs them
    Action: Scale the functions so that the one that should count most varies most.
    Verify: Read completions by the function that should count most.
    Source: GDPO, arXiv 2601.05242 (abstract) -- normalising the sum of different rewards collapses their advantages
    Source: arithmetic -- variances of independent parts add up: a part of a tenth of the deviation is 1 % of the
        sum
    """
    parts = components(facts)
    if len(parts) < 2:
        raise Unknown("the reward has one function, or its functions were not logged")
    yield from _drowned(facts, parts)
    yield from _constant(parts)
    yield from _against(facts, parts)


def _drowned(facts: RunFacts, parts: list[Component]) -> Iterator[Observation]:
    spreads = {part.name: part.spread for part in parts if part.stds and not part.constant}
    reward = find(facts, REWARD)
    if not spreads or reward is None:
        return
    name = max(spreads, key=lambda each: max(spreads[each]))
    total = sum(mean_error(part.means)[0] for part in parts)
    if abs(total - mean_error(reward.values)[0]) > SUM_ERROR.value * max(spreads[name]):
        return  # weighted, so that the deviations say nothing of the sum
    levels = {part.name: abs(median(part.means)) for part in parts}
    others = {
        each: spread for each, spread in spreads.items() if each != name and min(spread) > LEVELLED.value * levels[each]
    }
    if not others or any(
        top < DROWNED.value * low for other in others.values() for top, low in zip(spreads[name], other, strict=True)
    ):
        return
    yield Observation(
        f"Nearly all of the reward's variance is of rewards/{name}: its standard deviation is {spreads[name][1]:.3g}, "
        f"that of {few([f'{each} {spread[1]:.2g}' for each, spread in others.items()])}. What the others "
        "ask for hardly counts.",
        {"how": "drowned", "name": name, "spread": spreads[name][1]},
        action="Bring the functions to one scale, by reward_weights or within them, or normalise each on its own.",
        evidence=seen(f"rewards/{name}/std {spreads[name][0]:.3g} -> {spreads[name][1]:.3g}"),
    )


def _constant(parts: list[Component]) -> Iterator[Observation]:
    for part in parts:
        if len(part.means) < CONSTANT_ROWS.value or not part.constant:
            continue
        level = part.means[0]
        grave = level <= 0.0 and not _PENALTY.search(part.name.lower())
        yield Observation(
            f"rewards/{part.name} is {level:.4g} for every completion in all {len(part.means)} rows: it teaches "
            "nothing" + (", and may never be earned." if grave else "."),
            {"how": "constant", "name": part.name, "level": level},
            severity="warning" if grave else "info",
            action="Call it on a completion that deserves it, and on one that does not.",
            evidence=seen(f"{len(part.means)} rows of {level:.4g}"),
        )


def _against(facts: RunFacts, parts: list[Component]) -> Iterator[Observation]:
    reward = find(facts, REWARD)
    of_sum = "falls" if reward is None else change_of(reward.values).how
    gained = max(parts, key=lambda each: change_of(each.means).last - change_of(each.means).first)
    if of_sum == "falls" or "rises" not in {of_sum, change_of(gained.means).how}:
        return
    for part in parts:
        how, first, last, _, rows = change_of(part.means)
        is_share = min(part.means) >= 0.0 and max(part.means) <= 1.0  # the deviation is then of one completion
        spread = AGAINST_SPREAD.value * median(part.stds) if part.stds and not is_share else 0.0
        if how != "falls" or first - last < max(AGAINST.value * abs(first), spread):
            continue
        risen = f"rewards/{gained.name}"
        risen = f"the reward rises, by {risen}" if of_sum == "rises" else f"{risen} rises, and hides it in the sum"
        yield Observation(
            f"rewards/{part.name} falls from {first:.3g} to {last:.3g} while {risen}: the second is learnt at the cost "
            "of the first.",
            {"how": "against", "name": part.name, "first": first, "last": last, "gained": gained.name},
            confidence=0.6,
            action="Weigh the function that falls higher, or let the other pay only where it is met.",
            evidence=seen(f"medians of {rows} rows at both ends"),
        )


RULES: Final[tuple[LogRule, ...]] = (_balance,)
