"""Each rule fires where it should, stays silent where it should, and says so where it cannot tell."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tables import every

from gradience.rules import Verdict
from gradience.rules.config import RULES, judge_config, settings_of
from gradience.rules.config.facts import CheckContext, Facts
from gradience.schema.document import Coverage
from gradience.schema.events import ConfigSnapshot

SFT = {"lora": {"task_type": "CAUSAL_LM", "peft_type": "LORA"}, "extras": {"task": "sft"}}
DPO = {"extras": {"task": "dpo"}}


def config(*, adapter: bool = True, **sections: Any) -> ConfigSnapshot:
    """A snapshot from plain sections; of LoRA, unless they say otherwise or there is to be no adapter."""
    lora = {**({"peft_type": "LORA"} if adapter else {}), **sections.pop("lora", {})}
    return msgspec.convert({**sections, "lora": lora}, ConfigSnapshot)


def judged(snapshot: ConfigSnapshot, *, transformers: str | None = None) -> Verdict:
    """Return the verdict on a snapshot."""
    return judge_config(snapshot, transformers=transformers)


def lora(**fields: Any) -> ConfigSnapshot:
    return config(lora=fields)


def training(**fields: Any) -> ConfigSnapshot:
    return config(training=fields)


def rate(lr: float, task: str | None = "sft", **lora_fields: Any) -> ConfigSnapshot:
    extras = {"task": task} if task else {}
    return config(optimizer={"lr": lr}, lora=lora_fields, extras=extras)


def sft(**lora_fields: Any) -> ConfigSnapshot:
    return config(lora={"task_type": "CAUSAL_LM", **lora_fields}, extras={"task": "sft"})


SMALL = config(  # 12 001 tokens at most
    training={"max_length": 1, "extras": {"train_examples": 12_001}}, extras={"task": "sft"}
)
EXACT = msgspec.structs.replace(
    SMALL,
    training=msgspec.convert(  # 1 bit a token is 3 x 2 bits of 2 000 parameters
        {"max_length": 1, "extras": {"train_examples": 12_000}}, type(SMALL.training)
    ),
)

FIRES = [
    ("VAL001", config(optimizer={"lr": 0.0})),
    ("VAL001", config(optimizer={"lr": "NaN"})),
    ("VAL001", config(optimizer={"lr": "Infinity"})),
    ("VAL001", config(optimizer={"weight_decay": -1e-9})),
    ("VAL001", config(optimizer={"betas": [0.9, 1.0]})),
    ("VAL001", lora(r=0)),
    ("VAL001", lora(r=-1)),
    ("VAL001", lora(alpha=0.0)),
    ("VAL001", lora(alpha="NaN")),
    ("VAL001", lora(dropout=1.0)),
    ("VAL001", lora(dropout=-0.1)),
    ("VAL001", lora(rank_pattern={"q_proj": 0})),
    ("VAL001", lora(alpha_pattern={"q_proj": -1.0})),
    ("VAL001", training(batch_size=0)),
    ("VAL001", training(warmup_ratio=1.1)),
    ("SEC001", training(extras={"secret_keys": ["hub_token"]})),
    ("LR001", rate(5e-5)),
    ("LR001", rate(1e-6)),
    ("LR001", rate(5e-5, "glue/sst2", r=8, alpha=16)),
    ("LR001", rate(5e-5, r=32, alpha=63)),
    ("LR002", rate(1.001e-3)),
    ("LR002", rate(2.99e-3, None)),
    ("LR003", rate(3e-3)),
    ("LR002", rate(2.4e-3, r=8, alpha=4.001)),  # alpha x lr = 9.6e-3 is the best rate of the median model
    ("LR003", rate(4.8e-3, r=8, alpha=2.001)),
    ("LR003", rate(1.0, r=8, alpha=16)),
    ("LR004", rate(5.1e-5, "dpo")),
    ("LR004", rate(2e-4, "grpo")),
    ("LR004", config(optimizer={"lr": 2e-4}, training={"extras": {"trainer": "rl"}})),
    ("LR005", rate(2e-4, r=128, alpha=256)),
    ("LR007", rate(1e-4, init="pissa_niter_16")),
    ("LR007", rate(1e-4, init="olora")),
    ("TGT001", sft(target_modules=["q_proj", "v_proj"])),
    ("TGT001", sft(target_modules=["model.layers.0.self_attn.q_proj"])),
    ("TGT001", sft(target_modules=r".*\.(q_proj|v_proj)")),
    ("TGT003", lora(peft_type="LORA", extras={"target_modules_null": True})),
    ("TGT004", config(lora={"peft_type": "LORA"}, extras={"task": "sst2"})),
    (
        "TGT004",
        lora(peft_type="LORA", extras={"base_model_class": "BertForSequenceClassification"}),
    ),
    ("ALP001", lora(use_rslora=True, r=16, alpha=33)),
    ("ALP002", rate(1e-4, r=32, alpha=7.9)),
    ("NUM001", config(lora={"extras": {"autocast_adapter_dtype": False}}, training={"dtype": "float16"})),
    ("BIA001", lora(bias="all")),
    ("REC001", training(logging_steps=100.0, max_steps=100)),
    ("REC001", training(logging_steps=500.0, max_steps=150)),
    ("REC001", training(extras={"logging_strategy": "no"})),
    ("REC002", training(eval_strategy="no", epochs=1.1)),
    ("REC002", config(training={"eval_strategy": "no", "epochs": 3.0}, extras={"task": "sft"})),
    ("REC004", training(save_strategy="no", max_steps=500)),
    ("REC004", training(save_strategy="steps", save_steps=500.0, max_steps=500)),
    ("BAT001", training(batch_size=257)),
    ("BAT001", training(batch_size=64, gradient_accumulation=2, world_size=4)),
    ("BAT001", training(batch_size=1, world_size=257)),
    ("STP001", training(max_steps=99)),
    (
        "STP001",
        training(batch_size=8, world_size=1, epochs=1.0, extras={"train_examples": 700}),
    ),
    ("EPO001", config(training={"epochs": 3.01}, extras={"task": "sft"})),
    ("EPO001", config(training={"epochs": 10.01}, extras={"task": "sst2"})),
    ("SCH001", training(lr_scheduler="constant", warmup_steps=10.0)),
    ("SCH001", training(lr_scheduler="constant", warmup_steps=0.0, warmup_ratio=0.1)),
    ("SCH002", training(warmup_steps=50.0, max_steps=100)),
    ("SCH002", training(warmup_steps=500.0, max_steps=10)),
    ("SCH002", training(warmup_steps=0.0, warmup_ratio=0.5)),
    ("SCH002", training(warmup_steps=0.5)),
    ("SCH003", training(warmup_ratio=0.1)),
]

SILENT = [
    (
        "VAL001",
        config(optimizer={"lr": 2e-4, "weight_decay": 0.0}, lora={"r": 1, "alpha": 0.1, "dropout": 0.0}),
    ),
    ("SEC001", training()),
    ("LR001", rate(5.1e-5)),
    ("LR001", rate(5e-5, r=256, alpha=512)),  # Biderman's math runs: a published good configuration
    ("LR001", rate(5e-5, r=32, alpha=64)),  # 64 x 5e-5 is QLoRA's 16 x 2e-4
    ("LR002", rate(1e-3)),
    ("LR002", rate(3e-3)),
    ("LR002", rate(2e-3, r=8, alpha=1)),
    ("LR002", rate(2.4e-3, r=8, alpha=4)),
    ("LR003", rate(4.8e-3, r=8, alpha=2)),
    ("LR003", rate(2.9e-3)),
    ("LR003", rate(3e-3, r=8, alpha=1)),
    ("LR004", rate(5e-5, "dpo")),
    ("LR004", rate(2e-4, "sft")),
    ("LR005", rate(2e-4, r=127, alpha=256)),
    ("LR005", rate(2e-4, r=128, alpha=255)),
    ("LR005", rate(1.9e-4, r=128, alpha=256)),
    ("LR005", rate(2e-4, r=128, alpha=256, use_rslora=True)),
    ("LR007", rate(9e-5, init="pissa")),
    ("LR007", rate(1e-3, init="true")),
    ("TGT001", sft(target_modules=["q_proj", "up_proj"])),
    ("TGT001", sft(target_modules="all-linear")),
    ("TGT001", sft(target_modules=["q_proj"], extras={"target_parameters": ["mlp.experts.gate_up_proj"]})),
    ("TGT001", sft(target_modules=["model.layers.0.mlp.down_proj"])),
    ("TGT003", lora(target_modules=["q_proj"])),
    ("TGT003", lora(extras={"target_modules_null": True, "target_parameters": ["experts.w"]})),
    ("TGT004", lora(peft_type="LORA", task_type="SEQ_CLS")),
    ("TGT004", config(lora={"peft_type": "LORA", "modules_to_save": ["score"]}, extras={"task": "sst2"})),
    ("TGT004", config(lora={"peft_type": "LORA"}, extras={"task": "sft"})),
    ("ALP001", lora(use_rslora=True, r=16, alpha=32)),
    ("ALP001", lora(r=1, alpha=512)),
    ("ALP002", rate(1e-4, r=64, alpha=16)),  # QLoRA
    ("ALP002", rate(1.1e-4, r=64, alpha=15)),
    ("ALP002", rate(1e-4, r=31, alpha=1)),
    ("NUM001", training(dtype="bfloat16")),
    ("BIA001", lora(bias="none")),
    ("REC001", training(logging_steps=99.0, max_steps=100)),
    ("REC001", training(logging_steps=0.1, max_steps=5)),
    ("REC001", training(logging_steps=1.0, max_steps=5)),
    ("REC004", training(save_strategy="steps", save_steps=1.0, max_steps=500)),
    ("REC004", training(save_strategy="steps", save_steps=0.9, max_steps=500)),  # below 1 it is a ratio
    ("REC004", training(save_strategy="no", max_steps=499)),
    ("SCH002", training(warmup_steps=1.0, max_steps=100)),  # one step, not the whole run
    ("REC002", training(eval_strategy="steps")),
    ("REC002", training(eval_strategy="no", epochs=1.0)),
    ("REC002", config(training={"eval_strategy": "no", "epochs": 3.1}, extras={"task": "sft"})),  # EPO001 says it
    ("REC004", training(save_strategy="steps", save_steps=499.0, max_steps=500)),
    ("BAT001", training(batch_size=64, gradient_accumulation=2, world_size=2)),
    ("STP001", training(max_steps=100)),
    ("EPO001", config(training={"epochs": 3.0}, extras={"task": "sft"})),
    ("EPO001", config(training={"epochs": 10.0}, extras={"task": "sst2"})),
    ("SCH001", training(lr_scheduler="constant_with_warmup", warmup_steps=10.0)),
    ("SCH001", training(lr_scheduler="constant", warmup_steps=0.0)),
    ("SCH002", training(warmup_steps=49.0, max_steps=100)),
    ("SCH002", training(warmup_steps=500.0, max_steps=9)),  # a trial of the script
    ("SCH002", training(warmup_steps=0.0)),
    ("SCH003", training(warmup_ratio=0.0)),
]

CANNOT_TELL = [
    ("VAL001", config()),
    ("SEC001", training(extras={"masked_keys": ["hub_token"]})),
    ("LR001", rate(1e-6, "dpo")),
    ("LR001", rate(1e-6, None)),
    ("LR001", config(adapter=False, optimizer={"lr": 1e-6}, extras={"task": "sft"})),
    ("LR001", rate(1e-6, modules_to_save=["embed_tokens"])),
    ("LR001", config(optimizer={"lr": 1e-6, "extras": {"lr_from": "the log"}}, extras={"task": "sft"})),
    ("LR003", config(adapter=False, optimizer={"lr": 1.0}, extras={"task": "sft"})),
    ("LR001", config(optimizer={"lr": 1e-5, "name": "sgd"}, extras={"task": "sft"})),
    ("LR001", config(optimizer={"lr": -1.0}, extras={"task": "sft"})),
    ("LR002", rate(2e-3, "grpo")),
    ("LR003", rate(3e-3, "dpo")),
    ("LR004", rate(1.0, None)),
    ("LR005", rate(2e-4, r=128)),
    ("LR007", rate(1e-3)),
    ("TGT001", lora(target_modules=["q_proj"])),
    ("TGT001", config(lora={"target_modules": ["q_proj"]}, extras={"task": "grpo"})),
    ("TGT001", sft(target_modules=["query", "dense"])),  # BERT: `dense` is in attention and in the MLP
    ("TGT001", sft(extras={"target_modules_null": True})),
    ("TGT003", lora(r=8)),
    ("TGT004", lora(peft_type="LORA")),
    ("TGT004", config(adapter=False, extras={"task": "sst2"})),
    ("ALP001", lora(use_rslora=True, r=8)),
    ("ALP002", lora(r=64, alpha=1)),
    ("NUM001", training(dtype="float16")),
    ("BIA001", lora(r=8)),
    ("REC001", training(logging_steps=500.0, epochs=1.0)),
    ("REC001", training(logging_steps=500.0, max_steps=10, extras={"logging_strategy": "epoch"})),
    ("REC002", training()),
    ("REC002", config(training={"eval_strategy": "no", "epochs": 2.0}, extras={"task": "grpo"})),
    ("REC004", training(save_strategy="epoch", max_steps=10)),
    ("BAT001", training(batch_size=256)),
    ("STP001", training(epochs=1.0)),
    ("EPO001", training(epochs=10.0, max_steps=100, extras={"epochs_overridden": True})),
    ("EPO001", config(training={"epochs": 10.0}, extras={"task": "grpo"})),
    ("SCH001", training(warmup_steps=10.0)),
    ("SCH002", training(warmup_steps=10.0)),
    ("SCH003", training(warmup_ratio=0.1)),
]


@every(("rule", "snapshot"), FIRES)
def test_rule_fires_with_its_grounds(rule: str, snapshot: ConfigSnapshot) -> None:
    """A finding carries what a reader needs to judge it."""
    findings = [item for item in judged(snapshot, transformers="5.24.0").findings if item.id == rule]
    assert findings
    for finding in findings:
        assert finding.message
        assert finding.evidence
        assert finding.verify
        assert finding.confidence is not None


@every(("rule", "snapshot"), SILENT)
def test_rule_stays_silent_after_having_looked(rule: str, snapshot: ConfigSnapshot) -> None:
    """Silence means judged and found in order, not skipped."""
    verdict = judged(snapshot, transformers="5.24.0")
    assert rule not in {item.id for item in verdict.findings}
    assert rule not in {item.id for item in verdict.not_run}


@every(("rule", "snapshot"), CANNOT_TELL)
def test_rule_without_its_input_is_named_with_a_reason(rule: str, snapshot: ConfigSnapshot) -> None:
    """The coverage contract: never a silent pass."""
    verdict = judged(snapshot)
    assert rule not in {item.id for item in verdict.findings}
    assert [item.reason for item in verdict.not_run if item.id == rule]


def test_every_rule_has_a_case_of_each_kind() -> None:
    """A rule added without tests is noticed."""
    ids = {rule.id for rule in RULES}
    around = set(AROUND)
    assert {rule for rule, _ in FIRES} | around == ids
    assert {rule for rule, _ in SILENT} | around == ids
    assert {rule for rule, _ in CANNOT_TELL} | around == ids


def coverage(**fields: Any) -> CheckContext:
    said = {
        "base": "m",
        "model_type": "llama",
        "layout": "transformers 5",
        "modules": 8,
        "layers": 4,
        "layers_total": 4,
    }
    return CheckContext(coverage=msgspec.convert({**said, **fields}, Coverage))


PHI_OWN = config(model_name="microsoft/phi-1_5", lora={"target_modules": ["Wqkv", "out_proj", "fc1", "fc2"]})
PHI = config(  # of these only `dense` is in the model
    model_name="microsoft/phi-2",
    lora={"target_modules": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h", "dense"]},
)

AROUND = {  # rule: (fires, silent, cannot tell), each with what the configuration says besides
    "KEY001": (
        [
            (training(), CheckContext(unknown_keys=("learning_rat",))),
            (training(), CheckContext(unknown_keys=("note", "model.lora_rnak"))),
            (training(), CheckContext(unknown_keys=("warmupsteps", "note", "tags"))),
            (config(extras={"format": "axolotl"}), CheckContext(unknown_keys=("sequence_lne", "a_a", "b_b", "c_c"))),
        ],
        [
            (training(), CheckContext(unknown_keys=())),
            (training(), CheckContext(unknown_keys=("my_own_note", "lor"))),
            (training(), CheckContext(unknown_keys=("alpha1", "load_in_4bit"))),  # of other series
            *[  # other words, abbreviations and plurals are names of other programs
                (training(), CheckContext(unknown_keys=(key,)))
                for key in (
                    "quantization",
                    "training.max_seq_le",
                    "dataset_path",
                    "columns",
                    "s2_attention",
                    "use_bdra",
                )
            ],
        ],
        [
            (training(), CheckContext()),
            (training(), CheckContext(unknown_keys=("learning_rat", "solution_field", "train_log", "note"))),
            (training(), CheckContext(unknown_keys=("learning_rat",), moment="begun", begun="args.json")),
        ],
    ),
    "TGT002": (
        [
            (lora(), coverage(modules=0, layers=0)),
            (lora(), coverage(layers=4, layers_total=17)),
            (lora(), coverage(unmatched_targets=["q"])),
            (lora(), coverage(modules=0, refused=[{"name": "mlp", "reason": "a block"}])),
        ],
        [
            (lora(), coverage(layers=4, layers_total=16)),
            (lora(extras={"layers_to_transform": [1]}), coverage(layers=1, layers_total=32)),
            (lora(), coverage(layers=0, layers_total=0)),
        ],
        [(lora(), CheckContext()), (lora(peft_type="IA3"), coverage())],
    ),
    "TGT006": (
        [
            (PHI, CheckContext()),
            (PHI, CheckContext(moment="begun", begun="adapter_model.safetensors")),
            (PHI_OWN, CheckContext()),  # transformers' class has other names; the model's own code had these
            (config(model_name="google/flan-t5-base", lora={"target_modules": ["q", "V"]}), CheckContext()),
            (config(model_name="gpt2", lora={"target_modules": ["q_proj"]}), CheckContext()),
        ],
        [
            (config(model_name="google/flan-t5-base", lora={"target_modules": ["q", "v"]}), CheckContext()),
            (config(model_name="gpt2", lora={"target_modules": ["h.0.attn.c_attn"]}), CheckContext()),
        ],
        [
            (PHI, coverage()),
            (PHI_OWN, CheckContext(moment="begun", begun="adapter_model.safetensors")),
            (config(model_name="org/own-model", lora={"target_modules": ["q"]}), CheckContext()),
            (config(model_name="gpt2", lora={"target_modules": "all-linear"}), CheckContext()),
            (config(lora={"target_modules": ["q"]}), CheckContext()),
        ],
    ),
    "TGT005": (
        [(lora(), coverage(added_tokens=["<x>"]))],
        [(lora(), coverage(added_tokens=["<x>"], embedding_trained=True)), (lora(), coverage())],
        [(lora(), CheckContext()), (lora(), coverage()._replace(no_tokenizers="none"))],
    ),
    "RNK001": (
        [(SMALL, coverage(lora_params=2_000))],
        [
            (SMALL, coverage(lora_params=2_001)),
            (EXACT, coverage(lora_params=2_000)),
            (SMALL, coverage(lora_params=10**9)),
        ],
        [
            (SMALL, CheckContext()),
            (SMALL, coverage()),
            (config(extras={"task": "dpo"}), coverage(lora_params=1)),
            (config(extras={"task": "sft"}, training={"max_steps": 9}), coverage(lora_params=1)),
        ],
    ),
    "SRV001": (
        [
            (lora(use_dora=True), CheckContext(engines=("vllm",))),
            (lora(modules_to_save=["lm_head"]), CheckContext(engines=("llamacpp",))),
            (lora(bias="all"), CheckContext(engines=("vllm",))),
            (lora(r=8), CheckContext(engines=("mlx",))),
        ],
        [
            (lora(use_rslora=True, rank_pattern={"q": 4}), CheckContext(engines=("vllm",))),
            (config(lora={"use_dora": True}, extras={"format": "mlx-lm"}), CheckContext(engines=("mlx",))),
        ],
        [(lora(use_dora=True), CheckContext())],
    ),
    "SRV002": (
        [
            (lora(use_rslora=True), CheckContext(engines=("llamacpp",))),
            (lora(rank_pattern={"q": 4}), CheckContext(engines=("vllm",))),
            (lora(alpha_pattern={"q": 4.0}), CheckContext(engines=("lorax",))),
        ],
        [
            (lora(use_rslora=True), CheckContext(engines=("vllm", "lorax"))),
            (lora(rank_pattern={"q": 4}), CheckContext(engines=("llamacpp",))),
        ],
        [(lora(use_rslora=True), CheckContext())],
    ),
    "SRV003": (
        [
            (lora(extras={"layers_to_transform": [1]}), CheckContext(engines=("lorax",))),
            (lora(target_modules=["q_proj", "up_proj"]), CheckContext(engines=("slora",))),
            (lora(target_modules="all-linear"), CheckContext(engines=("slora",))),
        ],
        [(lora(target_modules=["q_proj", "model.layers.0.self_attn.v_proj"]), CheckContext(engines=("slora", "vllm")))],
        [(lora(), CheckContext())],
    ),
    "SRV004": (
        [
            (lora(r=12), CheckContext(engines=("vllm",))),
            (lora(r=64), CheckContext(engines=("vllm",))),
            (lora(r=513), CheckContext(engines=("vllm",))),
            (lora(r=8, rank_pattern={"q": 24}), CheckContext(engines=("vllm",))),
            (lora(r=4), CheckContext(engines=("lorax",))),
        ],
        [
            (lora(r=16), CheckContext(engines=("vllm", "lorax"))),
            (lora(r=48), CheckContext(engines=("lorax",))),
            (lora(r=7), CheckContext(engines=("llamacpp",))),
        ],
        [(lora(r=12), CheckContext()), (lora(), CheckContext(engines=("vllm",)))],
    ),
    "REC005": (
        [(training(), CheckContext(output=("checkpoint-10",)))],
        [
            (training(), CheckContext(output=())),
            (training(extras={"resumes": True}), CheckContext(output=("checkpoint-10",))),
            (training(extras={"overwrites_output": True}), CheckContext(output=("checkpoint-10",))),
        ],
        [(training(), CheckContext())],
    ),
}
AROUND_CASES = [
    pytest.param(rule, *case, outcome, id=f"{rule}-{outcome}-{number}")
    for rule, kinds in AROUND.items()
    for outcome, cases in zip(("fires", "silent", "cannot tell"), kinds, strict=True)
    for number, case in enumerate(cases)
]


@every(("rule", "snapshot", "around", "outcome"), AROUND_CASES)
def test_rule_on_what_lies_around_fires_is_silent_or_says_why(
    rule: str, snapshot: ConfigSnapshot, around: CheckContext, outcome: str
) -> None:
    verdict = judge_config(snapshot, around=around)
    found = rule in {item.id for item in verdict.findings}
    reasons = [item.reason for item in verdict.not_run if item.id == rule]
    assert (found, bool(reasons)) == (outcome == "fires", outcome == "cannot tell")
    assert all(reasons)


def test_a_misspelt_key_is_named_with_the_setting_that_was_meant() -> None:
    keys = ("learning_rat", "model.lora_rnak", "note")
    found = [f for f in judge_config(training(), around=CheckContext(unknown_keys=keys)).findings if f.id == "KEY001"]
    assert [f.message for f in found] == [
        "no setting is called learning_rat; did you mean learning_rate?",
        "no setting is called model.lora_rnak; did you mean lora_rank?",
    ]
    assert settings_of(found[0]) == ["learning_rat"]


def test_no_reached_module_is_an_error_and_few_layers_a_warning() -> None:
    severities = [
        next(item.severity for item in judge_config(lora(), around=around).findings if item.id == "TGT002")
        for around in (
            coverage(modules=0, layers=0),
            coverage(layers=1, layers_total=5),
            coverage(unmatched_targets=["q"]),
        )
    ]
    assert severities == ["error", "warning", "info"]


@every(("transformers", "fires"), [("4.57.0", False), ("5.1.2", False), ("5.2.0", True), ("6.0.dev0", True)])
def test_warmup_ratio_matters_only_where_it_was_removed(transformers: str, *, fires: bool) -> None:
    """The version decides, and an unknown one is said."""
    verdict = judged(training(warmup_ratio=0.1), transformers=transformers)
    assert ("SCH003" in {item.id for item in verdict.findings}) is fires
    assert "SCH003" in {item.id for item in judged(training(warmup_ratio=0.1)).not_run}


@every("rule", RULES, ids=lambda rule: rule.id)
def test_rule_is_complete_data(rule: Any) -> None:
    """The table can be printed and argued with."""
    assert rule.title
    assert rule.evidence
    assert 0 < rule.confidence <= 1
    for text in (rule.rationale, rule.action, rule.scope, rule.verify):
        assert text
    for threshold in rule.thresholds:
        assert threshold.unit
        assert threshold.source


def test_rule_ids_are_unique() -> None:
    """An id names one rule."""
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_another_peft_method_gets_no_lora_rule() -> None:
    """IA3 has no rank to judge; values and recording still count."""
    once = {"eval_strategy": "no", "epochs": 2.0}
    verdict = judged(config(lora={"peft_type": "IA3"}, optimizer={"lr": 1e-6}, training=once))
    assert {item.id for item in verdict.findings} == {"REC002"}
    assert "IA3" in next(item.reason for item in verdict.not_run if item.id == "LR001")


BEGUN = CheckContext(moment="begun", begun="adapter_model.safetensors")
LOGGED = CheckContext(moment="logged", begun="trainer_state.json")
WEIGHED = CheckContext(moment="weighed", begun="the log")
WRONG = config(  # a configuration that every rule on a run to come has something to say of
    optimizer={"lr": 1e-6},
    training={
        "max_steps": 500,
        "logging_steps": 500.0,
        "save_strategy": "no",
        "warmup_ratio": 0.1,
        "warmup_steps": 0.0,
        "lr_scheduler": "linear",
    },
    extras={"task": "sft"},
)


@every(
    ("around", "judged_there"),
    [
        (CheckContext(output=("run.jsonl",)), {"LR001", "REC001", "REC004", "REC005", "SCH003"}),
        (BEGUN._replace(output=("run.jsonl",)), {"LR001"}),
        (LOGGED._replace(output=("run.jsonl",)), set()),
        (WEIGHED._replace(output=("run.jsonl",)), {"LR001", "REC001", "REC004"}),
    ],
)
def test_what_a_rule_predicts_is_said_of_runs_to_come_or_beside_the_log(
    around: CheckContext, judged_there: set[str]
) -> None:
    """A finished run is not judged by what is installed here, nor by what its log would have shown."""
    verdict = judge_config(WRONG, transformers="5.24.0", around=around)
    asked = {"LR001", "REC001", "REC004", "REC005", "SCH003"}
    assert {item.id for item in verdict.findings} & asked == judged_there
    reasons = {item.id: item.reason for item in verdict.not_run if item.id in asked}
    assert reasons.keys() == asked - judged_there
    assert all("begun" in reason and around.begun in reason for reason in reasons.values())


def test_the_verdict_on_a_run_that_has_begun_does_not_depend_on_what_is_installed() -> None:
    for around in (BEGUN, LOGGED, WEIGHED):
        verdicts = [judge_config(WRONG, transformers=here, around=around) for here in (None, "4.57.0", "5.24.0")]
        assert verdicts[0] == verdicts[1] == verdicts[2]


def test_passes_over_the_data_are_those_of_the_log() -> None:
    """A limit on steps may cut short what was configured, and hide how often the data came."""
    cut = config(training={"epochs": 20.0, "max_steps": 10, "extras": {"epochs_overridden": True}})
    for seen, found in ((2.0, False), (24.3, True)):
        verdict = judge_config(cut, around=WEIGHED._replace(epochs_seen=seen))
        assert ("EPO001" in {item.id for item in verdict.findings}) is found
        assert "EPO001" not in {item.id for item in verdict.not_run}


@every(
    ("share", "around", "severity"),
    [
        (0.9, CheckContext(), "warning"),
        (0.9, WEIGHED, "info"),  # the log shows what came of it after the warm-up
        (1.0, WEIGHED, "warning"),
        (1.0, BEGUN, "warning"),
    ],
)
def test_a_warm_up_that_ended_within_a_run_is_left_to_its_log(
    share: float, around: CheckContext, severity: str
) -> None:
    verdict = judge_config(training(warmup_steps=100.0 * share, max_steps=100), around=around)
    assert [item.severity for item in verdict.findings if item.id == "SCH002"] == [severity]


@every("limit", [-1, 0])
def test_a_limit_of_steps_that_is_none_is_no_value_out_of_range(limit: int) -> None:
    """-1 is the Trainer's default: epochs decide."""
    verdict = judged(training(max_steps=limit, epochs=2.0))
    assert "VAL001" not in {item.id for item in verdict.findings}
    assert Facts(training(max_steps=limit)).max_steps is None
    assert Facts(training(max_steps=1)).max_steps == 1


