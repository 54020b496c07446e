"""The lines of a ``run.jsonl``, one typed event each, and what a run was configured to do.

The snapshot of a configuration opens a log, and is the input of ``check``.

On the wire the ``extras`` of an event, of evaluation metrics and of a recommendation are not nested:
their keys stand beside the known ones. The codec in ``telemetry`` folds and unfolds them. Only the
levels of a config nest their ``extras``.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, Json, NonNegativeInt, Real, Severity, Status, TaskProfile, about

Extras = Annotated[dict[str, Json], about("Further values of this level that have no field of their own.")]

OF_PREFERENCE: Final = frozenset(
    {"rewards/margins", "rewards/chosen", "rewards/accuracies", "log_odds_ratio", "log_odds_chosen", "odds_ratio_loss"}
)
OF_RL: Final = frozenset({"reward", "reward_std", "frac_reward_zero_std", "objective/kl"})
OF_REWARD: Final = frozenset({"mean_reward", "min_reward", "max_reward"})
TELLING: Final = OF_PREFERENCE | OF_RL | OF_REWARD


FlatExtras = Annotated[dict[str, Json], about("Further values; on the wire they stand beside the known keys.")]


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


class EventBase(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, tag_field="event", gc=False):
    """The envelope of every line."""

    schema: Annotated[Literal["gradience.vnext.telemetry/v1"], about("Names the format and its major version.")]
    ts: Annotated[Real | None, about("Unix seconds, UTC. Null where the source had no clock; never invented.")]
    run_id: Annotated[str, Meta(description="One per run; kept across resume.", min_length=1)]
    step: Annotated[NonNegativeInt | None, about("Optimizer step; null outside of training.")]
    seq: (
        Annotated[
            NonNegativeInt,
            about("Counts the lines of a session from 0: reveals lost, duplicate and interleaved lines."),
        ]
        | None
    ) = None
    session: Annotated[str, about("One per process start of the writer.")] | None = None
    extras: FlatExtras = {}


class RunStart(EventBase, frozen=True, tag="run_start"):
    """A run begins, or goes on after an interruption."""

    config: ConfigSnapshot
    meta: Annotated[dict[str, Json], about("Framework, versions, provenance.")] = {}
    resumed_from_step: (
        Annotated[
            NonNegativeInt, about("Set on resume: rows of this run with a later step, written before, are superseded.")
        ]
        | None
    ) = None


class TrainStep(EventBase, frozen=True, tag="train_step"):
    """One logged row of training."""

    loss: Annotated[Real, about("Training loss as the trainer reports it.")] | None = None
    lr: Annotated[Real | list[Real], about("Learning rate used; a list is one per group.")] | None = None
    grad_norm: Annotated[Real, about("Norm of the gradient before clipping.")] | None = None
    epoch: Annotated[Real, about("Passes over the data so far.")] | None = None


class EvalMetrics(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, gc=False):
    """What one evaluation measured."""

    loss: Annotated[Real, about("Mean loss, nats.")] | None = None
    ppl: Annotated[Real, about("exp(loss).")] | None = None
    accuracy: Annotated[Real, about("Fraction correct, 0 to 1.")] | None = None
    n: Annotated[NonNegativeInt, about("Examples evaluated.")] | None = None
    extras: FlatExtras = {}


class Eval(EventBase, frozen=True, tag="eval"):
    """One evaluation of one split."""

    split: Annotated[str, about("`train`, `test`, `eval`, or the name of a data set.")]
    metrics: EvalMetrics


class Metrics(EventBase, frozen=True, tag="metrics"):
    """A block of numbers of a named kind: `lora_audit`, `spectral`, `guard`, `train_summary`, ..."""

    kind: str
    metrics: dict[str, Json]


class Alert(EventBase, frozen=True, tag="alert"):
    """Something the writer wants a person to see."""

    severity: Severity
    code: Annotated[str, about("Stable id of the condition.")]
    message: str
    context: dict[str, Json] = {}


class RecommendationItem(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One thing to consider, with its grounds."""

    severity: Severity
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


class RunEnd(EventBase, frozen=True, tag="run_end"):
    """The run is over, in order or not."""

    status: Status
    reason: str | None = None


class UnknownEvent(msgspec.Struct, kw_only=True, frozen=True):
    """A line of this major version whose event name this reader does not know: kept, counted."""

    event: str
    ts: Real | None
    run_id: str
    step: NonNegativeInt | None
    payload: dict[str, Json]


Event: TypeAlias = RunStart | TrainStep | Eval | Metrics | Alert | Recommendation | RunEnd

EVENT_TYPES: dict[str, type[EventBase]] = {
    str(cls.__struct_config__.tag): cls for cls in (RunStart, TrainStep, Eval, Metrics, Alert, Recommendation, RunEnd)
}
