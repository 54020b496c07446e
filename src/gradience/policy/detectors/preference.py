"""PRF119 to PRF121: preference training, whose loss may fall while nothing is told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradience.policy.detectors import thresholds as t
from gradience.policy.detectors.curve import median, noise
from gradience.policy.detectors.detector import Detector, Sighting
from gradience.policy.detectors.facts import RunFacts
from gradience.policy.detectors.level import window
from gradience.policy.detectors.reward import column
from gradience.policy.evidence.configs import NEMOTRON
from gradience.policy.evidence.runs import DPO_START, LIKELIHOOD, TRIAL
from gradience.policy.facts import Unknown

__all__ = ["DETECTORS"]

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


DETECTORS = (
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