def test_the_premises_of_a_rule_are_on_its_card() -> None:
    (rule,) = [rule for rule in RULES if rule.id == "LR001"]
    assert rule.premises == [
        "the adapter is LoRA",
        "an adapter is configured",
        "no log shows yet what came of it, or the log is read beside it",
        "the objective is known to be supervised",
    ]
    assert [rule.id for rule in RULES if not rule.premises] == [
        "VAL001",
        "SEC001",
        "REC002",
        "STP001",
        "EPO001",
        "SCH001",
        "SCH002",
    ]


def test_low_rate_names_the_default_it_equals() -> None:
    """People rarely chose it; MLX-LM's is named in MLX-LM's files only."""
    mlx = msgspec.structs.replace(rate(1e-5), extras={"task": "sft", "format": "mlx-lm"})
    trl = config(optimizer={"lr": 2e-5}, training={"extras": {"trainer": "sft"}})
    for name, snapshot in (("transformers", rate(5e-5)), ("TRL", trl), ("MLX", mlx)):
        assert name in next(item.message for item in judged(snapshot).findings if item.id == "LR001")
    for lr in (1e-5, 2e-5):  # 2e-5 is the default of a trainer that this is not
        assert "default" not in next(item.message for item in judged(rate(lr)).findings if item.id == "LR001")


