"""Corners of the rules on logs: a filter, a guard or a first row that decides, each in a run made for it."""

from __future__ import annotations

import pytest
from log_runs import FALL, facts_of, finding as found, logged_rows, run
from tables import every

from gradience.rules.log.preference import RULES


@pytest.mark.parametrize(("kind", "labels", "classes"), [("reward", None, 2), ("reward", 5, 2), (None, 5, 5)])
def test_a_reward_model_chooses_between_two_answers_whatever_the_labels(kind, labels, classes):
    facts = run(FALL, held_out=[0.69, 0.69], accuracy=1.0 / classes, n=400, kind=kind, num_labels=labels)
    seen = found("CHN112", facts)
    assert seen is not None
    assert seen.values["chance"] == 1.0 / classes
    assert f"for {classes} classes, n=400)" in seen.message


@every("rows", [0, 1, 4])
def test_rows_are_judged_by_step_and_those_of_one_step_as_they_were_written(rows):
    run = logged_rows([3, 1, 2, 1][:rows], [0.3, 0.1, 0.2, 0.15][:rows], [3.0, 1.0, 2.0, 1.5][:rows], [1.0] * rows)
    run.record.out_of_order = 2  # a resume may leave fewer rows than were counted
    of = facts_of(run).series
    whole = {4: ([1, 1, 2, 3], [0.1, 0.15, 0.2, 0.3], [1.0, 1.5, 2.0, 3.0]), 1: ([3], [0.3], [3.0]), 0: ([], [], [])}
    assert (*map(list, (of.steps, of.losses, of.grad_norms)),) == whole[rows]


@pytest.mark.parametrize(("error", "confidence"), [(0.03, 0.8), (0.031, 0.6)])
def test_a_separation_is_as_sure_as_stated_up_to_an_error_of_three_in_a_hundred(error, confidence, monkeypatch):
    answers = iter([(0.5, error), (0.0, 1.0)])
    monkeypatch.setattr("gradience.rules.log.preference.mean_error", lambda _: next(answers))
    columns = {"rewards/accuracies": [0.5] * 20, "rewards/margins": [0.01] * 20}
    rule = next(rule for rule in RULES if rule.id == "PRF119")
    seen = rule.observe(run(kind="dpo", columns=columns))
    assert (seen.confidence or rule.confidence) == confidence
