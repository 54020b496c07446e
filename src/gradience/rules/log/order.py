"""ORD186: rows that come sorted by class, so that the loss jumps where the class changes."""

from __future__ import annotations

from typing import Final

from gradience.rules import Observation, Threshold, Unknown
from gradience.rules.log.facts import LogRule, RunFacts, once, seen
from gradience.schema import number_in

ALIKE = Threshold(
    "alike",
    0.8,
    "of the watched batches with class labels",
    "arithmetic: sorted rows mix where a class ends, in one of 5",
)
ALIKE_BATCHES = Threshold("alike_batches", 4, "watched batches of several rows", "a judgement: fewer may be chance")
ONE_CLASS_ROWS = Threshold("one_class_rows", 64, "rows", "of a class with 95 % of the rows, 64 alike have p = .04")


@once
def by_class(facts: RunFacts) -> Observation | None:
    """The finding that training rows come sorted by class, from the batches that the recorder saw; None if not."""
    data = facts.data or {}
    batches, alike = (number_in(data, name) for name in ("label_batches", "label_batches_alike"))
    low, high, classes, rows = (number_in(data, name) for name in ("label_min", "label_max", "num_labels", "rows"))
    if not batches or alike is None or low is None or high is None:
        return None
    if batches < ALIKE_BATCHES.value or alike < ALIKE.value * batches:
        return None
    if low == high and (alike < batches or (rows or 0) < ONE_CLASS_ROWS.value or (classes or 0) < 2):
        return None
    among = f"of labels {low:g} to {high:g}" if low < high else f"label {low:g}, of {classes:g} that the model has"
    return Observation(
        f"The rows come sorted by class: {alike:g} of {batches:g} watched batches hold one class each ({among}). The "
        "loss falls on each class in turn and jumps where the next begins.",
        {"alike": alike, "batches": batches},
        confidence=0.95 if low < high else 0.7,
        evidence=seen(f"{alike:g} of {batches:g} batches have one label"),
    )


@LogRule(
    "ORD186",
    severity="error",
    confidence=0.95,
    place="broken",
    phrase=lambda _: "the rows come sorted by class",
    covers=frozenset({"learning"}),
    thresholds=(ALIKE, ALIKE_BATCHES, ONE_CLASS_ROWS),
)
def _by_class(facts: RunFacts) -> Observation | None:
    """rows sorted by class

    at least {alike} of {alike_batches} or more watched batches hold rows of one class only, while the run saw
    several classes, or saw one in {one_class_rows} rows and the model has more

    Why: A step then sees one class, and the model answers whichever class came last.
    Scope: classification whose recorder saw the batches; a run with one row in a batch is not judged
    Action: Shuffle the training rows, or take a sampler that does.
    Verify: The labels of the first batches.
    Seen: https://github.com/Deci-AI/super-gradients/issues/416 -- rows come class by class, and training leaves its
        minimum
    Source: Bottou, Curtis and Nocedal, arXiv 1606.04838 -- SGD's steps are of rows drawn at random
    """
    if number_in(facts.data or {}, "label_batches") is None:
        raise Unknown("the recorder saw no batch with class labels")
    return by_class(facts)


RULES: Final[tuple[LogRule, ...]] = (_by_class,)
