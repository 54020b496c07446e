"""Read recipes of MLX-LM, torchtune, Axolotl, LLaMA-Factory and verl, which are recognised by their keys.

Each program's names for the settings are in `names.toml`; a function here reads whatever needs code.

An MLX-LM config has the same file name as PEFT's. MLX computes ``y + scale * (x A) B``: its scale is PEFT's alpha / r,
so alpha is read as scale * rank. MLX ignores an ``alpha`` in the same file, and so does this reader. MLX counts
iterations; without accumulation each iteration is an optimizer step.

A torchtune recipe consists of components with arguments. Its module names are translated to Hugging Face's. Source:
pytorch/torchtune, recipes/configs/llama3_1: 8B_lora_single_device.yaml and 8B_lora_dpo.yaml.

Axolotl has its own names for PEFT's and the Trainer's settings. Source: axolotl-ai-cloud/axolotl, examples/llama-3:
lora-8b.yml, qlora-fsdp-70b.yaml, instruct-dpo-lora-8b.yml.

LLaMA-Factory keeps the names of TrainingArguments and renames LoRA's settings. Source: hiyouga/LLaMA-Factory,
examples/train_lora, and of src/llamafactory hparams/finetuning_args.py, model/adapter.py and model/loader.py. Its
defaults: lora_rank is 8, lora_alpha twice lora_rank, and lora_target every linear layer.

verl's tree has a branch for each of its workers, of which the actor is trained. Source: volcengine/verl,
verl/trainer/config/ppo_trainer.yaml. Its batches are shares of one of prompts, and are not read. Hydra refuses a key
that verl does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

from gradience.configs.settings import (
    OPTIMIZER,
    TRAINING,
    Draft,
    comma_names,
    known_keys,
    knows_training,
    maybe,
    recipe,
    split_names,
)
from gradience.configs.training import note_training
from gradience.configs.values import Fields, flag, keyword, name_list, real, reals, short_name, text
from gradience.names import NAMES
from gradience.schema import Json, as_float, real as on_the_wire
from gradience.schema.values import rounded_of

# MLX-LM --------------------------------------------------------------------------------------------------------------

_MLX_RANK: Final = 8  # MLX-LM's defaults, mlx_lm/lora.py
_MLX_SCALE: Final = 20.0
_MLX_DECAYS: Final = {"cosine_decay": (1, 2), "linear_schedule": (2, 1)}  # places of steps and last rate


def is_mlx(mapping: Container[object]) -> bool:
    """Whether the keys are MLX-LM's."""
    named = any(key in mapping for key in ("lora_parameters", "fine_tune_type", "mask_prompt"))
    beside = any(key in mapping for key in ("steps_per_report", "steps_per_eval", "num_layers", "val_batches"))
    return "peft_type" not in mapping and (named or ("iters" in mapping and beside))


