"""PRF119 to PRF121: preference training, whose loss may fall while nothing is told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradience.rules.evidence import DAPO_GROUPS, DAPO_LENGTH, DPO_START, GRPO_KL, LIKELIHOOD, NEMOTRON, REWARD, TRIAL
from gradience.rules.log import thresholds as t
from gradience.rules.log.curve import median, noise
from gradience.rules.log.detector import Detector, Sighting
from gradience.rules.log.facts import RunFacts, Signal
from gradience.rules.log.level import window
from gradience.rules.rule import Unknown

_MEDIAN_ERROR = 1.2533  # standard error of a median over that of a mean
_FIFTH, _THIRD = 5, 3


def column(facts: RunFacts, name: str, least: float) -> Signal:
    """Return a column of the log.

    Raises:
        Unknown: it was not logged, or in fewer rows than asked for.
    """
    signal = facts.signals.get(name)
    if signal is None:
        reason = f"no {name} was logged"
        raise Unknown(reason)
    if len(signal.values) < least:
        reason = f"{len(signal.values)} rows with {name}; it needs {least:g}"
        raise Unknown(reason)
    return signal


def _last(values: Sequence[float], parts: int) -> Sequence[float]:
    return values[-max(1, len(values) // parts) :]


def _reward(facts: RunFacts) -> Sighting | None:
    signal = column(facts, "reward", t.REWARD_ROWS.value)
    values = signal.values
    width = len(values) // _FIFTH
    starts = range(0, len(values) - width + 1, max(1, width // 2))
    levels = {start: median(values[start : start + width]) for start in starts}
    first, last = levels[0], median(values[-width:])
    at = max(levels, key=levels.__getitem__)
    best, step = levels[at], signal.steps[at + width // 2]
    error = _MEDIAN_ERROR * noise(values) * math.sqrt(2.0 / width)
    fallen = best - last > max(t.REWARD_ERRORS.value * error, t.REWARD_FALL.value * abs(best))
    if fallen and best - last > t.LOST_SHARE.value * (best - first):
        return Sighting(
            f"The reward fell: {best:.4g} around step {step}, {last:.4g} in the last fifth of the rows "
            f"(+/- {error:.2g}).",
            {"first": first, "best": best, "best_step": step, "last": last, "error": error},
            seen=(f"medians of {width} rows each",),
        )
    change = last - first
    if abs(change) > 2.0 * error:
        return None
    if error > t.REWARD_FLAT.value * max(abs(first), abs(last)):
        reason = f"too noisy: a change of the reward by {2 * error:.2g} could not be seen"
        raise Unknown(reason)
    return Sighting(
        f"The reward does not rise: {first:.4g} in the first fifth of the rows, {last:.4g} in the last "
        f"(+/- {error:.2g}).",
        {"first": first, "last": last, "error": error},
        severity="info",
        confidence=0.5,
        action="See whether the task is solved already, or never: then no group holds a difference to learn from.",
        seen=(f"medians of {width} rows each",),
    )


def _zero_variance(facts: RunFacts) -> Sighting | None:
    signal = column(facts, "frac_reward_zero_std", t.REWARD_ROWS.value)
    late = _last(signal.values, _THIRD)
    share = math.fsum(late) / len(late)
    if share < t.ZERO_GROUPS.value:
        return None
    return Sighting(
        f"In the last third of the rows {share:.0%} of the groups have equal rewards: they teach nothing.",
        {"share": share, "first": signal.values[0], "from_step": signal.steps[-len(late)]},
        severity="warning" if share >= t.ZERO_GROUPS_MOST.value else "info",
        confidence=0.85 if share >= t.ZERO_GROUPS_MOST.value else 0.6,
        seen=(f"frac_reward_zero_std {share:.3f} in {len(late)} rows",),
    )


def _kl(facts: RunFacts) -> Sighting | None:
    signal = column(facts, "kl", t.REWARD_ROWS.value)
    late = median(_last(signal.values, _THIRD))
    if late > t.KL_LATE.value:
        return Sighting(
            f"The policy is far from its reference: KL {late:.3g} nats a token in the last third of the rows.",
            {"late": late},
            severity="warning",
            confidence=0.6,
            seen=(f"median kl {late:.4g}",),
        )
    highest = max(signal.values)
    if highest <= t.KL_ROW.value:
        return None
    step = signal.steps[signal.values.index(highest)]
    rows = sum(value > t.KL_ROW.value for value in signal.values)
    return Sighting(
        f"KL jumps to {highest:.3g} nats a token at step {step} ({rows} such rows), and comes back to {late:.3g}.",
        {"highest": highest, "step": step, "rows": rows, "late": late},
        action="Look at the completions of that step: one token the reference finds impossible is enough.",
        seen=(f"kl {highest:.4g} at step {step}",),
    )


def _cut_off(facts: RunFacts) -> Sighting | None:
    signal = column(facts, "completions/clipped_ratio", t.REWARD_ROWS.value)
    late = _last(signal.values, _THIRD)
    share = math.fsum(late) / len(late)
    if share < t.CUT_OFF.value:
        return None
    return Sighting(
        f"In the last third of the rows {share:.0%} of the completions are cut off at their maximal length.",
        {"share": share},
        seen=(f"completions/clipped_ratio {share:.3f} in {len(late)} rows",),
    )


DETECTORS = (
    Detector(
        id="RWD122",
        severity="warning",
        title="reward falls",
        condition=_reward,
        confidence=0.7,
        evidence=(REWARD, TRIAL),
        rationale="The reward is what is optimised: under RL a loss near 0 is normal and tells nothing.",
        action="Go back to the checkpoint with the best reward; lower the learning rate, or raise beta.",
        scope="RL that logs reward; info where it only fails to rise",
        verify="Read completions of both ends; evaluate on held-out prompts.",
        thresholds=(t.REWARD_ROWS, t.REWARD_ERRORS, t.REWARD_FALL, t.LOST_SHARE, t.REWARD_FLAT),
        only_for=("rl",),
    ),
    Detector(
        id="ZVR123",
        severity="warning",
        title="groups without variance",
        condition=_zero_variance,
        confidence=0.85,
        evidence=(DAPO_GROUPS, TRIAL),
        rationale="The advantage is the reward less its group's mean: equal rewards give no gradient.",
        action="Filter prompts that are always or never solved, sample more completions, or grade the reward finer.",
        scope="GRPO and its kin, where frac_reward_zero_std is logged; under nine groups of ten it is info",
        verify="See whether the reward of these groups is all right or all wrong.",
        thresholds=(t.ZERO_GROUPS, t.ZERO_GROUPS_MOST, t.REWARD_ROWS),
        only_for=("rl",),
    ),
    Detector(
        id="KLD124",
        severity="info",
        title="far from the reference",
        condition=_kl,
        confidence=0.5,
        evidence=(GRPO_KL, TRIAL),
        rationale="Far from its reference a policy may have found rewards that mean nothing.",
        action="Raise beta, lower the learning rate, or read what it writes now.",
        scope="RL that logs kl per token; a single row is info",
        verify="Read completions; evaluate on held-out prompts.",
        thresholds=(t.KL_LATE, t.KL_ROW, t.REWARD_ROWS),
        only_for=("rl",),
    ),
    Detector(
        id="CLP125",
        severity="info",
        title="completions cut off",
        condition=_cut_off,
        confidence=0.7,
        evidence=(DAPO_LENGTH, TRIAL),
        rationale="An answer that was cut off is graded as wrong, right or not: noise in the reward.",
        action="Raise the maximal completion length, or mask completions that were cut off.",
        scope="RL that logs completions/clipped_ratio",
        verify="Read completions that were cut off.",
        thresholds=(t.CUT_OFF, t.REWARD_ROWS),
        only_for=("rl",),
    ),
)


_REFERENCE_FREE = {"log_odds_ratio", "nll_loss"}  # ORPO, CPO: no reference, so no start at ln 2


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, math.sqrt(spread / len(values))


def _separation(facts: RunFacts) -> Sighting | None:
    accuracies = column(facts, "rewards/accuracies", t.FEW_ROWS.value)
    margins = column(facts, "rewards/margins", t.FEW_ROWS.value)
    accuracy, error = _mean(accuracies.values[len(accuracies.values) // 2 :])
    margin, margin_error = _mean(margins.values[len(margins.values) // 2 :])
    surely = accuracy >= 0.5 and margin > t.SURELY.value * margin_error  # noqa: PLR2004  # one half
    if surely or accuracy - 0.5 > max(t.SEPARATED.value, 2.0 * error):
        return None
    if error > t.SEPARATION_ERROR.value:
        reason = f"too noisy: an accuracy of the rewards {2 * error:.1%} over one half could not be seen"
        raise Unknown(reason)
    swapped = 0.5 - accuracy > max(t.SEPARATED.value, 2.0 * error)
    how = "told apart the wrong way round" if swapped else "not told apart"
    return Sighting(
        f"Chosen and rejected answers are {how}: in the second half of the rows the rewards are in the right order "
        f"in {accuracy:.1%} (+/- {2 * error:.1%}), by {margin:.3g} on average.",
        {"accuracy": accuracy, "error": error, "margin": margin, "how": how},
        seen=(f"rewards/accuracies {accuracy:.4f}, rewards/margins {margin:.4g}",),
    )


def _chosen_falls(facts: RunFacts) -> Sighting | None:
    signal = column(facts, "rewards/chosen", t.FEW_ROWS.value)
    values = signal.values
    width = window(len(values))
    first, last = median(values[:width]), median(values[-width:])
    error = noise(values) * math.sqrt(2.0 / width)
    if first - last < max(t.CHOSEN_FALL.value, 3.0 * error):
        return None
    return Sighting(
        f"The chosen answers grow less likely, too: their reward fell from {first:.3g} to {last:.3g}.",
        {"first": first, "last": last},
        seen=(f"medians of {width} rows of rewards/chosen",),
    )


def _start(facts: RunFacts) -> Sighting | None:
    if facts.logged & _REFERENCE_FREE:
        reason = "an objective without a reference: it has no known start"
        raise Unknown(reason)
    margins = column(facts, "rewards/margins", 1)
    if not facts.loss.values:
        reason = "no training loss was logged"
        raise Unknown(reason)
    margin, loss = margins.values[0], facts.loss.values[0]
    if margins.steps[0] > t.START_STEP.value or abs(margin) < t.START_MARGIN.value:
        return None
    return Sighting(
        f"Preference training starts away from its reference: the first margin is {margin:.3g}, the first loss "
        f"{loss:.4g} (from the reference itself: 0, and ln 2 = {math.log(2.0):.4f} under the sigmoid loss).",
        {"margin": margin, "loss": loss, "step": margins.steps[0]},
        seen=(f"rewards/margins {margin:.4g} at step {margins.steps[0]}",),
    )


PREFERENCE_DETECTORS = (
    Detector(
        id="PRF119",
        severity="warning",
        title="preferences not told apart",
        condition=_separation,
        confidence=0.8,
        evidence=(NEMOTRON, TRIAL),
        rationale="The loss may fall by its likelihood term alone; what the data was collected for is not learnt.",
        action="Check that chosen and rejected differ and are not swapped, what target_modules hit, and lr.",
        scope="preference training that logs rewards/accuracies and rewards/margins",
        verify="Reward accuracy on held-out pairs.",
        thresholds=(t.SEPARATED, t.SURELY, t.SEPARATION_ERROR, t.FEW_ROWS),
        only_for=("preference",),
    ),
    Detector(
        id="PRF120",
        severity="info",
        title="chosen answers less likely",
        condition=_chosen_falls,
        confidence=0.5,
        evidence=(LIKELIHOOD, TRIAL),
        rationale="A margin can grow while both answers lose probability to others, which no one asked for.",
        action="Read what it writes now; a likelihood term on the chosen answers would hold them.",
        scope="preference training that logs rewards/chosen",
        verify="Log-probability of chosen answers on held-out pairs.",
        thresholds=(t.CHOSEN_FALL, t.FEW_ROWS),
        only_for=("preference",),
    ),
    Detector(
        id="PRF121",
        severity="info",
        title="starts away from the reference",
        condition=_start,
        confidence=0.5,
        evidence=(DPO_START, TRIAL),
        rationale="The reference is then not the model that training began with, as it mostly should be.",
        action="Check the reference model, and which adapter is active in it.",
        scope="preference training against a reference, logged from its first steps on",
        verify="Rewards of both answers before the first step should be 0.",
        thresholds=(t.START_MARGIN, t.START_STEP),
        only_for=("preference",),
    ),
)
