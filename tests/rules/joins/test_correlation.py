"""The table of joins: its rows are whole, and what they do to any set of findings keeps the laws of a diagnosis."""

from __future__ import annotations

import string
from dataclasses import replace

from hypothesis import given, strategies as st
from tables import every

from gradience.rules import Observation
from gradience.rules.joins import RULES_OF, Message, Needs, Symptom, correlate, showing
from gradience.rules.joins.run import JOINS
from gradience.schema.diagnose import Cause
from gradience.schema.document import SEVERITIES, Finding
from gradience.verbs.diagnose.run import IDS
from gradience.verbs.diagnose.verdict import verdict_of
from gradience.verbs.rules import rules

JOIN = {join.id: join for join in JOINS}
FACTS = {
    "config": {"idle_targets", "other_config"},
    "log": {"other_log", "nothing_held_out", "summed_rates", "learnt_by"},
    "weights": {"tiny", "few_layers", "exploded", "outgrown", "no_head", "adapted", "other_adapter", "damaged"},
    "disk": {"best_checkpoint", "no_checkpoint", "before_nan", "lowest", "best_reward", "short_of_the_end", "mid_run",
             "restored"},
}  # fmt: skip
MARKS = ["untrained", "near_untrained", "broken", "random_like", "lr", "epochs", "no_labels", "not_finite"]
VALUES = {
    "first_step": 3, "rows": 4, "r": 8, "best_step": 7, "from_step": 7, "times": 2.5, "moved": 0.5, "logged": 0.2,
    "weights_step": 5, "last_step": 9, "lowest_step": 2, "logging_steps": 500.0, "steps": 100, "every": 2,
    "restored": 6,
}  # fmt: skip
TEXTS = dict.fromkeys(
    ["rate_zero", "not_learnt", "lost", "zero", "stops", "differs", "idle", "exploded", "tiny", "few", "checkpoint",
     "saved_as", "damaged", "masked", "adapted", "optimizer"], "so it is",
)  # fmt: skip


def symptom(source, rule, severity="warning", marks=(), **values):
    found = Finding(id=rule, severity=severity, message=f"{rule} was found") if rule in IDS.get(source, ()) else None
    return Symptom(source, rule, Observation(f"{rule} was found", values), found, frozenset([*marks, severity]))


def needs_of(join):
    return (*join.needs, *join.hints)


@st.composite
def symptoms(draw):
    """Any findings of any sources, with any marks and values; the same one may come twice."""
    known = [(source, rule) for source, ids in IDS.items() for rule in ids]
    known += [(source, rule) for source, rules_ in FACTS.items() for rule in rules_]
    chosen = draw(st.lists(st.sampled_from(known), max_size=14))
    values = st.dictionaries(st.sampled_from(sorted(VALUES)), st.sampled_from([None, 1, 2.5, "x"]), max_size=3)
    marks = st.frozensets(st.sampled_from(MARKS), max_size=2)
    texts = st.sampled_from([{}, TEXTS])
    return [
        symptom(source, rule, draw(st.sampled_from(SEVERITIES)), draw(marks), **draw(values), **draw(texts))
        for source, rule in chosen
    ]


SILENT = st.frozensets(st.sampled_from([(source, rule) for source, ids in IDS.items() for rule in ids]))


@given(symptoms(), SILENT)
def test_every_finding_is_in_exactly_one_cause_or_left_alone(found, silent):
    joined = correlate(JOINS, found, silent)
    told = [(p.source, p.id) for cause in joined.causes for p in cause.pieces if p.severity is not None]
    told += [(s.source, s.id) for s in joined.left if s.finding is not None]
    assert sorted(told) == sorted((s.source, s.id) for s in found if s.finding is not None)


@given(symptoms(), SILENT)
def test_a_cause_is_as_severe_as_its_gravest_piece_unless_its_message_says_otherwise(found, silent):
    for cause in correlate(JOINS, found, silent).causes:
        gravest = max((SEVERITIES.index(p.severity) for p in cause.pieces if p.severity), default=None)
        spoken = {w.severity for w in JOIN[cause.id].messages if w.severity}
        assert gravest is None or SEVERITIES.index(cause.severity) == gravest or cause.severity in spoken


def single(finding):
    """A finding as a cause of its own, without the pieces that make a run worth a look."""
    return Cause(id=finding.id, severity=finding.severity, message=finding.message)


@given(symptoms(), SILENT)
def test_the_verdict_is_never_healthy_beside_a_warning_and_never_milder_for_joining(found, silent):
    plain = [join for join in JOINS if all(message.severity is None for message in join.messages)]
    joined = correlate(plain, found, silent)
    alone = [s.finding for s in joined.left if s.finding]
    before = verdict_of([single(s.finding) for s in found if s.finding], complete=True)
    after = verdict_of([*joined.causes, *map(single, alone)], complete=True)
    order = ["no_fault_found", "worth_a_look", "needs_attention", "broken"]
    assert order.index(after) >= order.index(before)


@every("join", JOINS, ids=lambda join: join.id)
def test_every_need_names_facts_that_rules_show_and_every_message_sources_that_are_needed(join):
    for needs in needs_of(join):
        facts = FACTS[needs.source]
        assert all(showing(needs.source, sign) or sign in facts for sign in (*needs.signs, *needs.silent))
        assert bool(needs.signs) != bool(needs.silent)
        assert bool(needs.says) == bool(needs.silent)
    for message in join.messages:
        assert set(message.sources) <= {needs.source for needs in join.needs}
        for _, name, spec, _ in string.Formatter().parse(message.text):
            assert name is None or format({**VALUES, **TEXTS}[name], spec or "")


