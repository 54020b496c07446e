"""Branches of the rules on a configuration that no threshold decides: what outweighs what, and what is left open."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tables import every

from gradience.configs.training import objective_by_names
from gradience.rules import Unknown
from gradience.rules.config import judge_config, settings_of
from gradience.rules.config.adapter import part_of, reaches_mlp
from gradience.rules.config.facts import CheckContext, Facts
from gradience.rules.config.serving import RANKS
from gradience.schema.document import Coverage, Finding
from gradience.schema.events import ConfigSnapshot


def config(*, adapter: bool = True, **sections: Any) -> ConfigSnapshot:
    """A snapshot from plain sections; of LoRA, unless they say otherwise or there is to be no adapter."""
    lora = {**({"peft_type": "LORA"} if adapter else {}), **sections.pop("lora", {})}
    return msgspec.convert({**sections, "lora": lora}, ConfigSnapshot)


def around(**fields: Any) -> CheckContext:
    common = {"base": "m", "model_type": "llama", "layout": "transformers 5"}
    counts = {"modules": 8, "layers": 4, "layers_total": 4}
    return CheckContext(coverage=msgspec.convert({**common, **counts, **fields}, Coverage))


def answer(rule: str, snapshot: ConfigSnapshot, beside: CheckContext | None = None) -> str:
    """The messages of a rule, or why it was not judged."""
    verdict = judge_config(snapshot, transformers="5.24.0", around=beside)
    found = [item.message for item in verdict.findings if item.id == rule]
    return " | ".join(found + [f"? {item.reason}" for item in verdict.not_run if item.id == rule])


CASES: list[tuple[str, ConfigSnapshot, CheckContext | None, str]] = [
    # a log's own count of the batch goes before what would follow from one process
    ("BAT001", config(training={"extras": {"samples_per_step": 257}}), None, "257 sequences per optimizer step"),
    ("BAT001", config(training={"extras": {"samples_per_step": 256}}), None, ""),
    (
        "BAT001",
        config(
            training={"batch_size": 300, "world_size": 1, "gradient_accumulation": 2, "extras": {"samples_per_step": 8}}
        ),
        None,
        "600 sequences per optimizer step",
    ),
    (
        "BAT001",
        config(training={"batch_size": 16, "extras": {"batch_from": "log"}}),
        None,
        "? the gradient accumulation is not given: the log has the batch of one device only",
    ),
    # the estimate of capacity is for supervised training, whatever else is known
    (
        "RNK001",
        config(training={"max_length": 1, "extras": {"train_examples": 10**6}}, extras={"task": "dpo"}),
        around(lora_params=1),
        "? objective preference: the estimate is for supervised training",
    ),
    *(
        (
            "RNK001",
            config(extras={"task": task}),
            around(lora_params=1),
            f"? objective {kind}: the estimate is for supervised training",
        )
        for task, kind in [("sst2", "classification"), ("reward", "reward"), ("", "unknown")]
    ),
    (
        "RNK001",
        config(training={"max_length": 0, "max_steps": 1}, extras={"task": "sft"}),
        around(lora_params=1),
        "? max_length is below 1 (see VAL001)",
    ),
    # a reward model is trained by pairs, but it is no policy that drifts: the bands of supervised training hold
    ("LR004", config(optimizer={"lr": 2e-3}, extras={"task": "reward"}), None, ""),
    (
        "LR002",
        config(optimizer={"lr": 2e-3}, extras={"task": "reward"}),
        None,
        "lr 0.002 is above the published band for LoRA",
    ),
    # targets
    (
        "TGT001",
        config(lora={"task_type": "SEQ_CLS", "target_modules": ["q_proj"]}, extras={"task": "sft"}),
        None,
        "? task_type SEQ_CLS: the evidence is for a causal LM",
    ),
    ("TGT002", config(lora={"extras": {"layers_to_transform": [0]}}), around(layers=1, layers_total=32), ""),
    (
        "TGT002",
        config(),
        around(modules=8, refused=[{"name": "mlp", "reason": "it holds no weight"}]),
        "PEFT will refuse mlp: it holds no weight",
    ),
    (
        "TGT002",
        config(),
        around(
            modules=0,
            layers=0,
            unmatched_targets=["q"],
            refused=[{"name": "mlp", "reason": "a block"}, {"name": "norm", "reason": "no weight"}],
        ),
        "PEFT will refuse mlp, norm: a block",
    ),
    ("TGT002", config(), around(layers=0, layers_total=0), ""),
    ("TGT002", config(), around(modules=0, unmatched_targets=["q"]), "the targets match no module of m"),
    (
        "TGT005",
        config(),
        around(added_tokens=["<a>", "<b>", "<c>", "<d>"]),
        "4 tokens were added to the tokenizer (<a>, <b>, <c> and 1 more), and no embedding row is trained",
    ),
    # the head
    (
        "TGT004",
        config(lora={"peft_type": "LORA"}),
        None,
        "? task_type is unset; whether there is a new head is not known (no task, task_type or trainer says it)",
    ),
    (
        "TGT004",
        config(lora={"peft_type": "LORA"}, extras={"task": "rm"}),
        None,
        "? task_type is unset; whether there is a new head is not known (task rm)",
    ),
    # an adapter of a kind that is no LoRA, whatever its name
    ("TGT001", config(lora={"peft_type": "ADALORA"}), None, "? peft_type ADALORA is not LoRA: the rule does not apply"),
    (
        "NUM001",
        config(training={"dtype": "fp16"}, lora={"extras": {"autocast_adapter_dtype": False}}),
        None,
        "fp16 training with autocast_adapter_dtype off keeps the adapter in fp16",
    ),
    # the rate
    (
        "LR001",
        config(optimizer={"lr": 1e-5}, extras={"task": "reward"}),
        None,
        "? objective reward (task reward): it needs supervised training",
    ),
    (
        "LR001",
        config(optimizer={"lr": 1e-5}, extras={"task": "sft", "format": "mlx-lm"}),
        None,
        "lr 1e-05 looks like a full fine-tuning rate, the default of MLX-LM; LoRA usually wants about 10 x that",
    ),
    (
        "LR001",
        config(optimizer={"lr": 2e-5}, training={"extras": {"trainer": "sft"}}),
        None,
        (
            "lr 2e-05 looks like a full fine-tuning rate, the default of TRL's SFTConfig; LoRA usually wants "
            "about 10 x that"
        ),
    ),
    (
        "LR004",
        config(optimizer={"lr": 1e-3}),
        None,
        (
            "? the objective is not known (no task, task_type or trainer says it): say --task sft, dpo, grpo or "
            "a task's "
            "name"
        ),
    ),
    (
        "LR004",
        config(optimizer={"lr": 1e-3}, extras={"task": "grpo"}),
        None,
        "lr 0.001 is high for reinforcement learning: DPO uses about 5e-6, GRPO 1e-5 to 4e-5",
    ),
    (
        "LR007",
        config(optimizer={"lr": 2e-4}, lora={"init": "PiSSA"}),
        None,
        "lr 0.0002 with init PiSSA: variants that start from the principal components of W want less",
    ),
    (
        "LR007",
        config(optimizer={"lr": 2e-4}, lora={"init": "corda"}),
        None,
        "lr 0.0002 with init corda: variants that start from the principal components of W want less",
    ),
    # recording
    (
        "REC004",
        config(training={"save_strategy": "best", "save_steps": 500, "max_steps": 100}),
        None,
        "? save_strategy is 'best': checkpoints do not come per step",
    ),
    (
        "REC001",
        config(training={"extras": {"logging_strategy": "no"}}),
        None,
        "logging is off: no training loss is recorded",
    ),
    ("REC002", config(training={"eval_strategy": "no"}), None, "evaluation is off: overfitting cannot be seen"),
    (
        "REC004",
        config(training={"save_strategy": "no", "max_steps": 900}),
        None,
        "saving is off: a crash leaves nothing on disk",
    ),
    (
        "SCH003",
        config(training={"warmup_ratio": 0.1}, extras={"format": "axolotl"}),
        None,
        "? a recipe of axolotl, which hands the setting on as its own version of transformers wants it",
    ),
    ("REC004", config(training={"save_strategy": "steps", "save_steps": 0.5, "max_steps": 1}), None, ""),
    (
        "REC005",
        config(),
        CheckContext(output=("checkpoint-10", "run.jsonl")),
        "the output folder already holds a run: checkpoint-10, run.jsonl",
    ),
    (
        "EPO001",
        config(training={"epochs": 4.0, "eval_strategy": "steps"}, extras={"task": "sft"}),
        None,
        "4 passes over the data",
    ),
    # epochs are those asked for, but under max_steps those that so many steps make: 10 steps of 8 rows of 16
    (
        "EPO001",
        config(
            training={
                "epochs": 4.0,
                "batch_size": 8,
                "world_size": 1,
                "extras": {"train_tokens": 90, "train_examples": 9},
            },
            extras={"task": "sft"},
        ),
        None,
        "4 passes over the data",
    ),
    (
        "EPO001",
        config(
            training={
                "max_steps": 10,
                "epochs": 1.0,
                "batch_size": 8,
                "world_size": 1,
                "extras": {"train_tokens": 90, "train_examples": 16},
            },
            extras={"task": "sft"},
        ),
        None,
        "5 passes over the data",
    ),
    ("SCH001", config(training={"lr_scheduler": "constant"}), None, "? warmup is not given"),
    ("SCH002", config(training={"lr_scheduler": "constant", "warmup_steps": 0.9}), None, ""),
    (
        "BIA001",
        config(lora={"bias": "lora_only"}),
        None,
        "bias is 'lora_only': biases of the base model are trained and saved too",
    ),
    (
        "SEC001",
        config(training={"extras": {"secret_keys": ["a", "b"]}}),
        None,
        (
            "a is set in the configuration (its value was not read) | b is set in the configuration (its value "
            "was not read)"
        ),
    ),
    (  # one key is there, of another the file does not say: a finding, and what was not judged
        "SEC001",
        config(training={"extras": {"secret_keys": ["a"], "masked_keys": ["hub_token"]}}),
        None,
        (
            "a is set in the configuration (its value was not read) | ? hub_token: masked in the file, as transformers "
            "does whether set or not"
        ),
    ),
    # engines
    (
        "SRV001",
        config(lora={"extras": {"lora_bias": True}}),
        CheckContext(engines=("vllm",)),
        "vLLM refuses a trained bias: only where the engine was started with bias_enabled",
    ),
    (
        "SRV002",
        config(lora={"use_rslora": True}),
        CheckContext(engines=("slora",)),
        "S-LoRA misreads use_rslora: the scale is lora_alpha / r: sqrt(r) times too small",
    ),
    (
        "SRV003",
        config(lora={"target_modules": ["mlp.q_proj", "x.up_proj"]}),
        CheckContext(engines=("slora",)),
        "S-LoRA leaves out targets beside q, k, v and o: q_proj, k_proj, v_proj and o_proj alone are read",
    ),
    (
        "SRV003",
        config(lora={"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
        CheckContext(engines=("slora",)),
        "",
    ),
    ("SRV004", config(lora={"r": 513}), CheckContext(engines=("vllm",)), "vLLM has no room for rank 513"),
    (
        "SRV004",
        config(lora={"r": 4}),
        CheckContext(engines=("lorax",)),
        "LoRAX makes room for rank 8: at rank 4, 50% of its adapter memory is padding",
    ),
    (
        "SRV004",
        config(lora={"r": 32}),
        CheckContext(engines=("vllm",)),
        "vLLM takes up to rank 16 by default: start it with max_lora_rank 32",
    ),
]


@every(("rule", "snapshot", "beside", "says"), CASES)
def test_what_a_rule_answers(rule: str, snapshot: ConfigSnapshot, beside: CheckContext | None, says: str) -> None:
    assert answer(rule, snapshot, beside) == says


@every(
    ("training", "batch"),
    [
        ({"extras": {"samples_per_step": 32}}, 32),
        ({"batch_size": 4, "world_size": 2, "extras": {"samples_per_step": 0}}, 8),
        ({"batch_size": 4, "world_size": 2, "extras": {"samples_per_step": "32"}}, 8),
        ({"batch_size": 4, "world_size": 2, "gradient_accumulation": 1, "extras": {"samples_per_step": 32}}, 8),
    ],
)
def test_the_batch_is_that_of_the_settings_unless_a_log_alone_counts_it(training: dict[str, Any], batch: int) -> None:
    assert Facts(config(training=training)).effective_batch == batch


@every(
    ("training", "steps"),
    [
        ({"batch_size": 8, "world_size": 1, "epochs": 1.0, "extras": {"train_examples": 9}}, 2),
        ({"batch_size": 8, "world_size": 1, "epochs": 2.5, "extras": {"train_examples": 16}}, 5),
        ({"batch_size": 8, "world_size": 1, "epochs": 2.9, "extras": {"train_examples": 8}}, 2),
        ({"batch_size": 8, "world_size": 1, "epochs": 1.0, "extras": {"train_examples": 1}}, 1),
        ({"batch_size": 8, "world_size": 1, "epochs": 1.0, "extras": {"train_examples": 0}}, None),
        ({"epochs": 1.0, "extras": {"train_examples": "9"}}, None),
    ],
)
def test_steps_are_whole_batches_times_epochs(training: dict[str, Any], steps: int | None) -> None:
    facts = Facts(config(training=training))
    if steps is None:
        with pytest.raises(Unknown, match="neither max_steps nor the size of the data"):
            _ = facts.steps
    else:
        assert facts.steps == steps


@every(
    ("name", "part"),
    [
        ("q_proj", "attn"),
        ("model.layers.0.mlp.dense", "mlp"),
        ("h.0.attn.c_proj", "attn"),
        ("output", "either"),
        ("experts.w_x", "mlp"),
        ("layer.self_attn.x", "attn"),
        ("x.UP_PROJ", "mlp"),
        ("lm_head", "unknown"),
        ("mlpx.dense", "either"),
        ("x.y.dense", "either"),
        ("foo_mlp.dense", "mlp"),
    ],
)
def test_a_module_is_of_the_part_that_its_name_or_its_path_names(name: str, part: str) -> None:
    assert part_of(name) == part


@every(
    ("targets", "reached"),
    [("All-Linear", True), (["q_proj", "dense"], None), (["q_proj", "x"], None), ([], None), (".*k_proj|.*foo", False)],
)
def test_names_that_leave_the_mlp_open_are_no_ground(targets: list[str] | str, *, reached: bool | None) -> None:
    assert reaches_mlp(targets) is reached


@pytest.mark.parametrize("sizes", RANKS, ids=lambda sizes: sizes.engine)
def test_an_engine_has_the_sizes_and_the_default_of_its_source(sizes: Any) -> None:
    stated = {"vllm": ((1, 8, 16, 32, 64, 128, 256, 320, 512), 16, 1, 1), "lorax": ((), None, 8, 16)}
    assert (sizes.sizes, sizes.default, sizes.least, sizes.step) == stated[sizes.engine]


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
def test_the_names_of_logged_values_show_an_objective(names: set[str], shown: tuple[str, str, bool] | None) -> None:
    assert objective_by_names(names) == shown


def test_a_finding_of_no_rule_on_a_configuration_is_about_no_setting() -> None:
    assert settings_of(Finding(id="NUM101", severity="error", message="x")) == []
