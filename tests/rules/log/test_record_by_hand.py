"""Gradients, numbers and the record of a log by hand: which step, how many rows, and in which words."""

from __future__ import annotations

import math

import pytest
from log_runs import FALL, NAN, changed, evaluation, run, said, with_history
from tables import every

from gradience.rules.log.facts import HeldOutCurve
from gradience.telemetry.series import LogRecord

# --- how the log was written, and what it holds besides ----------------------------------------------------------


def test_a_replayed_loss_that_is_not_finite_is_compared_with_nothing():
    replaced = [(11, math.inf), (12, 1.0), (13, 1.0), (14, 0.0), (99, 1.0)]
    facts = changed(run([1.0] * 20), record=LogRecord(resumed_from=[10], replaced=replaced))
    found = said("RES116", facts)
    assert found.message == "Resumed from step 10; 2 logged steps were run again."
    assert (found.values["replayed"], found.values["difference"]) == (2, 0.0)


@every(
    ("step", "count", "losses"),
    [(5, 2, [4.0, 5.0]), (5, 9, [1.0, 2.0, 4.0, 5.0]), (2, 1, [2.0]), (3, 1, [2.0]), (0, 3, [1.0]), (99, 1, [6.0])],
)
def test_the_last_losses_up_to_a_step_are_the_finite_ones(step, count, losses):
    assert list(run([1.0, 2.0, NAN, 4.0, 5.0, 6.0]).losses_until(step, count)) == losses


@pytest.mark.parametrize(("losses", "noise"), [([1.0, 2.0, 1.0, 2.0, 1.0], 0.6053 * 2.0), ([1.0, 2.0, 1.0, 2.0], 0.0)])
def test_five_evaluations_show_their_own_noise(losses, noise):
    assert HeldOutCurve("eval", [], [1, 2, 3, 4, 5], losses).noise == pytest.approx(noise)


def test_of_two_stretches_of_vanished_norms_the_longer_is_named():
    norms = [1e-6 if 10 <= row < 16 or 30 <= row < 37 else 1.0 for row in range(60)]
    found = said("GRD108", run(FALL, norms=norms))
    assert found.values == {"step": 31, "rows": 7, "early": 1.0}
    assert found.message == (
        "The gradient norm is under 0.001 x its early level from step 31 on in 7 rows while the learning rate is not 0."
    )


def test_an_evaluation_without_a_finite_loss_over_nothing_is_left_out():
    events = [evaluation(step, loss) for step, loss in enumerate((1.0, "NaN", None, 0.0, -1.0, 0.5), 1)]
    (curve,) = with_history(*events).curves
    assert (curve.steps, curve.losses) == ([1, 6], [1.0, 0.5])
