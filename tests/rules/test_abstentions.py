"""Which rules mean nothing under which objective, adapter or kind of data, and do not speak there."""

from __future__ import annotations

from typing import Any

import msgspec
from log_runs import FALL, run
from tables import every

from gradience.rules import judge
from gradience.rules.config import RULES as CONFIG_RULES, judge_config
from gradience.rules.data import DATA_RULES
from gradience.rules.log import DETECTORS, detect
from gradience.rules.weights.rules import WEIGHTS_RULES, judge_adapter
from gradience.schema.audit import AUDIT_SCHEMA_ID, AuditReport, AuditSummary, Health
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import DataReport

OF_A_LEVEL = {"DIV103", "DIV104", "NOL106", "PLT105", "GRD108", "OVF110", "UND126", "REP128", "MEM127"}
UNFIT = {
    "sft": set(),
    "preference": {"CHN112", "GAP111", "LEK132", "SCL129"},
    "reward": {"GAP111", "SCL129"},
    "rl": OF_A_LEVEL | {"CHN112", "GAP111", "LEK132", "SCL129"},
}
OF_PREFERENCE = {"PRF119", "PRF120", "PRF121", "PRF130", "PRF140"}
OF_RL = {"RWD122", "RWN139", "ZVR123", "ENT135", "KLD124", "KLZ138", "CLF137", "CLP125", "LEN136"}
OF_RATIOS = {"DIV103", "DIV104", "SCL129", "NOL106", "PLT105", "REP128", "MEM127"}


def not_judged(facts: Any, words: str) -> set[str]:
    return {item.id for item in detect(facts).not_run if words in item.reason}


@every("kind", UNFIT)
def test_a_rule_on_a_log_abstains_under_objectives_that_it_does_not_fit(kind):
    facts = run(FALL, kind=kind)
    says = f"does not fit the objective {kind} (keys of a trainer of kind {kind})"
    assert not_judged(facts, says) == not_judged(facts, "objective") == UNFIT[kind]


@every("kind", UNFIT)
def test_rules_on_preferences_and_rewards_are_mentioned_where_these_are_trained_alone(kind):
    mentioned = {item.id for item in detect(run(FALL, kind=kind)).not_run}
    assert mentioned & (OF_PREFERENCE | OF_RL) == {"preference": OF_PREFERENCE, "rl": OF_RL}.get(kind, set())


def test_ratios_of_a_loss_need_one_that_is_positive():
    assert not_judged(run([-1.0] * 60), "the loss is not positive: ratios of it mean nothing") == OF_RATIOS
    assert not_judged(run([0.0] * 60), "the loss is not positive: ratios of it mean nothing") == OF_RATIOS
    assert not_judged(run([float("nan")] * 60), "no finite training loss was recorded") == OF_RATIOS


def test_without_a_data_event_one_rule_alone_says_so():
    of_batches = {rule.id for rule in DETECTORS if rule.id.startswith("DAT")}
    assert {item.id for item in detect(run(FALL)).not_run} & of_batches == {"DAT301"}
    unseen = run(FALL, data={"unseen": "the model is compiled"})
    assert not_judged(unseen, "the recorder saw no batch: the model is compiled") == of_batches


# --- configurations, data and weights ----------------------------------------------------------------------------

OF_LORA = {
    *("LR001", "LR002", "LR003", "LR004", "LR005", "LR007", "TGT001", "TGT002", "TGT003", "TGT004", "TGT005"),
    *("ALP001", "ALP002", "NUM001", "BIA001", "RNK001", "BAT001", "TGT006", "SRV001", "SRV002", "SRV003", "SRV004"),
}


def test_rules_about_lora_abstain_under_another_adapter():
    snapshot = msgspec.convert({"lora": {"peft_type": "IA3"}}, ConfigSnapshot)
    says = "peft_type IA3 is not LoRA: the rule does not apply"
    assert {item.id for item in judge_config(snapshot).not_run if item.reason == says} == OF_LORA
    assert {rule.id for rule in CONFIG_RULES} > OF_LORA


def data(**fields: Any) -> DataReport:
    given = {
        "path": "d", "format": "messages", "trainer": "sft", "rows": 9, "rows_read": 9, "sequences": 9,
        "whole_rows": 9, "loss": "all", **fields,
    }  # fmt: skip
    return msgspec.convert(given, DataReport)


OF_TOKENS = {"DAT301", "DAT302", "DAT303", "DAT304", "DAT307", "DAT308", "DAT320"}


@every(
    ("fields", "words", "rules"),
    [
        ({"trainer": "reward"}, "the loss is computed on one output per sequence, not on tokens", OF_TOKENS),
        ({"trainer": "classification"}, "the loss is computed on one output per sequence, not on tokens", OF_TOKENS),
        ({"rows_read": 0}, "no row could be tokenised", OF_TOKENS),
        ({"max_length": None}, "no length limit", {"DAT305", "DAT306"}),
        ({}, "no label", {"DAT315", "DAT316", "DAT317"}),
    ],
)
def test_a_rule_on_data_abstains_where_it_lacks_its_input(fields, words, rules):
    verdict = judge(DATA_RULES, data(**fields))
    assert {item.id for item in verdict.not_run if words in item.reason} == rules


def test_of_an_adapter_without_a_module_or_a_base_these_rules_are_not_judged():
    report = AuditReport(
        schema=AUDIT_SCHEMA_ID,
        peft_dir="d",
        weights_path="w",
        format="peft",
        health=Health(verdict="not_analysed", reason="why"),
        ledger=[],
        summary=AuditSummary(total_lora_params=0, n_layers=0),
    )
    reasons = {item.id: item.reason for item in judge_adapter(report).not_run}
    nothing = "no module was analysed: why"
    assert reasons == {
        **dict.fromkeys(("NUM201", "TRN202", "SIZ215", "SCL206", "SCL207", "SCL208"), nothing),
        **dict.fromkeys(("LED205", "NUM209"), "no tensor was read"),
        "RND203": "needs 4 measured modules of rank 4 or more; there are 0",
        "UTL204": "no finite, non-zero update to measure",
        "MRG210": "no base model was given (--base)",
        "BAS211": "no base model was given (--base)",
        "INT212": "intruder dimensions were not counted ('gradience audit --base BASE --intruders')",
    }
    assert reasons.keys() == {rule.id for rule in WEIGHTS_RULES}
