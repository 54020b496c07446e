"""A configuration as the rules read it: its values, quantities derived from them, and its surroundings.

Each property of `Facts` is a value that several rules need, derived in one place. If the configuration does not
determine it, the property raises `Unknown` with the reason for the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

from gradience.configs.families import Dimensions, Family, family_of, plain_name
from gradience.configs.settings import states_adapter
from gradience.configs.training import Objective, objective_of
from gradience.rules import Premise, Rule, Unknown
from gradience.schema import Json, NonFinite, Real, as_float, real
from gradience.schema.document import Coverage, Finding, RuleGroup
from gradience.schema.events import ConfigSnapshot
from gradience.schema.memory import Memory

T = TypeVar("T")


Moment: TypeAlias = Literal["to come", "begun", "logged", "weighed"]
"""When a configuration is judged: before the run; after it began, without its log; with a log that is not read here;
or with a log that is read beside it, so that what it predicts can be compared with what came."""


class Moved(NamedTuple):
    """Modules are named below `old`, and the base has them below `new`; an empty text is the top."""

    old: str
    new: str
    saved: bool
    """Whether an adapter's weights are named so, and not only the targets of its configuration."""


class CheckContext(NamedTuple):
    """The surroundings of a configuration, as far as examined. A `no_` field says why something is missing."""

    moment: Moment = "to come"
    begun: str = ""
    """The file that shows that the run has begun."""
    epochs_seen: float | None = None
    """Passes over the data by the run's log, which a limit on steps may have cut short."""

    stated: frozenset[str] = frozenset()
    """Settings given as options, or in live objects: whatever lies beside them, they are about a run to come."""
    model: Dimensions | None = None
    """What the config.json of the base tells, if the base is a folder here."""
    coverage: Coverage | None = None
    no_coverage: str = "the base model is not given (--base)"
    moved: Moved | None = None
    absent: frozenset[str] = frozenset()
    """Modules that an adapter's weights are of and the base does not have, under no other name that is known."""
    no_tokenizers: str = ""
    new_rows: tuple[str, ...] = ()
    """Tokens in the run's added_tokens.json whose ids lie beyond the base's embedding."""
    output: tuple[str, ...] | None = None
    """Names of the run's files and folders that the output folder already holds."""
    no_output: str = "output_dir is not given"
    unknown_keys: tuple[str, ...] | None = None
    """Keys in the file that are neither read as a setting nor known to any program; None if no file was read."""
    memory: Memory | None = None
    """What a step takes of the device's memory, if the base is given."""
    engines: tuple[str, ...] = ()
    """Engines that the adapter is meant for, each with @VERSION if one is named."""
    flags: Mapping[str, tuple[str, ...]] = {}
    """The flags that the server is started with, and their values."""
    groups: Mapping[str, Sequence[str]] | None = None
    """The modules in the header of the adapter's weights, by the groups that engines tell apart."""
    energy: Callable[[Sequence[str]], float | None] | None = None
    """Gives the share of the update's energy that some of the modules hold; None if it cannot be told."""


