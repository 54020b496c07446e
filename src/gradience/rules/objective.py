"""The training objective of a run, and the evidence for it.

Most published numbers hold for one kind of objective. `objective_of` derives the kind from a configuration. A rule uses
`only_under` or `not_under` to abstain under an objective that it does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Set as AbstractSet
from typing import Literal, NamedTuple, Protocol

from gradience.schema.events import OF_PREFERENCE, OF_REWARD, OF_RL, ConfigSnapshot

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
_TRAINERS: dict[str, Kind] = {"sft": "sft", "preference": "preference", "reward": "reward", "rl": "rl"}


def objective_of(config: ConfigSnapshot) -> Objective:
    """The objective of a run by the first of: the stated task, the trainer's config, logged names, other hints.

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
    logged = config.training.extras.get("logged_names")
    named = objective_by_names(frozenset(map(str, logged))) if isinstance(logged, list) else None
    return named or _hinted(config)


def objective_by_names(names: AbstractSet[str]) -> Objective | None:
    """The objective that the names of logged values imply, or None.

    >>> objective_by_names({"loss", "odds_ratio_loss"}).kind, objective_by_names({"loss", "epoch"})
    ('preference', None)
    """
    for kind, telling in _TELLING:
        found = sorted(telling & names)
        if found:
            return Objective(kind, f"the log has {found[0]}", stated=False)
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


def has_perplexity(kind: str) -> bool:
    """Whether the loss under this objective is a cross-entropy, so that its exponential is a perplexity."""
    return kind not in {"preference", "reward", "rl"}


class HasObjective(Protocol):
    """A configuration or a run with an objective."""

    @property
    def objective(self) -> Objective:
        """The training objective."""


def only_under(*kinds: Kind) -> Callable[[HasObjective], bool]:
    """Return a rule's `applies`: true under these objectives. Under others the rule is not listed at all."""
    return lambda facts: facts.objective.kind in kinds


def not_under(*kinds: Kind) -> Callable[[HasObjective], str | None]:
    """Return a rule's need: under these objectives the rule is listed as not judged, with the reason."""

    def reason(facts: HasObjective) -> str | None:
        kind, because, _ = facts.objective
        return f"does not fit the objective {kind} ({because})" if kind in kinds else None

    return reason
