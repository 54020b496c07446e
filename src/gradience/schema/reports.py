"""What ``check`` (of a configuration and of a data set), ``monitor``, ``validate`` and ``import`` print as JSON."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, Json, NonNegativeInt, Real, about
from gradience.schema.document import Coverage, Finding, NotRun, Report
from gradience.schema.events import Alert, ConfigSnapshot, EvalMetrics, RecommendationItem

DataFormat: TypeAlias = Literal[
    "messages",
    "sharegpt",
    "prompt-completion",
    "instruction",
    "text",
    "preference",
    "kto",
    "classification",
    "tokenised",
]
Trainer: TypeAlias = Literal["sft", "dpo", "reward", "kto", "classification"]
LossMode: TypeAlias = Literal["assistant", "completion", "all", "none"]


class Rows(msgspec.Struct, kw_only=True, frozen=True):
    """Rows of one kind: how many, and the numbers of the first."""

    count: NonNegativeInt = 0
    first: Annotated[list[int], about("Numbers from 1; of a JSONL file its lines.")] = []


class RowFault(msgspec.Struct, kw_only=True, frozen=True):
    """A row that cannot be used."""

    row: NonNegativeInt
    reason: str


class Lengths(msgspec.Struct, kw_only=True, frozen=True):
    """Tokens per sequence before the cut."""

    mean: float = 0.0
    p50: NonNegativeInt = 0
    p90: NonNegativeInt = 0
    p95: Annotated[NonNegativeInt, about("The length that keeps 95 % of the sequences whole.")] = 0
    p99: Annotated[NonNegativeInt, about("The length that keeps 99 % of the sequences whole.")] = 0
    longest: NonNegativeInt = 0
    longest_rows: Annotated[list[int], about("Rows of the longest sequences.")] = []
    bin_width: Annotated[NonNegativeInt, about("Tokens that a bar of the histogram spans.")] = 1
    bins: Annotated[list[int], about("Sequences by length, from 0 tokens; the last holds all longer.")] = []


class TokenCounts(msgspec.Struct, kw_only=True, frozen=True):
    """Tokens of all sequences that were read."""

    total: Annotated[NonNegativeInt, about("Before the cut.")] = 0
    kept: Annotated[NonNegativeInt, about("After the cut.")] = 0
    supervised: Annotated[NonNegativeInt, about("Kept tokens that the loss is computed on.")] = 0
    supervised_lost: Annotated[NonNegativeInt, about("Supervised tokens that the cut removes.")] = 0


class Batching(msgspec.Struct, kw_only=True, frozen=True):
    """What batches of these sequences cost."""

    batch_size: NonNegativeInt = 0
    padding_share: Annotated[Fraction, about("Padding in batches of random order.")] | None = None
    packed_sequences: Annotated[NonNegativeInt, about("Full-length sequences after best-fit packing.")] | None = None
    packed_padding_share: Fraction | None = None


class RowsSeen(msgspec.Struct, kw_only=True, frozen=True):
    """Rows in which something was seen."""

    unreadable: Rows = Rows()
    unsupervised: Annotated[Rows, about("No token supervised, before any cut.")] = Rows()
    all_supervised: Annotated[Rows, about("Every token supervised.")] = Rows()
    cut: Annotated[Rows, about("Longer than the limit.")] = Rows()
    answer_cut: Annotated[Rows, about("The cut removes supervised tokens.")] = Rows()
    answer_lost: Annotated[Rows, about("The cut removes every supervised token, or the row.")] = Rows()
    end_supervised: Annotated[Rows, about("An end token is supervised; of whole rows.")] = Rows()
    end_masked: Annotated[Rows, about("The end token after an answer is masked; of whole rows.")] = Rows()
    double_bos: Rows = Rows()
    empty_answer: Rows = Rows()
    duplicate: Annotated[Rows, about("Equal to an earlier row.")] = Rows()
    replacement: Annotated[Rows, about("U+FFFD in the text.")] = Rows()
    mojibake: Annotated[Rows, about("UTF-8 decoded as Latin-1 or cp1252.")] = Rows()
    label_out_of_range: Rows = Rows()


class Answers(msgspec.Struct, kw_only=True, frozen=True):
    """How far answers repeat."""

    rows: Annotated[NonNegativeInt, about("Answers that were compared.")] = 0
    most_common: Annotated[NonNegativeInt, about("Rows that share the most common answer.")] = 0


class Overlap(msgspec.Struct, kw_only=True, frozen=True):
    """Rows of the evaluation set that stand in the training set."""

    eval_rows: NonNegativeInt = 0
    exact: Annotated[Rows, about("Rows of the evaluation set, equal after normalisation.")] = Rows()
    near: Annotated[Rows, about("Rows of the evaluation set, alike but not equal.")] = Rows()
    near_judged: Annotated[bool, about("Whether near overlap was looked for.")] = False
    near_reason: Annotated[str, about("Why it was not.")] = ""
    threshold: Annotated[Fraction, about("Jaccard similarity of word trigrams that counts as near.")] = 0.0
    hashes: Annotated[NonNegativeInt, about("Permutations of MinHash.")] = 0


class ShownRow(msgspec.Struct, kw_only=True, frozen=True):
    """The text of a row that a finding names; on request only."""

    row: NonNegativeInt
    text: str


class DataReport(msgspec.Struct, kw_only=True, frozen=True):
    """A data set as the trainer would feed it."""

    path: str
    eval_path: str | None = None
    format: DataFormat
    trainer: Annotated[Trainer, about("Whose preparation of rows was followed.")]
    masked_by: Annotated[str, about("Program whose masking was followed, such as `trl`.")] = "trl"
    rows: Annotated[NonNegativeInt, about("Rows of the files.")] = 0
    rows_read: Annotated[NonNegativeInt, about("Rows that were tokenised: all, or a sample.")] = 0
    sampled: bool = False
    seed: NonNegativeInt = 0
    tokenizer: str | None = None
    template: Annotated[str, about("Where the chat template comes from; empty where none is used.")] = ""
    template_marks_answers: Annotated[bool, about("It has a `{% generation %}` block.")] | None = None
    template_tokens_split: Annotated[
        list[str], about("Control tokens of the template that the tokenizer splits or does not know.")
    ] = []
    loss: LossMode
    loss_from: Annotated[str, about("Who set the loss mode.")] = ""
    max_length: NonNegativeInt | None = None
    packing: bool = False
    pad_is_end: Annotated[bool, about("Pad and end token are one.")] | None = None
    has_labels: Annotated[bool, about("Labels stand in the rows.")] = False
    end_tokens: list[str] = []
    turn_end: Annotated[str, about("Control token that ends most answers unless it is an end token; else empty.")] = ""
    sequences: NonNegativeInt = 0
    whole_rows: Annotated[NonNegativeInt, about("Rows with a supervised sequence that no cut shortens.")] = 0
    tokens: TokenCounts = TokenCounts()
    lengths: Lengths = Lengths()
    batching: Batching = Batching()
    seen: RowsSeen = RowsSeen()
    faults: Annotated[list[RowFault], about("The first rows that cannot be used.")] = []
    answers: Answers = Answers()
    labels: Annotated[dict[str, int], about("Rows by label, the most frequent first.")] = {}
    labels_total: Annotated[NonNegativeInt, about("Different labels.")] = 0
    num_labels: Annotated[NonNegativeInt, about("Classes of the model.")] | None = None
    overlap: Overlap | None = None
    shown: list[ShownRow] = []
    notes: list[str] = []


def announced_by(report: DataReport) -> dict[str, Json]:
    """What a check says that batches will look like: what a recorder can compare with the batches it sees."""
    tokens = report.tokens
    return {
        "supervised_share": tokens.supervised / tokens.kept if tokens.kept and report.loss != "none" else None,
        "tokens_per_sequence": tokens.kept / report.sequences if report.sequences else None,
        "rows_read": report.rows_read,
        "max_length": report.max_length,
        "bin_width": report.lengths.bin_width,
        "bins": report.lengths.bins,
    }


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
