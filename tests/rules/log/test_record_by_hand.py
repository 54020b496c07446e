"""Gradients, numbers and the record of a log by hand: which step, how many rows, and in which words."""

from __future__ import annotations

import math

import msgspec
import pytest
from log_runs import FALL, NAN, changed, evaluation, run, said, with_history
from tables import every

from gradience.rules.log.facts import HeldOutCurve
from gradience.schema import ConfigSnapshot
from gradience.schema.reports import BadLine
from gradience.telemetry.series import LogRecord

# --- how the log was written, and what it holds besides ----------------------------------------------------------


def test_a_replayed_loss_that_is_not_finite_is_compared_with_nothing():
    replaced = [(11, math.inf), (12, 1.0), (13, 1.0), (14, 0.0), (99, 1.0)]
    facts = changed(run([1.0] * 20), record=LogRecord(resumed_from=[10], replaced=replaced))
    found = said("RES116", facts)
    assert found.message == "Resumed from step 10; 2 logged steps were run again."
    assert (found.values["replayed"], found.values["difference"]) == (2, 0.0)


@every(
    ("rates", "warming"),
    [
        ([1.0, 2.0], True),  # the middle one of two is the last
        ([1.0, 2.0, 3.0], True),
        ([1.0, 3.0, 3.0], False),
        ([1.0, 2.0, 3.0, 2.9], False),
        ([1.0], False),
        ([], False),
    ],
)
def test_a_run_is_warming_up_while_its_last_rate_is_the_highest_and_over_that_of_the_middle(rates, warming):
    assert run([2.0] * len(rates) or [2.0], rates=rates).warming_up is warming


@every(
    ("step", "count", "losses"),
    [(5, 2, [4.0, 5.0]), (5, 9, [1.0, 2.0, 4.0, 5.0]), (2, 1, [2.0]), (3, 1, [2.0]), (0, 3, [1.0]), (99, 1, [6.0])],
)
def test_the_last_losses_up_to_a_step_are_the_finite_ones(step, count, losses):
    assert list(run([1.0, 2.0, NAN, 4.0, 5.0, 6.0]).losses_until(step, count)) == losses


@every(
    ("own", "other", "split"),
    [(1, 2, "test"), (1, 3, "eval"), (2, 9, "test"), (0, 9, None), (1, 0, "test")],
)
def test_a_last_evaluation_of_another_split_does_not_hide_a_curve(own, other, split):
    events = [evaluation(step, 1.0) for step in range(1, other + 1)]
    events += [evaluation(step, 1.0, "test") for step in range(50, 50 + own)] or [evaluation(50, None, "test")]
    curve = with_history(*events).held_out_curve
    assert (curve.split if curve else None) == split


def test_of_no_tokens_no_share_is_supervised():
    data = {
        "rows": 64,
        "tokens": 0,
        "supervised": 0,
        "announced": {"supervised_share": 0.5, "tokens_per_sequence": 9.0},
    }
    found = said("DAT321", run(FALL, data=data))
    assert found.message == "the batches have 0 tokens a row; the check announced 9"


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


@every(
    ("audit", "severity"),
    [
        ({"verdict": "oversized"}, "error"),
        ({"verdict": "trained", "update_size": 3.1}, "warning"),
        ({"verdict": "trained", "update_size": 3.0}, "info"),
        ({"verdict": "trained", "update_size": 1.2}, None),
        ({}, None),
    ],
)
def test_an_update_is_too_large_by_the_verdict_of_a_logged_audit_or_by_its_size(audit, severity):
    found = said("SIZ215", run(FALL, audit=audit))
    assert (found and found.severity) == severity


@every(
    ("torn", "total", "severity", "message"),
    [
        ([True], 1, "info", "The last line is torn: the writer was cut off in the middle of it."),
        ([False], 1, "warning", "1 lines are not events (first: line 3: r0)."),
        ([True, False], 2, "warning", "2 lines are not events (first: line 3: r0)."),
        ([False, True], 200, "warning", "200 lines are not events (first: line 3: r0)."),
    ],
)
def test_one_torn_line_is_no_fault_and_one_among_others_is(torn, total, severity, message):
    issues = [BadLine(line=3 + n, offset=9, reason=f"r{n}", torn=each) for n, each in enumerate(torn)]
    found = said("TRN115", run(FALL, issues=issues, issues_total=total))
    assert (found.severity, found.message, found.values) == (severity, message, {"lines": total})
    assert found.evidence[0].says == "line 3, byte 9: r0"


@every(
    ("config", "logged", "objective"),
    [
        ({"extras": {"task": "sft"}}, {"reward"}, ("sft", True)),  # as stated, whatever was logged
        ({"lora": {"task_type": "CAUSAL_LM"}}, {"reward"}, ("rl", False)),  # a hint is less than what was logged
        ({"lora": {"task_type": "CAUSAL_LM"}}, {"other"}, ("sft", False)),
        ({}, set(), ("unknown", False)),
    ],
)
def test_an_objective_that_is_stated_goes_before_names_of_a_log_and_these_before_hints(config, logged, objective):
    facts = changed(run(FALL), config=msgspec.convert(config, ConfigSnapshot), logged=frozenset(logged))
    assert (facts.objective.kind, facts.objective.stated) == objective
