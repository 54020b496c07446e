"""Read TrainingArguments, under old and new names, from JSON, YAML or the Trainer's pickle, which is never executed.

Most published numbers hold for one kind of training objective. `objective_of` derives the kind from a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from gradience.configs.files import MAX_JSON_BYTES, HasToDict, mapping_in, plain_mapping, read_bytes, read_mapping
from gradience.configs.settings import (
    OPTIMIZER,
    TRAINING,
    Draft,
    Layer,
    knows_training,
    layer_of,
    some_of,
    stack,
    with_ratio,
)
from gradience.configs.values import Fields, flag, keyword, place, real, whole
from gradience.errors import ConfigError
from gradience.io.reading import decode_json, read_small
from gradience.schema import Json
from gradience.schema.events import OF_PREFERENCE, OF_REWARD, OF_RL, ConfigSnapshot
from gradience.schema.reports import InputFile

ARGS_NAMES = (
    "training_args.json",
    "training_arguments.json",
    "train_args.json",
    "args.json",
    "training_args.yaml",
    "training_args.yml",
)
PICKLE_NAME = "training_args.bin"
TRAINING_NAMES = (*ARGS_NAMES, PICKLE_NAME)  # the first that is there counts
PICKLED = frozenset({".bin", ".pkl", ".pickle"})
STATE_NAME = "trainer_state.json"
MAX_STATE_BYTES = 512 * 1024 * 1024  # three million logged steps; the importer has the same limit

_TRAINERS = {  # keys that only one family of TRL's configs has, and the family's objective; the first key found decides
    "teacher_model_init_kwargs": "distillation",  # GKD and GOLD have the keys of SFT, or of RL, too
    "teacher_model_kind": "distillation",
    "num_generations": "rl",
    "num_ppo_epochs": "rl",
    "missing_eos_penalty": "rl",  # online DPO, old RLOO
    "kl_coef": "rl",
    "reference_free": "preference",
    "precompute_ref_log_probs": "preference",
    "desirable_weight": "preference",
    "cpo_alpha": "preference",
    "simpo_gamma": "preference",
    "tpo_alpha": "preference",
    "generate_during_eval": "preference",  # ORPO, which has no key of its own; CPO; older DPO and KTO
    "center_rewards_coefficient": "reward",
    "dataset_text_field": "sft",
    "completion_only_loss": "sft",
    "assistant_only_loss": "sft",
}
# A trainer of TRL: keys that its config has, and those that it has not; the first whose keys are there.
_METHODS: tuple[tuple[str, str, str], ...] = (
    ("", "teacher_model_init_kwargs", ""),
    ("", "teacher_model_kind", ""),
    ("rloo", "num_generations normalize_advantages", ""),
    ("grpo", "num_generations", ""),
    ("kto", "desirable_weight", ""),
    ("dpo", "precompute_ref_log_probs", "prompt_sample_size"),  # which is BCO's
    ("orpo", "generate_during_eval", "precompute_ref_log_probs reference_free cpo_alpha simpo_gamma tpo_alpha"),
    ("reward", "center_rewards_coefficient", ""),
)
# keys of a model's generation defaults, which a logger may write among the training arguments
_GENERATION = ("num_beams", "min_length", "no_repeat_ngram_size", "length_penalty")
_MAX_TASK = 256  # characters
_RESUMES = ["resume_from_checkpoint", "auto_resume_from_checkpoints"]


class _TrainerState(msgspec.Struct):
    """The settings in a trainer_state.json."""

    max_steps: Json = None
    logging_steps: Json = None
    save_steps: Json = None


def read_training_dir(folder: Path) -> Layer:
    """Read the training arguments in a folder, and fill gaps from a trainer_state.json beside them."""
    if folder.is_file():
        raise ConfigError(f"{folder}: a file, where a folder was expected", advice="use --training for a file")
    path = next((folder / name for name in TRAINING_NAMES if (folder / name).is_file()), None)
    if path is None:
        raise _nothing_readable(folder)
    state = folder / STATE_NAME
    return stack([*([_read_state(state)] if state.is_file() else []), read_training(path)])


def read_training(path: Path) -> Layer:
    """Read one file of training arguments; ConfigError if it is not one."""
    return training_in(path, fields_in(path, read_bytes(path, MAX_JSON_BYTES)))


def fields_in(path: Path, data: bytes) -> dict[str, Json]:
    """The mapping in the bytes of a file of settings, or of a pickle of training arguments.

    Raises:
        ConfigError: they hold none.
    """
    if path.suffix not in PICKLED:
        return mapping_in(path, data)
    from gradience.configs.pickled import pickled_in  # zipfile, which a JSON config need not pay for

    return pickled_in(path, data)


def training_in(path: Path, mapping: dict[str, Json]) -> Layer:
    """The training arguments in the mapping of a file; ConfigError if there are none."""
    if path.suffix not in PICKLED:
        return _read_mapping(mapping, str(path))
    layer = _read_mapping(_with_processes(mapping), str(path))
    return msgspec.structs.replace(layer, unknown_keys=())  # attributes of a class: none of them is a misspelt setting


def _with_processes(mapping: dict[str, Json]) -> dict[str, Json]:
    """The mapping with `world_size` added. A pickled object states it in `distributed_state`; JSON arguments do not."""
    state, gpus = mapping.get("distributed_state"), mapping.get("_n_gpu")
    processes = state.get("num_processes") if isinstance(state, dict) else None
    if not isinstance(processes, int) or processes < 1 or "world_size" in mapping:
        return mapping
    on_each = gpus if isinstance(gpus, int) and gpus > 1 else 1  # DataParallel: several GPUs of one process
    return {**mapping, "world_size": processes * on_each}


def read_training_object(arguments: HasToDict | Mapping[str, Any]) -> Layer:
    """Read a `transformers.TrainingArguments`, a subclass, or a mapping of its settings; else a ConfigError."""
    return _read_mapping(plain_mapping(arguments), type(arguments).__name__)


def _read_mapping(mapping: dict[str, Json], where: str) -> Layer:
    fields, draft = Fields(mapping, where), Draft()
    draft.read("optimizer", OPTIMIZER, fields, loose=False)
    draft.read("training", TRAINING, fields, loose=False)
    note_training(fields, draft)
    if not fields.n_read:
        message = f"{where}: no training argument in it"
        raise ConfigError(message, advice="give TrainingArguments as JSON; an adapter config goes to --peft")
    place, unknown = output_dir(fields), fields.left_over(knows_training)
    return layer_of(draft, InputFile(role="training", path=where), [fields], unknown=unknown, output_dir=place)


def output_dir(fields: Fields) -> str | None:
    """The run's output folder, which is read and never reported."""
    return fields.take(["output_dir"], place)


