"""Preference training: are chosen and rejected answers told apart, and what becomes of their likelihood?

PRF119 and PRF140 judge the margin of the rewards, PRF120 the log-probabilities of both answers,
PRF130 saturation. `told` says in the story whether the preferences are learnt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gradience.rules import NEMOTRON, TRIAL, Observation, Premise, Threshold, Unknown, cite, premise
from gradience.rules.log.facts import (
    JUDGEMENT,
    REAL_RUNS,
    LogRule,
    RunFacts,
    last_part,
    logged,
    once,
    seen,
    shown,
    under,
)
from gradience.rules.log.statistics import mann_kendall, mean_error, median, median_error, noise
from gradience.schema import as_float, number_in
from gradience.schema.reports import StoryPart
from gradience.telemetry.signals import ACCURACIES, CHOSEN, CHOSEN_LOGPS, MARGINS, REJECTED, REJECTED_LOGPS

FEW_ROWS = Threshold("few_rows", 3, "rows that logged it", "the mean of fewer rows is not a level")
MANY_ROWS = Threshold("many_rows", 20, "rows that logged it", "below it the order of the rows is tested instead")
ALPHA = Threshold("alpha", 0.01, "one-sided p of the order of few rows", "1 of 100 flat columns")

SURELY = Threshold("surely", 3.0, "standard errors of the margin over 0", "105 RL trainings: no change from 1.5 on")
SEPARATION_ERROR = Threshold("separation_error", 0.03, "standard error of the accuracy", "above it, the margin decides")
MARGIN_ERROR = Threshold("margin_error", 0.08, "standard error of the accuracy", "above it, cannot tell")
MARGIN_STILL = Threshold(
    "margin_still", 1.0, "standard errors of the margin over 0", "105 RL trainings: no change from 0.67 on"
)
SEPARATION_ROWS = Threshold("separation_rows", 10, "rows with both columns", "five make a half, and its error")
HARDLY = Threshold("hardly", 0.02, "of ln 2, both ends of the loss", "105 RL trainings: no change up to 2")
HARDLY_APART = Threshold("hardly_apart", 0.05, "reward: beta x nats", "a judgement: half a nat at beta = 0.1")
TOGETHER = Threshold(
    "together", 10.0, "move of a reward over the margin and 3 errors", "105 RL trainings: no change from 6.7 on"
)
APART = Threshold("apart", 2.0, "reward of both answers in the first row", "before the first step it is 0")
APART_STAYS = Threshold("apart_stays", 0.5, "of it, the most that the next rows add", "a judgement: else it was learnt")
TIE = Threshold("tie", 1e-4, "reward: beta x nats, in every row", "rounding: margins learnt are a thousand times this")
CHOSEN_FALL = Threshold("chosen_fall", 1.0, "reward: beta x nats", "a judgement: 10 nats at beta = 0.1")
CHOSEN_NATS = Threshold("chosen_nats", 10.0, "nats, and a tenth of the first level", JUDGEMENT)
CHOSEN_MOST = Threshold("chosen_most", 0.5, "of the first log-probability", "a judgement: the answer is lost")
CHOSEN_EARLY = Threshold("chosen_early", 0.2, "of the first level, and of the rows", JUDGEMENT)
CHOSEN_EARLY_NATS = Threshold("chosen_early_nats", 30.0, "nats", "a judgement: three times chosen_nats")
CHOSEN_LOST = Threshold("chosen_lost", 5.0, "reward: beta x nats", "a judgement: 50 nats at beta = 0.1")
CHOSEN_ERRORS = Threshold(
    "chosen_errors", 3.0, "standard errors of the difference", "arithmetic: noise has it once in 740"
)
CHOSEN_ROWS = Threshold("chosen_rows", 5, "rows with rewards/chosen", "the order of fewer cannot reach p = 1 %")
SWAPPED = Threshold("swapped", 0.3, "share of the pairs", "105 RL trainings: no change from 0.08 to 0.9")
TOLD = Threshold("told", 0.8, "of ln 2, the training loss", "a judgement: nearly three pairs of four in order")
SATURATED_LOSS = Threshold("saturated_loss", 0.02, "nats, median of the last quarter", "-ln sigmoid(4) = 0.018")
SATURATED_MARGIN = Threshold("saturated_margin", 4.0, "reward: beta x nats, the same rows", REAL_RUNS)

# logged by ORPO and CPO, which have no reference model, so their loss does not start at ln 2
_REFERENCE_FREE: Final = {"log_odds_ratio", "nll_loss", "odds_ratio_loss"}
_PAIRS: Final = under("preference")


@dataclass(frozen=True, kw_only=True)
class _PreferenceRule(LogRule):
    """A rule on preference training."""

    meant_for: Premise[RunFacts] | None = _PAIRS


class Separation(NamedTuple):
    """How far apart the rewards of chosen and rejected answers are in the second half of the rows.

    Attributes:
        accuracy: mean share of pairs in the right order; NaN if it was not logged, as by KTO.
        error: its standard error.
        margin: mean reward of chosen less that of rejected answers.
        margin_error: its standard error.
    """

    accuracy: float
    error: float
    margin: float
    margin_error: float

    @property
    def surely(self) -> bool:
        """Whether the margin is over 0 by more than chance explains, and no accuracy speaks against it."""
        # `not <`: an accuracy that was not logged is NaN, and speaks against nothing
        return not self.accuracy < 0.5 and self.margin > SURELY.value * self.margin_error  # noqa: PLR2004  # one half


_DPO_LOSS: Final = cite(
    "DPO, arXiv 2305.18290 (the loss)", "-log sigmoid(0) = ln 2 where policy and reference are the same"
)


@once
def separation(facts: RunFacts) -> Separation | None:
    """The separation of a run; None if too few rows logged rewards."""
    accuracy, error = math.nan, math.inf
    accuracies = facts.signals.get(ACCURACIES)
    if accuracies is not None:
        if len(accuracies.values) < SEPARATION_ROWS.value:
            return None
        accuracy, error = mean_error(_half(accuracies.values))
    margins = facts.signals.get(MARGINS)
    if margins is not None and len(margins.values) >= SEPARATION_ROWS.value:
        return Separation(accuracy, error, *mean_error(_half(margins.values)))
    chosen, rejected = facts.signals.get(CHOSEN), facts.signals.get(REJECTED)
    if chosen is None or rejected is None or min(len(chosen.values), len(rejected.values)) < SEPARATION_ROWS.value:
        return None
    (good, good_error), (bad, bad_error) = mean_error(_half(chosen.values)), mean_error(_half(rejected.values))
    return Separation(accuracy, error, good - bad, math.hypot(good_error, bad_error))


def _half(values: Sequence[float]) -> Sequence[float]:
    return values[len(values) // 2 :]


@once
def tied(facts: RunFacts) -> bool:
    """Whether the rewards of chosen and rejected answers are equal in every row."""
    margins = facts.signals.get(MARGINS)
    return margins is not None and len(margins.values) >= FEW_ROWS.value and max(map(abs, margins.values)) <= TIE.value


@premise("under preference, a margin other than 0")
def some_margin(facts: RunFacts) -> str | None:
    """The reason why a preference loss stands still."""
    return "all margins are 0 (see PRF140)" if tied(facts) else None


@_PreferenceRule(
    "PRF119",
    severity="warning",
    confidence=0.8,
    place="objective",
    phrase=lambda v: f"chosen and rejected are {v['how']}",
    covers=frozenset({"learning"}),
    thresholds=(
        *(SURELY, SEPARATION_ERROR, MARGIN_ERROR, MARGIN_STILL, SEPARATION_ROWS, TIE),
        *(HARDLY, HARDLY_APART, TOGETHER, CHOSEN_FALL),
    ),
    evidence=(NEMOTRON, TRIAL),
)
def _separation(facts: RunFacts) -> Observation | None:
    """preferences not told apart

    in the second half of the rows, the mean of rewards/accuracies is at most 2 standard errors
    above one half, and that of rewards/margins is not {surely} standard errors above 0; if the accuracy's standard
    error is over {separation_error}, the margin must be within {margin_still} standard error of 0, or below; not
    where all margins are 0 (PRF140). Without an accuracy: both rewards moved by {chosen_fall}, and by {together} times
    as much as apart. Hardly told apart: a finished run whose loss is within {hardly} of ln 2 at both ends, and its
    margin at most {hardly_apart}

    Why: The loss may fall through its likelihood term alone, while the preferences are not learnt.
    Scope: preference training that logs rewards/accuracies and rewards/margins
    Action: See whether the pairs differ and are labelled right; else train longer, or at a higher rate.
    Verify: Reward accuracy on held-out pairs.
    Seen: https://github.com/huggingface/peft/issues/3554 -- DPO at ln 2 to its end
    """
    if tied(facts):
        return None  # PRF140 says it: an accuracy of 0 means ties
    apart = separation(facts)
    if apart is None:
        logged(facts, (MARGINS,), SEPARATION_ROWS.value)
        logged(facts, (ACCURACIES,), SEPARATION_ROWS.value)
        raise Unknown("too few rows with rewards of both answers")
    accuracy, error, margin, margin_error = apart
    if (hardly := _hardly(facts, apart)) is not None:
        return hardly
    if apart.surely or accuracy - 0.5 > 2.0 * error:
        return None
    if math.isnan(accuracy) and (together := _together(facts, apart)) is not None:
        return together
    if math.isnan(accuracy):
        raise Unknown(f"no reward accuracy was logged, and the margin is {margin:.2g} +/- {2 * margin_error:.2g}")
    margin_still = error <= MARGIN_ERROR.value and margin <= MARGIN_STILL.value * margin_error
    if error > SEPARATION_ERROR.value and not margin_still:
        raise Unknown(f"too noisy: a reward accuracy {2 * error:.1%} over one half would not show")
    swapped = 0.5 - accuracy > 2.0 * error and margin < 0.0
    how = "told apart the wrong way round" if swapped else "not told apart"
    return Observation(
        f"Chosen and rejected answers are {how}: in the second half of the rows the reward accuracy is {accuracy:.1%} "
        f"(+/- {2 * error:.1%}), the mean margin {margin:.3g}.",
        {"accuracy": accuracy, "error": error, "margin": margin, "how": how},
        action="See which answer the trainer takes as chosen, and the sign of the loss." if swapped else None,
        confidence=0.6 if error > SEPARATION_ERROR.value else None,
        evidence=seen(f"rewards/accuracies {accuracy:.4f}, rewards/margins {margin:.4g} (+/- {margin_error:.2g})"),
    )


@_PreferenceRule(
    "PRF220",
    severity="warning",
    confidence=0.65,
    place="objective",
    phrase=lambda v: f"rewards of {shown(v, 'chosen', '.2g')} and {shown(v, 'rejected', '.2g')} in the first row",
    thresholds=(APART, APART_STAYS, SEPARATION_ROWS),
    evidence=(_DPO_LOSS,),
)
def _another_reference(facts: RunFacts) -> Observation | None:
    """reference is another model

    in the first row of a log that begins with the run both rewards are at least {apart} from 0 on the same side, and
    the rest of the first fifth moves neither by over {apart_stays} of it, from {separation_rows} rows on

    Why: A reward is beta times what policy and reference differ by, and both begin as one model.
    Scope: preference training with a reference that logs both rewards
    Action: Give the model that the run begins with as reference: with PEFT older versions of TRL take the base
        without the adapter.
    Verify: The log-probabilities of both models for one pair, before the first step.
    Seen: https://github.com/huggingface/trl/issues/1340 -- of PPO: the reference is the base, and training starts
        from an SFT adapter
    Source: trl/trainer/dpo_trainer.py:DPOTrainer@1.16.0 -- copies the adapter of a PeftModel as reference; of a new
        adapter the base is it
    """
    if facts.logged & _REFERENCE_FREE:
        raise Unknown("the loss has no reference model")
    pair = [logged(facts, (name,), SEPARATION_ROWS.value) for name in (CHOSEN, REJECTED)]
    if not _with_reference(facts):
        raise Unknown("the rewards may be those of a loss without reference, such as SimPO's")
    steps = pair[0].steps
    if steps[0] > steps[1] - steps[0]:
        raise Unknown(f"the log begins at step {steps[0]}")
    chosen, rejected = (each.values[0] for each in pair)
    if chosen * rejected <= 0.0 or min(abs(chosen), abs(rejected)) < APART.value:
        return None
    rows = max(3, len(steps) // 5)
    if any(abs(median(x.values[1:rows]) - x.values[0]) > APART_STAYS.value * abs(x.values[0]) for x in pair):
        return None
    return Observation(
        f"In the first row the rewards are already {chosen:.3g} for chosen and {rejected:.3g} for rejected answers, "
        "where policy and reference should be the same: the reference is another model than the run began with, or "
        "reads another template.",
        {"chosen": chosen, "rejected": rejected},
        evidence=seen(f"{CHOSEN} and {REJECTED} at step {steps[0]}"),
    )


def _with_reference(facts: RunFacts) -> bool:
    """Whether rewards are no plain multiple of the log-probabilities, as they are where there is no reference."""
    rewards, logps = facts.signals.get(CHOSEN), facts.signals.get(CHOSEN_LOGPS)
    if rewards is None or logps is None or len(rewards.values) != len(logps.values) or 0.0 in logps.values:
        return False
    ratios = [reward / logp for reward, logp in zip(rewards.values, logps.values, strict=True)]
    return max(ratios) - min(ratios) > 0.02 * abs(median(ratios))  # rounding


def _hardly(facts: RunFacts, apart: Separation) -> Observation | None:
    """The finding if a run ends where a loss of pairs starts: at the ln 2 of a policy that is its reference."""
    losses = facts.loss.values
    if facts.status != "ok" or len(losses) < SEPARATION_ROWS.value or apart.accuracy < 0.5:  # noqa: PLR2004  # one half
        return None
    start, first, last = math.log(2.0), median(losses[: len(losses) // 5]), median(last_part(losses, 5))
    off = max(abs(first - start), abs(last - start))
    if off > HARDLY.value * start or not 0.0 < apart.margin <= HARDLY_APART.value:
        return None
    rate = f" at a learning rate of {facts.peak_rate:.2g}" if facts.rate.values else ""
    return Observation(
        f"Chosen and rejected answers are hardly told apart{rate}: the loss ends at {last:.4g}, {last / start:.1%} of "
        f"the ln 2 that it starts from, with a mean margin of {apart.margin:.3g} in the second half of the rows.",
        {"margin": apart.margin, "loss": last, "how": "hardly told apart"},
        action="Train at a higher learning rate, or for more steps.",
        evidence=seen(f"loss {first:.4g} in the first fifth of the rows, {last:.4g} in the last"),
    )


def _together(facts: RunFacts, apart: Separation) -> Observation | None:
    """The finding if the rewards of both answers moved alike, of a log without reward accuracies, such as KTO's."""
    chosen = facts.signals.get(CHOSEN)
    if chosen is None or not chosen.values:
        return None
    moved = abs(mean_error(_half(chosen.values))[0])
    if moved < max(CHOSEN_FALL.value, TOGETHER.value * (abs(apart.margin) + SURELY.value * apart.margin_error)):
        return None
    return Observation(
        f"Chosen and rejected answers are not told apart: in the second half of the rows both rewards are {moved:.3g} "
        f"from the reference, and {apart.margin:.2g} (+/- {2 * apart.margin_error:.2g}) from each other.",
        {"margin": apart.margin, "moved": moved, "how": "not told apart"},
        evidence=seen(f"{CHOSEN} and {MARGINS}: means of the second half of the rows"),
    )


