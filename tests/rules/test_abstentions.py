"""Which rules mean nothing under which objective, adapter or kind of data, and do not speak there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from log_runs import FALL, run
from tables import every

from gradience.rules import Rule, judge
from gradience.rules.config import RULES as CONFIG_RULES, judge_config
from gradience.rules.data import DATA_RULES
from gradience.rules.log import DETECTORS, detect
from gradience.rules.log.facts import under
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import DataReport

KINDS = ("sft", "preference", "reward", "rl")
OF_PREFERENCE, OF_RL = ([under(kind).says] for kind in ("preference", "rl"))


def needing(rules: Iterable[Rule[Any]], *words: str) -> set[str]:
    """The rules with a premise that has all of these words, as their cards and the page of rules state it."""
    return {rule.id for rule in rules if any(set(words) <= set(says.split()) for says in rule.premises)}


def not_judged(facts: Any, words: str) -> set[str]:
    return {item.id for item in detect(facts).not_run if words in item.reason}


@every("kind", KINDS)
def test_a_rule_on_a_log_abstains_under_objectives_that_it_does_not_fit(kind):
    facts = run(FALL, kind=kind)
    says = f"does not fit the objective {kind} (keys of a trainer of kind {kind})"
    unfit = needing(DETECTORS, "objective", "not", kind)
    assert not_judged(facts, says) == not_judged(facts, "objective") == unfit
    assert bool(unfit) is (kind != "sft")


@every("kind", KINDS)
def test_rules_on_preferences_and_rewards_are_mentioned_where_these_are_trained_alone(kind):
    verdict = detect(run(FALL, kind=kind))
    mentioned = {item.id for item in (*verdict.findings, *verdict.not_run)}
    alone = {rule.id: rule.premises[0] for rule in DETECTORS if rule.premises[:1] in (OF_PREFERENCE, OF_RL)}
    assert len(alone) > 10
    assert {rule for rule in alone if rule in mentioned} == {
        rule for rule, says in alone.items() if says == under(kind).says
    }


def test_ratios_of_a_loss_need_one_that_is_positive():
    of_ratios = needing(DETECTORS, "ratios")
    assert len(of_ratios) > 5
    assert not_judged(run([-1.0] * 60), "the loss is not positive: ratios of it mean nothing") == of_ratios
    assert not_judged(run([0.0] * 60), "the loss is not positive: ratios of it mean nothing") == of_ratios
    assert not_judged(run([float("nan")] * 60), "no finite training loss was recorded") == of_ratios


def test_without_a_data_event_one_rule_alone_says_so():
    of_batches = {rule.id for rule in DETECTORS if rule.id.startswith("DAT")}
    assert {item.id for item in detect(run(FALL)).not_run} & of_batches == {"DAT301"}
    unseen = run(FALL, data={"unseen": "the model is compiled"})
    assert not_judged(unseen, "the recorder saw no batch: the model is compiled") == of_batches | {"FED227", "FED228"}


# --- configurations, data and weights ----------------------------------------------------------------------------


def test_rules_about_lora_abstain_under_another_adapter():
    snapshot = msgspec.convert({"lora": {"peft_type": "IA3"}}, ConfigSnapshot)
    says = "peft_type IA3 is not LoRA: the rule does not apply"
    assert {item.id for item in judge_config(snapshot).not_run if item.reason == says} == needing(CONFIG_RULES, "LoRA")


def data(**fields: Any) -> DataReport:
    given = {
        "path": "d", "format": "messages", "trainer": "sft", "rows": 9, "rows_read": 9, "sequences": 9,
        "whole_rows": 9, "loss": "all", "tokenizer": "t", **fields,
    }  # fmt: skip
    return msgspec.convert(given, DataReport)


@every(
    ("fields", "words", "premise"),
    [
        ({"trainer": "reward"}, "the loss is computed on one output per sequence, not on tokens", ("loss", "tokens")),
        ({"trainer": "classification"}, "the loss is computed on one output per sequence, not on tokens",
         ("loss", "tokens")),
        ({"rows_read": 0}, "no row could be tokenised", ("loss", "tokens")),
        ({"max_length": None}, "no length limit", ("limit",)),
        ({}, "no label", ("labels",)),
    ],
)  # fmt: skip
def test_a_rule_on_data_abstains_where_it_lacks_its_input(fields, words, premise):
    verdict = judge(DATA_RULES, data(**fields))
    assert {item.id for item in verdict.not_run if words in item.reason} == needing(DATA_RULES, *premise)
