"""The one table of settings: where each goes in the snapshot, how it is read, and what people call it.

``native`` are the names of PEFT and of transformers' TrainingArguments; ``loose`` are further names that
people use in files of their own. A PEFT or training file is read by its native names only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, TypeVar

import msgspec

from gradience.configs.values import (
    Fields,
    Malformed,
    as_text,
    flag,
    keyword,
    layer_numbers,
    layer_ranges,
    name_list,
    names,
    pattern,
    profile,
    real,
    reals,
    short_name,
    strategy,
    text,
    token_indices,
    upper,
    whole,
)
from gradience.schema.config import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.reports import SourceFile
from gradience.schema.scalars import Json

S = TypeVar("S", bound=msgspec.Struct)


class Layer(msgspec.Struct, kw_only=True, frozen=True):
    """The part of a configuration that one source gives, and what it held besides."""

    config: ConfigSnapshot = ConfigSnapshot()
    sources: tuple[SourceFile, ...] = ()
    unknown_keys: tuple[str, ...] = ()
    secret_keys: tuple[str, ...] = ()
    masked_keys: tuple[str, ...] = ()
    output_dir: str | None = None
    """Where the run will write: a place of the user's, looked at and never reported."""


def stack(layers: Iterable[Layer]) -> Layer:
    """The layers as one; where both set a field, the later one wins."""
    whole = Layer()
    for layer in layers:
        whole = Layer(
            config=overlay(whole.config, layer.config),
            sources=whole.sources + layer.sources,
            unknown_keys=whole.unknown_keys + layer.unknown_keys,
            secret_keys=whole.secret_keys + layer.secret_keys,
            masked_keys=whole.masked_keys + layer.masked_keys,
            output_dir=layer.output_dir or whole.output_dir,
        )
    return whole


def overlay(lower: S, upper: S) -> S:
    """`lower` with every field that `upper` sets laid over it; `extras` are joined."""
    given = {
        field.name: _joined(field.name, getattr(lower, field.name), getattr(upper, field.name))
        for field in msgspec.structs.fields(upper)
        if getattr(upper, field.name) != _default_of(field)
    }
    return msgspec.structs.replace(lower, **given)


def _joined(name: str, lower: object, upper: object) -> object:
    if isinstance(upper, msgspec.Struct) and isinstance(lower, msgspec.Struct):
        return overlay(lower, upper)
    if name == "extras" and isinstance(upper, dict) and isinstance(lower, dict):
        return {**lower, **upper}
    return upper


def _default_of(field: msgspec.structs.FieldInfo) -> object:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def read_all(draft: Draft, fields: Fields, table: Iterable[tuple[Level, tuple[Setting, ...]]]) -> None:
    """Read several levels by the native names of their settings."""
    for level, settings in table:
        draft.read(level, settings, fields, loose=False)


def maybe(value: Json) -> bool | None:
    """Return a yes or no, or None for a word such as `auto` that leaves it to the machine."""
    try:
        return flag(value)
    except Malformed:
        if isinstance(value, str):
            return None
        raise


def split_names(value: str) -> list[str]:
    """Return the names in a text with commas."""
    return [name.strip() for name in value.split(",") if name.strip()]


def comma_names(value: Json) -> list[str]:
    """Return names from a list, or from one text with commas between."""
    found = names(value)
    return found if isinstance(found, list) else split_names(found)


def left_over(levels: Iterable[Fields], known: frozenset[str]) -> Iterator[str]:
    """Yield the keys of these levels that nobody read or knows."""
    for fields in levels:
        yield from fields.left_over(known.__contains__)


Level = Literal["run", "optimizer", "lora", "training"]


class Setting(NamedTuple):
    """One setting: its field in the snapshot and its names in files."""

    field: str
    read: Callable[[Json], object]
    native: tuple[str, ...]
    loose: tuple[str, ...] = ()
    extra: bool = False  # kept in the level's `extras`: the snapshot has no field for it

    def names(self, fields: Fields) -> tuple[str, ...]:
        """Return every name of the setting, save loose ones that hold a section of a foreign format."""
        return self.native + tuple(name for name in self.loose if not fields.is_mapping(name))


RUN = (
    Setting(
        "model_name",
        short_name,
        ("base_model_name_or_path",),
        ("model_name", "model", "base_model", "model_name_or_path", "model_id"),
    ),
    Setting("dataset_name", short_name, (), ("dataset_name", "dataset")),
    Setting("task_profile", profile, (), ("task_profile",)),
    Setting("notes", text, (), ("notes",)),
    Setting("num_labels", whole, (), ("num_labels",)),
    Setting("task", text, (), ("task", "objective"), extra=True),
)

OPTIMIZER = (
    Setting("name", keyword, ("optim",), ("name", "optimizer", "optimizer_name")),
    Setting("lr", real, ("learning_rate",), ("lr",)),
    Setting("weight_decay", real, ("weight_decay",), ("wd",)),
    Setting("betas", reals, (), ("betas",)),
    Setting("eps", real, ("adam_epsilon",), ("eps",)),
)

