"""Many adapters, or many runs, in tables: their rows, from which Arrow schemas are made, and the reports on them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from gradience.schema import Json, NonNegativeInt, about
from gradience.schema.document import Report

FLEET_SCHEMA_ID: Final = "gradience.fleet/v1"
FLEET_AUDIT_SCHEMA_ID: Final = "gradience.fleet-audit/v2"
FLEET_SHOW_SCHEMA_ID: Final = "gradience.fleet-show/v2"
QUERY_SCHEMA_ID: Final = "gradience.query/v2"

RowStatus = Literal["ok", "error", "crashed"]
RUNS_SCHEMA_ID: Final = "gradience.runs/v1"
RUNS_SHOW_SCHEMA_ID: Final = "gradience.runs-show/v2"
RUNS_CURVES_SCHEMA_ID: Final = "gradience.runs-curves/v2"
RUNS_BEST_SCHEMA_ID: Final = "gradience.runs-best/v2"


class AdapterRow(msgspec.Struct, kw_only=True, frozen=True):
    """One adapter of a fleet. Means run over modules with a finite, non-zero update; null where there is none."""

    path: Annotated[str, about("Absolute path of the folder or weights file, or its URL.")]
    status: Annotated[RowStatus, about("`error`: it cannot be read; `crashed`: a worker died on it twice.")] = "ok"
    error: str | None = None
    content_hash: Annotated[str, about("XXH3-128 over config and weights; empty where unread.")] = ""
    weights_hash: Annotated[str, about("XXH3-128 over the weights files alone.")] = ""
    rules: Annotated[str, about("Version of the rules and numbers.")] = ""
    stamp: Annotated[str, about("Name, size, mtime and etag of each file: same, and it is not read.")] = ""
    bytes: NonNegativeInt = 0
    format: str | None = None
    peft_type: str | None = None
    base_model: str | None = None
    verdict: Annotated[str, about("As `gradience audit`: trained, untrained, broken, ...")] | None = None
    reason: str | None = None
    modules: NonNegativeInt = 0
    not_analysed: NonNegativeInt = 0
    r: Annotated[NonNegativeInt, about("Largest rank of a module.")] | None = None
    r_min: NonNegativeInt | None = None
    module_types: Annotated[str, about("Types of adapted modules, joined by a comma.")] = ""
    shape_key: Annotated[str, about("Hash of the adapted modules' names and shapes.")] = ""
    params: NonNegativeInt = 0
    stable_rank_mean: float | None = None
    effective_rank_mean: float | None = None
    utilization_mean: float | None = None
    energy_rank_90_p50: float | None = None
    energy_rank_90_p90: float | None = None
    null_stable_rank_mean: float | None = None
    frobenius_norm: Annotated[float, about("Of the whole update, scaled.")] | None = None
    relative_frobenius: Annotated[float, about("Of the update over the base; null without base.")] | None = None
    suggested_rank: Annotated[NonNegativeInt, about("Bucket of the 90th percentile of k@90.")] | None = None
    bytes_saved: Annotated[NonNegativeInt, about("By a cut to `suggested_rank`.")] = 0
    findings: NonNegativeInt = 0
    worst: Annotated[str, about("Severity of the gravest finding.")] | None = None
    sketch: Annotated[list[float], about("Random projections of the update: near duplicates agree.")] = []


class ModuleRow(msgspec.Struct, kw_only=True, frozen=True):
    """One module of one adapter: `modules` of `gradience audit --json`, as columns."""

    path: Annotated[str, about("The adapter's.")]
    position: Annotated[NonNegativeInt, about("Place in the adapter, from 0.")]
    name: str
    module_type: str
    layer: NonNegativeInt | None = None
    kind: str = "linear"
    rows: NonNegativeInt = 0
    columns: NonNegativeInt = 0
    r: NonNegativeInt = 0
    config_r: NonNegativeInt | None = None
    alpha: float | None = None
    scaling: float | None = None
    rslora: bool = False
    params: NonNegativeInt = 0
    state: str = "ok"
    stable_rank: float | None = None
    effective_rank: float | None = None
    participation_ratio: float | None = None
    utilization: float | None = None
    energy_rank_90: NonNegativeInt | None = None
    energy_rank_95: NonNegativeInt | None = None
    energy_rank_99: NonNegativeInt | None = None
    knee_rank: NonNegativeInt | None = None
    spectral_norm: float | None = None
    frobenius_norm: float | None = None
    null_stable_rank: float | None = None
    energy_share: float | None = None
    udr: float | None = None
    relative_frobenius: float | None = None


class FindingRow(msgspec.Struct, kw_only=True, frozen=True):
    """One finding of one adapter or run."""

    path: str
    position: NonNegativeInt
    id: str
    severity: str
    message: str
    action: str | None = None
    confidence: float | None = None


class FleetAuditReport(Report, kw_only=True, frozen=True):
    """What `gradience fleet audit` did."""

    schema: Literal["gradience.fleet-audit/v2"]
    out: str
    engine: str
    workers: NonNegativeInt
    found: Annotated[NonNegativeInt, about("Adapters below the roots.")]
    audited: Annotated[NonNegativeInt, about("Read in this call.")]
    unchanged: Annotated[NonNegativeInt, about("Kept: size, mtime, or else content are the same.")]
    removed: Annotated[NonNegativeInt, about("Rows whose adapter is no longer below the roots.")]
    errors: Annotated[NonNegativeInt, about("Rows that hold an error instead of numbers.")]
    crashed: NonNegativeInt = 0
    seconds: float
    notes: list[str] = []


class Counted(msgspec.Struct, kw_only=True, frozen=True):
    """How many adapters share a value."""

    value: str
    adapters: NonNegativeInt


class Faulty(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter that needs a look, and why."""

    path: str
    verdict: str
    reason: str