def note_training(fields: Fields, draft: Draft) -> None:
    """Add settings that TrainingArguments spread over several keys or express by a sentinel."""
    _note_optimizer(fields, draft)
    _note_dtype(fields, draft)
    legacy = fields.take(["per_gpu_train_batch_size"], whole)
    if legacy is not None:  # old versions of the Trainer prefer this key if it is set
        draft.set("training", "batch_size", legacy)
    max_steps = draft.get("training", "max_steps")
    if max_steps is not None and max_steps <= 0:  # -1: not set, epochs decide
        draft.unset("training", "max_steps")
    elif max_steps is not None and draft.get("training", "epochs") is not None:
        draft.set("training", "epochs_overridden", value=True, extra=True)
    model = fields.section("model_init_kwargs")
    if model is not None and (attention := model.take(["attn_implementation"], keyword)) is not None:
        draft.set("training", "attn_implementation", attention, extra=True)
    if fields.take(_RESUMES, bool):
        draft.set("training", "resumes", value=True, extra=True)
    if fields.take(["overwrite_output_dir"], flag):
        draft.set("training", "overwrites_output", value=True, extra=True)
    trainer = next((kind for key, kind in _TRAINERS.items() if key in fields), None)
    if trainer is not None:
        draft.set("training", "trainer", trainer, extra=True)
        has = next((name for name, keys, _ in _METHODS if all(key in fields for key in keys.split())), "")
        lacks = next((keys for name, _, keys in _METHODS if name == has), "")
        if has and not any(key in fields for key in lacks.split()):
            draft.set("training", "method", has, extra=True)
    elif any(key in fields for key in _GENERATION):
        draft.unset("training", "max_length")  # how long the model generates, not where rows are cut


