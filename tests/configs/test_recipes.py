"""Recipes of five trainers as they ship them: read by their own names, and no key dropped unsaid.

Keys and values are those of axolotl-ai-cloud/axolotl examples/llama-3, hiyouga/LLaMA-Factory examples/train_lora,
pytorch/torchtune recipes/configs/llama3_1, ml-explore/mlx-lm mlx_lm/examples/lora_config.yaml and volcengine/verl
verl/trainer/config/ppo_trainer.yaml.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tables import every

from gradience import check_config
from gradience.configs.document import read_document
from gradience.schema.events import ConfigSnapshot, LoraSnapshot
from gradience.schema.reports import CheckReport

AXOLOTL = {
    "base_model": "NousResearch/Meta-Llama-3-8B", "model_type": "LlamaForCausalLM", "tokenizer_type": "AutoTokenizer",
    "load_in_8bit": True, "load_in_4bit": False,
    "datasets": [{"path": "mhenrichsen/alpaca_2k_test", "type": "alpaca"}], "dataset_prepared_path": None,
    "val_set_size": 0.05, "output_dir": "./outputs/lora-out", "sequence_len": 4096, "sample_packing": True,
    "eval_sample_packing": False, "adapter": "lora", "lora_model_dir": None, "lora_r": 32, "lora_alpha": 16,
    "lora_dropout": 0.05, "lora_target_linear": True, "lora_modules_to_save": ["embed_tokens", "lm_head"],
    "wandb_project": None, "gradient_accumulation_steps": 4, "micro_batch_size": 2, "num_epochs": 4,
    "optimizer": "adamw_bnb_8bit", "lr_scheduler": "cosine", "learning_rate": 0.0002, "bf16": "auto", "tf32": False,
    "gradient_checkpointing": True, "resume_from_checkpoint": None, "logging_steps": 1, "flash_attention": True,
    "warmup_ratio": 0.1, "evals_per_epoch": 4, "saves_per_epoch": 1, "weight_decay": 0.0,
    "special_tokens": {"pad_token": "<|end_of_text|>"},
}  # fmt: skip
LLAMA_FACTORY = {
    "model_name_or_path": "Qwen/Qwen3-4B-Instruct-2507", "trust_remote_code": True, "stage": "sft", "do_train": True,
    "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "dataset": "identity",
    "template": "qwen3_nothink", "cutoff_len": 2048, "max_samples": 1000, "preprocessing_num_workers": 16,
    "dataloader_num_workers": 4, "output_dir": "saves/qwen3-4b/lora/sft", "logging_steps": 10, "save_steps": 500,
    "plot_loss": True, "overwrite_output_dir": True, "save_only_model": False, "report_to": "none",
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 1.0e-4,
    "num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True,
    "ddp_timeout": 180000000, "resume_from_checkpoint": None,
}  # fmt: skip
TORCHTUNE = {
    "output_dir": "/tmp/torchtune/llama3_1_8B/lora_dpo",  # noqa: S108  # as the recipe has it; looked at, never written
    "model": {
        "_component_": "torchtune.models.llama3_1.lora_llama3_1_8b",
        "lora_attn_modules": ["q_proj", "v_proj", "output_proj"],
        "apply_lora_to_mlp": True,
        "apply_lora_to_output": False,
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
    },
    "tokenizer": {"_component_": "torchtune.models.llama3.llama3_tokenizer", "path": "t", "max_seq_len": None},
    "checkpointer": {"_component_": "torchtune.training.FullModelHFCheckpointer", "checkpoint_dir": "c"},
    "resume_from_checkpoint": False,
    "save_adapter_weights_only": False,
    "dataset": {"_component_": "torchtune.datasets.stack_exchange_paired_dataset"},
    "seed": None,
    "shuffle": True,
    "batch_size": 4,
    "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "weight_decay": 0.05, "lr": 5e-4},
    "lr_scheduler": {
        "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
        "num_warmup_steps": 100,
    },
    "loss": {"_component_": "torchtune.rlhf.loss.DPOLoss", "beta": 0.1, "label_smoothing": 0},
    "epochs": 1,
    "max_steps_per_epoch": 1000,
    "gradient_accumulation_steps": 8,
    "compile": False,
    "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": "${output_dir}/logs"},
    "log_every_n_steps": 1,
    "log_peak_memory_stats": True,
    "device": "cuda",
    "dtype": "bf16",
    "enable_activation_checkpointing": True,
    "enable_activation_offloading": False,
}
MLX = {
    "model": "mlx_model",
    "train": True,
    "fine_tune_type": "lora",
    "training_mode": "normal",
    "optimizer": "adamw",
    "optimizer_config": {"adamw": {"betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.05, "bias_correction": True}},
    "data": "/path/to/training/data",
    "seed": 0,
    "num_layers": 16,
    "batch_size": 4,
    "iters": 1000,
    "val_batches": 25,
    "learning_rate": 1e-5,
    "steps_per_report": 10,
    "steps_per_eval": 200,
    "resume_adapter_file": None,
    "adapter_path": "adapters",
    "save_every": 100,
    "test": False,
    "test_batches": 100,
    "max_seq_length": 2048,
    "grad_checkpoint": False,
    "lora_parameters": {"keys": ["self_attn.q_proj", "self_attn.v_proj"], "rank": 8, "scale": 20.0, "dropout": 0.0},
    "lr_schedule": {"name": "cosine_decay", "warmup": 100, "warmup_init": 1e-7, "arguments": [1e-5, 1000, 1e-7]},
    "hf_dataset": {"name": "billsum", "train_split": "train[:1000]"},
}
RECIPES = {"axolotl": AXOLOTL, "llama-factory": LLAMA_FACTORY, "torchtune": TORCHTUNE, "mlx-lm": MLX}


def checked(tmp_path: Path, recipe: dict[str, Any], **changes: Any) -> CheckReport:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**recipe, **changes}))  # JSON is YAML
    return check_config(document=path)


def findings(report: CheckReport) -> set[str]:
    return {item.id for item in report.findings}


@every("name", RECIPES)
def test_a_shipped_recipe_is_told_apart_and_has_no_unknown_key(name: str, tmp_path: Path) -> None:
    report = checked(tmp_path, RECIPES[name])
    assert report.config.extras["format"] == name
    assert report.unknown_keys == []
    assert "VAL001" not in findings(report)


@every("name", RECIPES)
def test_a_key_that_nobody_knows_is_named(name: str, tmp_path: Path) -> None:
    """A misspelt setting is a setting that does nothing."""
    assert "lora_rnak" in checked(tmp_path, RECIPES[name], lora_rnak=3).unknown_keys


def test_a_strange_key_inside_a_component_is_named_with_its_place(tmp_path: Path) -> None:
    model = {**TORCHTUNE["model"], "lora_rnak": 3}  # type: ignore[dict-item]
    assert checked(tmp_path, TORCHTUNE, model=model).unknown_keys == ["model.lora_rnak"]


def test_axolotls_settings_are_read(tmp_path: Path) -> None:
    report = checked(tmp_path, AXOLOTL)
    config = report.config
    assert (config.model_name, config.dataset_name) == ("NousResearch/Meta-Llama-3-8B", "mhenrichsen/alpaca_2k_test")
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (32, 16.0, 0.05)
    assert config.lora.target_modules == "all-linear"
    assert config.lora.modules_to_save == ["embed_tokens", "lm_head"]
    assert (config.optimizer.name, config.optimizer.lr) == ("adamw_bnb_8bit", 2e-4)
    training = config.training
    assert (training.batch_size, training.gradient_accumulation, training.epochs) == (2, 4, 4.0)
    assert (training.max_length, training.warmup_ratio, training.lr_scheduler) == (4096, 0.1, "cosine")
    assert (training.eval_strategy, training.save_strategy, training.save_steps) == ("steps", "steps", 0.25)
    assert training.dtype is None  # auto: the machine decides
    assert config.extras["objective"] == "sft"


def test_axolotls_preference_recipe_is_judged_as_one(tmp_path: Path) -> None:
    """instruct-dpo-lora-8b.yml ships 2e-4, forty times TRL's rate for DPO."""
    report = checked(tmp_path, AXOLOTL, rl="dpo", warmup_steps=10, warmup_ratio=None)
    assert report.config.extras["objective"] == "preference"
    assert "LR004" in findings(report)