def read_mlx_fields(fields: Fields, draft: Draft) -> list[str]:
    """Read an MLX-LM configuration into the draft; return the keys nobody knows."""
    draft.read_all(recipe("mlx"), fields)
    draft.set("run", "format", "mlx-lm", extra=True)
    if draft.get("training", "save_steps") is not None:
        draft.set("training", "save_strategy", "steps")
    if fields.take(["steps_per_eval"], real) is not None:
        draft.set("training", "eval_strategy", "steps")
    iterations, accumulation = draft.get("training", "iterations"), draft.get("training", "gradient_accumulation") or 1
    if iterations is not None and accumulation > 0:
        draft.set("training", "max_steps", iterations // accumulation)
    _note_mlx_schedule(fields, draft)
    _note_mlx_optimizer(fields, draft)
    mode = fields.take(["training_mode"], keyword)
    draft.set("run", "task", "sft" if mode in {None, "normal"} else mode, extra=True)
    unknown = list(fields.left_over(known_keys("mlx").__contains__))
    kind = fields.take(["fine_tune_type"], keyword) or "lora"
    draft.set("lora", "peft_type", "LORA" if kind in {"lora", "dora"} else kind.upper())
    draft.set("lora", "use_dora", kind == "dora")
    section = fields.section("lora_parameters")
    if kind not in {"lora", "dora"}:
        return unknown
    if section is None:
        draft.set("lora", "r", _MLX_RANK)
        draft.set("lora", "alpha", _MLX_SCALE * _MLX_RANK)
        return unknown
    return unknown + _note_mlx_lora(section, draft)


def _note_mlx_lora(section: Fields, draft: Draft) -> list[str]:
    draft.read_all(recipe("mlx", "lora_parameters", target_modules=name_list), section)
    draft.set("lora", "task_type", "CAUSAL_LM")
    scale, rank = section.take(["scale"], real), draft.get("lora", "r")
    if scale is not None and rank is not None:
        draft.set("lora", "alpha", on_the_wire(as_float(scale) * rank))
    return list(section.left_over(frozenset[str]().__contains__))


def _note_mlx_schedule(fields: Fields, draft: Draft) -> None:
    """Read the schedule. Its first argument is the peak learning rate, which overrides `learning_rate`."""
    section = fields.section("lr_schedule")
    if section is None:
        return
    draft.read_all(recipe("mlx", "lr_schedule"), section)
    arguments = section.take(["arguments"], reals)
    if arguments:
        draft.set("optimizer", "lr", arguments[0])
    steps, end = _MLX_DECAYS.get(draft.get("training", "lr_scheduler") or "", (0, 0))
    if steps and arguments and len(arguments) > steps:
        draft.set("training", "decay_steps", rounded_of(arguments[steps]), extra=True)
        draft.set("training", "decay_end", arguments[end] if len(arguments) > end else 0.0, extra=True)


def _note_mlx_optimizer(fields: Fields, draft: Draft) -> None:
    section = fields.section("optimizer_config")
    own = None if section is None else section.section(draft.get("optimizer", "name") or "adam")
    if own is not None:
        draft.read_all(recipe("mlx", "optimizer_config"), own)


# torchtune -----------------------------------------------------------------------------------------------------------

_MLP: Final = ["gate_proj", "up_proj", "down_proj"]
_DTYPES: Final = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_LOSSES: Final = {"dpoloss": "dpo", "rsoloss": "dpo", "simpoloss": "simpo", "grposimpleloss": "grpo", "ppoloss": "ppo"}
_SECTIONS: Final = ("model", "optimizer", "lr_scheduler", "dataset", "tokenizer", "loss")


def is_torchtune(fields: Fields) -> bool:
    """Whether the model and optimizer sections are torchtune's components."""
    return fields.holds("model", "_component_") and fields.holds("optimizer", "_component_")


def _read_torchtune(fields: Fields, draft: Draft) -> list[str]:
    sections = {key: section for key in _SECTIONS if (section := fields.section(key)) is not None}
    draft.read_all(recipe("torchtune"), fields)
    draft.set("run", "format", "torchtune", extra=True)
    # torchtune's recipes save at the end of each epoch.
    draft.set("training", "save_strategy", "epoch")
    if "run_val_every_n_steps" not in fields and "dataset_val" not in fields:
        draft.set("training", "eval_strategy", "no")
    dtype = fields.take(["dtype"], keyword)
    if dtype is not None:
        draft.set("training", "dtype", _DTYPES.get(dtype, dtype))
    per_epoch, epochs = draft.get("training", "steps_per_epoch"), draft.get("training", "epochs")
    if per_epoch is not None and isinstance(epochs, int | float):
        draft.set("training", "max_steps", rounded_of(per_epoch * epochs // 1))
    for key, note in _TORCHTUNE_NOTES.items():
        if key in sections:
            note(sections[key], draft)
    loss = _component(sections["loss"]).lower() if "loss" in sections else ""
    draft.set("run", "task", _LOSSES.get(loss, "sft"), extra=True)
    known = known_keys("torchtune") | set(_SECTIONS)
    return [key for level in (fields, *sections.values()) for key in level.left_over(known.__contains__)]


def _component(fields: Fields) -> str:
    return (fields.take(["_component_"], text) or "").rpartition(".")[2]


def _note_model(fields: Fields, draft: Draft) -> None:
    name = _component(fields)
    kind, _, rest = name.partition("_")
    if kind in {"lora", "qlora"}:
        draft.set("lora", "peft_type", "LORA")
        draft.set("lora", "task_type", "CAUSAL_LM")
    draft.set("run", "model_name", rest if kind in {"lora", "qlora", "dora"} and rest else name)
    draft.read_all(recipe("torchtune", "model"), fields)
    named = fields.take(["lora_attn_modules"], comma_names)
    if named is None:
        return
    mlp, output = fields.take(["apply_lora_to_mlp"], flag), fields.take(["apply_lora_to_output"], flag)
    targets = (
        [NAMES.targets["torchtune"].get(item, item) for item in named]
        + (_MLP if mlp else [])
        + (["lm_head"] if output else [])
    )
    draft.set("lora", "target_modules", list(dict.fromkeys(targets)))


def _note_optimizer(fields: Fields, draft: Draft) -> None:
    draft.set("optimizer", "name", _component(fields).lower())
    draft.read_all(recipe("torchtune", "optimizer"), fields)


def _note_schedule(fields: Fields, draft: Draft) -> None:
    draft.set("training", "lr_scheduler", _component(fields).lower().removeprefix("get_"))
    draft.read_all(recipe("torchtune", "lr_scheduler"), fields)


_TORCHTUNE_NOTES: Final[dict[str, Callable[[Fields, Draft], None]]] = {
    "model": _note_model,
    "optimizer": _note_optimizer,
    "lr_scheduler": _note_schedule,
    "dataset": lambda fields, draft: draft.set("run", "dataset_name", _component(fields) or None),
    "tokenizer": lambda fields, draft: draft.read_all(recipe("torchtune", "tokenizer"), fields),
}

# Axolotl -------------------------------------------------------------------------------------------------------------

_AXOLOTL_ADAPTERS: Final = {"lora": "LORA", "qlora": "LORA"}


def is_axolotl(mapping: Container[object]) -> bool:
    """Whether the keys are Axolotl's."""
    own = ("micro_batch_size", "sequence_len", "lora_target_linear", "datasets", "num_epochs")
    return "base_model" in mapping and sum(key in mapping for key in own) > 1


def _read_axolotl(fields: Fields, draft: Draft) -> list[str]:
    named = recipe("axolotl", modules_to_save=comma_names, target_parameters=comma_names, layers_pattern=comma_names)
    draft.read_all(named, fields)
    draft.set("run", "format", "axolotl", extra=True)
    _note_axolotl_adapter(fields, draft)
    _note_axolotl_task(fields, draft)
    bf16, fp16 = (
        any(fields.take([key], _full) for key in keys) for keys in (("bf16", "bfloat16"), ("fp16", "float16"))
    )
    if bf16 or fp16:
        draft.set("training", "dtype", "bfloat16" if bf16 else "float16")
    _note_axolotl_rhythm(fields, draft)
    return list(fields.left_over(lambda key: key in known_keys("axolotl") or knows_training(key)))


def _full(value: Json) -> bool | None:
    return True if value == "full" else maybe(value)


def _note_axolotl_adapter(fields: Fields, draft: Draft) -> None:
    kind = fields.take(["adapter"], keyword)
    if kind is None:  # a full fine-tune: lora_ keys that are left in the recipe are not read
        draft.forget("lora")
        return
    draft.set("lora", "peft_type", _AXOLOTL_ADAPTERS.get(kind, kind.upper()))
    if fields.take(["lora_target_linear"], flag):  # adds every linear layer to the modules named elsewhere
        draft.set("lora", "target_modules", "all-linear")
        return
    named = fields.take(["lora_target_modules"], lambda value: value if isinstance(value, str) else comma_names(value))
    if named is not None:
        draft.set("lora", "target_modules", named)


def _note_axolotl_task(fields: Fields, draft: Draft) -> None:
    kind = fields.take(["rl"], keyword)
    reward = fields.take(["reward_model"], flag)
    draft.set("run", "task", kind or ("reward" if reward else "sft"), extra=True)
    draft.set("lora", "task_type", "SEQ_CLS" if reward else "CAUSAL_LM")
    first = fields.take(["datasets"], _first_path)
    if first:
        draft.set("run", "dataset_name", first)


def _first_path(value: Json) -> str:
    rows = value if isinstance(value, list) else []
    paths = [row["path"] for row in rows if isinstance(row, dict) and isinstance(row.get("path"), str)]
    return short_name(paths[0]) if len(paths) == 1 else ""


def _note_axolotl_rhythm(fields: Fields, draft: Draft) -> None:
    """Set when the run saves and evaluates. A number of saves per epoch becomes a fraction of all steps."""
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


# LLaMA-Factory -------------------------------------------------------------------------------------------------------

_STAGES: Final = {"pt": "clm", "rm": "reward"}  # the other stages already have our names


def is_llama_factory(mapping: Container[object]) -> bool:
    """Whether the keys are LLaMA-Factory's."""
    own = ("stage", "finetuning_type", "lora_target", "cutoff_len", "template")
    return "model_name_or_path" in mapping and sum(key in mapping for key in own) > 1


def _read_llama_factory(fields: Fields, draft: Draft) -> list[str]:
    draft.read_all({"optimizer": OPTIMIZER, "training": TRAINING}, fields)
    draft.read_all(recipe("llama_factory", modules_to_save=comma_names), fields)
    note_training(fields, draft)
    draft.set("run", "format", "llama-factory", extra=True)
    stage = fields.take(["stage"], keyword) or "sft"
    draft.set("run", "task", _STAGES.get(stage, stage), extra=True)
    kind = fields.take(["finetuning_type"], keyword) or "lora"
    draft.set("lora", "peft_type", kind.upper())
    if kind == "lora":
        _note_llama_factory_lora(fields, draft)
    if draft.get("training", "eval_strategy") is None and "val_size" not in fields and "eval_dataset" not in fields:
        draft.set("training", "eval_strategy", "no")
    return list(fields.left_over(lambda key: key in known_keys("llama_factory") or knows_training(key)))


def _note_llama_factory_lora(fields: Fields, draft: Draft) -> None:
    draft.set("lora", "task_type", "CAUSAL_LM")  # of a reward model too, whose value head is outside of the adapter
    target = fields.take(["lora_target"], lambda value: ",".join(comma_names(value)))
    named = split_names(target or "all")
    draft.set("lora", "target_modules", "all-linear" if named == ["all"] else named)
    if fields.take(["pissa_init"], flag):
        draft.set("lora", "init", "pissa")
    if draft.get("lora", "r") is None:
        draft.set("lora", "r", 8)
    if draft.get("lora", "alpha") is None:
        draft.set("lora", "alpha", as_float(2 * draft.get("lora", "r")))


# verl ----------------------------------------------------------------------------------------------------------------

_VERL_SECTIONS: Final = (
    ("actor_rollout_ref", "model"),
    ("actor_rollout_ref", "actor"),
    ("actor_rollout_ref", "actor", "optim"),
    ("trainer",),
)


def is_verl(fields: Fields) -> bool:
    """Whether the keys are those of verl's RL trainer."""
    return fields.is_mapping("actor_rollout_ref")


def _read_verl(fields: Fields, draft: Draft) -> list[str]:
    for path in _VERL_SECTIONS:
        section: Fields | None = fields
        for key in path:
            section = None if section is None else section.section(key)
        if section is not None:
            draft.read_all(recipe("verl", ".".join(path)), section)
    draft.set("run", "format", "verl", extra=True)
    algorithm = fields.section("algorithm")
    estimator = None if algorithm is None else algorithm.take(["adv_estimator"], keyword)
    draft.set("run", "task", "ppo" if estimator in {None, "gae"} else estimator, extra=True)
    if not draft.get("lora", "r"):  # its word for no adapter
        draft.forget("lora")
    for field, strategy in (("save_steps", "save_strategy"), ("eval_steps", "eval_strategy")):
        if (every := draft.get("training", field)) is not None:
            draft.set("training", strategy, "steps" if every > 0 else "no")
    for field in ("max_steps", "save_steps", "eval_steps", "warmup_steps"):
        if (draft.get("training", field) or 0) < 0:  # -1: not set
            draft.unset("training", field)
    if draft.get("training", "max_steps") is not None:
        draft.set("training", "epochs_overridden", value=True, extra=True)
    return []


# Pairs of a test of whether the keys are a program's, and its reader, which returns the unknown keys. First match wins.
RECIPES: Final[tuple[tuple[Callable[[Fields], bool], Callable[[Fields, Draft], list[str]]], ...]] = (
    (is_mlx, read_mlx_fields),
    (is_torchtune, _read_torchtune),
    (is_axolotl, _read_axolotl),
    (is_llama_factory, _read_llama_factory),
    (is_verl, _read_verl),
)