def _note_optimizer(fields: Fields, draft: Draft) -> None:
    beta1, beta2 = fields.take(["adam_beta1"], real), fields.take(["adam_beta2"], real)
    if beta1 is not None and beta2 is not None:
        draft.set("optimizer", "betas", [beta1, beta2])
    if fields.take(["adafactor"], flag):
        draft.set("optimizer", "name", "adafactor")


def _note_dtype(fields: Fields, draft: Draft) -> None:
    bf16, fp16 = fields.take(["bf16"], flag), fields.take(["fp16"], flag)
    if bf16 or fp16:
        draft.set("training", "dtype", "bfloat16" if bf16 else "float16")
    # A Trainer writes both, so two that are false mean float32; a file by hand may state neither.
    elif bf16 is not None and fp16 is not None and draft.get("training", "dtype") is None:
        draft.set("training", "dtype", "float32")


def _read_state(path: Path) -> Layer:
    fields, draft = Fields(_state_settings(path), str(path)), Draft()
    draft.read("training", some_of(TRAINING, *_TrainerState.__struct_fields__), fields, loose=False)
    return Layer(config=draft.snapshot(), sources=(InputFile(role="trainer state", path=str(path)),))


def _state_settings(path: Path) -> dict[str, Json]:
    """Return the settings in a trainer_state.json.

    The file's history grows by 150 bytes per logged step, so a large file is decoded without it. If the history holds
    a bare NaN, which is not JSON, the slower parser reads the whole file.
    """
    try:
        if path.stat().st_size <= MAX_JSON_BYTES:
            return read_mapping(path)
        if path.stat().st_size <= MAX_STATE_BYTES:
            raw = read_small(path, most=MAX_STATE_BYTES, what="a trainer_state.json")
            state = msgspec.structs.asdict(decode_json(raw, _TrainerState))
            return {key: value for key, value in state.items() if value is not None}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # reported below, or read by the slower parser
    return read_mapping(path, most=MAX_STATE_BYTES)


def _nothing_readable(folder: Path) -> ConfigError:
    if not folder.is_dir():
        return ConfigError(f"{folder}: no such folder", advice="give the folder that holds training_args.json")
    message = f"{folder}: none of {', '.join(TRAINING_NAMES)} in it"
    return ConfigError(message, advice="write args.to_json_string() into training_args.json")


Kind = Literal["sft", "classification", "preference", "reward", "rl", "unknown"]
"""`reward` is a reward model, trained on pairs of answers (TRL's RewardTrainer)."""


class Objective(NamedTuple):
    """The kind of objective, the evidence for it, and whether the user or the trainer's own config states it."""

    kind: Kind
    because: str
    stated: bool


_NAMES: dict[Kind, str] = {
    "classification": "cola sst2 sst-2 mrpc qqp mnli qnli rte wnli stsb imdb ag_news classification",
    "sft": "sft clm causal_lm lm instruct instruction chat generation",
    "preference": "dpo orpo kto ipo simpo cpo preference",
    "reward": "reward reward_model reward_modeling rm",
    "rl": "grpo ppo rloo rl rlvr online_dpo reinforce",
}
_TASKS = {task: kind for kind, names in _NAMES.items() for task in names.split()}
_TASK_TYPES: dict[str, Kind] = {
    "CAUSAL_LM": "sft",
    "SEQ_2_SEQ_LM": "sft",
    "SEQ_CLS": "classification",
    "TOKEN_CLS": "classification",
    "QUESTION_ANS": "classification",
}
_TELLING: tuple[tuple[Kind, frozenset[str]], ...] = (
    ("preference", OF_PREFERENCE),
    ("rl", OF_RL),
    ("reward", OF_REWARD),
)
_FAMILIES: dict[str, Kind] = {"sft": "sft", "preference": "preference", "reward": "reward", "rl": "rl"}


