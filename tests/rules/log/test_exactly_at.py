"""Rules on logs exactly at their thresholds: whether the threshold itself counts, for each comparison."""

from __future__ import annotations

import importlib
import inspect
import math

import pytest
from log_runs import ENTRIES, At, classes, said
from tables import every

from gradience.rules.log.facts import RunFacts


def answer(rule: str, facts: RunFacts) -> str | None:
    """The severity of the rule's finding, "?" where it was not judged, None where it is silent."""
    found = said(rule, facts)
    return "?" if isinstance(found, str) else found and found.severity


@every(("rule", "case"), [(rule, case) for rule, entry in ENTRIES.items() for case in entry.at])
def test_a_threshold_itself_is_on_this_side(rule: str, case: At, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in case.given.items():
        module, _, threshold = name.partition(".")
        held = importlib.import_module(f"gradience.rules.log.{module}")
        is_function = inspect.isfunction(getattr(held, threshold))
        monkeypatch.setattr(held, threshold, value if is_function else getattr(held, threshold)._replace(value=value))
    assert {x: answer(rule, case.make(x)) for x in case.answers} == case.answers


@every("k", [2, 10, 18, 19, 20])
def test_of_several_numbers_of_classes_that_fit_the_nearest_is_named(k):
    found = said("CHN112", classes(math.log(k), 1.0 / k))
    assert f"chance among {k} classes" in found.message
    assert (found.values["chance"], found.values["chance_loss"]) == (1.0 / k, math.log(k))
    # by the loss: 2.93 is nearer to ln 19 = 2.944 than to ln 18 = 2.890, though the accuracy is that of 18
    assert said("CHN112", classes(2.93, 1.0 / 18)).values["chance"] == 1.0 / 19
