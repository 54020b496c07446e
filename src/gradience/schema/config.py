"""What a run was configured to do: the snapshot that opens a log, and the input of ``check``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gradience.schema.scalars import Json, NonNegativeInt, Real, TaskProfile, about

Extras = Annotated[dict[str, Json], about("Further values of this level that have no field of their own.")]


class OptimizerSnapshot(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The optimizer and its peak settings."""

    name: Annotated[str, about("For example `adamw_torch`, `lion`, `sgd`.")] | None = None
    lr: Annotated[Real, about("Peak learning rate.")] | None = None
    weight_decay: Real | None = None
    betas: Annotated[list[Real], about("Moment decay rates, as Adam has them.")] | None = None
    eps: Real | None = None
    extras: Extras = {}


class LoraSnapshot(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The adapter's configuration, in PEFT's terms."""

    r: Annotated[int, about("Rank where no pattern matches.")] | None = None
    alpha: Annotated[Real, about("PEFT's `lora_alpha`.")] | None = None
    alpha_over_r: Annotated[Real, about("alpha / r, written for people who grep.")] | None = None
    target_modules: (
        Annotated[list[str] | str, about("Module names, one regular expression, or `all-linear`.")] | None
    ) = None
    dropout: Real | None = None
    bias: Annotated[str, about("`none`, `all` or `lora_only`.")] | None = None
    use_rslora: Annotated[bool, about("Scale by alpha / sqrt(r).")] | None = None
    use_dora: bool | None = None
    rank_pattern: Annotated[dict[str, int], about("Rank by module: PEFT's patterns, in order.")] | None = None
    alpha_pattern: Annotated[dict[str, Real], about("Alpha by module: PEFT's patterns, in order.")] | None = None
    peft_type: str | None = None
    task_type: str | None = None
    init: Annotated[str, about("How A and B start: PEFT's `init_lora_weights`, as text.")] | None = None
    modules_to_save: list[str] | None = None
    extras: Extras = {}


class TrainingSnapshot(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """How long, how big and how often: the training loop's settings."""

    seed: int | None = None
    batch_size: Annotated[int, about("Sequences per device and micro-batch.")] | None = None
    gradient_accumulation: int | None = None
    world_size: Annotated[int, about("Data-parallel processes.")] | None = None
    max_steps: Annotated[int, about("Planned optimizer steps; null where unknown.")] | None = None
    epochs: Real | None = None
    dtype: Annotated[str, about("`float32`, `bfloat16` or `float16`.")] | None = None
    lr_scheduler: str | None = None
    warmup_steps: Annotated[Real, about("Steps; below 1, a ratio of all steps.")] | None = None
    warmup_ratio: Real | None = None
    max_grad_norm: Real | None = None
    logging_steps: Annotated[Real, about("Steps between rows; below 1, a ratio of all steps.")] | None = None
    logging_nan_inf_filter: Annotated[bool, about("Non-finite losses are averaged away in the log.")] | None = None
    eval_strategy: Annotated[str, about("`no`, `steps` or `epoch`.")] | None = None
    save_strategy: str | None = None
    save_steps: Real | None = None
    max_length: Annotated[int, about("Tokens per sequence.")] | None = None
    extras: Extras = {}


class ConfigSnapshot(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The whole configuration of one run, collected by an allow-list."""

    model_name: Annotated[str, about("Hub id or folder name, never a path.")] | None = None
    dataset_name: str | None = None
    task_profile: TaskProfile = "unknown"
    optimizer: OptimizerSnapshot = OptimizerSnapshot()
    lora: LoraSnapshot = LoraSnapshot()
    training: TrainingSnapshot = TrainingSnapshot()
    notes: str | None = None
    num_labels: Annotated[NonNegativeInt, about("Classes of a classification task.")] | None = None
    extras: Extras = {}
