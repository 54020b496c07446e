"""The objective is what was stated, before what is hinted."""

from __future__ import annotations

import msgspec
from tables import every

from gradience.configs.training import objective_of
from gradience.rules.config.adapter import reaches_mlp
from gradience.schema.events import ConfigSnapshot


@every(
    ("snapshot", "kind"),
    [
        ({"extras": {"task": "SST2"}}, "classification"),
        ({"extras": {"task": "glue/whatever"}}, "classification"),
        ({"extras": {"task": "dpo"}, "lora": {"task_type": "CAUSAL_LM"}}, "preference"),
        ({"extras": {"task": "gsm8k"}, "lora": {"task_type": "CAUSAL_LM"}}, "sft"),
        ({"training": {"extras": {"trainer": "rl"}}, "lora": {"task_type": "CAUSAL_LM"}}, "rl"),
        ({"training": {"extras": {"trainer": "reward"}}, "lora": {"task_type": "SEQ_CLS"}}, "reward"),
        ({"lora": {"task_type": "SEQ_CLS"}}, "classification"),
        ({"lora": {"extras": {"base_model_class": "LlamaForCausalLM"}}}, "sft"),
        ({"task_profile": "easy_classification"}, "classification"),
        ({"task_profile": "hard_reasoning"}, "unknown"),
        ({"num_labels": 4}, "classification"),
        ({}, "unknown"),
    ],
)
def test_stated_objective_goes_before_hints(snapshot: dict[str, object], kind: str) -> None:
    """A CAUSAL_LM adapter is SFT only where nothing says otherwise."""
    assert objective_of(msgspec.convert(snapshot, ConfigSnapshot)).kind == kind


@every(
    ("snapshot", "expected"),
    [
        ({"extras": {"task": "Glue/SST2"}}, ("classification", "task glue/sst2", True)),
        ({"training": {"extras": {"trainer": "rl"}}}, ("rl", "keys of a trainer of kind rl", True)),
        ({"lora": {"task_type": "SEQ_CLS"}}, ("classification", "task_type SEQ_CLS", False)),
        (
            {"lora": {"extras": {"base_model_class": "BertForTokenClassification"}}},
            ("classification", "base model class BertForTokenClassification", False),
        ),
        (
            {"lora": {"extras": {"base_model_class": "LlamaForCausalLM"}}},
            ("sft", "base model class LlamaForCausalLM", False),
        ),
        ({"num_labels": 2}, ("classification", "2 labels", False)),
        ({"task_profile": "easy_classification"}, ("classification", "task profile easy_classification", True)),
        ({"task_profile": "generation"}, ("sft", "task profile generation", False)),
        ({}, ("unknown", "no task, task_type or trainer says it", False)),
    ],
)
def test_an_objective_has_its_ground_and_whether_that_is_stated_or_a_hint(snapshot, expected):
    assert objective_of(msgspec.convert(snapshot, ConfigSnapshot)) == expected


@every(
    ("targets", "reached"),
    [
        ("all-linear", True),
        (["c_attn"], False),
        (["c_proj", "c_attn"], None),  # a suffix: GPT-2 has attn.c_proj and mlp.c_proj
        (["transformer.h.0.mlp.c_proj"], True),
        (r"model\..*self_attn.*", False),
        (r".*\.(q|k|v|o|gate|up|down)_proj", None),
        (r".*(q_proj|gate_proj)", True),
        (["something_new"], None),
        ([], None),
    ],
)
def test_targets_tell_attention_from_mlp_or_say_that_they_do_not(
    targets: list[str] | str,
    *,
    reached: bool | None,
) -> None:
    """An ambiguous name is no ground for a finding."""
    assert reaches_mlp(targets) is reached


@every(
    ("kind", "tasks"),
    [
        ("classification", "cola sst2 sst-2 mrpc qqp mnli qnli rte wnli stsb imdb ag_news classification"),
        ("sft", "sft clm causal_lm lm instruct instruction chat generation"),
        ("preference", "dpo orpo kto ipo simpo cpo preference"),
        ("reward", "reward reward_model reward_modeling rm"),
        ("rl", "grpo ppo rloo rl rlvr online_dpo reinforce"),
    ],
)
def test_a_task_states_its_objective(kind, tasks):
    for task in tasks.split():
        assert objective_of(msgspec.convert({"extras": {"task": task}}, ConfigSnapshot)).kind == kind


@every(
    ("task_type", "kind"),
    [
        *(("CAUSAL_LM", "sft"), ("SEQ_2_SEQ_LM", "sft"), ("SEQ_CLS", "classification")),
        *(("TOKEN_CLS", "classification"), ("QUESTION_ANS", "classification"), ("FEATURE_EXTRACTION", "unknown")),
    ],
)
def test_a_task_type_of_peft_hints_at_an_objective(task_type, kind):
    assert objective_of(msgspec.convert({"lora": {"task_type": task_type}}, ConfigSnapshot)).kind == kind
