"""What ``check``, ``monitor`` and ``validate`` print as JSON."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from gradience.schema.config import ConfigSnapshot
from gradience.schema.data import DataReport
from gradience.schema.document import Report
from gradience.schema.events import Alert, EvalMetrics, RecommendationItem
from gradience.schema.findings import Coverage, Finding, NotRun
from gradience.schema.scalars import Json, NonNegativeInt, Real, about

CHECK_SCHEMA_ID: Final = "gradience.check/v2"
IMPORT_SCHEMA_ID: Final = "gradience.import/v2"
MONITOR_SCHEMA_ID: Final = "gradience.monitor/v2"
VALIDATE_SCHEMA_ID: Final = "gradience.validate/v2"


class SourceLocation(NamedTuple):
    """The file that a finding points at, and the line where that is known."""

    path: str
    line: int | None = None


class SourceFile(msgspec.Struct, kw_only=True, frozen=True):
    """A file that was read, and what for."""

    role: str
    path: str


class CheckReport(Report, kw_only=True, frozen=True):
    """A configuration as understood, and the findings of the rules."""

    schema: Literal["gradience.check/v2"]
    sources: list[SourceFile] = []
    config: ConfigSnapshot
    derived: Annotated[
        dict[str, Real], about("Quantities computed from the config: scaling, effective batch, ...")
    ] = {}
    coverage: Coverage | None = None
    findings: list[Finding] = []
    not_run: list[NotRun] = []
    unknown_keys: Annotated[list[str], about("Keys of the input that no rule reads.")] = []
    data: Annotated[DataReport, about("With --data: the data set as the trainer feeds it.")] | None = None


class BadLine(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A line that is not an event."""

    line: Annotated[int, Meta(ge=1)]
    offset: Annotated[NonNegativeInt, about("Byte offset of the line's start.")]
    reason: str
    path: Annotated[str, about("Where in the document, as `$.a.b`.")] | None = None
    torn: Annotated[bool, about("Cut off while being written: the last line, or the last of an earlier session.")] = (
        False
    )
    expected: str | None = None
    got: str | None = None


class EvalPoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The newest evaluation of one split."""

    split: str
    step: NonNegativeInt | None
    metrics: EvalMetrics


class GapReading(msgspec.Struct, kw_only=True, frozen=True):
    """Train against held-out, at the newest step both were measured, else their newest."""

    train_split: str
    test_split: str
    ratio: Annotated[Real, about("Held-out perplexity over train perplexity.")]
    nats: Annotated[Real, about("Held-out loss minus train loss.")]
    same_step: bool


class TrainSummary(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The training rows of a run."""

    rows: NonNegativeInt
    superseded_rows: NonNegativeInt = 0
    non_finite_rows: NonNegativeInt = 0
    first_step: NonNegativeInt | None = None
    last_step: NonNegativeInt | None = None
    first_loss: Real | None = None
    last_loss: Real | None = None
    min_loss: Real | None = None
    min_loss_step: NonNegativeInt | None = None
    max_lr: Real | None = None
    duration_s: Annotated[float, about("Newest minus oldest clock reading.")] | None = None


class SignalSummary(msgspec.Struct, kw_only=True, frozen=True):
    """A column of rewards, margins, KL or the like over the run."""

    rows: NonNegativeInt
    first: Annotated[float, about("Median of the first fifth of its rows.")]
    last: Annotated[float, about("Median of the last fifth of its rows.")]
    lowest: float
    highest: float


class StoryPart(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One clause of the story, and the finding it rests on; without one it reports what was logged."""

    says: str
    finding: Annotated[str, about("Id of a finding of the same report.")] | None = None
    values: Annotated[dict[str, Json], about("The numbers in the clause.")] = {}


class MonitorReport(Report, kw_only=True, frozen=True):
    """The high-level story of one run, as `gradience monitor --json` prints it."""

    schema: Literal["gradience.monitor/v2"]
    story: Annotated[str, about("The run in one line: the parts below, joined.")] = ""
    story_parts: list[StoryPart] = []
    file: str
    run_id: str | None = None
    other_runs: Annotated[list[str], about("Other runs in the same log.")] = []
    sessions: Annotated[NonNegativeInt, about("Process starts seen; 0 where not recorded.")] = 0
    config: ConfigSnapshot
    status: Annotated[str, about("Status of run_end, or `no_run_end`.")]
    status_reason: str | None = None
    events: Annotated[dict[str, int], about("Events of the file by name.")] = {}
    train: TrainSummary
    signals: Annotated[
        dict[str, SignalSummary], about("What preference training and RL log beside the loss, by name.")
    ] = {}
    probes: Annotated[
        dict[str, SignalSummary],
        about("`update_norm` and `stable_rank_mean` of the adapter in training, where it was probed."),
    ] = {}
    objective: Annotated[str, about("`sft`, `classification`, `preference`, `reward`, `rl` or `unknown`.")] = "unknown"
    evals: list[EvalPoint] = []
    gap: GapReading | None = None
    lora_audit: dict[str, Json] | None = None
    lora_audit_step: NonNegativeInt | None = None
    data: Annotated[dict[str, Json], about("What the model was fed, of the batches watched.")] | None = None
    alerts: list[Alert] = []
    recommendations: list[RecommendationItem] = []
    findings: list[Finding] = []
    not_run: list[NotRun] = []
    issues: list[BadLine] = []
    issues_total: NonNegativeInt = 0
    notes: list[str] = []


class ValidateReport(Report, kw_only=True, frozen=True):
    """Whether a log follows the schema, and where not."""

    schema: Literal["gradience.validate/v2"]
    file: str
    valid: bool
    lines: NonNegativeInt
    events: dict[str, int] = {}
    unknown_events: dict[str, int] = {}
    issues: list[BadLine] = []
    issues_total: NonNegativeInt = 0
    notes: list[str] = []


class SkippedRow(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A row of another program's log that could not become an event."""

    file: Annotated[str, about("Base name of the file.")]
    line: Annotated[NonNegativeInt, about("Line, or number of the row where a format has no lines; from 1.")]
    reason: str


class ImportedRunReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One run that an import found."""

    run_id: str
    name: Annotated[str, about("What the source calls it.")] = ""
    status: Annotated[str, about("Status of the run_end that was written.")] = "unknown"
    status_reason: str | None = None
    first_step: NonNegativeInt | None = None
    last_step: NonNegativeInt | None = None
    sessions: Annotated[NonNegativeInt, about("Starts of the program, as far as the steps show.")] = 1
    events: Annotated[dict[str, int], about("Events by name.")] = {}


class ImportReport(Report, kw_only=True, frozen=True):
    """What `gradience import` read and wrote."""

    schema: Literal["gradience.import/v2"]
    source: str
    format: str
    out: Annotated[str, about("The run.jsonl that was written.")] = ""
    runs: Annotated[list[ImportedRunReport], about("In the order written; the last is the one shown.")] = []
    files: Annotated[list[str], about("Files that were read.")] = []
    skipped: Annotated[list[SkippedRow], about("The first rows that were not imported.")] = []
    skipped_total: NonNegativeInt = 0
    notes: Annotated[list[str], about("Choices made, and what was found besides.")] = []
