"""The objective is what was stated, before what is hinted."""

from __future__ import annotations

import msgspec
import pytest

from gradience.rules.config.targets import reaches_mlp
from gradience.rules.objective import objective_of
from gradience.schema.config import ConfigSnapshot


@pytest.mark.parametrize(
    ("snapshot", "kind"),
    [
        ({"extras": {"task": "SST2"}}, "classification"),
        ({"extras": {"task": "glue/whatever"}}, "classification"),
        ({"extras": {"task": "dpo"}, "lora": {"task_type": "CAUSAL_LM"}}, "preference"),
        ({"extras": {"task": "gsm8k"}, "lora": {"task_type": "CAUSAL_LM"}}, "sft"),
        ({"training": {"extras": {"trainer": "rl"}}, "lora": {"task_type": "CAUSAL_LM"}}, "rl"),
        ({"training": {"extras": {"trainer": "reward"}}, "lora": {"task_type": "SEQ_CLS"}}, "unknown"),
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


@pytest.mark.parametrize(
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
