"""Cases in which a detector spoke of the wrong step, the wrong cause, or looked past what was logged."""

from __future__ import annotations

import math

import pytest
from log_runs import changed, evaluation, facts_of, finding as said, logged_rows, reason

from gradience.rules.joins import correlate
from gradience.rules.joins.run import JOINS
from gradience.rules.joins.symptoms import log_symptoms
from gradience.rules.log.advice import advice
from gradience.rules.log.facts import Signal
from gradience.rules.log.learning import learning
from gradience.rules.log.story import story_parts
from gradience.schema import ConfigSnapshot, TrainingSnapshot
from gradience.schema.reports import EvalPoint, TrainSummary

NAN = math.nan

RL = ConfigSnapshot(training=TrainingSnapshot(extras={"trainer": "rl"}))
REWARD = ConfigSnapshot(training=TrainingSnapshot(extras={"trainer": "reward"}), num_labels=1)


def wavy(level, n, *, fall=0.0):
    """Losses about a level, one per step, with the ups and downs of a batch."""
    return [(level - fall * i / n) * (1.0 + 0.002 * math.sin(37.0 * i)) for i in range(n)]


def facts(losses=None, *, grads=None, lost=(), **more):
    losses = wavy(2.0, 60, fall=0.8) if losses is None else losses
    n = len(losses)
    norms = [math.exp(0.2 * math.sin(5.0 * i)) for i in range(n)] if grads is None else grads
    series = logged_rows(list(range(1, n + 1)), losses, norms, [2e-4] * n, frozenset(lost))
    return facts_of(series, status=more.pop("status", "ok"), **more)


def evals(losses, *, every=10):
    return [evaluation(every * (i + 1), x) for i, x in enumerate(losses)]


# --- DIV104: the step of the lowest loss --------------------------------------------------------------------------


def test_the_lowest_loss_in_mid_run_is_named_with_its_own_step():
    losses = [3.0] * 40 + [1.2, 1.0, 1.1] + [3.0] * 40 + [9.0] * 40
    finding = said("DIV104", facts(losses))
    assert finding.values["lowest_step"] == 42


def test_rows_of_zero_do_not_shift_the_step():
    losses = [0.0] * 10 + [3.0] * 30 + [1.0] * 9 + [9.0] * 60
    assert 41 <= said("DIV104", facts(losses)).values["lowest_step"] <= 49


# --- NOL106: held-out losses in order ------------------------------------------------------------------------------


def held_out(losses, *, every=10, **more):
    history = evals(losses, every=every)
    last = history[-1]
    point = EvalPoint(split="eval", step=last.step, metrics=last.metrics)
    return {"history": history, "held_out": point, "evals": [point], **more}


def test_held_out_losses_that_fall_one_after_the_other_are_learning():
    still = wavy(2.0, 300)
    falling = [2.0 - 0.0008 * i for i in range(20)]
    assert said("NOL106", facts(still)) is not None
    run = facts(still, **held_out(falling))
    assert learning(run).shown
    assert said("NOL106", run) is None


def test_held_out_losses_out_of_order_are_not():
    still = wavy(2.0, 300)
    mixed = [2.0 - 0.0008 * (i % 7) for i in range(20)]
    assert said("NOL106", facts(still, **held_out(mixed))) is not None


# --- NUM102: labels that do not count ------------------------------------------------------------------------------


@pytest.mark.parametrize("grads", [[0.0] * 20, [NAN] * 20])
def test_zeros_from_the_first_row_to_the_last_are_labels_that_do_not_count(grads):
    lost = range(1, 21) if math.isnan(grads[0]) else ()
    finding = said("NUM102", facts([0.0] * 20, grads=grads, lost=lost))
    assert finding.severity == "error"
    assert "every label is masked" in finding.message
    assert finding.action is None
    assert advice(facts([0.0] * 20, grads=grads, lost=lost), [finding]).cause == "nothing_supervised"
    assert finding.values["no_labels"] is True


# --- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "severity"), [("error", "error"), ("aborted", "warning"), ("interrupted", "warning")]
)
def test_a_run_that_ended_badly_is_never_fine_and_its_exception_is_named(status, severity):
    run = changed(facts(last_step=40), status=status, status_reason="OutOfMemoryError")
    finding = said("END114", run)
    assert finding.severity == severity
    assert finding.message.endswith("at step 40: OutOfMemoryError.")
    story = story_parts(run, [finding], TrainSummary(rows=60))
    assert story[-1].says == f"{status} at step 40: OutOfMemoryError"


# --- rewards -------------------------------------------------------------------------------------------------------


def test_a_constant_reward_did_not_fall():
    signal = Signal(list(range(1, 61)), [0.5] * 60)
    run = facts([0.001] * 60, signals={"reward": signal}, config=RL, logged=frozenset({"reward"}))
    finding = said("RWD122", run)
    assert finding.severity == "info"
    symptoms = log_symptoms([finding], evaluated=True)
    assert [cause.id for cause in correlate(JOINS, symptoms, frozenset()).causes] == []


# --- gradients -----------------------------------------------------------------------------------------------------


def test_norms_that_are_all_nan_were_recorded():
    run = facts(wavy(2.0, 30), grads=[NAN] * 30, lost=range(1, 31))
    assert reason("GRD107", run) == "none of 30 recorded gradient norms is finite"
    assert reason("GRD107", facts(wavy(2.0, 30), grads=[NAN] * 30)) == "no gradient norm was recorded"


@pytest.mark.parametrize(("low", "is_rounded"), [(0.002, True), (-0.002, False)])
def test_zeros_are_rounded_from_a_small_loss_unless_it_was_below_zero(low, is_rounded):
    losses = [*(2.0 * 0.8**i for i in range(30)), low, *[0.002] * 9, 0.0, 0.0]
    finding = said("NUM102", facts(losses, grads=[0.5] * 42))
    assert (finding is not None and "rounded from a small loss (0.002 just before)" in finding.message) is is_rounded
