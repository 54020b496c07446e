"""The clauses of a story, word for word: what each finding becomes, how a run ended, and what is done about it."""

from __future__ import annotations

import math
from functools import cache
from typing import get_args

import pytest
from log_runs import ENTRIES, FALL, FED, Entry, changed, evaluation, line, run, said, with_history
from msgspec.structs import replace
from tables import every

from gradience.rules.log import DETECTORS
from gradience.rules.log.facts import Place
from gradience.rules.log.recorded import audited_rank
from gradience.rules.log.story import story_parts
from gradience.schema import ConfigSnapshot, LoraSnapshot
from gradience.schema.document import Finding
from gradience.schema.reports import TrainSummary

PHRASES = [(rule, *told) for rule, entry in ENTRIES.items() for told in entry.told]
SENTENCES = [(rule, *each) for rule, entry in ENTRIES.items() for each in entry.says]


@cache
def found_of(rule):
    """A finding of the rule, as one of the runs of its entry has it."""
    entry = ENTRIES.get(rule, Entry())
    runs = [edge.make(x) for edge in entry.edges for x in (edge.below, edge.above)]
    runs += [case.make(x) for case in entry.at for x in case.answers]
    found = (said(rule, facts) for facts in runs)
    of_no_entry = Finding(id=rule, severity="warning", message=rule, values={"rows": 1, "of": 2})
    return next((each for each in found if isinstance(each, Finding)), of_no_entry)


def told_of(rule, severity):
    return replace(found_of(rule), severity=severity)


def clauses(facts, *findings):
    return [part.says for part in story_parts(facts, findings, TrainSummary(rows=0))]


@every(("rule", "values", "says"), PHRASES)
def test_a_finding_becomes_this_clause(rule, values, says):
    told = Finding(id=rule, severity="warning", message="It is so: with numbers.", values=values)
    assert says in clauses(run(FALL), told)


@every(
    ("status", "reason", "planned", "last", "says"),
    [
        ("ok", None, 100, 60, "no held-out signal"),
        ("no_run_end", None, 100, 60, "the log stops at step 60 of 100 without run_end"),
        ("no_run_end", None, None, None, "the log stops without run_end"),
        ("unknown", None, None, 60, "the log ends at step 60"),
        ("unknown", "it ends before its 100 planned steps", 100, 60, "the log ends at step 60 of 100"),
        ("unknown", "no word of an end", None, 60, "the log ends at step 60: no word of an end"),
        ("error", "ValueError", None, 60, "error at step 60: ValueError"),
        ("interrupted", None, None, 0, "interrupted at step 0"),
    ],
)
def test_how_the_run_ended_is_told_last_and_once(status, reason, planned, last, says):
    facts = run(FALL, training={"max_steps": planned} if planned else {})
    facts = changed(facts, status=status, status_reason=reason, last_step=last)
    assert clauses(facts)[-1] == says
    found = [said("END114", facts)] if status not in {"ok", "unknown"} else []
    told = story_parts(facts, found, TrainSummary(rows=60))
    assert (told[-1].says, told[-1].finding) == (says, "END114" if found else None)


@every(
    ("facts", "findings", "says"),
    [
        (run(FALL, held_out=[1.4, 1.2], accuracy=0.75), [], ["eval loss 1.2, its best", "eval accuracy 75.0%"]),
        (run(FALL, held_out=[1.4, 1.2], accuracy=0.75), ["GAP111"], ["eval accuracy 75.0%"]),
        (run(FALL, held_out=[1.4, 1.2], accuracy=0.75), ["CHN112"], ["eval loss 1.2, its best"]),
        (run(FALL), [], ["no held-out signal"]),
        (run(FALL), ["REP128"], []),
        (with_history(*(evaluation(step, None, wer=value) for step, value in ((20, 40.0), (40, 32.0), (60, 34.0)))), [],
         ["eval wer 34 (best 32 at step 40)"]),
    ],
)  # fmt: skip
def test_held_out_data_are_told_once_unless_a_finding_does(facts, findings, says):
    own = clauses(facts, *(told_of(rule, "warning") for rule in findings))
    assert own[1 + len(findings) :] == says  # behind what is learnt, and the findings


