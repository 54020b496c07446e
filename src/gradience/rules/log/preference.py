"""PRF119 to PRF121 and PRF130: preference training, whose loss may fall while chosen and rejected stay mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from gradience.rules.log.facts import JUDGEMENT, REAL_RUNS, LogRule, RunFacts, column, last_part, seen
from gradience.rules.log.statistics import mann_kendall, mean_error, median, median_error, noise
from gradience.rules.objective import only_under
from gradience.rules.rule import NEMOTRON, TRIAL, Observation, Rule, Threshold, Unknown, cite

FEW_ROWS = Threshold("few_rows", 3, "rows that logged it", "a mean of fewer is no level")
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
CHOSEN_ROWS = Threshold("chosen_rows", 5, "rows with rewards/chosen", "the order of fewer is chance at 1 %")
START_MARGIN = Threshold("start_margin", 0.5, "reward: beta x nats", JUDGEMENT)
START_STEP = Threshold("start_step", 10, "steps", "a judgement: later a margin has been learnt")
SATURATED_LOSS = Threshold("saturated_loss", 0.02, "nats, median of the last quarter", "-ln sigmoid(4) = 0.018")
SATURATED_MARGIN = Threshold("saturated_margin", 4.0, "reward: beta x nats, the same rows", REAL_RUNS)

_REFERENCE_FREE: Final = {"log_odds_ratio", "nll_loss", "odds_ratio_loss"}  # ORPO, CPO: no reference, no start at ln 2


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
        raise Unknown(f"too noisy: an accuracy of the rewards {2 * error:.1%} over one half could not be seen")
    swapped = 0.5 - accuracy > max(SEPARATED.value, 2.0 * error)
    how = "told apart the wrong way round" if swapped else "not told apart"
    return Observation(
        f"Chosen and rejected answers are {how}: in the second half of the rows the rewards are in the right order "
        f"in {accuracy:.1%} (+/- {2 * error:.1%}), by {margin:.3g} on average.",
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
        raise Unknown("an objective without a reference: it has no known start")
    margins = column(facts, "rewards/margins", 1)
    if not facts.loss.values:
        raise Unknown("no training loss was logged")
    margin, loss = margins.values[0], facts.loss.values[0]
    if margins.steps[0] > START_STEP.value or abs(margin) < START_MARGIN.value:
        return None
    return Observation(
        f"Preference training starts away from its reference: the first margin is {margin:.3g}, the first loss "
        f"{loss:.4g} (from the reference itself: 0, and ln 2 = {math.log(2.0):.4f} under the sigmoid loss).",
        {"margin": margin, "loss": loss, "step": margins.steps[0]},
        evidence=seen(f"rewards/margins {margin:.4g} at step {margins.steps[0]}"),
    )


def saturated(facts: RunFacts) -> Observation | None:
    """Preferences so far apart that the loss has no gradient left; None where they are not, or nothing says it."""
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


RULES: Final[Sequence[Rule[RunFacts]]] = (
    LogRule(
        id="PRF119",
        title="preferences not told apart",
        severity="warning",
        condition="second half: rewards/accuracies within {separated} (or 2 standard errors) of one half, and a margin "
        "not {surely} standard errors over 0; where the accuracy's error is over {separation_error}, a margin not "
        "{margin_still} standard error over 0",
        observe=_separation,
        applies=only_under("preference"),
        confidence=0.8,
        evidence=(NEMOTRON, TRIAL),
        rationale="The loss may fall by its likelihood term alone; what the data was collected for is not learnt.",
        action="Check that chosen and rejected differ and are not swapped, what target_modules hit, and lr.",
        scope="preference training that logs rewards/accuracies and rewards/margins",
        verify="Reward accuracy on held-out pairs.",
        thresholds=(SEPARATED, SURELY, SEPARATION_ERROR, MARGIN_ERROR, MARGIN_STILL, SEPARATION_ROWS),
    ),
    LogRule(
        id="PRF120",
        title="chosen answers less likely",
        severity="info",
        condition="rewards/chosen fell by {chosen_fall} or more, and {chosen_errors} standard errors; under "
        "{many_rows} rows, in an order that chance makes with p of {alpha} at most",
        observe=_chosen_falls,
        applies=only_under("preference"),
        confidence=0.5,
        evidence=(
            cite(
                "Smaug/DPO-Positive, arXiv 2402.13228 (abstract)",
                "DPO can lower the likelihood of the chosen answer as long as the margin grows",
            ),
            TRIAL,
        ),
        rationale="A margin can grow while both answers lose probability to others, which no one asked for.",
        action="Read what it writes now; a likelihood term on the chosen answers would hold them.",
        scope="preference training that logs rewards/chosen",
        verify="Log-probability of chosen answers on held-out pairs.",
        thresholds=(CHOSEN_FALL, CHOSEN_ERRORS, CHOSEN_ROWS, MANY_ROWS, ALPHA),
    ),
    LogRule(
        id="PRF121",
        title="starts away from the reference",
        severity="info",
        condition="a margin over {start_margin} within the first {start_step} steps; not for ORPO and CPO",
        observe=_start,
        applies=only_under("preference"),
        confidence=0.5,
        evidence=(
            cite("DPO, arXiv 2305.18290 (the loss)", "-log sigmoid(0) = ln 2 where policy and reference are the same"),
            TRIAL,
        ),
        rationale="The reference is then not the model that training began with, as it mostly should be.",
        action="Check the reference model, and which adapter is active in it.",
        scope="preference training against a reference, logged from its first steps on",
        verify="Rewards of both answers before the first step should be 0.",
        thresholds=(START_MARGIN, START_STEP),
    ),
    LogRule(
        id="PRF130",
        title="preferences saturated",
        severity="warning",
        condition="in the last quarter the loss is {saturated_loss} at most and rewards/margins {saturated_margin} at "
        "least (medians), from {few_rows} rows on",
        observe=_saturated,
        applies=only_under("preference"),
        confidence=0.85,
        evidence=(
            cite(
                "a published DPO run",
                "loss 0.693 to 0.0, margin 0 to 141, accuracy 1.0, gradient norm 1.7e-8 and finite",
            ),
            cite("definition", "-ln sigmoid(margin): 0.018 at 4, its slope too"),
        ),
        rationale="Beyond that margin the loss has no gradient: later steps only pull the policy from its reference.",
        action="Lower the learning rate or raise beta, and take an earlier checkpoint.",
        scope="preference training with a loss of the margin; a zero loss here is not a NaN",
        verify="Reward accuracy and likelihood of chosen answers on held-out pairs, of an earlier checkpoint too.",
        thresholds=(SATURATED_LOSS, SATURATED_MARGIN, FEW_ROWS),
    ),
)