@_PreferenceRule(
    "PRF140",
    severity="warning",
    confidence=0.9,
    place="objective",
    covers=frozenset({"learning"}),
    phrase=lambda v: f"margin 0 throughout: {'both rewards are 0' if v['why'] == 'no reward' else 'both are equal'}",
    thresholds=(TIE, FEW_ROWS),
    evidence=(_DPO_LOSS,),
)
def _ties(facts: RunFacts) -> Observation | None:
    """no margin at all

    rewards/margins is at most {tie} in size in every row, from {few_rows} rows on

    Why: Pairs without a margin have the same loss whatever the policy learns. A reward accuracy of 0 is then a tie,
        not a wrong order.
    Scope: preference training that logs rewards/margins
    Action: See which parameters train, and that the reference is not the policy itself.
    Verify: Decode one pair of a batch; compare a weight of policy and reference after ten steps.
    Seen: https://github.com/YiyangZhou/POVID/issues/11 -- DPO's loss never changes: policy and reference are one
        model
    """
    margins = logged(facts, (MARGINS,), FEW_ROWS.value)
    if not tied(facts):
        return None
    rewards = facts.signals.get(CHOSEN)
    still = rewards is not None and max(map(abs, rewards.values)) <= TIE.value
    if still and (not any(facts.rate.values) or not any(facts.norm.values)):
        raise Unknown("nothing was trained, or no gradient was logged")
    why = (
        "both rewards are 0 although gradients are not: the reference changes with the policy, or the optimizer does "
        "not reach the policy's weights"
        if still
        else "both answers have the same reward: chosen and rejected are the same text after templates and truncation"
    )
    return Observation(
        f"The margin is 0 in all {len(margins.values)} rows, so nothing is preferred; {why}.",
        {"rows": len(margins.values), "why": "no reward" if still else "same texts"},
        evidence=seen(f"rewards/margins at most {max(map(abs, margins.values)):.2g} in size"),
    )


