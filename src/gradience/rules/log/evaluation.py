"""OVF110, GAP111, CHN112 and SML113: what held-out data say, and how surely."""

from __future__ import annotations

import math

from gradience.rules.evidence import BINOMIAL, CHANCE, GAP_CONVENTION, INSTRUCT_GPT, KARPATHY
from gradience.rules.log import thresholds as t
from gradience.rules.log.detector import Detector, Sighting
from gradience.rules.log.facts import RunFacts
from gradience.rules.rule import Unknown
from gradience.schema.reports import EvalPoint
from gradience.schema.scalars import as_float

_CLASSES = 2  # fewer is no classification


def _gap(facts: RunFacts) -> Sighting | None:
    gap = facts.gap
    if gap is None:
        reason = "needs a loss or perplexity on train and on a held-out split"
        raise Unknown(reason)
    ratio = as_float(gap.ratio)
    if not ratio > facts.gap_threshold:
        return None
    repeated = facts.epoch is None or facts.epoch > 1.0
    return Sighting(
        f"Gap is {ratio:.2f}x ({gap.test_split} over {gap.train_split} perplexity), over {facts.gap_threshold:g}x: "
        + ("probably memorizing." if repeated else "but the data has not repeated yet, so not memorization."),
        {"ratio": gap.ratio, "nats": gap.nats, "threshold": facts.gap_threshold},
        severity="warning" if repeated else "info",
        confidence=0.6 if repeated and gap.same_step else 0.4,
    )


def _chance(facts: RunFacts) -> Sighting | None:
    point, classes = facts.held_out, facts.num_labels
    if point is None or (point.metrics.accuracy is None and point.metrics.loss is None):
        reason = "no held-out accuracy was recorded"
        raise Unknown(reason)
    if not classes or classes < _CLASSES:
        reason = "the number of classes is unknown (num_labels in the run's config)"
        raise Unknown(reason)
    if point.metrics.accuracy is None:
        if facts.objective.kind != "classification":
            reason = "no held-out accuracy was recorded"
            raise Unknown(reason)
        return _chance_loss(point, classes)
    accuracy, chance, n = as_float(point.metrics.accuracy), 1.0 / classes, point.metrics.n
    margin = t.CHANCE_Z.value * math.sqrt(chance * (1.0 - chance) / n) if n else t.CHANCE_MARGIN.value
    if not accuracy <= chance + margin:
        return None
    return Sighting(
        f"{point.split.capitalize()} accuracy {accuracy:.1%} is not above chance ({chance:.1%} for {classes} classes"
        + (f", n={n})." if n else ", n unknown)."),
        {"accuracy": accuracy, "chance": chance, "margin": margin},
        confidence=0.85 if n else 0.6,
        seen=(f"chance {chance:.3f} plus margin {margin:.3f} is {chance + margin:.3f}",),
    )


def _chance_loss(point: EvalPoint, classes: int) -> Sighting | None:
    """The loss against that of equal odds; only where no accuracy says it better."""
    loss, level = as_float(point.metrics.loss or 0.0), math.log(classes)
    if not t.CHANCE_LOSS.value * level <= loss < math.inf:
        return None
    return Sighting(
        f"{point.split.capitalize()} loss {loss:.4g} is not below ln {classes} = {level:.4g}: no better than chance.",
        {"loss": loss, "chance_loss": level},
        confidence=0.6,
        seen=(f"loss {loss:.4g}, {t.CHANCE_LOSS.value:g} ln {classes} = {t.CHANCE_LOSS.value * level:.4g}",),
    )


def _small_eval(facts: RunFacts) -> Sighting | None:
    point = facts.held_out
    if point is None or point.metrics.accuracy is None or not point.metrics.n:
        reason = "needs a held-out accuracy and the number of examples (n)"
        raise Unknown(reason)
    p, n = as_float(point.metrics.accuracy), point.metrics.n
    if not 0.0 <= p <= 1.0:
        reason = f"an accuracy of {p} is no fraction"
        raise Unknown(reason)
    half = 1.96 * math.sqrt(max(p * (1.0 - p), 1.0 / (4.0 * n)) / n)
    if half <= t.SMALL_EVAL.value:
        return None
    return Sighting(
        f"{n} held-out examples give the accuracy an uncertainty of +/- {half * 100:.1f} points.",
        {"n": n, "half_width": half},
        seen=(f"1.96 sqrt(p (1 - p) / n) = {half:.4f}",),
    )


DETECTORS = (
    Detector(
        id="GAP111",
        severity="warning",
        title="gap between train and held-out",
        condition=_gap,
        confidence=0.6,
        evidence=(GAP_CONVENTION, INSTRUCT_GPT),
        rationale="A model that fits its training data much better than held-out data has begun to memorize it.",
        action="Use the checkpoint with the best held-out loss; fewer epochs or more data come before less rank.",
        scope="token-level or class cross-entropy, data seen more than once",
        verify="Compare the task metric of the best checkpoint with that of the last.",
        thresholds=(t.LOSS_GAP,),
        not_for=("rl", "preference"),
    ),
    Detector(
        id="CHN112",
        severity="warning",
        title="chance level",
        condition=_chance,
        confidence=0.85,
        evidence=(CHANCE, KARPATHY),
        rationale="At chance level no other number about this run means much.",
        action="Fix the task set-up before tuning LoRA: labels, prompt or head, learning rate, number of steps.",
        scope="classification with balanced classes",
        verify="Overfit 32 examples on purpose: if training accuracy cannot reach 100 %, the set-up is broken.",
        thresholds=(t.CHANCE_Z, t.CHANCE_MARGIN, t.CHANCE_LOSS),
        not_for=("rl", "preference"),
    ),
    Detector(
        id="SML113",
        severity="info",
        title="few held-out examples",
        condition=_small_eval,
        confidence=0.95,
        evidence=(BINOMIAL,),
        action="Differences smaller than that say nothing; evaluate on more examples before comparing runs.",
        scope="accuracies",
        rationale="An accuracy of few examples moves by points from chance alone.",
        verify="Evaluate the same checkpoint on other examples of the kind: the accuracy moves by as much.",
        thresholds=(t.SMALL_EVAL,),
    ),
)
