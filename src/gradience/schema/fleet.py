"""Types of tables of many adapters or runs: their rows, which define the Arrow schemas, and the reports on them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from gradience.schema import Json, NonNegativeInt, about
from gradience.schema.document import Report

FLEET_SCHEMA_ID: Final = "gradience.fleet/v1"
FLEET_AUDIT_SCHEMA_ID: Final = "gradience.fleet-audit/v3"
FLEET_SHOW_SCHEMA_ID: Final = "gradience.fleet-show/v2"
QUERY_SCHEMA_ID: Final = "gradience.query/v2"

RowStatus = Literal["ok", "error", "crashed"]
RUNS_SCHEMA_ID: Final = "gradience.runs/v1"
RUNS_CURVES_SCHEMA_ID: Final = "gradience.runs-curves/v2"
RUNS_BEST_SCHEMA_ID: Final = "gradience.runs-best/v2"


class AdapterRow(msgspec.Struct, kw_only=True, frozen=True):
    """One adapter of a fleet. Means run over the modules with a finite, non-zero update; null if there is none."""

    path: Annotated[str, about("Absolute path of the folder or weights file, or its URL.")]
    status: Annotated[RowStatus, about("`error`: it cannot be read; `crashed`: a worker died on it twice.")] = "ok"
    error: Annotated[str, about("Why it has no numbers; null if it has.")] | None = None
    content_hash: Annotated[str, about("XXH3-128 over config and weights; empty if not read.")] = ""
    weights_hash: Annotated[str, about("XXH3-128 over the weights files alone.")] = ""
    rules: Annotated[str, about("Version of the rules and numbers that made this row.")] = ""
    stamp: Annotated[
        str, about("Name, size, mtime and etag of each file; while equal, the adapter is not read again.")
    ] = ""
    bytes: Annotated[NonNegativeInt, about("Bytes of all tensors.")] = 0
    format: str | None = None
    peft_type: str | None = None
    base_model: str | None = None
    verdict: Annotated[str, about("Verdict as in `gradience audit`: trained, untrained, broken, ...")] | None = None
    reason: str | None = None
    modules: Annotated[NonNegativeInt, about("Adapted modules.")] = 0
    not_analysed: Annotated[NonNegativeInt, about("Tensors or groups of tensors without numbers.")] = 0
    r: Annotated[NonNegativeInt, about("Largest rank of a module on disk.")] | None = None
    r_min: Annotated[NonNegativeInt, about("Least rank of a module on disk.")] | None = None
    module_types: Annotated[str, about("Types of adapted modules, joined by a comma.")] = ""
    shapes: Annotated[str, about("Hash of the adapted modules' names and shapes; empty without one.")] | None = None
    settings: (
        Annotated[str, about("The adapter's configuration as JSON (`ConfigSnapshot`); null if it has none.")] | None
    ) = None
    dtypes: Annotated[str, about("Dtypes of the factors, joined by a comma.")] | None = None
    params: Annotated[NonNegativeInt, about("Parameters of the factors.")] = 0
    stable_rank_mean: float | None = None
    effective_rank_mean: float | None = None
    utilization_mean: float | None = None
    energy_rank_90_p50: float | None = None
    energy_rank_90_p90: float | None = None
    null_stable_rank_mean: float | None = None
    frobenius_norm: Annotated[float, about("Frobenius norm of the whole update, scaled by s.")] | None = None
    relative_frobenius: (
        Annotated[float, about("Frobenius norm of the update over that of the base; null without a base.")] | None
    ) = None
    suggested_rank: Annotated[NonNegativeInt, about("90th percentile of energy_rank_90, rounded up.")] | None = None
    bytes_saved: Annotated[NonNegativeInt, about("Bytes that a cut to `suggested_rank` saves.")] = 0
    findings: Annotated[NonNegativeInt, about("Number of findings.")] = 0
    worst: Annotated[str, about("Highest severity of a finding.")] | None = None
    sketch: Annotated[
        list[float], about("Random projections of the update; near duplicates have nearly equal ones.")
    ] = []


class ModuleRow(msgspec.Struct, kw_only=True, frozen=True):
    """One module of one adapter: an item of `modules` in `gradience audit --json`, as columns."""

    path: Annotated[str, about("Path of the adapter.")]
    position: Annotated[NonNegativeInt, about("Position in the adapter, from 0.")]
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
    """One finding of one adapter."""

    path: str
    position: Annotated[NonNegativeInt, about("Position in the report, from 0.")]
    id: str
    severity: str
    message: str
    action: str | None = None
    confidence: float | None = None


class FleetAuditReport(Report, kw_only=True, frozen=True):
    """The result of `gradience fleet audit`: how many adapters were read, kept and removed."""

    schema: Literal["gradience.fleet-audit/v3"]
    out: Annotated[str, about("Folder of the fleet.")]
    workers: Annotated[NonNegativeInt, about("Processes.")]
    found: Annotated[NonNegativeInt, about("Adapters found below the roots.")]
    audited: Annotated[NonNegativeInt, about("Adapters read in this call.")]
    unchanged: Annotated[
        NonNegativeInt, about("Adapters whose rows were kept, because size and mtime, or else the content, are equal.")
    ]
    removed: Annotated[NonNegativeInt, about("Rows removed because their adapter is no longer below the roots.")]
    errors: Annotated[NonNegativeInt, about("Rows that hold an error instead of numbers.")]
    crashed: Annotated[NonNegativeInt, about("Rows of adapters on which workers died twice.")] = 0
    seconds: Annotated[float, about("Duration of the call.")]
    notes: list[str] = []


class Counted(msgspec.Struct, kw_only=True, frozen=True):
    """A value, and how many adapters have it."""

    value: str
    adapters: NonNegativeInt


class Faulty(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter that needs attention, and why."""

    path: str
    verdict: Annotated[str, about("Its verdict; of a trained adapter the id of its gravest finding.")]
    reason: str


