"""What each rule on a configuration states, number by number: severity, confidence, and the sentence of a finding."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tables import every

from gradience.rules.config import judge_config, settings_of
from gradience.rules.config.facts import CheckContext
from gradience.schema.document import Coverage, Finding
from gradience.schema.events import ConfigSnapshot


def config(*, adapter: bool = True, **sections: Any) -> ConfigSnapshot:
    """A snapshot from plain sections; of LoRA, unless they say otherwise or there is to be no adapter."""
    lora = {**({"peft_type": "LORA"} if adapter else {}), **sections.pop("lora", {})}
    return msgspec.convert({**sections, "lora": lora}, ConfigSnapshot)


def rate(lr: float, task: str | None = "sft", **lora: Any) -> ConfigSnapshot:
    return config(optimizer={"lr": lr}, lora=lora, extras={"task": task} if task else {})


def training(**fields: Any) -> ConfigSnapshot:
    return config(training=fields)


def tuned(**fields: Any) -> ConfigSnapshot:
    return config(training=fields, extras={"task": "sft"})


def targets(model: str, *names: str) -> ConfigSnapshot:
    return config(model_name=model, lora={"target_modules": list(names)})


def covered(**fields: Any) -> CheckContext:
    common = {
        "base": "m",
        "model_type": "llama",
        "layout": "transformers 5",
        "modules": 8,
        "layers": 4,
        "layers_total": 4,
    }
    return CheckContext(coverage=msgspec.convert({**common, **fields}, Coverage))


def found(rule: str, snapshot: ConfigSnapshot, around: CheckContext | None = None) -> Finding:
    verdict = judge_config(snapshot, transformers="5.24.0", around=around)
    return next(item for item in verdict.findings if item.id == rule)


ATTENTION = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
CASES = [  # what differs from the rule's own in one case
    ("LR001", rate(5e-5), None, "warning", 0.8),
    ("LR001", config(optimizer={"lr": 5e-5}, lora={"task_type": "CAUSAL_LM"}), None, "warning", 0.6),
    ("LR001", rate(5e-5, "sst2"), None, "warning", 0.6),
    ("LR007", rate(1e-4, init="pissa_niter_16"), None, "info", 0.5),
    ("LR007", rate(1e-4, init="olora"), None, "info", 0.3),
    ("TGT001", config(lora=ATTENTION), None, "info", 0.75),
    ("TGT001", config(lora=ATTENTION, training={"extras": {"train_examples": 50_001}}), None, "warning", 0.75),
    ("TGT002", config(), covered(modules=0, layers=0), "error", 0.9),
    ("TGT002", config(), covered(modules=0, refused=[{"name": "mlp", "reason": "a block"}]), "error", 0.9),
    ("TGT002", config(), covered(layers=1, layers_total=5), "warning", 0.9),
    ("TGT002", config(), covered(unmatched_targets=["q"]), "info", 0.9),
    ("EPO001", tuned(epochs=4.0), None, "info", 0.5),
    ("EPO001", tuned(epochs=9.9, eval_strategy="no"), None, "info", 0.5),
    ("EPO001", tuned(epochs=10.0, eval_strategy="no"), None, "warning", 0.5),
    ("TGT006", targets("microsoft/phi-2", "query_key_value", "dense"), None, "warning", 0.85),
    ("TGT006", targets("microsoft/phi-2", "query_key_value", "q_proj", "dense"), None, "info", 0.85),
    ("TGT006", targets("meta-llama/Llama-3.2-1B", "q_proj", "k_proj", "v_projo_proj"), None, "warning", 0.85),
    ("TGT006", targets("gpt2", "q_proj"), None, "error", 0.85),
    ("SRV004", config(lora={"r": 12}), CheckContext(engines=("vllm",)), "info", 0.8),
    ("SRV004", config(lora={"r": 513}), CheckContext(engines=("vllm",)), "warning", 0.8),
]


@every(("rule", "snapshot", "around", "severity", "confidence"), CASES)
def test_a_case_is_milder_or_surer_than_its_rule_where_that_is_stated(
    rule: str, snapshot: ConfigSnapshot, around: CheckContext | None, severity: str, confidence: float
) -> None:
    finding = found(rule, snapshot, around)
    assert (finding.severity, finding.confidence) == (severity, confidence)


MESSAGES = [
    ("LR002", rate(2e-3), None, "lr 0.002 is above the published band for LoRA", {"lr": 2e-3}),
    ("LR002", rate(2e-3, r=8, alpha=16), None, None, {"lr": 2e-3, "scaling_r_lr": 0.032}),
    ("LR003", rate(3e-3, None), None, "at lr 0.003 most LoRA runs of a 35-model sweep diverged", {"lr": 3e-3}),
    (
        "LR004",
        rate(2e-4, "dpo"),
        None,
        "lr 0.0002 is high for preference optimisation: DPO uses about 5e-6, GRPO 1e-5 to 4e-5",
        {"lr": 2e-4},
    ),
    (
        "LR005",
        rate(2e-4, r=128, alpha=256),
        None,
        "r 128, alpha 256 and lr 0.0002 together are a combination for which loss spikes were published",
        {"r": 128, "alpha": 256.0, "lr": 2e-4},
    ),
    (
        "ALP001",
        config(lora={"use_rslora": True, "r": 16, "alpha": 64}),
        None,
        "rsLoRA with alpha 64, r 16: scaling 16",
        {"scaling": 16.0, "alpha": 64.0, "r": 16},
    ),
    (
        "ALP002",
        rate(1e-4, r=64, alpha=8),
        None,
        "alpha 8 at r 64 and lr 0.0001: alpha x lr = 8.0e-04 is a small step",
        {"alpha": 8.0, "r": 64, "lr": 1e-4, "alpha_lr": 8e-4},
    ),
    ("BAT001", training(batch_size=300), None, "300 sequences per step and process", {"batch_per_process": 300}),
    (
        "BAT001",
        training(batch_size=64, gradient_accumulation=2, world_size=4),
        None,
        "512 sequences per optimizer step",
        {"effective_batch": 512},
    ),
    (
        "TGT006",
        targets("microsoft/phi-2", "query_key_value", "dense_h_to_4h", "dense_4h_to_h", "dense"),
        None,
        (
            "models of the Phi-2 family have no module called query_key_value, dense_h_to_4h, dense_4h_to_h: only "
            "dense is adapted"
        ),
        {
            "unmatched_targets": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"],
            "left": ["dense"],
            "family": "Phi-2",
        },
    ),
    (
        "TGT006",
        targets("gpt2", "q_proj"),
        None,
        "models of the GPT-2 family have no module called q_proj: PEFT refuses to start",
        {"unmatched_targets": ["q_proj"], "left": [], "family": "GPT-2"},
    ),
    (
        "REC002",
        tuned(epochs=2.0, eval_strategy="no"),
        None,
        "evaluation is off: overfitting in 2 passes cannot be seen",
        {"eval_strategy": "no"},
    ),
    (
        "VAL001",
        config(optimizer={"betas": [0.9, 1.0]}),
        None,
        "adam beta2 is 1; it must be at least 0 and below 1",
        {"adam beta2": 1.0},
    ),
    (
        "VAL001",
        config(lora={"alpha": "NaN"}),
        None,
        "lora_alpha is NaN; it must be a finite number, above 0",
        {"lora_alpha": "NaN"},
    ),
    ("STP001", training(max_steps=40), None, "the run has only 40 optimizer steps", {"steps": 40}),
    (
        "EPO001",
        tuned(epochs=3.5, eval_strategy="no"),
        None,
        "3.5 passes over the data, and evaluation is off",
        {"epochs": 3.5, "eval_strategy": "no"},
    ),
    (
        "SCH002",
        training(warmup_steps=60.0, max_steps=100),
        None,
        "warmup takes 60% of the run: the peak rate is hardly used",
        {"warmup_share": 0.6},
    ),
    (
        "SCH003",
        training(warmup_ratio=0.1),
        None,
        "warmup_ratio is set, and transformers 5.24.0 (installed here) has no such argument",
        {"warmup_ratio": 0.1, "transformers": "5.24.0"},
    ),
    (
        "REC001",
        training(logging_steps=500.0, max_steps=150),
        None,
        "logging_steps 500 against 150 steps: no row of training loss is recorded",
        {"logging_steps": 500.0, "steps": 150, "every": 3},
    ),
    (
        "REC001",
        training(logging_steps=100.0, max_steps=100),
        None,
        "logging_steps 100 against 100 steps: one row of training loss is recorded",
        {"logging_steps": 100.0, "steps": 100, "every": 2},
    ),
    (
        "REC004",
        training(save_strategy="steps", save_steps=1000.0, max_steps=600),
        None,
        "save_steps 1000 against 600 steps: a crash before the end leaves nothing on disk",
        {"save_steps": 1000.0, "steps": 600},
    ),
    (
        "TGT002",
        config(),
        covered(layers=1, layers_total=5),
        "the adapter touches 1 of 5 layers",
        {"layers": 1, "layers_total": 5, "modules": 8},
    ),
    (
        "TGT002",
        config(),
        covered(unmatched_targets=["a", "b", "c", "d", "e"]),
        "nothing in m matches a, b, c and 2 more",
        {"unmatched_targets": ["a", "b", "c", "d", "e"]},
    ),
    (
        "TGT005",
        config(),
        covered(added_tokens=["<x>"], vocabulary=32_001),
        "1 tokens were added to the tokenizer (<x>), and no embedding row is trained",
        {"added_tokens": ["<x>"], "vocabulary": 32_001},
    ),
    (
        "RNK001",
        config(training={"max_length": 1, "extras": {"train_examples": 20_000}}, extras={"task": "sft"}),
        covered(lora_params=1_000),
        "up to 2e+04 tokens against 1e+03 adapter parameters: the adapter may be too small",
        {"tokens_at_most": 20_000, "lora_params": 1_000, "ratio": 10.0},
    ),
    (
        "SRV004",
        config(lora={"r": 12}),
        CheckContext(engines=("vllm",)),
        "vLLM makes room for rank 16: at rank 12, 25% of its adapter memory is padding",
        {"engine": "vllm", "rank": 12, "room": 16},
    ),
]


@every(("rule", "snapshot", "around", "message", "values"), MESSAGES)
def test_a_finding_has_the_numbers_of_its_case(
    rule: str, snapshot: ConfigSnapshot, around: CheckContext | None, message: str | None, values: dict[str, Any]
) -> None:
    finding = found(rule, snapshot, around)
    assert message is None or finding.message == message
    assert finding.values.keys() == values.keys()
    for name, value in values.items():
        assert finding.values[name] == (pytest.approx(value) if isinstance(value, float) else value)


ACTIONS = [
    ("REC001", training(logging_steps=500.0, max_steps=150), None, "set logging_steps to 3"),
    ("REC001", training(logging_steps=500.0, max_steps=10), None, "set logging_steps to 1"),
    ("SCH003", training(warmup_ratio=0.1), None, "use warmup_steps=0.1: below 1 it is a ratio"),
    ("SRV004", config(lora={"r": 64}), CheckContext(engines=("vllm",)), "set max_lora_rank to 64 when serving"),
    ("VAL001", config(lora={"r": 0}), None, "set r to a value at least 1"),
    ("LR001", rate(5e-5), None, "try 1e-4 to 5e-4 (2e-4 is the usual start)"),
]


@every(("rule", "snapshot", "around", "action"), ACTIONS)
def test_an_action_names_the_value_to_set(
    rule: str, snapshot: ConfigSnapshot, around: CheckContext | None, action: str
) -> None:
    assert found(rule, snapshot, around).action == action


@every(
    ("rule", "snapshot", "around", "settings"),
    [
        ("VAL001", config(optimizer={"betas": [0.9, 1.0]}), None, ["betas"]),
        ("VAL001", config(lora={"dropout": 1.0}), None, ["dropout"]),
        ("VAL001", config(lora={"alpha": 0.0}), None, ["alpha"]),
        ("VAL001", config(optimizer={"eps": -1.0}), None, ["eps"]),
        ("VAL001", training(batch_size=0), None, ["batch_size"]),
        ("VAL001", training(gradient_accumulation=0), None, ["gradient_accumulation"]),
        ("VAL001", training(world_size=0), None, ["world_size"]),
        ("VAL001", config(lora={"rank_pattern": {"q": 0}}), None, ["rank_pattern"]),
        ("SEC001", training(extras={"secret_keys": ["hub_token"]}), None, ["hub_token"]),
        ("SRV001", config(lora={"use_dora": True}), CheckContext(engines=("vllm",)), ["use_dora"]),
        ("SRV003", config(lora={"bias": "all"}), CheckContext(engines=("lorax",)), ["bias"]),
        ("LR005", rate(2e-4, r=128, alpha=256), None, ["lr", "r"]),
    ],
)
def test_a_finding_points_at_the_settings_that_it_is_about(
    rule: str, snapshot: ConfigSnapshot, around: CheckContext | None, settings: list[str]
) -> None:
    assert settings_of(found(rule, snapshot, around)) == settings


def test_a_finding_and_not_judged_stand_together_only_where_a_part_was_judged() -> None:
    """VAL001 finds a value out of range, and says which others were not given."""
    verdict = judge_config(config(optimizer={"lr": 0.0}))
    assert [item.message for item in verdict.findings if item.id == "VAL001"] == ["lr is 0; it must be above 0"]
    reasons = {item.id: item.reason for item in verdict.not_run}
    assert reasons["VAL001"] == "not given, so not checked: r, lora_alpha"
    both = {item.id for item in verdict.findings} & reasons.keys()
    assert both == {"VAL001"}


NO_ADAPTER = "no adapter is configured, so this may be a full fine-tune"
REASONS = [
    (
        "TGT001",
        config(lora={"task_type": "CAUSAL_LM", "extras": {"target_modules_null": True}}),
        "target_modules is null: PEFT's default decides (see TGT003)",
    ),
    ("TGT001", config(lora={"task_type": "CAUSAL_LM"}), "target_modules is not given"),
    (
        "TGT001",
        config(lora={"target_modules": ["q_proj"]}, extras={"task": "grpo"}),
        "objective rl (task grpo): the evidence is for supervised training of a causal LM",
    ),
    ("TGT003", config(lora={"r": 8}), "target_modules is not given"),
    (
        "TGT004",
        config(adapter=False, lora={"r": 8}, extras={"task": "sst2"}),
        "task_type is not given; only in a PEFT file would that mean that it is unset",
    ),
    ("NUM001", training(dtype="float16"), "autocast_adapter_dtype is not given"),
    ("LR001", rate(1e-6, "dpo"), "objective preference (task dpo): it needs supervised training"),
    (
        "LR001",
        config(adapter=False, lora={"task_type": "CAUSAL_LM", "dropout": 0.1}, optimizer={"lr": 1e-6}),
        NO_ADAPTER,
    ),
    (
        "STP001",
        training(epochs=1.0),
        "the number of optimizer steps is not known: neither max_steps nor the size of the data",
    ),
    (
        "LR001",
        rate(1e-6, modules_to_save=["lm_head", "x"]),
        "the rate also trains whole matrices (lm_head), which want a lower one",
    ),
    ("LR002", rate(2e-3, "grpo"), "the objective is rl: LR004 covers it"),
    ("BAT001", training(batch_size=256), "the number of processes is not given; with one, the batch is 256"),
    ("SCH003", training(warmup_ratio=0.1), "transformers' version 'unknown' is not readable"),
]


@every(("rule", "snapshot", "reason"), REASONS)
def test_a_rule_that_cannot_judge_says_what_it_lacks(rule: str, snapshot: ConfigSnapshot, reason: str) -> None:
    verdict = judge_config(snapshot, transformers="unknown")
    assert [item.reason for item in verdict.not_run if item.id == rule] == [reason]
    assert rule not in {item.id for item in verdict.findings}


RANGES = [  # (section, field, values in the range, values outside)
    ("optimizer", "lr", [1e-9], [0.0, -1e-9]),
    ("optimizer", "weight_decay", [0.0], [-1e-9]),
    ("optimizer", "eps", [0.0], [-1e-9]),
    ("optimizer", "betas", [[0.0, 0.999]], [[0.9, 1.0], [-0.1, 0.9]]),
    ("lora", "r", [1], [0]),
    ("lora", "alpha", [1e-9], [0.0]),
    ("lora", "dropout", [0.0, 0.999], [1.0, -0.001]),
    ("lora", "rank_pattern", [{"q": 1}], [{"q": 0}]),
    ("lora", "alpha_pattern", [{"q": 1e-9}], [{"q": 0.0}]),
    ("training", "batch_size", [1], [0]),
    ("training", "gradient_accumulation", [1], [0]),
    ("training", "world_size", [1], [0]),
    ("training", "max_steps", [1, 0, -1], []),
    ("training", "epochs", [0.01], [0.0]),
    ("training", "warmup_steps", [0.0], [-1.0]),
    ("training", "warmup_ratio", [0.0, 1.0], [-0.001, 1.001]),
    ("training", "max_grad_norm", [0.0], [-0.1]),
]


@every(("section", "field", "good", "bad"), RANGES)
def test_a_value_at_the_end_of_its_range_is_fine_and_one_beside_it_is_an_error(
    section: str, field: str, good: list[Any], bad: list[Any]
) -> None:
    for values, count in ((good, 0), (bad, 1)):
        for value in values:
            verdict = judge_config(config(**{section: {field: value}}))
            assert len([item for item in verdict.findings if item.id == "VAL001"]) == count, value


def test_values_of_lora_are_not_judged_in_another_kind_of_adapter() -> None:
    values = {"r": 0, "alpha": 0.0, "dropout": 2.0, "rank_pattern": {"q": 0}, "alpha_pattern": {"q": 0.0}}
    snapshot = config(lora={"peft_type": "IA3", **values})
    assert "VAL001" not in {item.id for item in judge_config(snapshot).findings}