class Facts:
    """A configuration and quantities derived from it. A property raises Unknown if the settings do not determine it."""

    def __init__(self, config: ConfigSnapshot, around: CheckContext | None = None) -> None:
        self.config = config
        self.around = around or CheckContext()
        self.objective: Objective = objective_of(config)
        noted = config.lora.extras.get("base_model_type")
        self.model_type = self.around.model.model_type if self.around.model else str(noted or "") or None

    @cached_property
    def family(self) -> Family | None:
        """The family that the model's type, else its name, tells; None if it is in none."""
        return family_of(self.config.model_name, self.model_type)

    @property
    def layers(self) -> int | None:
        """The number of the model's layers, by its config.json, else by its name; None if neither tells it."""
        return self.around.model.layers if self.around.model else self._size_by_name[1]

    @property
    def _size_by_name(self) -> tuple[int | None, int | None]:
        name = self.config.model_name
        return (self.family and name and self.family.size(plain_name(name))) or (None, None)

    @property
    def lr(self) -> float:
        """Peak learning rate, above zero."""
        return _positive(self.config.optimizer.lr, "lr")

    @property
    def adam_lr(self) -> float:
        """Peak learning rate of an optimizer of the Adam family, for which alone bands are published.

        An optimizer that is not named counts as Adam, every library's default.
        """
        if self.is_adam is False:
            raise Unknown(f"optimizer {self.config.optimizer.name} is not of the Adam family: no published band")
        return self.lr

    @property
    def is_adam(self) -> bool | None:
        """Whether the optimizer is of the Adam family; None if it is not named."""
        name = self.config.optimizer.name
        return None if name is None else any(kin in name.lower() for kin in ("adam", "ademamix"))

    @property
    def r(self) -> int:
        """Rank, above zero."""
        r = given(self.config.lora.r, "r")
        if r < 1:
            raise Unknown("r is below 1 (see VAL001)")
        return r

    @property
    def alpha(self) -> float:
        """PEFT's lora_alpha, above zero."""
        return _positive(self.config.lora.alpha, "lora_alpha")

    @property
    def scaling(self) -> float:
        """Factor on B A: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        return self.alpha / (math.sqrt(self.r) if self.config.lora.use_rslora else self.r)

    @property
    def early_step(self) -> float:
        """Scaling x r x lr: how far early Adam steps move the update, up to a constant factor. A heuristic."""
        return self.scaling * self.r * self.lr

    @property
    def batch_per_process(self) -> int:
        """Sequences per optimizer step on one process."""
        batch = given(self.config.training.batch_size, "batch size")
        accumulation = self.config.training.gradient_accumulation
        if accumulation is None and "batch_from" in self.config.training.extras:  # from a log: assume no default
            raise Unknown("the gradient accumulation is not given: the log has the batch of one device only")
        return _at_least_one(batch, "batch size") * _at_least_one(
            1 if accumulation is None else accumulation, "gradient accumulation"
        )

    @property
    def effective_batch(self) -> int:
        """Sequences per optimizer step over all processes.

        If the accumulation is not configured and the log's summary shows this number, it is taken from there.
        """
        shown = self.config.training.extras.get("samples_per_step")
        if self.config.training.gradient_accumulation is None and isinstance(shown, int) and shown > 0:
            return shown
        world = given(self.config.training.world_size, "number of processes")
        return self.batch_per_process * _at_least_one(world, "number of processes")

    @property
    def max_steps(self) -> int | None:
        """The limit on optimizer steps; None if there is none."""
        return self.config.training.planned_steps

    @property
    def steps(self) -> int:
        """Planned optimizer steps, as transformers' Trainer counts them (5.24, set_initial_training_values)."""
        training = self.config.training
        if self.max_steps is not None:
            return self.max_steps
        examples = training.extras.get("train_examples")
        if not isinstance(examples, int) or examples < 1:
            raise Unknown("the number of optimizer steps is not known: neither max_steps nor the size of the data")
        epochs = _positive(training.epochs, "epochs")
        return math.ceil(epochs * self._steps_per_epoch(examples))

    def _steps_per_epoch(self, examples: int) -> int:
        if self.config.training.extras.get("drop_last") is not True:
            return math.ceil(examples / self.effective_batch)
        accumulation = self.config.training.gradient_accumulation or 1
        batches = examples // (self.effective_batch // accumulation)
        if not batches:
            raise Unknown("the data are less than one batch, which dataloader_drop_last leaves out")
        return math.ceil(batches / accumulation)

    @property
    def epochs(self) -> float:
        """Passes over the data: those that the log shows, else as configured.

        With max_steps and counted data they are computed from the number of examples.
        """
        if self.around.epochs_seen is not None:
            return self.around.epochs_seen
        training = self.config.training
        examples = training.extras.get("train_examples")
        # Only a check of the data notes train_tokens; its examples are what a step takes, packed sequences too
        if self.max_steps is not None and "train_tokens" in training.extras and isinstance(examples, int) and examples:
            return self.steps * self.effective_batch / examples
        if training.extras.get("epochs_overridden"):
            raise Unknown("max_steps overrides epochs, so how often the data repeats is not known")
        return as_float(given(training.epochs, "epochs"))

    @property
    def coverage(self) -> Coverage:
        """The modules of the base that the targets reach."""
        if self.around.coverage is None:
            raise Unknown(self.around.no_coverage)
        return self.around.coverage

    @property
    def logged_every(self) -> float:
        """Steps between logged rows; infinite if logging is off."""
        strategy = self.config.training.extras.get("logging_strategy")
        if strategy == "no":
            return math.inf
        if strategy == "epoch":
            raise Unknown("logging_strategy is 'epoch': rows come per epoch, not per step")
        return self._in_steps(self.config.training.logging_steps, "logging_steps")

    @property
    def saved_every(self) -> float:
        """Steps between checkpoints; infinite if saving is off."""
        strategy = given(self.config.training.save_strategy, "save_strategy")
        if strategy == "no":
            return math.inf
        if strategy != "steps":
            raise Unknown(f"save_strategy is '{strategy}': checkpoints do not come per step")
        return self._in_steps(self.config.training.save_steps, "save_steps")

    @property
    def warmup_share(self) -> float:
        """Warm-up steps as a share of all steps. warmup_steps overrides warmup_ratio, as in transformers."""
        training = self.config.training
        warmup = None if training.warmup_steps is None else as_float(training.warmup_steps)
        if warmup is not None and warmup >= 1:
            return warmup / self.steps
        if warmup is not None and warmup > 0:
            return warmup
        # 0 is transformers' default for warmup_steps, and leaves warmup_ratio in force
        return 0.0 if warmup == 0 and training.warmup_ratio is None else self._warmup_ratio

    @property
    def has_warmup(self) -> bool:
        """Whether any warm-up is configured."""
        training = self.config.training
        if training.warmup_steps is None and training.warmup_ratio is None:
            raise Unknown("warmup is not given")
        return any(
            value is not None and as_float(value) > 0 for value in (training.warmup_steps, training.warmup_ratio)
        )

    @property
    def _warmup_ratio(self) -> float:
        return as_float(given(self.config.training.warmup_ratio, "warmup"))

    def _in_steps(self, value: float | NonFinite | None, name: str) -> float:
        every = _positive(value, name)
        return every if every >= 1 else every * self.steps  # below 1, transformers reads a ratio


