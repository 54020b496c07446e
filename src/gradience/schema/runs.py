"""Many runs in tables: the rows, from which the Arrow schema is made, and the reports on them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from gradience.schema.document import Report
from gradience.schema.fleet import Counted
from gradience.schema.scalars import NonNegativeInt, about

RUNS_SCHEMA_ID: Final = "gradience.runs/v1"
RUNS_SHOW_SCHEMA_ID: Final = "gradience.runs-show/v2"
RUNS_CURVES_SCHEMA_ID: Final = "gradience.runs-curves/v2"
RUNS_BEST_SCHEMA_ID: Final = "gradience.runs-best/v2"


class RunRow(msgspec.Struct, kw_only=True, frozen=True):
    """One run. Numbers that were not logged, or are not finite, are null."""

    path: Annotated[str, about("The log, or the folder of another program's run.")]
    run: Annotated[str, about("Its id; empty where the log cannot be read.")] = ""
    error: str | None = None
    stamp: Annotated[str, about("Name, size and mtime of each file: same, and it is not read.")] = ""
    rules: Annotated[str, about("Version of the rules and columns.")] = ""
    content_hash: str = ""
    model: str | None = None
    data: str | None = None
    objective: Annotated[str, about("sft, classification, preference, rl or unknown.")] | None = None
    status: Annotated[str, about("Status of run_end, `no_run_end`, or `unreadable`.")] = "unreadable"
    verdict: Annotated[str, about("Severity of the gravest finding, `none` without one.")] | None = None
    findings: Annotated[str, about("Ids, joined by a comma.")] = ""
    story: str = ""
    r: NonNegativeInt | None = None
    alpha: float | None = None
    targets: Annotated[str, about("target_modules, joined by a comma.")] | None = None
    peft_type: str | None = None
    optimizer: str | None = None
    lr: Annotated[float, about("Highest logged, else configured.")] | None = None
    scheduler: str | None = None
    batch_size: int | None = None
    seed: int | None = None
    epochs: Annotated[float, about("Planned.")] | None = None
    steps: Annotated[NonNegativeInt, about("Last step logged.")] | None = None
    max_steps: int | None = None
    rows: NonNegativeInt = 0
    first_loss: float | None = None
    last_loss: float | None = None
    best_loss: float | None = None
    best_loss_step: NonNegativeInt | None = None
    split: Annotated[str, about("The held-out split of the next columns.")] | None = None
    eval_loss: Annotated[float, about("Newest.")] | None = None
    best_eval_loss: float | None = None
    best_eval_step: NonNegativeInt | None = None
    eval_accuracy: Annotated[float, about("Newest, 0 to 1.")] | None = None
    gap: Annotated[float, about("Held-out over train perplexity.")] | None = None
    utilization_mean: float | None = None
    started: Annotated[float, about("First clock reading, seconds since 1970.")] | None = None
    duration_s: float | None = None


class StepRow(msgspec.Struct, kw_only=True, frozen=True):
    """One training row of a run."""

    path: str
    run: str
    step: NonNegativeInt
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None


class EvalRow(msgspec.Struct, kw_only=True, frozen=True):
    """One number of one evaluation."""

    path: str
    run: str
    step: NonNegativeInt | None
    split: str
    metric: str
    value: float


class RunFindingRow(msgspec.Struct, kw_only=True, frozen=True):
    """One finding of one run."""

    path: str
    run: str
    position: NonNegativeInt
    id: str
    severity: str
    message: str
    action: str | None = None
    confidence: float | None = None


class UnreadLog(msgspec.Struct, kw_only=True, frozen=True):
    """A log without numbers, and why."""

    path: str
    error: str


class RunsShowReport(Report, kw_only=True, frozen=True):
    """What a person wants first of many runs, as `gradience runs show --json` prints it."""

    schema: Literal["gradience.runs-show/v2"]
    runs: NonNegativeInt
    training_rows: NonNegativeInt
    hours: Annotated[float, about("Sum of the durations that are known.")]
    models: Annotated[list[Counted], about("`adapters` counts runs here and below.")] = []
    data: list[Counted] = []
    objectives: list[Counted] = []
    statuses: list[Counted] = []
    verdicts: list[Counted] = []
    findings: list[Counted] = []
    unread: list[UnreadLog] = []


class BestRun(msgspec.Struct, kw_only=True, frozen=True):
    """The best run of a group."""

    group: Annotated[str, about("The value of the column grouped by; empty for all runs.")]
    runs: Annotated[NonNegativeInt, about("Runs of the group that have the metric.")]
    path: str
    run: str
    value: float
    step: NonNegativeInt | None
    last: Annotated[float, about("The same run's newest value.")]


class RunsBestReport(Report, kw_only=True, frozen=True):
    """The best runs by a metric, as `gradience runs best --json` prints it."""

    schema: Literal["gradience.runs-best/v2"]
    metric: str
    goal: Literal["least", "most"]
    by: str | None
    best: list[BestRun]
    known_metrics: list[str] = []


class Curve(msgspec.Struct, kw_only=True, frozen=True):
    """One run's values over its steps."""

    name: Annotated[str, about("Short, and its own among the curves.")]
    path: str
    run: str
    steps: list[int]
    values: list[float]


class RunsCurvesReport(Report, kw_only=True, frozen=True):
    """Several runs over each other, as `gradience runs curves --json` prints them."""

    schema: Literal["gradience.runs-curves/v2"]
    metric: str
    curves: list[Curve]
