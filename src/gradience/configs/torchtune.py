"""torchtune's YAML: components with arguments. Its names of modules are given in Hugging Face's words.

Read in pytorch/torchtune, recipes/configs/llama3_1: 8B_lora_single_device.yaml and 8B_lora_dpo.yaml.
"""

from __future__ import annotations

from gradience.configs.known import known_keys
from gradience.configs.settings import Draft, Level, Setting, comma_names, left_over, read_all
from gradience.configs.values import Fields, flag, keyword, real, text, whole

_TRAINING: tuple[tuple[Level, tuple[Setting, ...]], ...] = (
    (
        "training",
        (
            Setting("seed", whole, ("seed",)),
            Setting("batch_size", whole, ("batch_size",)),
            Setting("gradient_accumulation", whole, ("gradient_accumulation_steps",)),
            Setting("epochs", real, ("epochs",)),
            Setting("max_grad_norm", real, ("clip_grad_norm",)),
            Setting("logging_steps", real, ("log_every_n_steps",)),
            Setting("steps_per_epoch", whole, ("max_steps_per_epoch",), extra=True),
        ),
    ),
)
_OPTIMIZER: tuple[tuple[Level, tuple[Setting, ...]], ...] = (
    (
        "optimizer",
        (
            Setting("lr", real, ("lr",)),
            Setting("weight_decay", real, ("weight_decay",)),
            Setting("eps", real, ("eps",)),
        ),
    ),
)
_LORA: tuple[tuple[Level, tuple[Setting, ...]], ...] = (
    (
        "lora",
        (
            Setting("r", whole, ("lora_rank",)),
            Setting("alpha", real, ("lora_alpha",)),
            Setting("dropout", real, ("lora_dropout",)),
            Setting("use_dora", flag, ("use_dora",)),
        ),
    ),
)
_NAMES = {"output_proj": "o_proj"}  # torchtune's names of modules that the hub's models call otherwise
_MLP = ["gate_proj", "up_proj", "down_proj"]
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_LOSSES = {"dpoloss": "dpo", "rsoloss": "dpo", "simpoloss": "simpo", "grposimpleloss": "grpo", "ppoloss": "ppo"}
_SECTIONS = ("model", "optimizer", "lr_scheduler", "dataset", "tokenizer", "loss")


def is_torchtune(fields: Fields) -> bool:
    """Whether the sections are torchtune's: components with their arguments."""
    return fields.holds("model", "_component_") and fields.holds("optimizer", "_component_")


def read_torchtune_fields(fields: Fields, draft: Draft) -> list[str]:
    """Read a torchtune recipe into the draft; return the keys nobody knows."""
    sections = {key: found for key in _SECTIONS if (found := fields.section(key)) is not None}
    read_all(draft, fields, _TRAINING)
    draft.set("run", "format", "torchtune", extra=True)
    draft.set("training", "save_strategy", "epoch")
    if "run_val_every_n_steps" not in fields and "dataset_val" not in fields:
        draft.set("training", "eval_strategy", "no")
    dtype = fields.take(["dtype"], keyword)
    if dtype is not None:
        draft.set("training", "dtype", _DTYPES.get(dtype, dtype))
    _note_steps(draft)
    for key, note in (("model", _note_model), ("optimizer", _note_optimizer), ("lr_scheduler", _note_schedule)):
        if key in sections:
            note(sections[key], draft)
    _note_data(sections, draft)
    return list(left_over([fields, *sections.values()], known_keys("torchtune") | set(_SECTIONS)))


def _component(fields: Fields) -> str:
    return (fields.take(["_component_"], text) or "").rpartition(".")[2]


def _note_model(fields: Fields, draft: Draft) -> None:
    name = _component(fields)
    kind, _, rest = name.partition("_")
    if kind in {"lora", "qlora"}:
        draft.set("lora", "peft_type", "LORA")
        draft.set("lora", "task_type", "CAUSAL_LM")
    draft.set("run", "model_name", rest if kind in {"lora", "qlora", "dora"} and rest else name)
    read_all(draft, fields, _LORA)
    named = fields.take(["lora_attn_modules"], comma_names)
    if named is None:
        return
    mlp, output = fields.take(["apply_lora_to_mlp"], flag), fields.take(["apply_lora_to_output"], flag)
    targets = [_NAMES.get(item, item) for item in named] + (_MLP if mlp else []) + (["lm_head"] if output else [])
    draft.set("lora", "target_modules", list(dict.fromkeys(targets)))


def _note_optimizer(fields: Fields, draft: Draft) -> None:
    draft.set("optimizer", "name", _component(fields).lower())
    read_all(draft, fields, _OPTIMIZER)


def _note_schedule(fields: Fields, draft: Draft) -> None:
    draft.set("training", "lr_scheduler", _component(fields).lower().removeprefix("get_"))
    steps = fields.take(["num_warmup_steps"], real)
    if steps is not None:
        draft.set("training", "warmup_steps", steps)


def _note_steps(draft: Draft) -> None:
    per_epoch, epochs = draft.get("training", "steps_per_epoch"), draft.get("training", "epochs")
    if per_epoch is not None and isinstance(epochs, int | float):
        draft.set("training", "max_steps", int(per_epoch * epochs))


def _note_data(sections: dict[str, Fields], draft: Draft) -> None:
    loss = _component(sections["loss"]).lower() if "loss" in sections else ""
    draft.set("run", "task", _LOSSES.get(loss, "sft"), extra=True)
    if "dataset" in sections:
        draft.set("run", "dataset_name", _component(sections["dataset"]) or None)
    length = sections["tokenizer"].take(["max_seq_len"], whole) if "tokenizer" in sections else None
    if length is not None:
        draft.set("training", "max_length", length)
