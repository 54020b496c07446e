"""PRF119 to PRF121 and PRF130 on preference training; RWD122, ZVR123, KLD124 and CLP125 on rewards in RL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from gradience.rules import NEMOTRON, TRIAL, Observation, Threshold, Unknown, cite
from gradience.rules.log.facts import (
    JUDGEMENT,
    REAL_RUNS,
    LogRule,
    RunFacts,
    Signal,
    Values,
    column,
    last_part,
    seen,
    shown,
    under,
)
from gradience.rules.log.statistics import mann_kendall, mean_error, median, median_error, noise

FEW_ROWS = Threshold("few_rows", 3, "rows that logged it", "the mean of fewer rows is not a level")
MANY_ROWS = Threshold("many_rows", 20, "rows that logged it", "below it the order of the rows is tested instead")
ALPHA = Threshold("alpha", 0.01, "one-sided p of the order of few rows", "1 of 100 flat columns")

SEPARATED = Threshold("separated", 0.05, "reward accuracy over one half", JUDGEMENT)
SURELY = Threshold("surely", 3.0, "standard errors of the margin over 0", "trial: one healthy run of 100 without it")
SEPARATION_ERROR = Threshold("separation_error", 0.03, "standard error of the accuracy", "above it, the margin decides")
MARGIN_ERROR = Threshold("margin_error", 0.08, "standard error of the accuracy", "above it, cannot tell")
MARGIN_STILL = Threshold("margin_still", 1.0, "standard errors of the margin over 0", "trial")
SEPARATION_ROWS = Threshold("separation_rows", 10, "rows with both columns", "five make a half, and its error")
CHOSEN_FALL = Threshold("chosen_fall", 1.0, "reward: beta x nats", "a judgement: 10 nats at beta = 0.1")
CHOSEN_ERRORS = Threshold("chosen_errors", 3.0, "standard errors of the difference", "trial")
CHOSEN_ROWS = Threshold("chosen_rows", 5, "rows with rewards/chosen", "the order of fewer cannot reach p = 1 %")
START_MARGIN = Threshold("start_margin", 0.5, "reward: beta x nats", JUDGEMENT)
START_STEP = Threshold("start_step", 10, "steps", "a judgement: later a margin has been learnt")
SATURATED_LOSS = Threshold("saturated_loss", 0.02, "nats, median of the last quarter", "-ln sigmoid(4) = 0.018")
SATURATED_MARGIN = Threshold("saturated_margin", 4.0, "reward: beta x nats, the same rows", REAL_RUNS)

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

# logged by ORPO and CPO, which have no reference model, so their loss does not start at ln 2
_REFERENCE_FREE: Final = {"log_odds_ratio", "nll_loss", "odds_ratio_loss"}
_THIRD: Final = 3


def _separation(facts: RunFacts) -> Observation | None:
    accuracies = column(facts, "rewards/accuracies", SEPARATION_ROWS.value)
    margins = column(facts, "rewards/margins", SEPARATION_ROWS.value)
    accuracy, error = mean_error(accuracies.values[len(accuracies.values) // 2 :])
    margin, margin_error = mean_error(margins.values[len(margins.values) // 2 :])
    surely = accuracy >= 0.5 and margin > SURELY.value * margin_error  # noqa: PLR2004  # one half
    if surely or accuracy - 0.5 > max(SEPARATED.value, 2.0 * error):
        return None
    margin_still = error <= MARGIN_ERROR.value and margin <= MARGIN_STILL.value * margin_error
    if error > SEPARATION_ERROR.value and not margin_still:
        raise Unknown(f"too noisy: a reward accuracy {2 * error:.1%} over one half would not show")
    swapped = 0.5 - accuracy > max(SEPARATED.value, 2.0 * error)
    how = "told apart the wrong way round" if swapped else "not told apart"
    return Observation(
        f"Chosen and rejected answers are {how}: in the second half of the rows the reward accuracy is {accuracy:.1%} "
        f"(+/- {2 * error:.1%}), the mean margin {margin:.3g}.",
        {"accuracy": accuracy, "error": error, "margin": margin, "how": how},
        confidence=0.6 if error > SEPARATION_ERROR.value else None,
        evidence=seen(f"rewards/accuracies {accuracy:.4f}, rewards/margins {margin:.4g} (+/- {margin_error:.2g})"),
    )


def _chosen_falls(facts: RunFacts) -> Observation | None:
    values = column(facts, "rewards/chosen", CHOSEN_ROWS.value).values
    width = max(5, math.ceil(0.05 * len(values))) if len(values) >= MANY_ROWS.value else max(1, len(values) // 5)
    first, last = median(values[:width]), median(values[-width:])
    if first - last < max(CHOSEN_FALL.value, CHOSEN_ERRORS.value * median_error(noise(values), width, width)):
        return None
    if len(values) < MANY_ROWS.value and mann_kendall(values) > ALPHA.value:
        return None
    return Observation(
        f"The chosen answers grow less likely, too: their reward fell from {first:.3g} to {last:.3g}.",
        {"first": first, "last": last},
        evidence=seen(f"medians of {width} rows of rewards/chosen"),
    )


def _start(facts: RunFacts) -> Observation | None:
    if facts.logged & _REFERENCE_FREE:
        raise Unknown("the objective has no reference model, so no known starting margin")
    margins = column(facts, "rewards/margins", 1)
    if not facts.loss.values:
        raise Unknown("no training loss was logged")
    margin, loss = margins.values[0], facts.loss.values[0]
    if margins.steps[0] > START_STEP.value or abs(margin) < START_MARGIN.value:
        return None
    return Observation(
        f"Preference training starts away from its reference: the first margin is {margin:.3g}, the first loss "
        f"{loss:.4g} (starting at the reference: 0, and ln 2 = {math.log(2.0):.4f} under the sigmoid loss).",
        {"margin": margin, "loss": loss, "step": margins.steps[0]},
        evidence=seen(f"rewards/margins {margin:.4g} at step {margins.steps[0]}"),
    )


def saturated(facts: RunFacts) -> Observation | None:
    """The finding if preferences are so far apart that the loss has no gradient left; None if not, or if not logged."""
    margins, losses = facts.signals.get("rewards/margins"), facts.loss.values
    if facts.objective.kind != "preference" or margins is None or len(losses) < FEW_ROWS.value:
        return None
    loss, margin = median(last_part(losses, 4)), median(last_part(margins.values, 4))
    if loss > SATURATED_LOSS.value or not margin >= SATURATED_MARGIN.value:
        return None
    return Observation(
        f"The preference loss is saturated: loss {losses[0]:.3g} -> {loss:.2g}, margin {margins.values[0]:.3g} -> "
        f"{margin:.3g}: nothing is left to learn.",
        {"first_loss": losses[0], "loss": loss, "first_margin": margins.values[0], "margin": margin},
        evidence=seen(f"medians of the last quarter: loss {loss:.4g}, rewards/margins {margin:.4g}"),
    )


def _saturated(facts: RunFacts) -> Observation | None:
    column(facts, "rewards/margins", 1)
    if len(facts.loss.values) < FEW_ROWS.value:
        raise Unknown(f"{len(facts.loss.values)} training rows with a finite loss; it needs {FEW_ROWS.value:g}")
    return saturated(facts)


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
        raise Unknown(f"too noisy: a reward change of {2 * error:.2g} would not show")
    return Observation(
        f"The reward does not rise: {first:.4g} in the first fifth of the rows, {last:.4g} in the last "
        f"(+/- {error:.2g}).",
        {"first": first, "last": last, "error": error},
        severity="info",
        confidence=0.5,
        action="See whether the task is solved always, or never: then equal rewards in a group teach nothing.",
        evidence=seen(f"medians of {width} rows each"),
    )


def _few_rewards(values: Sequence[float], steps: Sequence[int]) -> Observation | None:
    """Judge few rows by their order: whether chance explains as many falling pairs."""
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
    raise Unknown(f"{len(values)} rows: a reward change of {seen_by_chance:.2g} would not show")


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
        f"; {equal:.0%} of the groups have equal rewards and teach nothing" if equal >= ZERO_GROUPS_ALSO.value else ""
    )
    return Observation(
        f"In the last third of the rows {share:.0%} of the completions are cut off at their maximal length{also}.",
        {"share": share, "zero_groups": equal},
        evidence=seen(f"completions/clipped_ratio {share:.3f} in {len(late)} rows"),
    )


def _cut_off_says(v: Values) -> str:
    equal = v.get("zero_groups")
    also = isinstance(equal, float) and equal >= ZERO_GROUPS_ALSO.value
    return f"{shown(v, 'share', '.0%')} of the completions are cut off" + (
        f", {shown(v, 'zero_groups', '.0%')} of the groups teach nothing" if also else ""
    )


RULES: Final[tuple[LogRule, ...]] = (
    LogRule(
        id="PRF119",
        title="preferences not told apart",
        severity="warning",
        condition="in the second half of the rows, the mean of rewards/accuracies is at most {separated} (or 2 "
        "standard errors) above one half, and that of rewards/margins is not {surely} standard errors above 0; if the "
        "accuracy's standard error is over {separation_error}, the margin must be within {margin_still} standard error "
        "of 0, or below",
        observe=_separation,
        place="objective",
        phrase=lambda v: f"chosen and rejected are {v['how']}",
        applies=under("preference"),
        confidence=0.8,
        evidence=(NEMOTRON, TRIAL),
        rationale="The loss may fall through its likelihood term alone, while the preferences are not learnt.",
        action="Check that chosen and rejected differ and are not swapped, what target_modules hit, and lr.",
        scope="preference training that logs rewards/accuracies and rewards/margins",
        verify="Reward accuracy on held-out pairs.",
        thresholds=(SEPARATED, SURELY, SEPARATION_ERROR, MARGIN_ERROR, MARGIN_STILL, SEPARATION_ROWS),
    ),
    LogRule(
        id="PRF120",
        title="chosen answers less likely",
        severity="info",
        condition="rewards/chosen fell by at least {chosen_fall} and {chosen_errors} standard errors; under "
        "{many_rows} rows, a Mann-Kendall test must also find the fall at p <= {alpha}",
        observe=_chosen_falls,
        applies=under("preference"),
        confidence=0.5,
        evidence=(
            cite(
                "Smaug/DPO-Positive, arXiv 2402.13228 (abstract)",
                "DPO can lower the likelihood of the chosen answer as long as the margin grows",
            ),
            TRIAL,
        ),
        rationale="A margin can grow while both answers lose probability to answers that no one asked for.",
        action="Read what the model writes now; an SFT loss term on the chosen answers keeps them likely.",
        scope="preference training that logs rewards/chosen",
        verify="Log-probability of chosen answers on held-out pairs.",
        thresholds=(CHOSEN_FALL, CHOSEN_ERRORS, CHOSEN_ROWS, MANY_ROWS, ALPHA),
    ),
    LogRule(
        id="PRF121",
        title="starts away from the reference",
        severity="info",
        condition="first margin, within {start_step} steps, is at least {start_margin} from 0; not for ORPO and CPO",
        observe=_start,
        applies=under("preference"),
        confidence=0.5,
        evidence=(
            cite("DPO, arXiv 2305.18290 (the loss)", "-log sigmoid(0) = ln 2 where policy and reference are the same"),
            TRIAL,
        ),
        rationale="The reference is then not the model that training started from, as it usually should be.",
        action="Check the reference model, and which adapter is active in it.",
        scope="preference training against a reference, logged from its first steps on",
        verify="Rewards of both answers before the first step should be 0.",
        thresholds=(START_MARGIN, START_STEP),
    ),
    LogRule(
        id="PRF130",
        title="preferences saturated",
        severity="warning",
        condition="in the last quarter of the rows the median loss is at most {saturated_loss} and the median of "
        "rewards/margins at least {saturated_margin}, from {few_rows} rows on",
        observe=_saturated,
        place="meaning",
        phrase=lambda v: f"preferences saturated: margin {shown(v, 'margin', '.3g')}, nothing is left to learn",
        applies=under("preference"),
        confidence=0.85,
        evidence=(
            cite(
                "a published DPO run",
                "loss 0.693 to 0.0, margin 0 to 141, accuracy 1.0, gradient norm 1.7e-8 and finite",
            ),
            cite("definition", "-ln sigmoid(margin): 0.018 at 4, its slope too"),
        ),
        rationale="Beyond that margin the loss has no gradient: later steps only move the policy from its reference.",
        action="Lower the learning rate or raise beta, and take an earlier checkpoint.",
        scope="preference losses that depend on the margin; a loss of zero here is not a NaN",
        verify="Reward accuracy and likelihood of chosen answers on held-out pairs, of an earlier checkpoint too.",
        thresholds=(SATURATED_LOSS, SATURATED_MARGIN, FEW_ROWS),
    ),
    LogRule(
        id="RWD122",
        title="reward falls",
        severity="warning",
        condition="the last fifth of the rows is below the best fifth by over {reward_errors} standard errors and "
        "{reward_fall} of the best level, and over {reward_lost} of the gain is lost; under {many_rows} rows: a fall "
        "of over {reward_fall}, with p <= {alpha} by Mann-Kendall; a reward that does not rise is info",
        observe=_reward,
        place="objective",
        phrase=lambda v: (
            f"the reward fell from {shown(v, 'best')} around step {v['best_step']}" if "best" in v else None
        ),
        applies=under("rl"),
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
        condition="mean frac_reward_zero_std of at least {zero_groups} in the last third; a warning from "
        "{zero_groups_most}",
        observe=_zero_variance,
        place="objective",
        phrase=lambda v: f"{shown(v, 'share', '.0%')} of the groups have equal rewards late on",
        as_info=True,
        applies=under("rl"),
        confidence=0.85,
        evidence=(
            cite(
                "DAPO, arXiv 2503.14476 (abstract; method through reviews)",
                "groups that are all right or all wrong have no gradient; dynamic sampling leaves them out",
            ),
            TRIAL,
        ),
        rationale="The advantage is the reward less its group's mean: equal rewards give no gradient.",
        action="Filter prompts that are always or never solved, sample more completions, or grade more finely.",
        scope="GRPO and similar methods that log frac_reward_zero_std; info under nine groups of ten",
        verify="See whether the reward of these groups is all right or all wrong.",
        thresholds=(ZERO_GROUPS, ZERO_GROUPS_MOST, FEW_ROWS),
    ),
    LogRule(
        id="KLD124",
        title="far from the reference",
        severity="info",
        condition="median kl over {kl_late} nats a token in the last third of the rows, or over {kl_row} in one row",
        observe=_kl,
        place="objective",
        phrase=lambda v: f"KL {shown(v, 'late', '.3g')} nats a token from the reference",
        applies=under("rl"),
        confidence=0.5,
        evidence=(
            cite(
                "TRL 1.16, grpo_trainer.py (read)", "kl: mean over the tokens against the reference; only with beta > 0"
            ),
            TRIAL,
        ),
        rationale="Far from its reference a policy may be exploiting flaws of the reward.",
        action="Raise beta, lower the learning rate, or read what it writes now.",
        scope="RL that logs kl per token; a single row is info",
        verify="Read completions; evaluate on held-out prompts.",
        thresholds=(KL_LATE, KL_ROW, FEW_ROWS),
    ),
    LogRule(
        id="CLP125",
        title="completions cut off",
        severity="warning",
        condition="mean completions/clipped_ratio of at least {cut_off} in the last third of the rows; the message "
        "adds whether at least {zero_groups_also} of the groups have equal rewards",
        observe=_cut_off,
        place="objective",
        phrase=_cut_off_says,
        applies=under("rl"),
        confidence=0.7,
        evidence=(
            cite(
                "DAPO, arXiv 2503.14476 (through reviews)",
                "punishing answers that were cut off adds noise to the reward",
            ),
            TRIAL,
        ),
        rationale="An answer that was cut off is graded as wrong even if it was right so far: noise in the reward.",
        action="Raise the maximal completion length, or mask completions that were cut off.",
        scope="RL that logs completions/clipped_ratio, from three rows on",
        verify="Read completions that were cut off.",
        thresholds=(CUT_OFF, ZERO_GROUPS_ALSO, FEW_ROWS),
    ),
)