def about_lora(facts: Facts) -> str | None:
    """The reason why a rule about LoRA does not apply to another kind of adapter, or None."""
    kind = facts.config.lora.peft_type
    return None if kind in {None, "LORA"} else f"peft_type {kind} is not LoRA: the rule does not apply"


def _an_adapter(facts: Facts) -> str | None:
    stated = states_adapter(facts.config.lora)
    return None if stated else "no adapter is configured, so this may be a full fine-tune"


def _supervised(facts: Facts) -> str | None:
    kind, because, _ = facts.objective
    return None if kind in {"sft", "classification"} else f"objective {kind} ({because}): it needs supervised training"


def _causal_sft(facts: Facts) -> str | None:
    kind, because, _ = facts.objective
    if kind != "sft":
        return f"objective {kind} ({because}): the evidence is for supervised training of a causal LM"
    task_type = facts.config.lora.task_type
    return None if task_type in {None, "CAUSAL_LM"} else f"task_type {task_type}: the evidence is for a causal LM"


def _to_come(facts: Facts) -> str | None:
    begun = facts.around.begun
    return None if facts.around.moment == "to come" else f"about a run to come; this one has begun ({begun})"


def _not_foregone(facts: Facts) -> str | None:
    begun = facts.around.begun
    if facts.around.moment != "logged":
        return None
    return f"the run has begun ({begun}): gradience diagnose reads what came of it"


def _open_or_weighed(facts: Facts) -> str | None:
    return None if facts.around.moment == "weighed" else _to_come(facts)


LORA: Final = Premise("the adapter is LoRA", about_lora)
AN_ADAPTER: Final = Premise("an adapter is configured", _an_adapter)
SUPERVISED: Final = Premise("the objective is known to be supervised", _supervised)
CAUSAL_SFT: Final = Premise("supervised training of a causal LM", _causal_sft)
TO_COME: Final = Premise("the run is still to come", _to_come)
NOT_FOREGONE: Final = Premise("no log shows yet what came of it, or the log is read beside it", _not_foregone)
OPEN_OR_WEIGHED: Final = Premise("the run is still to come, or its log is read beside it", _open_or_weighed)


@dataclass(frozen=True, kw_only=True)
class ConfigRule(Rule[Facts]):
    """A rule that `gradience check` applies to a configuration.

    Attributes:
        predicts: whether a finding predicts what a run would do or lack. A diagnosis whose log judges that, and shows
            nothing of it, leaves the finding out.
    """

    groups: tuple[RuleGroup, ...] = ("config",)
    predicts: bool = False


@dataclass(frozen=True, kw_only=True)
class LoraRule(ConfigRule):
    """A rule about LoRA; it is not judged for other kinds of adapter, or where no adapter is configured."""

    needs: tuple[Premise[Facts], ...] = (LORA, AN_ADAPTER)


def stops(found: Finding) -> Mapping[str, Json]:
    """The value of a finding that alone can stop a run from learning, for the rules that join it."""
    return {"stops": found.message}


def given(value: T | None, name: str) -> T:
    """Return the value.

    Raises:
        Unknown: the value is None; the message has its name.
    """
    if value is None:
        raise Unknown(f"{name} is not given")
    return value


def _positive(value: float | NonFinite | None, name: str) -> float:
    number = as_float(given(value, name))
    if not (number > 0 and math.isfinite(number)):
        raise Unknown(f"{name} is not a positive number (see VAL001)")
    return number


def _at_least_one(value: int, name: str) -> int:
    if value < 1:
        raise Unknown(f"{name} is below 1 (see VAL001)")
    return value


_OF_LORA: Final[dict[str, Callable[[Facts], float]]] = {
    "scaling": lambda facts: facts.scaling,
    "scaling_r_lr": lambda facts: facts.early_step,
}
_OF_TRAINING: Final[dict[str, Callable[[Facts], float]]] = {
    "batch_per_process": lambda facts: facts.batch_per_process,
    "effective_batch": lambda facts: facts.effective_batch,
    "planned_steps": lambda facts: facts.steps,
    "warmup_share": lambda facts: facts.warmup_share,
}


def quantities(config: ConfigSnapshot) -> dict[str, Real]:
    """The derived quantities that the configuration determines, by name.

    Quantities it does not determine are left out. The rules that need one say why it is unknown.
    """
    facts = Facts(config)
    known: dict[str, Real] = {}
    for name, read in (_OF_TRAINING if about_lora(facts) else _OF_LORA | _OF_TRAINING).items():
        with suppress(Unknown):
            known[name] = real(float(read(facts)))
    return known