@every("join", JOINS, ids=lambda join: join.id)
def test_a_join_is_documented_like_a_rule_and_listed_by_the_rules_command(join, capsys):
    assert all((join.title, join.action, join.rationale, join.scope, join.verify))
    assert 0.0 < join.confidence <= 1.0
    assert rules() == 0
    assert f"{join.id:<8}{join.severity}" in capsys.readouterr().out
    assert rules(join.id.lower()) == 0
    card = " ".join(capsys.readouterr().out.split())  # long lines are folded
    assert all(ground.says in card for ground in join.evidence)
    assert all(threshold.source in card for threshold in join.thresholds)


def test_every_fact_that_a_rule_shows_is_one_that_a_join_asks_for():
    asked = {
        (needs.source, sign) for join in JOINS for needs in needs_of(join) for sign in (*needs.signs, *needs.silent)
    }
    for source, rules_ in RULES_OF.items():
        shown = {sign if isinstance(sign, str) else sign.name for rule in rules_.values() for sign in rule.signs}
        elsewhere = {sign for of, sign in asked if of != source}  # of rules that judge two sources
        assert shown <= {sign for of, sign in asked if of == source} | elsewhere


@every(
    ("found", "expected", "severity"),
    [
        ([("log", "NUM101", "not_finite"), ("weights", "NUM201", "broken")], "NUM301", "warning"),
        ([("log", "NUM102", "no_labels"), ("weights", "TRN202", "untrained")], "DAT330", "warning"),
        ([("weights", "damaged")], "FIL319", "error"),
        ([("config", "idle_targets"), ("weights", "adapted"), ("config", "TGT006")], "TGT307", "warning"),
        ([("config", "VAL001", "lr"), ("weights", "TRN202", "untrained")], "TRN302", "warning"),
        ([("config", "TGT002"), ("log", "NOL106")], "TRN302", "error"),
        ([("log", "DIV104"), ("weights", "exploded")], "DIV305", "warning"),
        ([("log", "GRD107"), ("config", "LR003")], "DIV305", "warning"),
        ([("config", "TGT004"), ("weights", "no_head")], "HED308", "warning"),
        ([("log", "GRD108"), ("weights", "RND203", "random_like")], "RND309", "warning"),
        ([("config", "REC001"), ("log", "GAP118")], "REC310", "warning"),
        ([("log", "END114"), ("weights", "NUM209")], "END312", "warning"),
        ([("weights", "exploded")], "UPD316", "warning"),  # a large update alone is no divergence, and is said
        ([("weights", "tiny")], "UPD316", "warning"),
        ([("log", "summed_rates"), ("weights", "outgrown")], "SIZ331", "warning"),
        ([("log", "summed_rates"), ("weights", "outgrown"), ("weights", "exploded")], "UPD316", "warning"),
        ([("log", "DIV104"), ("weights", "exploded"), ("weights", "outgrown"), ("log", "summed_rates")], "DIV305",
         "warning"),
        ([("disk", "mid_run")], "MID318", "warning"),
        ([("weights", "few_layers")], "LYR317", "warning"),
        ([("log", "OVF110"), ("disk", "best_checkpoint")], "OVF304", "warning"),
        ([("log", "GAP118"), ("config", "REC001"), ("config", "REC002")], "REC310", "warning"),
        ([("log", "RWD122", "best"), ("config", "LR004")], "RWD315", "warning"),
        ([("log", "RWD122", "best"), ("disk", "best_reward"), ("log", "KLD124")], "RWD315", "warning"),
        ([("log", "END114"), ("log", "TRN115")], "END312", "warning"),
        ([("config", "other_config"), ("weights", "other_adapter")], "CFG306", "warning"),
    ],
)  # fmt: skip
def test_findings_of_one_cause_are_one_cause(found, expected, severity):
    made = [symptom(source, rule, severity, marks, **VALUES, **TEXTS) for source, rule, *marks in found]
    joined = correlate(JOINS, made, frozenset())
    assert [cause.id for cause in joined.causes] == [expected]
    assert joined.left == []


@every(
    "found",
    [
        [
            ("log", "NUM101", "not_finite"),
            ("weights", "NUM201", "not the verdict broken"),
        ],  # an empty file holds no NaN
        [("config", "VAL001", "weight_decay"), ("weights", "TRN202", "untrained")],  # stops no run from learning
        [("log", "NOL106"), ("weights", "TRN202", "partial")],
        [("weights", "no_head")],
        [("log", "TRN115"), ("config", "REC004")],  # damaged lines, and the run came to its end
        [("log", "OVF110")],  # no folder was looked through
    ],
)
def test_findings_that_only_look_alike_stay_apart(found):
    made = [symptom(source, rule, "warning", marks, **VALUES, **TEXTS) for source, rule, *marks in found]
    joined = correlate(JOINS, made, frozenset())
    assert joined.causes == []
    assert [s.id for s in joined.left] == [rule for _, rule, *_ in found]


def test_a_row_whose_value_is_not_known_gives_way_to_the_next():
    rows = (Message(("log",), "at step {first_step}"), Message(("log",), "some time"))
    base = replace(JOINS[0], needs=(Needs("log", ("not_finite",)),), hints=(), messages=rows, least=1)
    for value, text in ((7, "at step 7"), (None, "some time")):
        (cause,) = correlate([base], [symptom("log", "NUM101", first_step=value)], frozenset()).causes
        assert cause.message == text