def objective_of(config: ConfigSnapshot, ignored: AbstractSet[str] = frozenset()) -> Objective:
    """The objective of a run by the first of: the stated task, the trainer's config, logged names, other hints.

    Logged names that are `ignored` are no evidence.

    >>> objective_of(ConfigSnapshot(extras={"task": "glue/sst2"})).kind
    'classification'
    """
    task = str(config.extras.get("task") or "").strip().lower()
    family, _, name = task.rpartition("/")
    if family == "glue" or name in _TASKS:
        return Objective(_TASKS.get(name, "classification"), f"task {task}", stated=True)
    trainer = str(config.training.extras.get("trainer") or "")
    if trainer:
        return Objective(_FAMILIES.get(trainer, "unknown"), f"keys of a trainer of kind {trainer}", stated=True)
    logged = config.training.extras.get("logged_names")
    named = objective_by_names(frozenset(map(str, logged)) - ignored) if isinstance(logged, list) else None
    return named or _hinted(config)


def method_of(config: ConfigSnapshot) -> str:
    """TRL's trainer by the stated task, else by its config's keys: `dpo`, `grpo`; empty if they do not tell.

    >>> method_of(ConfigSnapshot(extras={"task": "DPO"})), method_of(ConfigSnapshot(extras={"task": "preference"}))
    ('dpo', '')
    """
    task = str(config.extras.get("task") or "").strip().lower()
    if task in _TASKS:
        return "reward" if _TASKS[task] == "reward" else task if task in {name for name, _, _ in _METHODS} else ""
    return str(config.training.extras.get("method") or "")


def objective_by_names(names: AbstractSet[str]) -> Objective | None:
    """The objective that the names of logged values imply, or None.

    >>> objective_by_names({"loss", "odds_ratio_loss"}).kind, objective_by_names({"loss", "epoch"})
    ('preference', None)
    """
    for kind, telling in _TELLING:
        hits = sorted(telling & names)
        if hits:
            return Objective(kind, f"the log has {hits[0]}", stated=False)
    return None


def _hinted(config: ConfigSnapshot) -> Objective:
    task_type = config.lora.task_type or ""
    if task_type in _TASK_TYPES:
        return Objective(_TASK_TYPES[task_type], f"task_type {task_type}", stated=False)
    base = str(config.lora.extras.get("base_model_class") or "")
    if base.endswith("Classification"):
        return Objective("classification", f"base model class {base}", stated=False)
    if base.endswith("ForCausalLM"):
        return Objective("sft", f"base model class {base}", stated=False)
    return _profiled(config)


def _profiled(config: ConfigSnapshot) -> Objective:
    if config.num_labels:
        return Objective("classification", f"{config.num_labels} labels", stated=False)
    if config.task_profile == "easy_classification":
        return Objective("classification", "task profile easy_classification", stated=True)
    if config.task_profile == "generation":
        return Objective("sft", "task profile generation", stated=False)
    return Objective("unknown", "no task, task_type or trainer says it", stated=False)


def completed(whole: Layer, task: str | None = None) -> ConfigSnapshot:
    """The settings with values derived from all sources: task and objective, keys of secrets, and alpha / r."""
    config = whole.config
    stated = {"task": task[:_MAX_TASK]} if task else {}
    secrets = {"secret_keys": whole.secret_keys, "masked_keys": whole.masked_keys}
    extras = {key: list(dict.fromkeys(names)) for key, names in secrets.items() if names}
    training = msgspec.structs.replace(config.training, extras={**config.training.extras, **extras})
    named = msgspec.structs.replace(
        config, lora=with_ratio(config.lora), training=training, extras={**config.extras, **stated}
    )
    objective = objective_of(named)
    if objective.kind == "unknown":
        return named
    understood = {"objective": objective.kind, "objective_because": objective.because}
    return msgspec.structs.replace(named, extras={**named.extras, **understood})