class Fall(NamedTuple):
    """A column at both ends, in medians of `rows` rows, and whether it was down within the first fifth."""

    first: float
    last: float
    rows: int
    early: bool

    @property
    def lost(self) -> float:
        """How far it fell."""
        return self.first - self.last


def _fall(values: Sequence[float]) -> Fall | None:
    """How far a column falls; None if it does not by more than chance explains."""
    if len(values) < CHOSEN_ROWS.value:
        return None
    rows = max(5, math.ceil(0.05 * len(values))) if len(values) >= MANY_ROWS.value else max(1, len(values) // 5)
    first, last, head = median(values[:rows]), median(values[-rows:]), rows
    if values[0] > max(values[1:]) and values[0] - first > first - last:  # the first rows lost most of it
        first, head = values[0], 1
    # Without the first row, whose fall is what is looked for and would count as noise
    if first <= last or first - last < CHOSEN_ERRORS.value * median_error(noise(values[1:]), head, rows):
        return None
    if head > 1 and len(values) < MANY_ROWS.value and mann_kendall(values) > ALPHA.value:
        return None
    until = max(1, round(CHOSEN_EARLY.value * len(values)))
    early = first - median(values[until : 2 * until]) >= (1.0 - CHOSEN_EARLY.value) * (first - last)
    return Fall(first, last, head, early)


@_PreferenceRule(
    "PRF120",
    severity="info",
    confidence=0.5,
    place="objective",
    phrase=lambda v: (
        f"{'both answers lose' if v['both'] else 'chosen answers lose'} probability: chosen "
        f"{shown(v, 'first')} -> {shown(v, 'last')}"
    ),
    covers=lambda v: frozenset({"learning"}) if v.get("much") else frozenset(),
    thresholds=(
        *(CHOSEN_NATS, CHOSEN_MOST, CHOSEN_EARLY, CHOSEN_EARLY_NATS, CHOSEN_FALL, CHOSEN_LOST),
        *(CHOSEN_ERRORS, CHOSEN_ROWS, MANY_ROWS, ALPHA),
    ),
    evidence=(TRIAL,),
)
def _chosen_falls(facts: RunFacts) -> Observation | None:
    """chosen answers less likely

    logps/chosen fell by {chosen_errors} standard errors, and by at least {chosen_nats} nats and a tenth of its
    first level; a warning where it fell by {chosen_most} of it, or where both answers fell, it by {chosen_early} of it
    and {chosen_early_nats} nats, mostly within the first {chosen_early} of the rows. Where only rewards/chosen is
    logged, it fell by {chosen_fall}; a warning where both fell, it by {chosen_lost}. Also a warning where both rewards
    end {chosen_lost} below the reference, if there is one. The first level is the first row's
    if all others are below it and the first rows lost most; else, under {many_rows} rows, a Mann-Kendall test must find
    the fall, at p <= {alpha}

    Why: A margin can grow while both answers lose probability to answers that no one asked for.
    Scope: preference training that logs logps/chosen or rewards/chosen
    Verify: Read what the model writes now; log-probability of chosen answers on held-out pairs.
    Seen: https://github.com/hiyouga/LlamaFactory/issues/6153 -- rewards/chosen is negative and falls all the time
    Source: Smaug/DPO-Positive, arXiv 2402.13228 (abstract) -- DPO can lower the likelihood of the chosen answer as
        long as the margin grows
    """
    signal = facts.signals.get(CHOSEN_LOGPS)
    if signal is None:
        return _reward_falls(facts)
    fall = _fall(logged(facts, (CHOSEN_LOGPS,), CHOSEN_ROWS.value).values)
    if fall is None or fall.first >= 0.0:
        return _far_below(facts)
    lost, level = fall.lost, abs(fall.first)
    rejected = facts.signals.get(REJECTED_LOGPS)
    both = _fall(rejected.values) if rejected else None
    early = both is not None and fall.early and lost >= max(CHOSEN_EARLY_NATS.value, CHOSEN_EARLY.value * level)
    much = early or lost >= CHOSEN_MOST.value * level
    if not much and (far := _far_below(facts)) is not None:
        return far
    if not much and lost < max(CHOSEN_NATS.value, 0.1 * level):
        return None
    other = f", of rejected ones from {both.first:.4g} to {both.last:.4g}" if both else ""
    margin = _grows(facts)
    when = " within the first fifth of the run" if early else ""
    return Observation(
        f"{'Both answers' if both else 'The chosen answers'} lose probability{when}{margin}: log-probability of chosen "
        f"answers from {fall.first:.4g} to {fall.last:.4g}{other}.",
        {"first": fall.first, "last": fall.last, "both": both is not None, "much": much},
        severity="warning" if much else "info",
        confidence=0.8 if much else None,
        evidence=seen(f"medians of {fall.rows} rows of logps/chosen"),
    )


def _far_below(facts: RunFacts) -> Observation | None:
    """The finding if both answers are far less likely than for the reference, whatever the first row shows."""
    chosen, rejected = facts.signals.get(CHOSEN), facts.signals.get(REJECTED)
    if chosen is None or rejected is None or facts.logged & _REFERENCE_FREE or len(chosen.values) < CHOSEN_ROWS.value:
        return None
    late, other = median(last_part(chosen.values, 5)), median(last_part(rejected.values, 5))
    if max(late, other) > -CHOSEN_LOST.value:
        return None
    return Observation(
        f"Both answers are far less likely than for the reference: rewards {late:.3g} for chosen, {other:.3g} for "
        "rejected ones, which are beta times nats.",
        {"first": 0.0, "last": late, "both": True, "much": True},
        severity="warning",
        confidence=0.7,
        evidence=seen(f"medians of the last fifth of {CHOSEN} and {REJECTED}"),
    )


def _grows(facts: RunFacts) -> str:
    margins = None if tied(facts) else facts.signals.get(MARGINS)
    fall = _fall([-value for value in margins.values]) if margins else None
    return f", while the margin grows from {-fall.first:.3g} to {-fall.last:.3g}" if fall else ""


def _reward_falls(facts: RunFacts) -> Observation | None:
    fall = _fall(logged(facts, (CHOSEN,), CHOSEN_ROWS.value).values)
    if fall is None or fall.lost < CHOSEN_FALL.value:
        return _far_below(facts)
    rejected = facts.signals.get(REJECTED)
    both = rejected is not None and _fall(rejected.values) is not None
    much = both and fall.lost >= CHOSEN_LOST.value
    return Observation(
        f"The chosen answers grow less likely, too: their reward fell from {fall.first:.3g} to {fall.last:.3g}.",
        {"first": fall.first, "last": fall.last, "both": both, "much": much},
        severity="warning" if much else "info",
        confidence=0.7 if much else None,
        evidence=seen(f"medians of {fall.rows} rows of rewards/chosen"),
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


@_PreferenceRule(
    "PRF130",
    severity="warning",
    confidence=0.85,
    place="meaning",
    covers=frozenset({"learning"}),
    phrase=lambda v: f"preferences saturated: margin {shown(v, 'margin', '.3g')}, nothing is left to learn",
    thresholds=(SATURATED_LOSS, SATURATED_MARGIN, FEW_ROWS),
)
def _saturated(facts: RunFacts) -> Observation | None:
    """preferences saturated

    in the last quarter of the rows the median loss is at most {saturated_loss} and the median of rewards/margins at
    least {saturated_margin}, from {few_rows} rows on

    Why: Beyond that margin the loss has no gradient: later steps only move the policy from its reference.
    Scope: preference losses that depend on the margin; a loss of zero here is not a NaN
    Action: Stop earlier, or raise beta.
    Verify: Reward accuracy and likelihood of chosen answers on held-out pairs, of an earlier checkpoint too.
    Seen: https://github.com/huggingface/trl/issues/1236 -- the loss of DPO is 0
    Source: a published DPO run -- loss 0.693 to 0.0, margin 0 to 141, accuracy 1.0, gradient norm 1.7e-8 and finite
    Source: definition -- -ln sigmoid(margin): 0.018 at 4, its slope too
    """
    logged(facts, ("rewards/margins",), 1)
    if len(facts.loss.values) < FEW_ROWS.value:
        raise Unknown(f"{len(facts.loss.values)} training rows with a finite loss; it needs {FEW_ROWS.value:g}")
    return saturated(facts)


class InOrder(NamedTuple):
    """The shares of pairs in the order of their labels: in training, late on, and in each evaluation."""

    trained: float
    held_out: Sequence[float]


@once
def in_order(facts: RunFacts) -> InOrder | None:
    """The pairs in order; None if not logged. A reward model has a training share of 1 where its loss says so."""
    if facts.objective.kind == "reward":
        losses = facts.loss.values
        orders_training = bool(losses) and median(last_part(losses, 5)) < TOLD.value * math.log(2.0)
        values = [event.metrics.accuracy for event in facts.evaluations]
        known = [as_float(value) for value in values if value is not None]
        return InOrder(1.0, known) if orders_training and known else None
    trained = facts.signals.get(ACCURACIES)
    shares = (number_in(event.metrics.extras, ACCURACIES) for event in facts.evaluations)
    held_out = [share for share in shares if share is not None]
    return InOrder(median(last_part(trained.values, 5)), held_out) if trained and held_out else None


@once
def swapped(facts: RunFacts) -> Observation | None:
    """Held-out pairs that the model orders against their labels, while it orders those of training by them."""
    shares = in_order(facts) if facts.objective.kind in {"preference", "reward"} else None
    if shares is None or shares.trained < 1.0 - SWAPPED.value or shares.held_out[-1] > SWAPPED.value:
        return None
    last, count = shares.held_out[-1], len(shares.held_out)
    of_training = (
        f"{shares.trained:.0%} of those of training"
        if facts.objective.kind == "preference"
        else "the training loss says that those of training are"
    )
    return Observation(
        f"{last:.0%} of the held-out pairs are in the order of their labels, and {of_training}: chosen and rejected "
        "are swapped in one of both.",
        {"held_out": last, "train": shares.trained},
        evidence=seen(f"{count} evaluations, {min(shares.held_out):.3g} to {max(shares.held_out):.3g}"),
    )


@_PreferenceRule(
    "PRF194",
    severity="warning",
    confidence=0.85,
    place="meaning",
    phrase=lambda v: f"held-out pairs are swapped ({shown(v, 'held_out', '.0%')} in order)",
    meant_for=under("preference", "reward"),
    thresholds=(SWAPPED, TOLD),
)
def _swapped(facts: RunFacts) -> Observation | None:
    """pairs swapped between training and held-out data

    the last held-out rewards/accuracies is at most {swapped}, and that of training at least 1 less it, late on; of a
    reward model the held-out accuracy, where the training loss ends under {told} of ln 2

    Why: A model that learnt nothing for new pairs is right on half of them; only labels the other way round put it
        far below.
    Scope: preference training and reward models with evaluations
    Action: Look at some rows of both sets: is the better answer in the column chosen?
    Verify: Swap the columns of the held-out set: the accuracy becomes 1 less it.
    Source: arithmetic -- without anything learnt that carries over half of the pairs are in order: far fewer are the
        wrong way round
    """
    if in_order(facts) is None:
        raise Unknown(f"no {ACCURACIES} of training and of evaluations")
    return swapped(facts)


class _HeldOut(NamedTuple):
    """The share of the held-out pairs in order, and whether guesses at so many pairs come that far above one half."""

    share: float
    by_chance: bool


def _held_out(facts: RunFacts) -> _HeldOut | None:
    """The newest reward accuracy of an evaluation."""
    for point in facts.evals:
        share = number_in(point.metrics.extras, ACCURACIES)
        if share is not None and point.split != "train":
            pairs = point.metrics.n
            return _HeldOut(share, bool(pairs) and share - 0.5 <= 1.0 / math.sqrt(pairs or 1))  # two standard errors
    return None


def told(facts: RunFacts) -> Iterator[StoryPart]:
    """Whether the preferences are learnt, for the story."""
    seen_apart = separation(facts)
    if seen_apart is None:
        yield StoryPart(says="cannot tell whether it learns the preferences: too few rows with their rewards")
        return
    accuracy, error, margin, margin_error = seen_apart
    right = "" if math.isnan(accuracy) else f"reward accuracy {accuracy:.0%} (+/- {2 * error:.0%}), "
    level = f"{right}margin {margin:.3g} (+/- {2 * margin_error:.2g}) in the second half"
    values = {"margin": margin, "error": margin_error}
    held_out = _held_out(facts)
    level += "" if held_out is None else f"; held out {held_out.share:.0%}"
    if seen_apart.surely or accuracy - 0.5 > 2.0 * error:
        where = "" if held_out is None or not held_out.by_chance else " in training"
        yield StoryPart(says=f"tells chosen from rejected{where}: {level}", values=values, doubt=bool(where))
    else:
        yield StoryPart(says=f"cannot tell whether it learns the preferences: {level}", values=values)


RULES: Final[tuple[LogRule, ...]] = (_swapped, _another_reference, _separation, _ties, _chosen_falls, _saturated)
