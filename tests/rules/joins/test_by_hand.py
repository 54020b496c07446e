"""What each correlation needs, takes along and shows, as stated; and how one is matched, worked out by hand."""

from __future__ import annotations

import string
from dataclasses import replace

import pytest
from tables import every

from gradience.rules import Observation, Sign, cite, joins
from gradience.rules.joins import Correlation, Message, Needs, Symptom, correlate
from gradience.rules.joins.run import JOINS
from gradience.schema.document import Finding

STATED = """\
DAT330
  needs log all_masked
  needs log loss_of_nothing
  needs weights not_finite zero_update
  says  log+weights masked
  says  log+weights
NUM301
  needs log not_finite
  needs weights lost_weights
  needs weights no not_finite
  takes log large_gradients
  takes config high_rate half_precision
  takes disk before_nan
  says  log+weights first_step lost
  says  log+weights lost
  says  log+weights
  says  log first_step
  says  log
DIV305
  needs log diverged
  needs log exploding_gradients
  needs weights exploded
  needs config high_rate
  needs disk lowest
  takes log spike no_learning oversized summed_rates
  takes config warmup_ignored
  takes weights oversized outgrown
  says  log+weights lowest_step exploded
  says  log+weights exploded
  says  log+config lowest_step
  says  log+config
  says  log+disk lowest_step
  says  log lowest_step
TRN302
  needs config stops
  needs log no_learning
  needs log no_gradient
  needs log rate_zero
  needs weights no_update
  takes log zero_update plateau at_chance
  takes config low_rate few_steps long_warmup missed_targets default_targets
  takes weights small_scaling
  takes config idle_targets
  says  config+weights stops
  says  log+weights rate_zero zero
  says  log+weights zero
  says  config+log stops
  says  log not_learnt
SAV303
  needs log no no_learning vanished_gradient
  needs weights untrained
  takes log zero_update
  takes weights mostly_other
  says  log+weights zero
OVF304 alone
  needs log overfits
  needs disk best_checkpoint no_checkpoint restored
  takes log gap memorizes
  takes config many_passes saved_once
  says  log+disk from_step saved_as (info)
  says  log+disk from_step restored (info)
  says  log+disk from_step checkpoint
  says  log+disk from_step
RWD315
  needs log reward_fell
  needs config high_rate_for_preferences
  needs disk best_reward
  takes log far_from_reference equal_rewards cut_completions
  says  log+config
  says  log+disk
  says  log
UPD316 alone
  needs weights exploded tiny
  takes weights oversized outgrown
  takes log oversized summed_rates
  says  weights times exploded
  says  weights exploded
  says  weights tiny
SIZ331
  needs log summed_rates
  needs weights outgrown
  takes weights oversized
  takes log oversized
  says  log+weights moved times logged
LYR317 alone
  needs weights few_layers
  says  weights few
MID318 alone
  needs disk mid_run
  says  disk weights_step last_step
CFG306
  needs config other_config
  needs log other_log
  needs weights other_adapter
  takes weights unlike_ranks
  says  config+weights differs
  says  log+weights differs
FIL319 alone
  needs weights damaged
  takes log cut_off
  says  weights damaged
HED308
  needs config head_left_out
  needs weights no_head
  takes log at_chance
  says  config+weights
RND309
  needs weights random_like
  needs log no_learning vanished_gradient
  needs log no no_learning
  takes log random_like
  says  log+weights
TGT307
  needs config idle_targets
  needs weights adapted
  takes config foreign_targets missed_targets
  says  config+weights idle adapted (warning)
END312
  needs log cut_off
  needs weights incomplete_file
  needs config saved_once
  needs disk short_of_the_end
  takes log torn_lines
  says  log+weights
  says  log+disk weights_step
  says  log+config
  says  log
REC310
  needs config no_rows
  needs log few_rows
  takes config nothing_held_out
  says  config+log rows logging_steps steps
  says  config+log rows
REC311
  needs config nothing_held_out
  needs log no_evaluation
  says  config+log
SCL314
  needs config low_rate
  needs weights small_scaling
  says  config+weights r
"""  # gravest first, which decides; of a message its sources and its values


def asked(needs: Needs) -> str:
    return f"{needs.source} {' '.join(needs.signs) or 'no ' + ' '.join(needs.silent)}"


def shown(message: Message) -> str:
    names = [name for _, name, _, _ in string.Formatter().parse(message.text) if name]
    return " ".join(["+".join(message.sources), *names, *([f"({message.severity})"] if message.severity else [])])


def stated(join: Correlation) -> list[str]:
    return [
        join.id + (" alone" if join.least == 1 else ""),
        *(f"  needs {asked(needs)}" for needs in join.needs),
        *(f"  takes {asked(needs)}" for needs in join.hints),
        *(f"  says  {shown(message)}" for message in join.messages),
    ]


def test_each_correlation_needs_takes_along_and_shows_what_is_stated():
    assert [line for join in JOINS for line in stated(join)] == STATED.splitlines()


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


def test_one_piece_may_do_and_is_a_piece_once_whatever_asks_for_it():
    twice = (Needs("log", ("A", "B")), Needs("log", ("A",)))
    made = join(Message(("log",), "m"), needs=twice, hints=twice, least=1)
    (cause,) = correlate([made], [seen("log", "A")], frozenset()).causes
    assert [(piece.source, piece.id) for piece in cause.pieces] == [("log", "A")]
    assert cause.joined


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
    ("silent", "pieces"),
    [([], []), (["P"], []), (["P", "Q"], [("log", "P Q", "all quiet"), ("config", "C", "C!")])],
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