@every(
    ("changes", "targets"),
    [
        ({"lora_target_linear": None, "lora_target_modules": ["q_proj", "v_proj"]}, ["q_proj", "v_proj"]),
        ({"lora_target_linear": False, "lora_target_modules": r".*q_proj"}, r".*q_proj"),
        ({"lora_target_modules": ["q_proj"]}, "all-linear"),  # linear layers are added to the names
        ({"lora_target_linear": None, "lora_target_modules": None}, None),
    ],
)
def test_axolotls_targets_are_names_or_every_linear_layer(
    changes: dict[str, Any], targets: Any, tmp_path: Path
) -> None:
    assert checked(tmp_path, AXOLOTL, **changes).config.lora.target_modules == targets


@every(
    ("changes", "strategy"),
    [
        ({"val_set_size": 0.0}, "no"),
        ({"val_set_size": 0.05, "evals_per_epoch": None}, "epoch"),
        ({"val_set_size": 0.05}, "steps"),
        ({"val_set_size": 0.05, "eval_strategy": "no"}, "no"),
    ],
)
def test_axolotl_evaluates_where_something_is_held_out(changes: dict[str, Any], strategy: str, tmp_path: Path) -> None:
    assert checked(tmp_path, AXOLOTL, **changes).config.training.eval_strategy == strategy


