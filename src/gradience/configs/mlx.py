"""MLX-LM's configuration: the same file name as PEFT's, another format, recognised by its keys.

MLX computes ``y + scale * (x A) B``: its scale is PEFT's alpha / r, so alpha is read as scale * rank. An
``alpha`` beside it is not read by MLX. MLX counts iterations, which are optimizer steps without accumulation.
"""

from __future__ import annotations

from collections.abc import Container

from gradience.configs.known import known_keys
from gradience.configs.settings import Draft, Setting
from gradience.configs.values import Fields, keyword, name_list, real, reals, short_name, whole
from gradience.schema.scalars import as_float
from gradience.schema.scalars import real as on_the_wire

_RUN = (Setting("model_name", short_name, ("model",)),)
_OPTIMIZER = (
    Setting("lr", real, ("learning_rate",)),
    Setting("name", keyword, ("optimizer",)),
)
_TRAINING = (
    Setting("seed", whole, ("seed",)),
    Setting("batch_size", whole, ("batch_size",)),
    Setting("gradient_accumulation", whole, ("grad_accumulation_steps",)),
    Setting("iterations", whole, ("iters",), extra=True),
    Setting("max_length", whole, ("max_seq_length",)),
    Setting("logging_steps", real, ("steps_per_report",)),
    Setting("save_steps", real, ("save_every",)),
)
_LORA = (
    Setting("r", whole, ("rank",)),
    Setting("dropout", real, ("dropout",)),
    Setting("target_modules", name_list, ("keys",)),
)


def is_mlx(mapping: Container[object]) -> bool:
    """Whether the keys are MLX-LM's."""
    return "peft_type" not in mapping and ("lora_parameters" in mapping or "fine_tune_type" in mapping)


def read_mlx_fields(fields: Fields, draft: Draft) -> list[str]:
    """Read an MLX-LM configuration into the draft; return the keys nobody knows."""
    draft.read("run", _RUN, fields, loose=False)
    draft.read("optimizer", _OPTIMIZER, fields, loose=False)
    draft.read("training", _TRAINING, fields, loose=False)
    draft.set("run", "format", "mlx-lm", extra=True)
    if draft.get("training", "save_steps") is not None:
        draft.set("training", "save_strategy", "steps")
    if fields.take(["steps_per_eval"], real) is not None:
        draft.set("training", "eval_strategy", "steps")
    _steps(draft)
    _schedule(fields, draft)
    _options(fields, draft)
    mode = fields.take(["training_mode"], keyword)
    draft.set("run", "task", "sft" if mode in {None, "normal"} else mode, extra=True)
    unknown = list(fields.left_over(known_keys("mlx").__contains__))
    kind = fields.take(["fine_tune_type"], keyword) or "lora"
    draft.set("lora", "peft_type", "LORA" if kind in {"lora", "dora"} else kind.upper())
    draft.set("lora", "use_dora", kind == "dora")
    section = fields.section("lora_parameters")
    if section is None or kind not in {"lora", "dora"}:
        return unknown
    return unknown + _lora(section, draft)


def _lora(section: Fields, draft: Draft) -> list[str]:
    draft.read("lora", _LORA, section, loose=False)
    draft.set("lora", "task_type", "CAUSAL_LM")
    scale, rank = section.take(["scale"], real), draft.get("lora", "r")
    if scale is not None and rank is not None:
        draft.set("lora", "alpha", on_the_wire(as_float(scale) * rank))
    return list(section.left_over(frozenset[str]().__contains__))


def _schedule(fields: Fields, draft: Draft) -> None:
    """Read the schedule; its first argument is the peak rate, and goes before learning_rate."""
    section = fields.section("lr_schedule")
    if section is None:
        return
    name, warmup = section.take(["name"], keyword), section.take(["warmup"], real)
    arguments = section.take(["arguments"], reals)
    if name is not None:
        draft.set("training", "lr_scheduler", name)
    if warmup is not None:
        draft.set("training", "warmup_steps", warmup)
    if arguments:
        draft.set("optimizer", "lr", arguments[0])


def _options(fields: Fields, draft: Draft) -> None:
    """Read the arguments of the optimizer in use."""
    chosen = draft.get("optimizer", "name") or "adam"
    section = fields.section("optimizer_config")
    own = None if section is None else section.section(chosen)
    if own is None:
        return
    decay, betas, eps = own.take(["weight_decay"], real), own.take(["betas"], reals), own.take(["eps"], real)
    for field, value in (("weight_decay", decay), ("betas", betas), ("eps", eps)):
        if value is not None:
            draft.set("optimizer", field, value)


def _steps(draft: Draft) -> None:
    iterations = draft.get("training", "iterations")
    accumulation = draft.get("training", "gradient_accumulation") or 1
    if iterations is not None and accumulation > 0:
        draft.set("training", "max_steps", iterations // accumulation)
