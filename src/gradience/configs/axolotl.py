"""Axolotl's YAML: its own names for PEFT's and the Trainer's settings.

Read in axolotl-ai-cloud/axolotl, examples/llama-3: lora-8b.yml, qlora-fsdp-70b.yaml, instruct-dpo-lora-8b.yml.
"""

from __future__ import annotations

from collections.abc import Container

from gradience.configs.known import known_keys, knows_training
from gradience.configs.settings import Draft, Level, Setting, comma_names, maybe, read_all
from gradience.configs.values import (
    Fields,
    as_text,
    flag,
    keyword,
    layer_numbers,
    pattern,
    real,
    short_name,
    strategy,
    whole,
)
from gradience.schema.scalars import Json, as_float
from gradience.schema.scalars import real as on_the_wire

_TABLE: tuple[tuple[Level, tuple[Setting, ...]], ...] = (
    ("run", (Setting("model_name", short_name, ("base_model",)),)),
    (
        "optimizer",
        (
            Setting("name", keyword, ("optimizer",)),
            Setting("lr", real, ("learning_rate",)),
            Setting("weight_decay", real, ("weight_decay",)),
            Setting("eps", real, ("adam_epsilon",)),
        ),
    ),
    (
        "lora",
        (
            Setting("r", whole, ("lora_r",)),
            Setting("alpha", real, ("lora_alpha",)),
            Setting("dropout", real, ("lora_dropout",)),
            Setting("use_dora", flag, ("peft_use_dora",)),
            Setting("use_rslora", flag, ("peft_use_rslora",)),
            Setting("init", as_text, ("peft_init_lora_weights",)),
            Setting("modules_to_save", comma_names, ("lora_modules_to_save",)),
            Setting("rank_pattern", pattern(whole), ("lora_rank_pattern",)),
            Setting("alpha_pattern", pattern(real), ("lora_alpha_pattern",)),
            Setting("target_parameters", comma_names, ("lora_target_parameters",), extra=True),
            Setting("layers_to_transform", layer_numbers, ("peft_layers_to_transform",), extra=True),
            Setting("layers_pattern", comma_names, ("peft_layers_pattern",), extra=True),
        ),
    ),
    (
        "training",
        (
            Setting("seed", whole, ("seed",)),
            Setting("batch_size", whole, ("micro_batch_size",)),
            Setting("gradient_accumulation", whole, ("gradient_accumulation_steps",)),
            Setting("max_steps", whole, ("max_steps",)),
            Setting("epochs", real, ("num_epochs",)),
            Setting("lr_scheduler", keyword, ("lr_scheduler",)),
            Setting("warmup_steps", real, ("warmup_steps",)),
            Setting("warmup_ratio", real, ("warmup_ratio",)),
            Setting("max_grad_norm", real, ("max_grad_norm",)),
            Setting("logging_steps", real, ("logging_steps",)),
            Setting("eval_strategy", strategy, ("eval_strategy", "evaluation_strategy")),
            Setting("save_strategy", strategy, ("save_strategy",)),
            Setting("save_steps", real, ("save_steps",)),
            Setting("max_length", whole, ("sequence_len",)),
        ),
    ),
)
_ADAPTERS = {"lora": "LORA", "qlora": "LORA"}


def is_axolotl(mapping: Container[object]) -> bool:
    """Whether the keys are Axolotl's."""
    own = ("micro_batch_size", "sequence_len", "lora_target_linear", "datasets", "num_epochs")
    return "base_model" in mapping and sum(key in mapping for key in own) > 1


def read_axolotl_fields(fields: Fields, draft: Draft) -> list[str]:
    """Read an Axolotl recipe into the draft; return the keys nobody knows."""
    read_all(draft, fields, _TABLE)
    draft.set("run", "format", "axolotl", extra=True)
    _note_adapter(fields, draft)
    _note_task(fields, draft)
    _note_dtype(fields, draft)
    _note_rhythm(fields, draft)
    return list(fields.left_over(lambda key: key in known_keys("axolotl") or knows_training(key)))


def _note_adapter(fields: Fields, draft: Draft) -> None:
    kind = fields.take(["adapter"], keyword)
    if kind is not None:
        draft.set("lora", "peft_type", _ADAPTERS.get(kind, kind.upper()))
    if fields.take(["lora_target_linear"], flag):  # adds every linear layer to whatever is named besides
        draft.set("lora", "target_modules", "all-linear")
        return
    named = fields.take(["lora_target_modules"], _targets)
    if named is not None:
        draft.set("lora", "target_modules", named)


def _targets(value: Json) -> list[str] | str:
    return value if isinstance(value, str) else comma_names(value)


def _note_task(fields: Fields, draft: Draft) -> None:
    kind = fields.take(["rl"], keyword)
    reward = fields.take(["reward_model"], flag)
    task = kind or ("reward" if reward else "sft")
    draft.set("run", "task", task, extra=True)
    draft.set("lora", "task_type", "SEQ_CLS" if reward else "CAUSAL_LM")
    first = fields.take(["datasets"], _first_path)
    if first:
        draft.set("run", "dataset_name", first)


def _first_path(value: Json) -> str:
    rows = value if isinstance(value, list) else []
    paths = [row["path"] for row in rows if isinstance(row, dict) and isinstance(row.get("path"), str)]
    return short_name(paths[0]) if len(paths) == 1 else ""


def _note_dtype(fields: Fields, draft: Draft) -> None:
    bf16, fp16 = fields.take(["bf16", "bfloat16"], _full), fields.take(["fp16", "float16"], _full)
    if bf16 or fp16:
        draft.set("training", "dtype", "bfloat16" if bf16 else "float16")


def _full(value: Json) -> bool | None:
    return True if value == "full" else maybe(value)


def _note_rhythm(fields: Fields, draft: Draft) -> None:
    """Say when it saves and evaluates: so many times an epoch is a ratio of all steps."""
    epochs = as_float(draft.get("training", "epochs") or 1.0)
    saves = fields.take(["saves_per_epoch"], real)
    if saves is not None and as_float(saves) > 0 and epochs > 0:
        draft.set("training", "save_strategy", "steps")
        draft.set("training", "save_steps", on_the_wire(1.0 / (as_float(saves) * epochs)))
    often = fields.take(["evals_per_epoch", "eval_steps"], lambda value: as_float(real(value)) > 0)
    held_out = fields.take(["val_set_size"], real)
    if draft.get("training", "eval_strategy") is None and held_out is not None:
        some = as_float(held_out) > 0 or "test_datasets" in fields
        draft.set("training", "eval_strategy", ("steps" if often else "epoch") if some else "no")
