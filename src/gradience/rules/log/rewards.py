"""RWD122, ZVR123, KLD124 and CLP125: RL, whose loss says nothing of what is learnt, and whose rewards do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gradience.rules.log.facts import JUDGEMENT, LogRule, RunFacts, Signal, column, last_part, seen
from gradience.rules.log.preference import ALPHA, FEW_ROWS, MANY_ROWS
from gradience.rules.log.statistics import mann_kendall, mean_error, median, median_error, noise
from gradience.rules.objective import only_under
from gradience.rules.rule import TRIAL, Observation, Rule, Threshold, Unknown, cite

REWARD_ERRORS = Threshold("reward_errors", 4.0, "standard errors of the difference", "trial: the best of ten levels")
REWARD_FALL = Threshold("reward_fall", 0.1, "fraction of the best level", JUDGEMENT)
REWARD_LOST = Threshold("reward_lost", 0.5, "fraction of the gain that was lost again", JUDGEMENT)
REWARD_FLAT = Threshold("reward_flat", 0.05, "standard error over the level: above it, cannot tell", JUDGEMENT)
ZERO_GROUPS = Threshold("zero_groups", 0.5, "fraction of the groups", JUDGEMENT)
ZERO_GROUPS_MOST = Threshold("zero_groups_most", 0.9, "fraction of the groups", JUDGEMENT)
ZERO_GROUPS_ALSO = Threshold("zero_groups_also", 0.3, "fraction of the groups", JUDGEMENT)
KL_LATE = Threshold("kl_late", 1.0, "nats a token, median of the last third", JUDGEMENT)
KL_ROW = Threshold("kl_row", 10.0, "nats a token, one row", JUDGEMENT)
CUT_OFF = Threshold("cut_off", 0.5, "fraction of the completions", JUDGEMENT)

_THIRD: Final = 3


def _reward(facts: RunFacts) -> Observation | None:
    signal = column(facts, "reward", FEW_ROWS.value)
    if len(signal.values) < MANY_ROWS.value:
        return _few_rewards(signal.values, signal.steps)
    values = signal.values
    width = len(values) // 5
    starts = range(0, len(values) - width + 1, max(1, width // 2))
    levels = {start: median(values[start : start + width]) for start in starts}
    first, last = levels[0], median(values[-width:])
    at = max(levels, key=levels.__getitem__)
    best, step = levels[at], signal.steps[at + width // 2]
    error = median_error(noise(values), width, width)
    fallen = best - last > max(REWARD_ERRORS.value * error, REWARD_FALL.value * abs(best))
    if fallen and best - last > REWARD_LOST.value * (best - first):
        return Observation(
            f"The reward fell: {best:.4g} around step {step}, {last:.4g} in the last fifth of the rows "
            f"(+/- {error:.2g}).",
            {"first": first, "best": best, "best_step": step, "last": last, "error": error},
            evidence=seen(f"medians of {width} rows each"),
        )
    if abs(last - first) > 2.0 * error:
        return None
    if error > REWARD_FLAT.value * max(abs(first), abs(last)):
        raise Unknown(f"too noisy: a change of the reward by {2 * error:.2g} could not be seen")
    return Observation(
        f"The reward does not rise: {first:.4g} in the first fifth of the rows, {last:.4g} in the last "
        f"(+/- {error:.2g}).",
        {"first": first, "last": last, "error": error},
        severity="info",
        confidence=0.5,
        action="See whether the task is solved already, or never: then no group holds a difference to learn from.",
        evidence=seen(f"medians of {width} rows each"),
    )


def _few_rewards(values: Sequence[float], steps: Sequence[int]) -> Observation | None:
    """Of few rows the order decides: whether so many pairs of them fall by chance."""
    first, last = median(values[:2]), median(values[-2:])
    p = mann_kendall(values)
    if p <= ALPHA.value and first - last > REWARD_FALL.value * abs(first):
        return Observation(
            f"The reward fell: {first:.4g} in the first rows, {last:.4g} in the last (p = {p:.2g} for {len(values)} "
            f"rows).",
            {"first": first, "best": first, "best_step": steps[0], "last": last},
            evidence=seen(f"{len(values)} rows, from {values[0]:.4g} to {values[-1]:.4g}"),
        )
    if mann_kendall([-value for value in values]) <= ALPHA.value:
        return None
    seen_by_chance = 2.0 * median_error(noise(values), 2, 2)
    raise Unknown(f"{len(values)} rows: a change of the reward by {seen_by_chance:.2g} could not be seen")


def _late_share(facts: RunFacts, name: str) -> tuple[Signal, Sequence[float], float]:
    """A column, the last third of its values, and their mean."""
    signal = column(facts, name, FEW_ROWS.value)
    late = last_part(signal.values, _THIRD, 3)
    return signal, late, mean_error(late)[0]


def _zero_variance(facts: RunFacts) -> Observation | None:
    signal, late, share = _late_share(facts, "frac_reward_zero_std")
    if share < ZERO_GROUPS.value:
        return None
    most = share >= ZERO_GROUPS_MOST.value
    return Observation(
        f"In the last third of the rows {share:.0%} of the groups have equal rewards: they teach nothing.",
        {"share": share, "first": signal.values[0], "from_step": signal.steps[-len(late)]},
        severity="warning" if most else "info",
        confidence=0.85 if most else 0.6,
        evidence=seen(f"frac_reward_zero_std {share:.3f} in {len(late)} rows"),
    )


def _kl(facts: RunFacts) -> Observation | None:
    signal = column(facts, "kl", FEW_ROWS.value)
    late = median(last_part(signal.values, _THIRD, 3))
    if late > KL_LATE.value:
        return Observation(
            f"The policy is far from its reference: KL {late:.3g} nats a token in the last third of the rows.",
            {"late": late},
            severity="warning",
            confidence=0.6,
            evidence=seen(f"median kl {late:.4g}"),
        )
    highest = max(signal.values)
    if highest <= KL_ROW.value:
        return None
    step = signal.steps[signal.values.index(highest)]
    rows = sum(value > KL_ROW.value for value in signal.values)
    return Observation(
        f"KL jumps to {highest:.3g} nats a token at step {step} ({rows} such rows), and comes back to {late:.3g}.",
        {"highest": highest, "step": step, "rows": rows, "late": late},
        action="Look at the completions of that step: one token the reference finds impossible is enough.",
        evidence=seen(f"kl {highest:.4g} at step {step}"),
    )


def _cut_off(facts: RunFacts) -> Observation | None:
    _, late, share = _late_share(facts, "completions/clipped_ratio")
    if share < CUT_OFF.value:
        return None
    groups = facts.signals.get("frac_reward_zero_std")
    equal = mean_error(last_part(groups.values, _THIRD, 3))[0] if groups and groups.values else 0.0
    also = (
        f"; {equal:.0%} of the groups have no spread of rewards and teach nothing"
        if equal >= ZERO_GROUPS_ALSO.value
        else ""
    )
    return Observation(
        f"In the last third of the rows {share:.0%} of the completions are cut off at their maximal length{also}.",
        {"share": share, "zero_groups": equal},
        evidence=seen(f"completions/clipped_ratio {share:.3f} in {len(late)} rows"),
    )


RULES: Final[Sequence[Rule[RunFacts]]] = (
    LogRule(
        id="RWD122",
        title="reward falls",
        severity="warning",
        condition="the last fifth is under the best fifth by {reward_errors} standard errors and {reward_fall}, and "
        "over {reward_lost} of the gain is lost; under {many_rows} rows: down by {reward_fall} in an order that chance "
        "makes with p of {alpha} at most; a reward that does not rise is info",
        observe=_reward,
        applies=only_under("rl"),
        confidence=0.7,
        evidence=(cite("definition", "the policy gradient's loss is 0 on average where advantages are centred"), TRIAL),
        rationale="The reward is what is optimised: under RL a loss near 0 is normal and says nothing.",
        action="Go back to the checkpoint with the best reward; lower the learning rate, or raise beta.",
        scope="RL that logs reward; info where it only fails to rise",
        verify="Read completions of both ends; evaluate on held-out prompts.",
        thresholds=(FEW_ROWS, MANY_ROWS, ALPHA, REWARD_ERRORS, REWARD_FALL, REWARD_LOST, REWARD_FLAT),
    ),
    LogRule(
        id="ZVR123",
        title="groups without variance",
        severity="warning",
        condition="frac_reward_zero_std of {zero_groups} and more in the last third; a warning from {zero_groups_most}",
        observe=_zero_variance,
        applies=only_under("rl"),
        confidence=0.85,
        evidence=(
            cite(
                "DAPO, arXiv 2503.14476 (abstract; method through reviews)",
                "groups that are all right or all wrong have no gradient; dynamic sampling leaves them out",
            ),
            TRIAL,
        ),
        rationale="The advantage is the reward less its group's mean: equal rewards give no gradient.",
        action="Filter prompts that are always or never solved, sample more completions, or grade the reward finer.",
        scope="GRPO and its kin, where frac_reward_zero_std is logged; under nine groups of ten it is info",
        verify="See whether the reward of these groups is all right or all wrong.",
        thresholds=(ZERO_GROUPS, ZERO_GROUPS_MOST, FEW_ROWS),
    ),
    LogRule(
        id="KLD124",
        title="far from the reference",
        severity="info",
        condition="kl > {kl_late} a token in the median of the last third, or > {kl_row} in one row",
        observe=_kl,
        applies=only_under("rl"),
        confidence=0.5,
        evidence=(
            cite(
                "TRL 1.16, grpo_trainer.py (read)", "kl: mean over the tokens against the reference; only with beta > 0"
            ),
            TRIAL,
        ),
        rationale="Far from its reference a policy may have found rewards that mean nothing.",
        action="Raise beta, lower the learning rate, or read what it writes now.",
        scope="RL that logs kl per token; a single row is info",
        verify="Read completions; evaluate on held-out prompts.",
        thresholds=(KL_LATE, KL_ROW, FEW_ROWS),
    ),
    LogRule(
        id="CLP125",
        title="completions cut off",
        severity="warning",
        condition="completions/clipped_ratio of {cut_off} and more in the last third, and whether {zero_groups_also} "
        "of the groups have no spread of rewards besides",
        observe=_cut_off,
        applies=only_under("rl"),
        confidence=0.7,
        evidence=(
            cite(
                "DAPO, arXiv 2503.14476 (through reviews)",
                "punishing answers that were cut off adds noise to the reward",
            ),
            TRIAL,
        ),
        rationale="An answer that was cut off is graded as wrong, right or not: noise in the reward.",
        action="Raise the maximal completion length, or mask completions that were cut off.",
        scope="RL that logs completions/clipped_ratio, from three rows on",
        verify="Read completions that were cut off.",
        thresholds=(CUT_OFF, ZERO_GROUPS_ALSO, FEW_ROWS),
    ),
)
