"""The clauses of a story, word for word: what each finding becomes, how a run ended, and what is done about it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from log_runs import FALL, FLAT, NAN, evaluation, line, run, said, with_history
from tables import every

from gradience.rules.log import DETECTORS, RULE_OF, detect
from gradience.rules.log.facts import Place
from gradience.rules.log.recorded import _count, _real, audited_rank
from gradience.rules.log.story import _end, _held_out, _n, _phrase, story_parts
from gradience.schema import ConfigSnapshot, LoraSnapshot
from gradience.schema.document import Finding
from gradience.schema.reports import StoryPart, TrainSummary

OVERFIT = {"best_step": 43, "lowest_step": 43, "split": "test", "rise": 0.125, "best_loss": 1.23456}
PHRASES: list[tuple[str, dict[str, Any], str]] = [
    ("DAT301", {"rows": 4, "of": 4}, "no token is supervised"),
    ("DAT301", {"rows": 3, "of": 4}, "It is so"),
    ("NUM101", {"first": "loss at step 3", "rows": 2}, "not finite: loss at step 3, 2 training rows"),
    ("NUM101", {"first": "eval loss at step 3", "rows": 0}, "not finite: eval loss at step 3"),
    (
        "NUM102",
        {"no_labels": True, "first_step": 1},
        "loss is 0 throughout: every label is masked, or it was NaN from the start",
    ),
    ("NUM102", {"first_step": 5}, "loss is probably NaN-masked from step 5"),
    (
        "DIV104",
        {"lowest": 1.23456, "lowest_step": 7, "peak_rate": 0.01},
        "diverged: lowest loss 1.235 around step 7, at a learning rate of 0.01",
    ),
    ("DIV104", {"lowest": 1.25, "lowest_step": 7, "peak_rate": 0.00999}, "diverged: lowest loss 1.25 around step 7"),
    ("DIV104", {"lowest": 1.25, "lowest_step": 7, "peak_rate": None}, "diverged: lowest loss 1.25 around step 7"),
    (
        "SCL129",
        {"factor": 8.04},
        "training loss is 8.0 times the held-out loss: another scale",
    ),
    ("SCL129", {"first": 12.6}, "loss starts at 12.6, above that of a uniform guess over any vocabulary"),
    ("PRF130", {"margin": 141.23}, "preferences saturated: margin 141, nothing is left to learn"),
    ("OVF110", OVERFIT, "overfits from step 43 (test loss +12.5% since)"),
    (
        "OVF110",
        {**OVERFIT, "metric": "wer", "metric_kept": True},
        "overfits from step 43 (test loss +12.5% since), but wer holds",
    ),
    ("OVF110", {**OVERFIT, "metric": "f1", "metric_kept": False}, "overfits from step 43 (test loss +12.5% since)"),
    (
        "OVF110",
        {"split": "test", "metric": "accuracy", "best_step": 7, "best": 0.75, "last": 0.5},
        "test accuracy was best at step 7 (75.0%; 50.0% at the end)",
    ),
    ("NOL106", {}, "the loss does not fall"),
    ("PLT105", {"from_step": 40, "how": "no longer falls"}, "the loss no longer falls from step 40"),
    ("REP128", {"epochs": 19.6}, "the same data 20 times, no held-out signal"),
    ("MEM127", {}, "steps down with each epoch"),
    ("LEK132", {}, "held-out loss is as low as training loss"),
    ("UND126", {"split": "test"}, "test loss still falls at the end"),
    ("DIV103", {"step": 9}, "loss spike at step 9"),
    ("GRD107", {"step": 9}, "gradient norm jumps at step 9"),
    ("GRD108", {"step": 9}, "no gradient from step 9"),
    ("GAP111", {"split": "test", "held_out": 1.23456, "train": 0.5}, "test loss 1.235 against 0.5 in training"),
    ("EVL134", {}, "its evaluations hold no loss and no metric"),
    ("GAP118", {"rows": 0}, "no training loss was logged"),
    ("GAP118", {"rows": 2}, "almost no training loss was logged"),
    ("LRS133", {"peak": 1.2345e-5}, "ended inside its warm-up: the learning rate reached 1.23e-05"),
    ("CHN112", {"accuracy": 0.5}, "held-out accuracy at chance"),
    ("CHN112", {"loss": 0.69}, "held-out loss at chance"),
    ("NUM131", {"rows": 1}, "1 step skipped by fp16 scaling"),
    ("NUM131", {"rows": 2}, "2 steps skipped by fp16 scaling"),
    ("PRF119", {"how": "not told apart"}, "chosen and rejected are not told apart"),
    ("RWD122", {"best": 1.23456, "best_step": 30}, "the reward fell from 1.235 around step 30"),
    ("RWD122", {"first": 1.0, "last": 1.0}, "It is so"),
    ("ZVR123", {"share": 0.954}, "95% of the groups have equal rewards late on"),
    ("KLD124", {"late": 1.2345}, "KL 1.23 nats a token from the reference"),
    ("KLD124", {"late": 123.4, "unit": "a completion"}, "KL 123 nats a completion from the reference"),
    ("RWN139", {"missing": 3, "rows": 9}, "no reward in 3 of 9 rows"),
    (
        "ENT135",
        {"how": "collapsed", "first": 1.2345, "last": 0.0123},
        "entropy collapsed from 1.23 to 0.012 nats a token",
    ),
    ("KLZ138", {}, "KL from the reference is 0 throughout"),
    ("CLF137", {"share": 0.456, "first_step": 7}, "46% of the tokens clipped from step 7"),
    ("LEN136", {"how": "grew", "first": 9.876, "last": 123.4}, "completions grew from 9.876 to 123.4 tokens"),
    ("RAT141", {"peak_rate": 0.0123}, "a learning rate of 0.0123"),
    ("PRF140", {"why": "no reward"}, "margin 0 throughout: both rewards are 0"),
    ("PRF120", {"both": True, "first": -98.76, "last": -200.0}, "both answers lose probability: chosen -98.76 -> -200"),
    ("PRF120", {"both": False, "first": -9.0, "last": -20.0}, "chosen answers lose probability: chosen -9 -> -20"),
    ("CLP125", {"share": 0.6, "zero_groups": 0.29}, "60% of the completions are cut off"),
    ("CLP125", {"share": 0.6}, "60% of the completions are cut off"),
    (
        "CLP125",
        {"share": 0.6, "zero_groups": 0.3},
        "60% of the completions are cut off, 30% of the groups teach nothing",
    ),
    ("WIR170", {"trained": 99}, "the base trains: 99 of its parameters"),
    ("WIR171", {"frozen": 8}, "the adapter is frozen"),
    ("WIR171", {"modules": 2}, "2 adapted modules are frozen"),
    ("WIR172", {"missing": 8}, "the optimizer misses 8 trainable tensors"),
    ("WIR173", {"tensors": 8}, "no gradient arrives"),
    ("WIR173", {"silent": 2}, "2 modules receive no gradient"),
    ("WIR174", {"nested": 1}, "the model is adapted twice"),
    ("WIR174", {"merged": ["default"]}, "the adapter is merged while it trains"),
    ("WIR175", {"step": 5}, "resumed at step 5 from other weights than were saved"),
    ("WIR176", {"step": 5}, "resumed at step 5 with a new optimizer"),
    ("WIR177", {"step": 5}, "resumed at step 5 with other data"),
    ("WIR178", {"step": 5}, "the schedule began anew at step 5"),
    ("WIR179", {"step": 5}, "the adapter saved at step 5 is empty"),
    ("WIR180", {"tensors": 3}, "learning rate 0 for 3 tensors"),
    ("WIR181", {}, "no gradient can flow through the recomputed layers"),
    ("RES116", {}, "the steps run again after the resume had other losses"),
    ("TRN115", {"lines": 3}, "3 lines of the log are lost"),
    ("TRN115", {"missing": 4}, "4 lines of the log are lost"),
    ("DUP117", {}, "rows repeat or go back"),
    ("LRS109", {"throughout": True, "rows": 9, "step": 1}, "does not learn: the learning rate is 0"),
    ("LRS109", {"throughout": False, "rows": 9, "step": 4}, "learning rate 0 in 9 rows from step 4"),
    ("LRS109", {"high": True, "peak": 0.016}, "learning rate up to 0.016"),
    ("LRS109", {"times": 2, "step": 5}, "the learning rate rises again at step 5"),
    ("LRS109", {}, "It is so"),  # of no phrase its own message, up to a colon
]


@every(("rule", "values", "says"), PHRASES)
def test_a_finding_becomes_this_clause(rule, values, says):
    finding = Finding(id=rule, severity="warning", message="It is so: with numbers.", values=values)
    assert _phrase(RULE_OF[rule], finding) == says


def test_every_phrase_is_in_the_table():
    assert {rule for rule, *_ in PHRASES} >= {rule.id for rule in DETECTORS if rule.phrase is not None}


@every(
    ("status", "reason", "planned", "last", "says"),
    [
        ("ok", None, 100, 60, []),
        ("no_run_end", None, 100, 60, ["the log stops at step 60 of 100 without run_end"]),
        ("no_run_end", None, None, None, ["the log stops without run_end"]),
        ("unknown", None, None, 60, ["the log ends at step 60"]),
        ("unknown", "it ends before its 100 planned steps", 100, 60, ["the log ends at step 60 of 100"]),
        ("unknown", "no word of an end", None, 60, ["the log ends at step 60: no word of an end"]),
        ("error", "ValueError", None, 60, ["error at step 60: ValueError"]),
        ("interrupted", None, None, 0, ["interrupted at step 0"]),
    ],
)
def test_how_the_run_ended_is_told(status, reason, planned, last, says):
    facts = run(FALL, training={"max_steps": planned} if planned else {})
    facts = replace(facts, status=status, status_reason=reason, last_step=last)
    assert [part.says for part in _end(facts, [])] == says
    told = [StoryPart(says="x", finding="END114")]
    assert [part.finding for part in _end(facts, told)] == ["END114"] * len(says)
    assert [part.finding for part in _end(facts, [])] == [None] * len(says)


@every(
    ("covered", "says"),
    [
        ((), ["eval loss 1.2, its best", "eval accuracy 75.0%"]),
        (("held_out",), ["eval accuracy 75.0%"]),
        (("accuracy",), ["eval loss 1.2, its best"]),
    ],
)
def test_held_out_data_are_told_unless_a_finding_does(covered, says):
    assert [part.says for part in _held_out(run(FALL, held_out=[1.4, 1.2], accuracy=0.75), frozenset(covered))] == says


@pytest.mark.parametrize(("covered", "says"), [((), ["no held-out signal"]), (("no_held_out",), [])])
def test_nothing_held_out_is_told_once(covered, says):
    assert [part.says for part in _held_out(run(FALL), frozenset(covered))] == says


def test_a_task_metric_is_told_with_its_best():
    facts = with_history(*(evaluation(step, None, wer=value) for step, value in ((20, 40.0), (40, 32.0), (60, 34.0))))
    assert [part.says for part in _held_out(facts, frozenset())] == ["eval wer 34 (best 32 at step 40)"]


@every(("value", "shown"), [(None, "-"), (1.23456, "1.235"), ("NaN", "NaN"), (math.inf, "Infinity"), (0.0, "0")])
def test_a_number_of_a_story_has_four_digits(value, shown):
    assert _n(value) == shown


# --- why it is not judged ----------------------------------------------------------------------------------------

FED = {"rows": 64, "tokens": 100, "supervised": 50, "rows_unsupervised": 0, "rows_with_end": 0}
RISING = [1e-4 * row for row in range(1, 41)]


@every(
    ("rule", "facts", "reason"),
    [
        ("PLT105", run(FLAT[:40], rates=RISING), "the learning rate had not reached its peak yet"),
        ("PLT105", run(FALL[:7]), "7 rows are too few for a confidence bound on the slope; it takes 8"),
        ("DAT301", run(FALL, data={**FED, "supervised": None}), "the batches hold no token labels"),
        ("DAT303", run(FALL, data={**FED, "supervised": None}), "the batches hold no token labels"),
        ("DAT316", run(FALL, data=FED), "the batches hold no class labels"),
        (
            "DAT307",
            run(FALL, data={**FED, "rows_with_end": None}),
            "the model's configuration names no end token",
        ),
        (
            "OVF110",
            with_history(*(evaluation(step, x) for step, x in ((1, 1.0), (2, 2.0), (3, 3.0))), losses=[NAN] * 3),
            "no training loss was recorded: overfitting cannot be told from divergence",
        ),
        (
            "OVF110",
            with_history(*(evaluation(step, x) for step, x in ((100, 1.0), (200, 2.0), (300, 3.0)))),
            "too few training rows around the best evaluation",
        ),
    ],
)
def test_what_cannot_be_judged_says_why(rule, facts, reason):
    assert said(rule, facts) == reason


def test_where_no_token_is_supervised_the_rules_on_loss_are_listed_once_and_those_on_the_record_judged():
    verdict = detect(run([0.0] * 40, data={**FED, "supervised": 0, "rows_unsupervised": 64}))
    listed = [item.id for item in verdict.not_run]
    assert len(listed) == len(set(listed))
    assert {"NUM102", "DIV104", "GRD107", "OVF110", "GUA150"} <= set(listed)
    hidden = [item.reason.endswith("(see DAT301): loss and gradient mean nothing") for item in verdict.not_run]
    assert hidden == sorted(hidden, reverse=True)  # what the masks hide comes first
    assert not all(hidden)
    assert {"END114", "TRN115", "DUP117", "GAP118"}.isdisjoint(listed)


@every(("low", "classes", "bound"), [(-1, None, "0 and more"), (-1, 3, "0 to 2"), (0, 3, None), (0, None, None)])
def test_labels_outside_the_classes_are_named_with_the_bound(low, classes, bound):
    found = said("DAT316", run(FALL, data={**FED, "label_min": low, "label_max": 2, "num_labels": classes}))
    expected = bound and f"labels in the batches run from {low} to 2, the model takes {bound}"
    assert (found and found.message) == expected


@every(
    ("modules", "config", "rank"),
    [
        ([{"r": 16}, {}], {}, 16),
        ([{"r": 16}, {"r": 8}], {"r": 8}, None),
        ([], {"r": 8}, 8),
        ([{}], {"r": 8}, 8),
        ([], {"r": 8, "rank_pattern": {"q": 4}}, None),
        ([], {}, None),
    ],
)
def test_the_rank_of_an_audited_adapter_is_that_of_all_its_modules(modules, config, rank):
    facts = replace(run(FALL, audit={"modules": modules}), config=ConfigSnapshot(lora=LoraSnapshot(**config)))
    assert audited_rank(facts) == rank


@every(("value", "count"), [(3, 3), (0, 0), (-1, None), (True, None), (2.0, None), ("3", None), (None, None)])
def test_a_count_of_the_batches_is_a_whole_number_from_0(value, count):
    assert _count(run(FALL, data={"rows": value}), "rows") == count


@every(("value", "number"), [(2.5, 2.5), ("NaN", None), ("Infinity", None), (None, None)])
def test_a_number_of_an_audit_is_finite(value, number):
    assert _real({"x": value}, "x") == number


# --- rows that are not finite ------------------------------------------------------------------------------------


def test_losses_that_are_not_finite_are_no_level_before_a_zero():
    before = [*[2.0] * 12, *[0.04] * 3, *[math.inf] * 5]
    found = said("NUM102", run([*before, 0.0, 0.0], norms=[1.0] * 20 + [NAN] * 2))
    assert (found.severity, found.values["loss_before"]) == ("info", 0.04)


@pytest.mark.parametrize(
    ("early", "there", "severity"),
    [
        ([2.0, NAN, 2.0, NAN, NAN, 2.0], [0.001] * 6, "info"),
        ([2.0] * 6, [0.001, NAN, NAN, NAN, 0.001, 0.001], "info"),
        ([2.0, NAN, 2.0, NAN, NAN, 2.0], [1.0] * 6, "warning"),
    ],
)
def test_losses_that_are_not_finite_do_not_decide_whether_it_is_fitted(early, there, severity):
    losses = [*early, *line(24, 2.0, 1.0), *there, *[1.0] * 24]
    norms = [1e-6 if 30 <= row < 36 else 1.0 for row in range(60)]
    assert said("GRD108", run(losses, norms=norms)).severity == severity


@pytest.mark.parametrize(
    ("dtype", "bad", "found"), [("float16", (30, 40), False), ("float16", (30,), True), ("bfloat16", (30, 40), True)]
)
def test_several_single_steps_under_fp16_are_skipped_ones_and_hide_no_nan(dtype, bad, found):
    losses = [1.0 if row in bad else 2.0 for row in range(60)]
    norms = [math.inf if row in bad else 1.0 for row in range(60)]
    assert (said("NUM102", run(losses, norms=norms, training={"dtype": dtype})) is not None) is found


@every(
    ("status", "planned", "last", "says"),
    [
        ("no_run_end", None, 60, "The log stops at step 60 without run_end: crashed, killed, or still running."),
        (
            "no_run_end",
            100,
            60,
            "The log stops at step 60 of 100 planned without run_end: crashed, killed, or still running.",
        ),
        (
            "no_run_end",
            100,
            None,
            "The log stops before the first step without run_end: crashed, killed, or still running.",
        ),
        ("error", None, 60, "The run ended with an error at step 60, and the log does not say why."),
        ("aborted", 100, 60, "The run was aborted at step 60 of 100 planned, and the log does not say why."),
        ("interrupted", None, None, "The run was interrupted before the first step, and the log does not say why."),
    ],
)
def test_a_run_without_a_regular_end_says_where_it_stopped(status, planned, last, says):
    facts = run(FALL, training={"max_steps": planned} if planned else {})
    found = said("END114", replace(facts, status=status, last_step=last))
    assert found.message == says
    assert (found.severity, found.confidence) == {
        "no_run_end": ("warning", 0.9),
        "error": ("error", 1.0),
    }.get(status, ("warning", 1.0))


def test_a_run_that_diverged_has_its_highest_rate_where_it_was_logged():
    assert said("DIV104", run([1.0] * 16 + [3.0] * 4, rates=[])).values["peak_rate"] is None
    assert said("DIV104", run([1.0] * 16 + [3.0] * 4)).values["peak_rate"] == 2e-4


def test_findings_are_told_by_their_place_and_within_it_in_the_order_of_the_rules():
    values = {
        "rows": 2,
        "of": 3,
        "first": "x",
        "first_step": 1,
        "lowest": 1.0,
        "lowest_step": 1,
        "factor": 2.0,
        "margin": 9.0,
        "split": "eval",
        "rise": 0.5,
        "best_step": 1,
        "best": 1.0,
        "share": 0.5,
        "how": "x",
        "late": 1.0,
        "held_out": 2.0,
        "train": 1.0,
        "step": 1,
        "epochs": 3.0,
        "from_step": 1,
        "lines": 1,
        "missing": 1,
        "last": 1.0,
        "peak_rate": 0.1,
        "why": "x",
        "both": True,
        "peak": 1.0,
    }
    findings = [Finding(id=rule.id, severity="warning", message=rule.id, values=values) for rule in DETECTORS[::-1]]
    told = [part.finding for part in story_parts(run(FALL), findings, TrainSummary(rows=60)) if part.finding]
    places = get_args(Place)
    expected = sorted((rule for rule in DETECTORS if rule.place != "end"), key=lambda rule: places.index(rule.place))
    assert told == [rule.id for rule in expected]
    assert told[:3] == ["NUM102", "NUM101", "DIV104"]


@every("rule", DETECTORS, ids=lambda rule: rule.id)
def test_what_is_only_info_is_told_if_its_rule_says_so(rule):
    values = {
        **OVERFIT,
        "how": "x",
        "from_step": 1,
        "share": 0.5,
        "rows": 1,
        "of": 2,
        "step": 1,
        "held_out": 1.0,
        "train": 1.0,
    }
    finding = Finding(id=rule.id, severity="info", message="x", values=values)
    told = [part.finding for part in story_parts(run(FALL), [finding], TrainSummary(rows=60)) if part.finding]
    assert told == ([rule.id] if rule.as_info else [])


def test_shapes_of_a_curve_are_told_as_info():
    assert {rule.id for rule in DETECTORS if rule.as_info} == {
        "OVF110",
        "PLT105",
        "ZVR123",
        "UND126",
        "MEM127",
        "LEK132",
    }