@every(("word", "dtype"), [("auto", None), (True, "bfloat16"), ("full", "bfloat16"), (False, None)])
def test_axolotls_words_for_a_type_are_read(word: Any, dtype: str | None, tmp_path: Path) -> None:
    assert checked(tmp_path, AXOLOTL, bf16=word).config.training.dtype == dtype


def test_llama_factorys_settings_are_read_with_its_own_defaults(tmp_path: Path) -> None:
    """lora_alpha is twice lora_rank where it is not given."""
    config = checked(tmp_path, LLAMA_FACTORY).config
    assert (config.lora.r, config.lora.alpha, config.lora.target_modules) == (8, 16.0, "all-linear")
    assert (config.model_name, config.dataset_name) == ("Qwen/Qwen3-4B-Instruct-2507", "identity")
    assert (config.training.max_length, config.training.dtype) == (2048, "bfloat16")
    assert (config.training.eval_strategy, config.optimizer.lr) == ("no", 1e-4)
    bare = {key: value for key, value in LLAMA_FACTORY.items() if key not in {"lora_rank", "lora_target"}}
    assert checked(tmp_path, bare).config.lora.r == 8
    assert checked(tmp_path, LLAMA_FACTORY, lora_alpha=4).config.lora.alpha == 4.0


@every(
    ("changes", "field", "value"),
    [
        ({"lora_target": "q_proj,v_proj"}, "target_modules", ["q_proj", "v_proj"]),
        ({"lora_target": ["q_proj"]}, "target_modules", ["q_proj"]),
        ({"additional_target": "embed_tokens,lm_head"}, "modules_to_save", ["embed_tokens", "lm_head"]),
        ({"pissa_init": True}, "init", "pissa"),
        ({"finetuning_type": "freeze"}, "peft_type", "FREEZE"),
    ],
)
def test_llama_factorys_words_are_read(changes: dict[str, Any], field: str, value: Any, tmp_path: Path) -> None:
    assert getattr(checked(tmp_path, LLAMA_FACTORY, **changes).config.lora, field) == value


@every(
    ("stage", "objective"),
    [("pt", "sft"), ("sft", "sft"), ("dpo", "preference"), ("kto", "preference"), ("ppo", "rl"), ("rm", "reward")],
)
def test_llama_factorys_stage_is_the_objective(stage: str, objective: str, tmp_path: Path) -> None:
    config = checked(tmp_path, LLAMA_FACTORY, stage=stage).config
    assert (config.extras["objective"], config.lora.task_type) == (objective, "CAUSAL_LM")


def test_torchtunes_components_are_read(tmp_path: Path) -> None:
    report = checked(tmp_path, TORCHTUNE)
    config = report.config
    assert config.model_name == "llama3_1_8b"
    assert config.lora.target_modules == ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert (config.lora.r, config.lora.alpha) == (8, 16.0)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("adamw", 5e-4, 0.05)
    assert (config.training.lr_scheduler, config.training.warmup_steps) == ("cosine_schedule_with_warmup", 100.0)
    assert (config.training.max_steps, config.training.dtype) == (1000, "bfloat16")
    assert config.extras["objective"] == "preference"
    assert "LR004" in findings(report)