def mlx_run(lr: float, *, scale: float) -> ConfigSnapshot:
    snapshot = rate(lr)
    lora = msgspec.structs.replace(snapshot.lora, r=8, alpha=8 * scale)
    return msgspec.structs.replace(snapshot, lora=lora, extras={"task": "sft", "format": "mlx-lm"})


def test_mlxs_rate_is_judged_with_its_scale() -> None:
    """Its scale is 10 or 20, where PEFT's is 1 or 2: rates of PEFT's recipes would be far too high."""
    (found,) = [item for item in judged(mlx_run(1e-5, scale=20.0)).findings if item.id == "LR001"]
    assert (found.action, "1.6e-03" in found.message) == ("try 2e-05 to 6e-05", True)
    assert "LR001" not in {item.id for item in judged(mlx_run(2e-5, scale=20.0)).findings}


def test_many_epochs_are_graver_without_evaluation() -> None:
    """With evaluation the best checkpoint can be kept."""
    blind = judged(training(epochs=10.1, eval_strategy="no")).findings
    seeing = judged(training(epochs=10.1, eval_strategy="epoch")).findings
    assert next(item.severity for item in blind if item.id == "EPO001") == "warning"
    assert next(item.severity for item in seeing if item.id == "EPO001") == "info"


def test_attention_only_is_graver_with_much_data() -> None:
    """More data than the adapter can hold is where the MLP pays."""
    fields = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    large = config(lora=fields, training={"extras": {"train_examples": 50_001}})
    exact = config(lora=fields, training={"extras": {"train_examples": 50_000}})
    severities = [next(f.severity for f in judged(c).findings if f.id == "TGT001") for c in (large, exact)]
    assert severities == ["warning", "info"]


def test_findings_come_gravest_first_and_ignored_rules_are_named() -> None:
    """What matters is on top, and leaving out is no pass."""
    once = {"eval_strategy": "no", "epochs": 2.0}
    snapshot = config(optimizer={"lr": 1e-5}, lora={"r": 0}, training=once, extras={"task": "sft"})
    verdict = judge_config(snapshot, left_out={"LR001": "ignored on request"})
    assert [item.id for item in verdict.findings] == ["VAL001", "REC002"]
    assert len(verdict.not_run) > 1  # what could not be judged comes first, what was not asked for last
    assert (verdict.not_run[-1].id, verdict.not_run[-1].reason) == ("LR001", "ignored on request")
