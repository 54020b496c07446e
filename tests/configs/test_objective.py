"""The objective is what was stated, before what is hinted."""

from __future__ import annotations

import msgspec
from tables import every

from gradience.configs.training import objective_by_names, objective_of
from gradience.schema.events import ConfigSnapshot


@every(
    ("snapshot", "expected"),
    [
        ({"extras": {"task": "Glue/whatever"}}, ("classification", "task glue/whatever", True)),
        # a CAUSAL_LM adapter is SFT only where nothing says otherwise
        ({"extras": {"task": "DPO"}, "lora": {"task_type": "CAUSAL_LM"}}, ("preference", "task dpo", True)),
        ({"extras": {"task": "gsm8k"}, "lora": {"task_type": "CAUSAL_LM"}}, ("sft", "task_type CAUSAL_LM", False)),
        ({"training": {"extras": {"trainer": "reward"}}, "lora": {"task_type": "SEQ_CLS"}},
         ("reward", "keys of a trainer of kind reward", True)),
        ({"task_profile": "hard_reasoning"}, ("unknown", "no task, task_type or trainer says it", False)),
        ({"training": {"extras": {"trainer": "rl"}}}, ("rl", "keys of a trainer of kind rl", True)),
        ({"lora": {"task_type": "SEQ_CLS"}}, ("classification", "task_type SEQ_CLS", False)),
        ({"lora": {"extras": {"base_model_class": "BertForTokenClassification"}}},
         ("classification", "base model class BertForTokenClassification", False)),
        ({"lora": {"extras": {"base_model_class": "LlamaForCausalLM"}}},
         ("sft", "base model class LlamaForCausalLM", False)),
        ({"num_labels": 2}, ("classification", "2 labels", False)),
        ({"task_profile": "easy_classification"}, ("classification", "task profile easy_classification", True)),
        ({"task_profile": "generation"}, ("sft", "task profile generation", False)),
        ({}, ("unknown", "no task, task_type or trainer says it", False)),
    ],
)  # fmt: skip
def test_an_objective_has_its_ground_and_whether_that_is_stated_or_a_hint(snapshot, expected):
    assert objective_of(msgspec.convert(snapshot, ConfigSnapshot)) == expected


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
    ("names", "shown"),
    [
        ({"rewards/margins", "rewards/chosen"}, ("preference", "the log has rewards/chosen", False)),
        ({"reward", "rewards/margins"}, ("preference", "the log has rewards/margins", False)),
        ({"reward", "mean_reward"}, ("rl", "the log has reward", False)),
        ({"mean_reward"}, ("reward", "the log has mean_reward", False)),
        (set(), None),
    ],
)
def test_the_names_of_logged_values_show_an_objective(names, shown):
    assert objective_by_names(names) == shown