class Wasteful(msgspec.Struct, kw_only=True, frozen=True):
    """A trained adapter that a cut to its suggested rank makes smaller."""

    path: str
    r: NonNegativeInt
    suggested_rank: NonNegativeInt
    utilization_mean: float
    bytes_saved: NonNegativeInt


class RankBuckets(msgspec.Struct, kw_only=True, frozen=True):
    """A split of adapters among servers, each with its own maximal rank, and the padding it costs."""

    max_lora_ranks: Annotated[list[int], about("Maximal rank of each server.")]
    adapters: Annotated[list[int], about("Number of adapters on each server.")]
    padding_bytes: Annotated[NonNegativeInt, about("Bytes of zeros, at two bytes per number.")]


class Serving(msgspec.Struct, kw_only=True, frozen=True):
    """The healthy adapters of one base on a multi-LoRA server, which pads each to the server's maximal rank."""

    base_model: str
    adapters: NonNegativeInt
    ranks: Annotated[dict[str, int], about("Number of adapters by rank.")]
    max_lora_rank: (
        Annotated[NonNegativeInt, about("Least maximal rank that holds all adapters; null if none does.")] | None
    )
    used_bytes: Annotated[NonNegativeInt, about("Bytes of the factors, at two bytes per number.")]
    padding_bytes: Annotated[NonNegativeInt, about("Bytes of zeros that pad them on one server.")]
    buckets: Annotated[list[RankBuckets], about("For 1, 2, ... servers, the split with the least padding.")] = []


class Alike(msgspec.Struct, kw_only=True, frozen=True):
    """Adapters of equal content, or two adapters whose updates are nearly equal."""

    paths: list[str]
    cosine: Annotated[float, about("Cosine of the two updates, by Gram matrices; null for equal content.")] | None = (
        None
    )


class Similar(msgspec.Struct, kw_only=True, frozen=True):
    """Groups of equal adapters, and pairs of nearly equal ones."""

    threshold: Annotated[float, about("Least cosine at which a pair is listed.")]
    same: Annotated[list[Alike], about("Adapters of equal content hash.")] = []
    near: Annotated[list[Alike], about("Pairs with a cosine of at least the threshold, largest first.")] = []
    compared: Annotated[NonNegativeInt, about("Pairs whose cosine was computed from the factors.")] = 0
    not_compared: Annotated[NonNegativeInt, about("Candidate pairs beyond the limit, or of unreadable adapters.")] = 0
    all_pairs: Annotated[NonNegativeInt, about("Number of pairs of one base and one shape.")] = 0