# --- why it is not judged ----------------------------------------------------------------------------------------


@every(("rule", "facts", "sentence"), SENTENCES)
def test_a_rule_says_this_or_why_it_cannot_judge(rule, facts, sentence):
    answer = said(rule, facts)
    assert (answer if isinstance(answer, str) else answer.message) == sentence


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
    facts = changed(run(FALL, audit={"modules": modules}), config=ConfigSnapshot(lora=LoraSnapshot(**config)))
    assert audited_rank(facts) == rank


# --- rows that are not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bad", "found"), [("float16", (30, 40), False), ("float16", (30,), True), ("bfloat16", (30, 40), True)]
)
def test_several_single_steps_under_fp16_are_skipped_ones_and_hide_no_nan(dtype, bad, found):
    losses = [1.0 if row in bad else 2.0 for row in range(60)]
    norms = [math.inf if row in bad else 1.0 for row in range(60)]
    assert (said("NUM102", run(losses, norms=norms, training={"dtype": dtype})) is not None) is found


def test_findings_are_told_by_their_place_and_within_it_in_the_order_of_the_rules():
    findings = [told_of(rule.id, "warning") for rule in DETECTORS[::-1]]
    told = [part.finding for part in story_parts(run(FALL), findings, TrainSummary(rows=60)) if part.finding]
    places = get_args(Place)
    expected = sorted(DETECTORS, key=lambda rule: places.index(rule.place))
    assert told == [rule.id for rule in expected]
    assert told[:4] == ["NUM102", "NUM101", "ORD186", "DIV104"]


def norms(usual, **peaks):
    """Gradient norms with a few that are higher, by their rows."""
    return [peaks.get(f"r{row}", usual) for row in range(len(FALL))]


UP = [*line(20, 1.24, 1.3), *line(20, 1.3, 1.79)]


@every(
    ("facts", "says", "unsaid"),
    [
        (run([*FALL[:-2], -0.001, -0.002], kind="sft"),
         f"the loss is below 0 in 2 of {len(FALL)} rows, first at step {len(FALL) - 1}: no cross-entropy is", "learns"),
        (run([*FALL[:-2], 0.001, 0.002], kind="sft"), "learns", "below 0"),
        (run([*FALL[:-2], -0.001, -0.002], columns={"reward_signal": FALL}), "learns", "below 0"),  # no known loss
        (run(UP, held_out=line(8, 2.0, 1.2)), "the training loss ends above where it began", "learns"),
        (run(line(40, 1.24, 1.35), held_out=line(8, 2.0, 1.2)), "learns", "ends above"),  # by under a tenth
        (run(FALL, norms=norms(2.0, r30=101.0, r40=100.5)), "gradient norm 101 at step 31", "40"),
        (run(FALL, norms=norms(2.0, r30=99.0)), "learns", "gradient norm"),
        (run(FALL, norms=norms(5.1, r30=101.0)), "learns", "gradient norm"),  # under 20 times the median
        (run(FALL, norms=norms(4.9, r30=101.0)), "gradient norm 101 at step 31", "(median)"),
    ],
)  # fmt: skip
def test_what_a_fall_of_the_loss_does_not_show_is_told(facts, says, unsaid):
    told = clauses(facts)
    assert says in told
    assert not any(unsaid in clause for clause in told)


@every(
    ("first", "last", "r", "high"),
    [(7.4, 5.6, None, True), (7.4, 5.4, None, False), (7.6, 5.6, None, False), (7.6, 5.6, 8, True)],
)
def test_a_loss_that_ends_over_what_a_pretrained_model_begins_with_is_a_doubt(first, last, r, high):
    facts = run(line(40, first, last), kind="sft")
    facts = changed(facts, config=replace(facts.config, lora=LoraSnapshot(r=r)))
    parts = story_parts(facts, [], TrainSummary(rows=40, first_loss=first, last_loss=last))
    over = ", over what a pretrained model begins with"
    assert [(part.says, part.doubt) for part in parts if part.says.startswith("loss ")] == [
        (f"loss {first} -> {last}{over if high else ''}", high)
    ]
