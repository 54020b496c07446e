"""Corners of the rules on logs: a filter, a guard or a first row that decides, each in a run made for it."""

from __future__ import annotations

import math

import pytest
from log_runs import FALL, FLAT, NAN, facts_of, finding as found, line, logged_rows, run
from tables import every

from gradience.rules.log.numbers import skipped_rows
from gradience.rules.log.preference import RULES


@pytest.mark.parametrize(("zeros", "rows"), [(3, 3), (4, 4)])
def test_a_rate_of_zero_from_the_first_row_on_is_no_decay_however_short_the_run(zeros, rows):
    seen = found("LRS109", run(line(rows, 2.0, 1.9), rates=[0.0] * zeros))
    assert seen is not None
    assert seen.values == {"rows": zeros, "step": 1, "throughout": True}


def test_a_row_amid_a_constant_rate_is_not_known_to_be_skipped():
    norms = [1.0] * 60
    norms[30] = NAN
    moving = [1e-4 + 1e-6 * i for i in range(60)]
    flat_around = [*moving[:20], *[moving[20]] * 20, *moving[40:]]
    assert skipped_rows(run(FALL, norms=norms, rates=flat_around, lost=[31])) == []
    still = [*moving[:30], moving[29], *moving[30:59]]
    assert skipped_rows(run(FALL, norms=norms, rates=still, lost=[31])) == [30]


def test_a_loss_before_a_fall_that_is_not_finite_is_no_level():
    """Two rows of five before it are infinite: the median is that of the other three."""
    losses, norms = list(FLAT), [1.0] * 60
    losses[28] = losses[29] = math.inf
    losses[25], losses[26], losses[27], losses[30] = 1.0, 1.0, 3.0, 1.0
    norms[30] = NAN
    assert found("NUM102", run(losses, norms=norms, lost=[31])) is None
    losses[30] = 0.84
    seen = found("NUM102", run(losses, norms=norms, lost=[31]))
    assert seen is not None
    assert seen.message.startswith("The loss falls to 0.84 at step 31")


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