class Wasteful(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter of which much could be cut away."""

    path: str
    r: NonNegativeInt
    suggested_rank: NonNegativeInt
    utilization_mean: float
    bytes_saved: NonNegativeInt


class RankBuckets(msgspec.Struct, kw_only=True, frozen=True):
    """A number of servers, each with its own maximal rank, and what their padding wastes."""

    max_lora_ranks: list[int]
    adapters: Annotated[list[int], about("How many fall to each.")]
    padding_bytes: NonNegativeInt


class Serving(msgspec.Struct, kw_only=True, frozen=True):
    """The healthy adapters of one base on a multi-LoRA server, which pads each to its maximal rank."""

    base_model: str
    adapters: NonNegativeInt
    ranks: dict[str, int]
    max_lora_rank: Annotated[NonNegativeInt, about("Least size of the server's that holds all.")] | None
    used_bytes: Annotated[NonNegativeInt, about("Of the factors, at two bytes a number.")]
    padding_bytes: Annotated[NonNegativeInt, about("Zeros beside them at that size.")]
    buckets: Annotated[list[RankBuckets], about("The best split into 1, 2, ... sizes.")] = []


class Alike(msgspec.Struct, kw_only=True, frozen=True):
    """Adapters of equal content, or two whose updates nearly agree."""

    paths: list[str]
    cosine: Annotated[float, about("Of the updates, by Gram matrices; null for equal content.")] | None = None


class Similar(msgspec.Struct, kw_only=True, frozen=True):
    """Equal and nearly equal adapters."""

    threshold: Annotated[float, about("Cosine from which two are listed.")]
    same: Annotated[list[Alike], about("Equal content hash.")] = []
    near: Annotated[list[Alike], about("Cosine at or over the threshold, largest first.")] = []
    compared: Annotated[NonNegativeInt, about("Pairs whose cosine was computed from the factors.")] = 0
    not_compared: Annotated[NonNegativeInt, about("Candidate pairs over the limit, or unreadable.")] = 0
    all_pairs: Annotated[NonNegativeInt, about("Pairs of one base and shape there are.")] = 0


class OtherShape(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter whose modules have other shapes than most that declare the same base."""

    path: str
    base_model: str
    module: str
    shape: list[int]
    usual: list[int]
    usual_adapters: Annotated[NonNegativeInt, about("Adapters of that base with the usual shape.")]


class FleetShowReport(Report, kw_only=True, frozen=True):
    """What a person wants first of a fleet, as `gradience fleet show --json` prints it."""

    schema: Literal["gradience.fleet-show/v2"]
    fleet: str
    adapters: NonNegativeInt
    modules: NonNegativeInt
    bytes: NonNegativeInt
    bases: list[Counted] = []
    types: list[Counted] = []
    ranks: list[Counted] = []
    verdicts: list[Counted] = []
    findings: Annotated[list[Counted], about("Adapters by the id of a finding.")] = []
    faulty: Annotated[list[Faulty], about("Unreadable, broken, untrained and random-like ones.")] = []
    faulty_total: NonNegativeInt = 0
    wasteful: list[Wasteful] = []
    serving: list[Serving] = []
    similar: Similar
    other_shapes: list[OtherShape] = []
    notes: list[str] = []


class QueryColumn(msgspec.Struct, kw_only=True, frozen=True):
    """A column of a result."""

    name: str
    type: Annotated[str, about("As DuckDB names it.")]


class QueryReport(Report, kw_only=True, frozen=True):
    """The result of a query, as `gradience fleet query --json` prints it."""

    schema: Literal["gradience.query/v2"]
    sql: str
    columns: list[QueryColumn]
    rows: Annotated[list[list[Json]], about("Dates and decimals as text.")]


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