def test_torchtune_counts_its_steps_only_where_they_are_bounded(tmp_path: Path) -> None:
    report = checked(tmp_path, TORCHTUNE, max_steps_per_epoch=None, loss={"_component_": "x.CEWithChunkedOutputLoss"})
    assert report.config.training.max_steps is None
    assert report.config.extras["objective"] == "sft"


def test_mlxs_schedule_and_optimizer_are_read(tmp_path: Path) -> None:
    """The schedule's first argument is the peak rate, whatever learning_rate says."""
    config = checked(tmp_path, MLX, learning_rate=3e-4).config
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.eps) == (1e-5, 0.05, 1e-6)
    assert config.optimizer.betas == [0.9, 0.98]
    assert (config.training.lr_scheduler, config.training.warmup_steps) == ("cosine_decay", 100.0)
    assert (config.lora.alpha, config.training.max_steps) == (160.0, 1000)
    assert checked(tmp_path, MLX, training_mode="dpo").config.extras["objective"] == "preference"


def test_a_flat_file_with_a_few_of_their_words_stays_a_flat_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base_model: m\nlora_r: 8\nlearning_rate: 1e-4\nsequence_len: 512\n")
    layer = read_document(path)
    assert "format" not in layer.config.extras
    assert (layer.config.lora.r, layer.config.training.max_length) == (8, 512)


def test_ms_swift_takes_all_linear_in_a_list_where_peft_does_not() -> None:
    peft = {"target_modules": ["all-linear"], "lora_rank": 8}
    swift = {**peft, "tuner_type": "lora", "model": "models/gemma-3-270m-it"}
    assert check_config(swift).config.lora.target_modules == "all-linear"
    assert check_config(peft).config.lora.target_modules == ["all-linear"]


def verl(model: dict[str, Any], optim: dict[str, Any], algorithm: dict[str, Any], **trainer: Any) -> ConfigSnapshot:
    """verl's tree, as its trainer prints it."""
    actor = {"strategy": "fsdp", "ppo_mini_batch_size": 256, "optim": optim, "grad_clip": 1.0}
    workers = {"model": {"path": "~/models/qwen", **model}, "actor": actor, "rollout": {"n": 8}}
    critic = {"optim": {"lr": 1e-5}, "model": {"lora_rank": 4}}
    data = {"train_batch_size": 1024, "max_prompt_length": "${oc.select:length,512}"}
    return check_config(
        {"data": data, "actor_rollout_ref": workers, "critic": critic, "algorithm": algorithm, "trainer": trainer}
    ).config


def test_verls_tree_is_read_where_it_trains_the_actor() -> None:
    model = {"lora_rank": 32, "lora_alpha": 64, "target_modules": "all-linear", "enable_gradient_checkpointing": True}
    optim = {"lr": 3e-6, "lr_warmup_steps": 10, "warmup_style": "cosine", "weight_decay": 0.01}
    config = verl(model, optim, {"adv_estimator": "grpo"}, total_epochs=3, total_training_steps=500, save_freq=20)
    assert (config.model_name, config.extras["task"], config.extras["objective"]) == ("qwen", "grpo", "rl")
    assert (config.lora.r, config.lora.alpha, config.lora.target_modules) == (32, 64.0, "all-linear")
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (3e-6, 0.01)
    training = config.training
    assert (training.max_steps, training.epochs, training.extras["epochs_overridden"]) == (500, 3.0, True)
    assert (training.warmup_steps, training.lr_scheduler, training.max_grad_norm) == (10.0, "cosine", 1.0)
    assert (training.save_strategy, training.save_steps, training.batch_size) == ("steps", 20.0, None)
    assert training.extras["gradient_checkpointing"] is True


def test_verls_words_for_what_is_not_set() -> None:
    model = {"lora_rank": 0, "lora_alpha": 16, "target_modules": "all-linear"}
    config = verl(model, {"lr": 1e-6, "lr_warmup_steps": -1}, {"adv_estimator": "gae"}, save_freq=-1, test_freq=5)
    assert (config.lora, config.extras["task"]) == (LoraSnapshot(), "ppo")
    training = config.training
    assert (training.save_strategy, training.save_steps, training.warmup_steps) == ("no", None, None)
    assert (training.eval_strategy, training.eval_steps, training.max_steps) == ("steps", 5.0, None)
