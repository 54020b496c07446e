"""What a run optimises, and on what grounds that is believed. Rules abstain where they do not fit."""

from __future__ import annotations

from typing import Literal, NamedTuple

from gradience.schema.config import ConfigSnapshot

__all__ = ["Kind", "Objective", "objective_of"]

Kind = Literal["sft", "classification", "preference", "rl", "unknown"]


class Objective(NamedTuple):
    """The kind of objective; ``stated`` where the user or the trainer's own config says so."""

    kind: Kind
    because: str
    stated: bool


_TASKS: dict[str, Kind] = {
    **dict.fromkeys(
        [
            "cola",
            "sst2",
            "sst-2",
            "mrpc",
            "qqp",
            "mnli",
            "qnli",
            "rte",
            "wnli",
            "stsb",
            "imdb",
            "ag_news",
            "classification",
        ],
        "classification",
    ),
    **dict.fromkeys(["sft", "clm", "causal_lm", "lm", "instruct", "instruction", "chat", "generation"], "sft"),
    **dict.fromkeys(["dpo", "orpo", "kto", "ipo", "simpo", "cpo", "preference"], "preference"),
    **dict.fromkeys(["grpo", "ppo", "rloo", "rl", "rlvr", "online_dpo", "reinforce"], "rl"),
}
_TASK_TYPES: dict[str, Kind] = {
    "CAUSAL_LM": "sft",
    "SEQ_2_SEQ_LM": "sft",
    "SEQ_CLS": "classification",
    "TOKEN_CLS": "classification",
    "QUESTION_ANS": "classification",
}
_TRAINERS: dict[str, Kind] = {"sft": "sft", "preference": "preference", "rl": "rl"}


def objective_of(config: ConfigSnapshot) -> Objective:
    """Return the objective: the task as stated, else the trainer's config, else hints of model and head.

    >>> objective_of(ConfigSnapshot(extras={"task": "glue/sst2"})).kind
    'classification'
    """
    task = str(config.extras.get("task") or "").strip().lower()
    family, _, name = task.rpartition("/")
    if family == "glue" or name in _TASKS:
        return Objective(_TASKS.get(name, "classification"), f"task {task}", stated=True)
    trainer = str(config.training.extras.get("trainer") or "")
    if trainer:
        return Objective(_TRAINERS.get(trainer, "unknown"), f"keys of a trainer of kind {trainer}", stated=True)
    return _hinted(config)


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