LORA = (
    Setting("r", whole, ("r",), ("lora_r", "rank", "lora_rank")),
    Setting("alpha", real, ("lora_alpha",), ("alpha",)),
    Setting("target_modules", names, ("target_modules",), ("targets", "lora_target_modules", "lora_target")),
    Setting("dropout", real, ("lora_dropout",), ("dropout",)),
    Setting("bias", keyword, ("bias",), ("lora_bias_mode",)),
    Setting("use_rslora", flag, ("use_rslora",), ("rslora",)),
    Setting("use_dora", flag, ("use_dora",), ("dora",)),
    Setting("rank_pattern", pattern(whole), ("rank_pattern",)),
    Setting("alpha_pattern", pattern(real), ("alpha_pattern",)),
    Setting("peft_type", upper, ("peft_type",)),
    Setting("task_type", upper, ("task_type",)),
    Setting("init", as_text, ("init_lora_weights",), ("init",)),
    Setting("modules_to_save", name_list, ("modules_to_save",)),
    Setting("target_parameters", name_list, ("target_parameters",), extra=True),
    Setting("autocast_adapter_dtype", flag, (), ("autocast_adapter_dtype",), extra=True),
    Setting("layers_to_transform", layer_numbers, ("layers_to_transform",), extra=True),
    Setting("layers_pattern", name_list, ("layers_pattern",), extra=True),
    Setting("exclude_modules", names, ("exclude_modules",), extra=True),
    Setting("trainable_token_indices", token_indices, ("trainable_token_indices",), extra=True),
    Setting("layer_replication", layer_ranges, ("layer_replication",), extra=True),
)

TRAINING = (
    Setting("seed", whole, ("seed",)),
    Setting(
        "batch_size",
        whole,
        ("per_device_train_batch_size",),
        ("batch_size", "micro_batch_size", "train_batch_size"),
    ),
    Setting(
        "gradient_accumulation",
        whole,
        ("gradient_accumulation_steps",),
        ("gradient_accumulation", "grad_accum"),
    ),
    Setting("world_size", whole, ("world_size",)),
    Setting("max_steps", whole, ("max_steps",), ("steps",)),
    Setting("epochs", real, ("num_train_epochs",), ("epochs", "num_epochs")),
    Setting("dtype", keyword, (), ("dtype", "torch_dtype")),
    Setting("lr_scheduler", keyword, ("lr_scheduler_type",), ("lr_scheduler", "scheduler")),
    Setting("warmup_steps", real, ("warmup_steps",)),
    Setting("warmup_ratio", real, ("warmup_ratio",)),
    Setting("max_grad_norm", real, ("max_grad_norm",)),
    Setting("logging_steps", real, ("logging_steps",)),
    Setting("logging_nan_inf_filter", flag, ("logging_nan_inf_filter",)),
    Setting("eval_strategy", strategy, ("eval_strategy", "evaluation_strategy")),
    Setting("save_strategy", strategy, ("save_strategy",)),
    Setting("save_steps", real, ("save_steps",)),
    Setting("max_length", whole, ("max_length", "max_seq_length"), ("sequence_len", "cutoff_len")),
    Setting("logging_strategy", strategy, ("logging_strategy",), extra=True),
    Setting("train_examples", whole, (), ("train_examples", "n_train", "train_samples"), extra=True),
)


class Draft:
    """A snapshot being collected, level by level."""

    def __init__(self) -> None:
        self._values: dict[Level, dict[str, Json]] = {"run": {}, "optimizer": {}, "lora": {}, "training": {}}
        self._extras: dict[Level, dict[str, Json]] = {"run": {}, "optimizer": {}, "lora": {}, "training": {}}

    def read(self, level: Level, settings: Iterable[Setting], fields: Fields, *, loose: bool) -> None:
        """Take the settings out of the fields, by all their names or by the native ones."""
        for setting in settings:
            value = fields.take(setting.names(fields) if loose else setting.native, setting.read)
            if value is None:
                continue
            before = self.get(level, setting.field)
            if before is not None and before != value:
                raise fields.contradiction(setting.field)
            self.set(level, setting.field, value, extra=setting.extra)

    def set(self, level: Level, field: str, value: Json, *, extra: bool = False) -> None:
        """Set one value."""
        (self._extras if extra else self._values)[level][field] = value

    def get(self, level: Level, field: str) -> Json:
        """The value set so far, or None."""
        return self._values[level].get(field, self._extras[level].get(field))

    @property
    def is_empty(self) -> bool:
        """Whether no setting was set at all."""
        return not any(self._values.values()) and not any(self._extras.values())

    def unset(self, level: Level, field: str) -> None:
        """Forget a value that turned out to mean "not set"."""
        self._values[level].pop(field, None)

    def keep(self, level: Level, extras: dict[str, Json]) -> None:
        """Add plain values that have no field of their own."""
        self._extras[level] = {**extras, **self._extras[level]}

    def snapshot(self) -> ConfigSnapshot:
        """The snapshot of all that was set."""
        return ConfigSnapshot(
            **self._values["run"],
            extras=self._extras["run"],
            optimizer=OptimizerSnapshot(**self._values["optimizer"], extras=self._extras["optimizer"]),
            lora=LoraSnapshot(**self._values["lora"], extras=self._extras["lora"]),
            training=TrainingSnapshot(**self._values["training"], extras=self._extras["training"]),
        )
