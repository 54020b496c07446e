"""What each correlation needs, takes along and shows, as stated; and how one is matched, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tables import every

from gradience.rules import Observation, Sign, cite, joins
from gradience.rules.joins import Correlation, Message, Needs, Symptom, correlate
from gradience.rules.joins.run import JOINS
from gradience.schema.document import Finding

OWN, SEEN = cite("a paper", "says so"), cite("the log", "shows it")


def join(*messages: Message, **fields: object) -> Correlation:
    """A correlation of a log's A or B, and of a config's C, which takes along a config's H and a log's A."""
    needs = (Needs("log", ("A", "B")), Needs("config", ("C",)))
    hints = (Needs("config", ("H",)), Needs("log", ("A",)))
    made = replace(JOINS[0], id="X", severity="info", confidence=0.4, action="own", evidence=(OWN,), messages=messages)
    return replace(made, **{"needs": needs, "hints": hints, **fields})


def seen(source: str, rule: str, severity: str | None = "warning", *, action: str | None = None, **values: object):
    """What a source shows: a finding, or a fact where it has no severity."""
    found = Finding(id=rule, severity=severity, message=f"{rule}!", evidence=[SEEN, OWN]) if severity else None
    tags = frozenset([severity] if severity else [])
    return Symptom(source, rule, Observation(f"{rule}!", values, action=action), found, tags)


def test_a_cause_is_made_of_all_that_it_takes():
    made = join(Message(("log",), "at {step} by {rate}"))
    symptoms = [
        seen("log", "Z", "critical"),
        seen("log", "A", step=3),
        seen("config", "H", "error", rate=0.5, step=9),
        seen("config", "C", None, step=4),
    ]
    found = correlate([made, made], symptoms, frozenset())
    assert [item.id for item in found.left] == ["Z"]  # a symptom is in one cause at most
    (cause,) = found.causes
    assert (cause.id, cause.message, cause.severity, cause.confidence) == ("X", "at 3 by 0.5", "error", 0.4)
    assert cause.values == {"step": 3, "rate": 0.5}
    assert [(p.source, p.id, p.severity, p.says) for p in cause.pieces] == [
        ("log", "A", "warning", "A!"),
        ("config", "C", None, "C!"),
        ("config", "H", "error", "H!"),
    ]
    assert cause.joined
    assert cause.evidence == [OWN, SEEN]


@every(
    ("symptoms", "fields", "expected"),
    [
        # the sources that are needed decide which message, and not those taken along
        ([seen("log", "A"), seen("config", "H")], {}, ("log only", "info", "own")),
        ([seen("log", "A"), seen("config", "C")], {}, ("both", "warning", "of the message")),
        ([seen("config", "C"), seen("config", "H")], {}, None),
        # fewer pieces than asked for
        ([seen("log", "A")], {}, None),
        ([seen("log", "A")], {"least": 1}, ("log only", "info", "own")),
        # of the pieces' severities the gravest, without any that of the rule
        ([seen("log", "A", "info"), seen("config", "C", "error")], {}, ("both", "error", "of the message")),
        ([seen("log", "A", None), seen("config", "C", None)], {}, ("both", "info", "of the message")),
        # what a piece says is to be done goes before the message's action
        ([seen("log", "A"), seen("config", "C", action="now")], {}, ("both", "warning", "now")),
    ],
)
def test_a_message_is_of_the_sources_that_are_needed(symptoms, fields, expected):
    messages = (
        Message(("log", "config"), "both", action="of the message"),
        Message(("log",), "log only", severity="info"),
    )
    causes = correlate([join(*messages, **fields)], symptoms, frozenset()).causes
    assert [(cause.message, cause.severity, cause.action) for cause in causes] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("silent", "pieces"), [([], []), (["P"], []), (["P", "Q"], [("log", "P Q", "all quiet"), ("config", "C", "C!")])]
)
def test_rules_that_were_silent_are_a_piece_where_all_of_them_were(silent, pieces, monkeypatch):
    showing = {"of_p": {"P": Sign("of_p")}, "of_q": {"Q": Sign("of_q")}}
    monkeypatch.setattr(joins, "showing", lambda source, sign: showing[sign] if source == "log" else {})
    made = join(Message(("log", "config"), "m"), needs=(Needs("log", silent=("of_p", "of_q"), says="all quiet"),
                                                        Needs("config", ("C",))))  # fmt: skip
    others = {("config", "P"), ("config", "Q")}  # of another source
    causes = correlate([made], [seen("config", "C")], frozenset({("log", rule) for rule in silent} | others)).causes
    assert [(p.source, p.id, p.says) for cause in causes for p in cause.pieces] == pieces


@every(
    ("rule", "read", "missing"),
    [
        ("MID318", "", "needs log"),  # a folder is found by its log
        ("MID318", "log", None),
        ("OVF304", "weights", "needs log"),
        ("OVF304", "log", None),
        ("CFG306", "log", "needs weights"),
        ("CFG306", "config", "needs weights"),
        ("CFG306", "", "needs config and weights"),
        ("UPD316", "log config", "needs weights"),
    ],
)
def test_a_correlation_lacks_the_fewest_sources_with_which_it_could_be_judged(rule, read, missing):
    (made,) = [item for item in JOINS if item.id == rule]
    assert made.missing(frozenset(read.split())) == missing
