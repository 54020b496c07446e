"""The lines of a ``run.jsonl`` as typed events, and the configuration of a run.

The snapshot of a configuration opens a log, and is the input of ``check``.

The ``extras`` of an event, of evaluation metrics and of a recommendation stand beside the known keys on the wire
(`telemetry.codec` writes and reads them so). The levels of a config and of a look at the wiring nest their ``extras``.
`gradience.events` is the public place of these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import (
    MAX_INT,
    SCHEMA_ID,
    SCHEMA_PATTERN,
    EventSeverity,
    Fraction,
    Json,
    NonNegativeInt,
    Real,
    Status,
    TaskProfile,
    about,
)
from gradience.schema.flat import Checked, Extras, Flat, FlatExtras, JsonObject, folded
from gradience.schema.wiring import (
    AdapterWiring,
    DataWiring,
    Digest,
    EvaluationWiring,
    GradientWiring,
    OptimizerWiring,
    ParameterGroup,
    PassWiring,
    SavedWiring,
    ScheduleWiring,
)

OF_PREFERENCE: Final = frozenset(
    {"rewards/margins", "rewards/chosen", "rewards/accuracies", "log_odds_ratio", "log_odds_chosen", "odds_ratio_loss"}
)
OF_RL: Final = frozenset(
    {
        *("reward", "reward_std", "frac_reward_zero_std", "objective/kl"),
        *("critic/rewards/mean", "critic/score/mean", "actor/pg_clipfrac", "actor/ppo_kl"),  # verl
        "group_reward_std",  # OpenRLHF
        *("mismatch_kl/all/mean", "mismatch_kl/mean"),  # prime-rl, whose rewards stand in another file
    }
)
OF_REWARD: Final = frozenset({"mean_reward", "min_reward", "max_reward"})
TELLING: Final = OF_PREFERENCE | OF_RL | OF_REWARD


class OptimizerSnapshot(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """The optimizer and its peak settings."""

    name: Annotated[str, about("Name, such as `adamw_torch`, `lion`, `sgd`.")] | None = None
    lr: Annotated[Real, about("Peak learning rate.")] | None = None
    weight_decay: Annotated[Real, about("Weight decay, as configured.")] | None = None
    betas: Annotated[list[Real], about("Decay rates of the moments, as Adam has them.")] | None = None
    eps: Annotated[Real, about("Adam's epsilon.")] | None = None
    extras: Extras = {}


class LoraSnapshot(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """The adapter's configuration, in PEFT's terms."""

    r: Annotated[int, about("Rank of modules that no pattern matches.")] | None = None
    alpha: Annotated[Real, about("PEFT's `lora_alpha`, for modules that no pattern matches.")] | None = None
    alpha_over_r: Annotated[Real, about("alpha / r, written so that it can be searched for.")] | None = None
    target_modules: (
        Annotated[list[str] | str, about("Module names, one regular expression, or `all-linear`.")] | None
    ) = None
    dropout: Annotated[Real, about("PEFT's `lora_dropout`, 0 to 1.")] | None = None
    bias: Annotated[str, about("`none`, `all` or `lora_only`.")] | None = None
    use_rslora: Annotated[bool, about("Whether the scaling is alpha / sqrt(r) instead of alpha / r.")] | None = None
    use_dora: Annotated[bool, about("Whether the adapter is a DoRA.")] | None = None
    rank_pattern: Annotated[dict[str, int], about("Rank by PEFT's module pattern, in order.")] | None = None
    alpha_pattern: Annotated[dict[str, Real], about("Alpha by PEFT's module pattern, in order.")] | None = None
    peft_type: Annotated[str, about("PEFT's `peft_type`, such as `LORA`.")] | None = None
    task_type: Annotated[str, about("PEFT's `task_type`, such as `CAUSAL_LM`.")] | None = None
    init: Annotated[str, about("How A and B start: PEFT's `init_lora_weights`, as text.")] | None = None
    modules_to_save: Annotated[list[str], about("Modules that are trained whole.")] | None = None
    extras: Extras = {}


class TrainingSnapshot(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """The training loop's settings: how long, in which batches, how often it logs, evaluates and saves."""

    seed: int | None = None
    batch_size: Annotated[int, about("Sequences per device and micro-batch.")] | None = None
    gradient_accumulation: Annotated[int, about("Micro-batches per optimizer step.")] | None = None
    world_size: Annotated[int, about("Data-parallel processes.")] | None = None
    max_steps: Annotated[int, about("Planned optimizer steps; null if unknown.")] | None = None
    epochs: Annotated[Real, about("Planned passes over the data.")] | None = None
    dtype: Annotated[str, about("`float32`, `bfloat16` or `float16`.")] | None = None
    lr_scheduler: Annotated[str, about("Name of the schedule, such as `cosine`.")] | None = None
    warmup_steps: Annotated[Real, about("Warm-up steps; a value below 1 is a fraction of all steps.")] | None = None
    warmup_ratio: Annotated[Real, about("Warm-up as a fraction of all steps.")] | None = None
    max_grad_norm: Annotated[Real, about("Norm at which gradients are clipped.")] | None = None
    logging_steps: (
        Annotated[Real, about("Steps between logged rows; a value below 1 is a fraction of all steps.")] | None
    ) = None
    logging_nan_inf_filter: Annotated[bool, about("Whether the log averages non-finite losses away.")] | None = None
    eval_strategy: Annotated[str, about("`no`, `steps` or `epoch`.")] | None = None
    save_strategy: Annotated[str, about("`no`, `steps` or `epoch`.")] | None = None
    save_steps: Real | None = None
    save_total_limit: Annotated[int, about("Checkpoints kept at most.")] | None = None
    eval_steps: Real | None = None
    load_best_model_at_end: Annotated[bool, about("Whether the best checkpoint is loaded at the end.")] | None = None
    metric_for_best_model: Annotated[str, about("The held-out value by which the best is chosen.")] | None = None
    greater_is_better: Annotated[bool, about("Whether more of that value is better.")] | None = None
    label_smoothing_factor: Annotated[Real, about("Share of the target spread over all classes, 0 to 1.")] | None = None
    max_length: Annotated[int, about("Tokens per sequence.")] | None = None
    extras: Extras = {}

    @property
    def planned_steps(self) -> int | None:
        """The limit on optimizer steps; None if there is none, which transformers writes as -1 or 0, or no number."""
        return self.max_steps if self.max_steps is not None and 0 < self.max_steps <= MAX_INT else None