class OtherShape(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter with a module whose shape differs from that in most adapters of the same declared base."""

    path: str
    base_model: str
    module: str
    shape: Annotated[list[int], about("[rows, columns] in this adapter.")]
    usual: Annotated[list[int], about("[rows, columns] in most adapters of that base.")]
    usual_adapters: Annotated[NonNegativeInt, about("Adapters of that base with the usual shape.")]


class Unfit(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter that an engine does not serve as it was trained, and what makes it fit."""

    path: str
    command: Annotated[str, about("Commands that write one that fits; null if none is known.")] | None = None


class Misfit(msgspec.Struct, kw_only=True, frozen=True):
    """Adapters that an engine does not serve as they were trained, for one reason."""

    id: Annotated[
        str, about("Id of the rule, as in `gradience check --serve`; empty for an adapter that is not judged.")
    ]
    reason: str
    source: Annotated[str, about("Where the engine's behaviour was read; empty if no source is needed.")] = ""
    action: str | None = None
    adapters: list[Unfit]


class Served(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter and the name that it is served by."""

    name: Annotated[str, about("The end of its path that no other adapter of the group has.")]
    path: str
    argument: Annotated[str, about("What stands for it in the group's command.")] = ""


class ServingGroup(msgspec.Struct, kw_only=True, frozen=True):
    """Adapters that one process of an engine can serve."""

    base_model: str | None
    revision: str | None = None
    adapters: list[Served]
    ranks: Annotated[dict[str, int], about("Number of adapters by their largest rank.")]
    rank: Annotated[NonNegativeInt, about("Largest rank that the process makes room for.")]
    targets: Annotated[list[str], about("Last parts of the adapted modules' names.")]
    slots: Annotated[NonNegativeInt, about("Adapters in one batch that the command asks for: a proposal.")]
    slot_bytes: (
        Annotated[
            NonNegativeInt,
            about(
                "Bytes of a slot at two bytes per number, in the modules that these adapters have. The engine may take "
                "more: slots in other modules. Null if the engine's memory is not known."
            ),
        ]
        | None
    ) = None
    without_largest: (
        Annotated[NonNegativeInt, about("`slot_bytes` if the adapters of the largest rank were resized.")] | None
    ) = None
    next_rank: Annotated[NonNegativeInt, about("The rank of `without_largest`.")] | None = None
    largest: Annotated[list[str], about("The adapters of the largest rank, if few have it.")] = []
    command: Annotated[
        str, about("Command or Python that starts it, with `{adapters}` for their arguments; empty if not known.")
    ] = ""
    notes: list[str] = []


class EnginePlan(msgspec.Struct, kw_only=True, frozen=True):
    """How the trained adapters of a fleet can be served together by one engine."""

    engine: Annotated[str, about("As `--serve` names it.")]
    title: Annotated[str, about("Its name for people.")]
    says: Annotated[str, about("How a process of it serves several adapters; empty if this is not known.")] = ""
    source: str = ""
    groups: list[ServingGroup] = []
    misfits: list[Misfit] = []
    left_out: Annotated[list[Counted], about("Adapters that are not trained or cannot be read, by verdict.")] = []
    notes: list[str] = []


class FleetShowReport(Report, kw_only=True, frozen=True):
    """An overview of a fleet, as `gradience fleet show --json` prints it."""

    schema: Literal["gradience.fleet-show/v2"]
    fleet: str
    adapters: NonNegativeInt
    modules: NonNegativeInt
    bytes: Annotated[NonNegativeInt, about("Bytes of all tensors.")]
    bases: list[Counted] = []
    types: list[Counted] = []
    ranks: list[Counted] = []
    verdicts: list[Counted] = []
    findings: Annotated[list[Counted], about("Number of adapters by the id of a finding.")] = []
    faulty: Annotated[
        list[Faulty],
        about("Adapters that are unreadable, broken, untrained, random-like or have a finding from a warning upwards."),
    ] = []
    faulty_total: NonNegativeInt = 0
    unread: Annotated[
        list[Counted], about("Why adapters have no numbers, with N for each number, and how many have that reason.")
    ] = []
    wasteful: list[Wasteful] = []
    serving: list[Serving] = []
    plans: Annotated[list[EnginePlan], about("With `--serve`: a plan for each engine.")] = []
    similar: Similar
    other_shapes: list[OtherShape] = []
    notes: list[str] = []


class QueryColumn(msgspec.Struct, kw_only=True, frozen=True):
    """A column of a query's result."""

    name: str
    type: Annotated[str, about("Type by its DuckDB name.")]


class QueryReport(Report, kw_only=True, frozen=True):
    """The result of a query, as `gradience fleet query --json` prints it."""

    schema: Literal["gradience.query/v2"]
    sql: str
    columns: list[QueryColumn]
    rows: Annotated[list[list[Json]], about("One list of values per row; dates and decimals as text.")]


class RunRow(msgspec.Struct, kw_only=True, frozen=True):
    """One run. Numbers that were not logged, or are not finite, are null."""

    path: Annotated[str, about("Path of the log, or of the folder of another program's run.")]
    run: Annotated[str, about("Id of the run; empty if the log cannot be read.")] = ""
    error: Annotated[str, about("Why the log could not be read; else null.")] | None = None
    stamp: Annotated[str, about("Name, size and mtime of each file; while equal, the log is not read again.")] = ""
    rules: Annotated[str, about("Version of the rules and columns that made this row.")] = ""
    content_hash: str = ""
    model: str | None = None
    data: str | None = None
    objective: Annotated[str, about("sft, classification, preference, rl or unknown.")] | None = None
    status: Annotated[str, about("Status of run_end, `no_run_end`, or `unreadable`.")] = "unreadable"
    finished: Annotated[bool, about("Whether it is known to have made its planned steps.")] = False
    settings: Annotated[str, about("Digest of the configuration without seeds, names and notes.")] = ""
    verdict: Annotated[str, about("Highest severity of a finding, `none` without one.")] | None = None
    findings: Annotated[str, about("Ids of the findings, joined by a comma.")] = ""
    story: Annotated[str, about("The run in one line.")] = ""
    r: NonNegativeInt | None = None
    alpha: float | None = None
    targets: Annotated[str, about("target_modules, joined by a comma.")] | None = None
    peft_type: str | None = None
    optimizer: str | None = None
    lr: (
        Annotated[float, about("Peak learning rate; the highest logged one where the run never came near it.")] | None
    ) = None
    scheduler: str | None = None
    batch_size: Annotated[int, about("Sequences per device and micro-batch.")] | None = None
    seed: int | None = None
    epochs: Annotated[float, about("Planned epochs.")] | None = None
    steps: Annotated[NonNegativeInt, about("Last logged step.")] | None = None
    max_steps: Annotated[int, about("Planned steps.")] | None = None
    rows: Annotated[NonNegativeInt, about("Training rows.")] = 0
    first_loss: float | None = None
    last_loss: float | None = None
    best_loss: Annotated[float, about("Lowest training loss.")] | None = None
    best_loss_step: NonNegativeInt | None = None
    split: Annotated[str, about("Held-out split of the columns about evaluations.")] | None = None
    eval_loss: Annotated[float, about("Newest held-out loss, nats.")] | None = None
    best_eval_loss: Annotated[float, about("Lowest held-out loss.")] | None = None
    best_eval_step: NonNegativeInt | None = None
    eval_accuracy: Annotated[float, about("Newest held-out accuracy, 0 to 1.")] | None = None
    gap: Annotated[float, about("Held-out perplexity over train perplexity.")] | None = None
    utilization_mean: float | None = None
    started: Annotated[float, about("Oldest clock reading, Unix time in seconds.")] | None = None
    duration_s: Annotated[float, about("Seconds from the oldest to the newest clock reading.")] | None = None
    seconds_per_step: Annotated[float, about("The median of its windows of steps.")] | None = None
    waiting_share: Annotated[float, about("Share of a step before its batch was there.")] | None = None
    tokens_per_second: Annotated[float, about("Without padding where that was counted.")] | None = None
    padding_share: Annotated[float, about("Of all tokens.")] | None = None
    peak_bytes: Annotated[NonNegativeInt, about("Most memory: allocated, else reserved.")] | None = None


RUN_SETTINGS: Final = (
    *("model", "data", "objective", "peft_type", "r", "alpha", "targets", "optimizer", "lr", "scheduler"),
    *("batch_size", "epochs", "max_steps", "seed"),
)
"""The columns of what a run was set to; `lr` is the rate that `monitor` prints as its peak."""


class StepRow(msgspec.Struct, kw_only=True, frozen=True):
    """One training row of a run."""

    path: str
    run: str
    step: NonNegativeInt
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None


class EvalRow(msgspec.Struct, kw_only=True, frozen=True):
    """One metric of one evaluation."""

    path: str
    run: str
    step: NonNegativeInt | None
    split: str
    metric: str
    value: float


class RunFindingRow(FindingRow, kw_only=True, frozen=True):
    """One finding of one run."""

    run: str


class BestRun(msgspec.Struct, kw_only=True, frozen=True):
    """The best run of a group of comparable runs by one metric."""

    group: Annotated[str, about("Value of the column that runs are grouped by; empty for all runs.")]
    runs: Annotated[NonNegativeInt, about("Runs of the group that have the metric.")]
    path: str
    run: str
    value: Annotated[float, about("Best value of the metric.")]
    step: Annotated[NonNegativeInt, about("Step of the best value.")] | None
    last: Annotated[float, about("Newest value in the same run.")]


class Noise(msgspec.Struct, kw_only=True, frozen=True):
    """How far the values of two equally good runs may be apart: two standard deviations of their difference."""

    difference: float
    source: Annotated[
        Literal["seeds", "examples"],
        about("`seeds`: runs that differ in the seed alone; `examples`: a share of answers, taken as independent."),
    ]
    n: Annotated[NonNegativeInt, about("Runs, or examples, that it is from.")]
    groups: Annotated[NonNegativeInt, about("Sets of runs that differ in the seed alone.")] = 0


class RankedRun(msgspec.Struct, kw_only=True, frozen=True):
    """A run among those that a metric can compare."""

    name: Annotated[str, about("Short name, unique in its group.")]
    path: str
    run: str
    value: Annotated[float, about("Best value of the metric.")]
    step: Annotated[NonNegativeInt, about("Step of the best value.")] | None
    last: Annotated[float, about("Newest value in the same run.")]
    lr: float | None = None
    r: NonNegativeInt | None = None
    worse_than_noise: (
        Annotated[bool, about("Whether it is behind the best by more than the noise; null if no noise is known.")]
        | None
    ) = None


class UnrankedRun(msgspec.Struct, kw_only=True, frozen=True):
    """A run that is left out of a ranking, since it is broken."""

    name: Annotated[str, about("Short name, unique in the report.")]
    path: str
    run: str
    value: Annotated[float, about("Best value of the metric; null without a finite one.")] | None
    reason: Annotated[str, about("What broke it, in the words of its finding.")]


class ComparableRuns(msgspec.Struct, kw_only=True, frozen=True):
    """Runs for which a metric means the same as far as their logs show, best first."""

    group: Annotated[str, about("Value of the column that runs are grouped by; empty without one.")]
    data: Annotated[str, about("Name of the data; null if the logs do not name it.")] | None
    objective: str | None
    model: Annotated[str, about("The model; null if it differs or is not recorded.")] | None
    examples: Annotated[NonNegativeInt, about("Evaluated examples: runtime times samples per second.")] | None
    runs: NonNegativeInt
    noise: Noise | None
    ranked: list[RankedRun]


class RunsBestReport(Report, kw_only=True, frozen=True):
    """The best runs by one metric, as `gradience runs best --json` prints them."""

    schema: Literal["gradience.runs-best/v2"]
    metric: str
    goal: Annotated[Literal["least", "most"], about("Whether the lowest or the highest value is best.")]
    by: str | None
    best: list[BestRun]
    groups: Annotated[list[ComparableRuns], about("Largest group first; runs of two groups are not comparable.")] = []
    not_ranked: Annotated[list[UnrankedRun], about("Broken runs, of which a best value says nothing.")] = []


class Curve(msgspec.Struct, kw_only=True, frozen=True):
    """One run's values of a metric over its steps."""

    name: Annotated[str, about("Short name, unique among the curves.")]
    path: str
    run: str
    steps: list[int]
    values: list[float]


class RunsCurvesReport(Report, kw_only=True, frozen=True):
    """One metric's curves in several runs, as `gradience.runs.curves` prints them."""

    schema: Literal["gradience.runs-curves/v2"]
    metric: str
    curves: list[Curve]
    not_drawn: Annotated[list[str], about("Names of the runs that have no finite value of the metric.")] = []
    left_out: Annotated[NonNegativeInt, about("Runs that a page had no room for.")] = 0
