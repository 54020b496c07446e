"""LLaMA-Factory's YAML: TrainingArguments under their own names, and LoRA's under others.

Read in hiyouga/LLaMA-Factory, examples/train_lora and src/llamafactory/hparams/finetuning_args.py: lora_alpha is
twice lora_rank where it is not given, lora_rank 8, and lora_target every linear layer.
"""

from __future__ import annotations

from collections.abc import Container

from gradience.configs.known import known_keys, knows_training
from gradience.configs.settings import OPTIMIZER, TRAINING, Draft, Level, Setting, comma_names, read_all, split_names
from gradience.configs.training import note_training
from gradience.configs.values import Fields, flag, keyword, real, short_name, whole
from gradience.schema.scalars import as_float

_TABLE: tuple[tuple[Level, tuple[Setting, ...]], ...] = (
    (
        "run",
        (Setting("model_name", short_name, ("model_name_or_path",)), Setting("dataset_name", short_name, ("dataset",))),
    ),
    ("optimizer", OPTIMIZER),
    (
        "lora",
        (
            Setting("r", whole, ("lora_rank",)),
            Setting("alpha", real, ("lora_alpha",)),
            Setting("dropout", real, ("lora_dropout",)),
            Setting("use_dora", flag, ("use_dora",)),
            Setting("use_rslora", flag, ("use_rslora",)),
            Setting("modules_to_save", comma_names, ("additional_target",)),
        ),
    ),
    ("training", TRAINING),
    ("training", (Setting("max_length", whole, ("cutoff_len",)),)),
)
_STAGES = {"pt": "clm", "sft": "sft", "rm": "reward", "ppo": "ppo", "dpo": "dpo", "kto": "kto"}


def is_llama_factory(mapping: Container[object]) -> bool:
    """Whether the keys are LLaMA-Factory's."""
    own = ("stage", "finetuning_type", "lora_target", "cutoff_len", "template")
    return "model_name_or_path" in mapping and sum(key in mapping for key in own) > 1


def read_llama_factory_fields(fields: Fields, draft: Draft) -> list[str]:
    """Read a LLaMA-Factory recipe into the draft; return the keys nobody knows."""
    read_all(draft, fields, _TABLE)
    note_training(fields, draft)
    draft.set("run", "format", "llama-factory", extra=True)
    stage = fields.take(["stage"], keyword) or "sft"
    draft.set("run", "task", _STAGES.get(stage, stage), extra=True)
    kind = fields.take(["finetuning_type"], keyword) or "lora"
    draft.set("lora", "peft_type", kind.upper())
    if kind == "lora":
        _note_lora(fields, draft, stage)
    if draft.get("training", "eval_strategy") is None and "val_size" not in fields and "eval_dataset" not in fields:
        draft.set("training", "eval_strategy", "no")
    return list(fields.left_over(lambda key: key in known_keys("llama_factory") or knows_training(key)))


def _note_lora(fields: Fields, draft: Draft, stage: str) -> None:
    draft.set("lora", "task_type", "CAUSAL_LM" if stage != "rm" else "TOKEN_CLS")
    target = fields.take(["lora_target"], lambda value: ",".join(comma_names(value)))
    named = split_names(target or "all")
    draft.set("lora", "target_modules", "all-linear" if named == ["all"] else named)
    if fields.take(["pissa_init"], flag):
        draft.set("lora", "init", "pissa")
    if draft.get("lora", "r") is None:
        draft.set("lora", "r", 8)
    if draft.get("lora", "alpha") is None:
        draft.set("lora", "alpha", as_float(2 * draft.get("lora", "r")))