class ConfigSnapshot(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """The configuration of one run; only values on an allow-list are collected."""

    model_name: Annotated[str, about("Hub id or folder name of the base model, never a path.")] | None = None
    dataset_name: Annotated[str, about("Name of the training data.")] | None = None
    task_profile: TaskProfile = "unknown"
    optimizer: OptimizerSnapshot = OptimizerSnapshot()
    lora: LoraSnapshot = LoraSnapshot()
    training: TrainingSnapshot = TrainingSnapshot()
    notes: str | None = None
    num_labels: Annotated[NonNegativeInt, about("Classes of a classification task.")] | None = None
    extras: Extras = {}

    @classmethod
    def fold(cls, document: JsonObject) -> JsonObject:
        """Return the object with unknown keys moved into the `extras` of their level."""
        return super().fold(_parts_folded(document, _LEVELS))


_LEVELS: Final[dict[str, type[Checked]]] = {
    "optimizer": OptimizerSnapshot,
    "lora": LoraSnapshot,
    "training": TrainingSnapshot,
}


def _parts_folded(document: JsonObject, parts: Mapping[str, type[Checked]]) -> JsonObject:
    return {**document, **{name: folded(document[name], part) for name, part in parts.items() if name in document}}


class EventBase(Flat, kw_only=True, frozen=True, omit_defaults=True, tag_field="event", gc=False):
    """The fields that every line has."""

    given: ClassVar[Mapping[str, Any]] = {"schema": SCHEMA_ID}

    # A call may leave it out (`given`), and a line may not: for msgspec it has no default.
    if TYPE_CHECKING:
        schema: str = SCHEMA_ID
    else:
        schema: Annotated[str, Meta(description="Name and version of the format.", pattern=SCHEMA_PATTERN)]
    ts: Annotated[Real | None, about("Unix time in seconds, UTC; null if the source has no clock, never invented.")]
    run_id: Annotated[str, Meta(description="Id of the run, kept when it is resumed.", min_length=1)]
    step: Annotated[NonNegativeInt | None, about("Optimizer step; null outside of training.")]
    seq: (
        Annotated[
            NonNegativeInt,
            about("Number of the line within its session, from 0; it reveals lost, duplicate and interleaved lines."),
        ]
        | None
    ) = None
    session: Annotated[str, about("Id of one process start of the writer.")] | None = None
    extras: FlatExtras = {}


class RunStart(EventBase, frozen=True, tag="run_start"):
    """A run begins, or continues after an interruption."""

    config: ConfigSnapshot
    meta: Annotated[dict[str, Json], about("Framework, versions and provenance.")] = {}
    resumed_from_step: (
        Annotated[NonNegativeInt, about("Set on resume: earlier rows of this run with a later step are superseded.")]
        | None
    ) = None

    @classmethod
    def fold(cls, document: JsonObject) -> JsonObject:
        """Return the object with unknown keys of the event and of its config in the `extras` of their level."""
        return super().fold(_parts_folded(document, {"config": ConfigSnapshot}))


class TrainStep(EventBase, frozen=True, tag="train_step"):
    """One logged row of training."""

    loss: Annotated[Real, about("Training loss as the trainer reports it.")] | None = None
    lr: Annotated[Real | list[Real], about("Learning rate used; a list has one per parameter group.")] | None = None
    grad_norm: Annotated[Real, about("Norm of the gradient before clipping.")] | None = None
    epoch: Annotated[Real, about("Passes over the data so far.")] | None = None


class EvalMetrics(Flat, kw_only=True, frozen=True, omit_defaults=True, gc=False):
    """The measurements of one evaluation."""

    loss: Annotated[Real, about("Mean loss, nats.")] | None = None
    ppl: Annotated[Real, about("Perplexity: exp(loss).")] | None = None
    accuracy: Annotated[Real, about("Fraction correct, 0 to 1.")] | None = None
    n: Annotated[NonNegativeInt, about("Examples evaluated.")] | None = None
    extras: FlatExtras = {}


class Eval(EventBase, frozen=True, tag="eval"):
    """One evaluation of one split."""

    split: Annotated[str, about("`train`, `test`, `eval`, or the name of a data set.")]
    metrics: EvalMetrics

    @classmethod
    def fold(cls, document: JsonObject) -> JsonObject:
        """Return the object with unknown keys of the event and of its metrics in their `extras`."""
        return super().fold(_parts_folded(document, {"metrics": EvalMetrics}))


class Metrics(EventBase, frozen=True, tag="metrics"):
    """A block of numbers of a named kind: `lora_audit`, `spectral`, `train_summary`, ..."""

    kind: Annotated[str, about("Name of the block, such as `lora_audit`.")]
    metrics: Annotated[dict[str, Json], about("The numbers by name.")]


class Alert(EventBase, frozen=True, tag="alert"):
    """A condition that the writer wants a person to see."""

    severity: EventSeverity
    code: Annotated[str, about("Stable id of the condition.")]
    message: Annotated[str, about("What happened, for a person.")]
    context: Annotated[dict[str, Json], about("Values that belong to the alert.")] = {}


class RecommendationItem(Flat, kw_only=True, frozen=True, omit_defaults=True):
    """One suggestion, with its grounds."""

    severity: EventSeverity
    action: Annotated[str, about("Stable id of what is suggested.")]
    message: str
    rationale: str | None = None
    confidence: Fraction | None = None
    scope: str | None = None
    evidence: dict[str, Json] = {}
    extras: FlatExtras = {}


class Recommendation(EventBase, frozen=True, tag="recommendation"):
    """Suggestions made at one point of the run."""

    recommendations: list[RecommendationItem]

    @classmethod
    def fold(cls, document: JsonObject) -> JsonObject:
        """Return the object with unknown keys of the event and of its items in their `extras`."""
        return super().fold(_parts_folded(document, {"recommendations": RecommendationItem}))


class RunEnd(EventBase, frozen=True, tag="run_end"):
    """The run is over; `status` says how it ended."""

    status: Status
    reason: Annotated[str, about("Why the run ended so.")] | None = None


_PARTS: Final[dict[str, type[Checked]]] = {
    "groups": ParameterGroup,
    "adapter": AdapterWiring,
    "optimizer": OptimizerWiring,
    "schedule": ScheduleWiring,
    "data": DataWiring,
    "saved": SavedWiring,
    "gradients": GradientWiring,
    "passes": PassWiring,
    "evaluation": EvaluationWiring,
}


class Wiring(EventBase, frozen=True, tag="wiring"):
    """What is trained, as seen in the model, the optimizer and the schedule at one moment."""

    phase: Annotated[
        str,
        about(
            "`start`, `resume`, `save`, or `gradients`: after the first steps. `pass` and `evaluation`: the model is "
            "called in another way than before, or not."
        ),
    ]
    groups: Annotated[list[ParameterGroup], about("The model's parameters by kind.")] = []
    adapter: AdapterWiring | None = None
    optimizer: OptimizerWiring | None = None
    schedule: ScheduleWiring | None = None
    data: DataWiring | None = None
    saved: SavedWiring | None = None
    gradients: GradientWiring | None = None
    passes: PassWiring | None = None
    evaluation: EvaluationWiring | None = None
    checkpointing: Annotated[bool, about("Whether activations are recomputed.")] = False
    frozen_inputs: Annotated[
        bool, about("Whether reentrant checkpointing gets inputs that need no gradient, so none flows.")
    ] = False
    tied: Annotated[list[list[str]], about("Names that share one tensor.")] = []
    dropouts: Annotated[dict[str, int], about("Number of dropout modules by their probability.")] = {}
    rng: Annotated[Digest, about("Of the states of Python's, NumPy's and torch's generators.")] | None = None
    seed: Annotated[int, about("torch's initial seed.")] | None = None
    world_size: NonNegativeInt | None = None
    unprepared: Annotated[
        list[str], about("Of `model`, `optimizer` and `loader`, those that an Accelerator there did not prepare.")
    ] = []
    asked: Annotated[list[str], about("What an Accelerator that prepared nothing was asked for.")] = []
    versions: Annotated[dict[str, str], about("Packages, CUDA, cuDNN.")] = {}
    settings: Annotated[dict[str, Json], about("Kernels: attention, determinism, TF32, compilation, autocast.")] = {}
    unseen: Annotated[list[str], about("Parts that could not be looked at, with the exception's type.")] = []

    @classmethod
    def fold(cls, document: JsonObject) -> JsonObject:
        """Return the object with unknown keys of the event and of its parts in their `extras`."""
        return super().fold(_parts_folded(document, _PARTS))


class StepDigests(EventBase, frozen=True, tag="step_digests"):
    """Digests of what consecutive optimizer steps were fed, for a comparison of two runs; no token can be told."""

    first: Annotated[NonNegativeInt, about("The first of the steps; one entry of each list is one step.")]
    batches: Annotated[list[str], about("24 bits of each row, micro-batches divided by `|`; `+` is the sum of more.")]
    rng: Annotated[
        list[str],
        about(
            "32 bits of torch's random states before the step's first batch; every 16 steps also Python's and NumPy's."
        ),
    ] = []


class Throughput(EventBase, frozen=True, tag="throughput"):
    """How fast the steps since the last such event went, what they waited for, and the memory they took."""

    steps: Annotated[NonNegativeInt, about("Optimizer steps of the window.")]
    seconds_per_step: (
        Annotated[Real, about("Wall time without evaluations and saves; of an import, with saves.")] | None
    ) = None
    waiting_share: Annotated[Fraction, about("Share of that time before a batch was there.")] | None = None
    tokens_per_second: Annotated[Real, about("Tokens that are no padding.")] | None = None
    padded_tokens_per_second: (
        Annotated[Real, about("The same with padding, or as another program counts them.")] | None
    ) = None
    samples_per_second: Annotated[Real, about("Examples, as another program's summary counts them.")] | None = None
    longest: Annotated[NonNegativeInt, about("Tokens of the longest row, padding included.")] | None = None
    rows: Annotated[NonNegativeInt, about("Rows of the largest micro-batch.")] | None = None
    peak_bytes: Annotated[NonNegativeInt, about("Most memory so far: torch's allocator, else the process.")] | None = (
        None
    )
    reserved_bytes: (
        Annotated[NonNegativeInt, about("Most that torch's allocator has reserved so far, or that a card was full.")]
        | None
    ) = None
    held_bytes: Annotated[NonNegativeInt, about("Memory held between steps, at the window's end.")] | None = None
    total_bytes: Annotated[NonNegativeInt, about("Memory of the card, or of the machine.")] | None = None


class UnknownEvent(msgspec.Struct, kw_only=True, frozen=True):
    """A line of this major version whose event name this reader does not know; it is kept and counted."""

    event: str
    ts: Real | None
    run_id: str
    step: NonNegativeInt | None
    payload: dict[str, Json]
    schema: str = SCHEMA_ID

    @property
    def seq(self) -> int | None:
        """Number of the line within its session, if the payload has it as the known events do."""
        seq = self.payload.get("seq")
        return seq if isinstance(seq, int) and not isinstance(seq, bool) and 0 <= seq <= MAX_INT else None

    @property
    def session(self) -> str | None:
        """Id of the writer's process start, if the payload has it as the known events do."""
        session = self.payload.get("session")
        return session if isinstance(session, str) else None


Event: TypeAlias = (
    RunStart | TrainStep | Eval | Metrics | Alert | Recommendation | RunEnd | Wiring | StepDigests | Throughput
)

EVENT_TYPES: dict[str, type[EventBase]] = {
    str(cls.__struct_config__.tag): cls
    for cls in (RunStart, TrainStep, Eval, Metrics, Alert, Recommendation, RunEnd, Wiring, StepDigests, Throughput)
}
