"""Types of the reports of ``check`` (of a configuration or a data set), ``monitor``, ``validate`` and ``import``."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, Json, NonNegativeInt, Real, about
from gradience.schema.document import Coverage, Finding, NotRun, Report
from gradience.schema.events import Alert, ConfigSnapshot, EvalMetrics, RecommendationItem
from gradience.schema.memory import Memory, Time

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
    "prompt-only",
    "steps",
    "segments",
]
Trainer: TypeAlias = Literal["sft", "dpo", "reward", "kto", "classification", "grpo", "prm"]
LossMode: TypeAlias = Literal["assistant", "completion", "all", "none"]
Overlong: TypeAlias = Literal["cut", "cut_left", "shared", "left_out", "refused"]


class Rows(msgspec.Struct, kw_only=True, frozen=True):
    """Rows of one kind: their number, and the numbers of the first ones."""

    count: NonNegativeInt = 0
    first: Annotated[list[int], about("Row numbers from 1; in a JSONL file they are line numbers.")] = []


class RowFault(msgspec.Struct, kw_only=True, frozen=True):
    """A row that cannot be used, and why."""

    row: NonNegativeInt
    reason: str


class Lengths(msgspec.Struct, kw_only=True, frozen=True):
    """Lengths of the sequences in tokens, before any cut."""

    mean: float = 0.0
    p50: NonNegativeInt = 0
    p90: NonNegativeInt = 0
    p95: Annotated[NonNegativeInt, about("Length at which 95 % of the sequences stay whole.")] = 0
    p99: Annotated[NonNegativeInt, about("Length at which 99 % of the sequences stay whole.")] = 0
    longest: NonNegativeInt = 0
    bin_width: Annotated[NonNegativeInt, about("Tokens per bin of the histogram.")] = 1
    bins: Annotated[list[int], about("Sequences per bin, from length 0; the last bin holds all longer ones.")] = []


class TokenCounts(msgspec.Struct, kw_only=True, frozen=True):
    """Numbers of tokens over all sequences that were read."""

    total: Annotated[NonNegativeInt, about("Tokens before the cut.")] = 0
    kept: Annotated[NonNegativeInt, about("Tokens after the cut.")] = 0
    supervised: Annotated[NonNegativeInt, about("Kept tokens that the loss is computed on.")] = 0
    supervised_lost: Annotated[NonNegativeInt, about("Supervised tokens that the cut removes.")] = 0
    images: Annotated[NonNegativeInt, about("Tokens before the cut that stand for images.")] = 0


class Batching(msgspec.Struct, kw_only=True, frozen=True):
    """The padding of these sequences in batches, and in packed sequences."""

    batch_size: Annotated[NonNegativeInt, about("Rows per batch.")] = 0
    padding_share: (
        Annotated[Fraction, about("Share of padding in batches of random order; null if unknown.")] | None
    ) = None
    packed_sequences: (
        Annotated[NonNegativeInt, about("Number of full-length sequences after best-fit packing.")] | None
    ) = None


class Answers(msgspec.Struct, kw_only=True, frozen=True):
    """How often answers repeat."""

    rows: Annotated[NonNegativeInt, about("Answers that were compared.")] = 0
    most_common: Annotated[NonNegativeInt, about("Rows that share the most common answer.")] = 0
    distinct: Annotated[NonNegativeInt, about("Number of different answers.")] = 0


class Pairs(msgspec.Struct, kw_only=True, frozen=True):
    """Lengths of the chosen and the rejected answers in characters."""

    compared: Annotated[NonNegativeInt, about("Pairs whose answers differ.")] = 0
    chosen_longer: NonNegativeInt = 0
    rejected_longer: NonNegativeInt = 0
    chosen_mean: Annotated[float, about("Mean length of the chosen answers, in characters.")] = 0.0
    rejected_mean: Annotated[float, about("Mean length of the rejected answers, in characters.")] = 0.0


class Repeated(msgspec.Struct, kw_only=True, frozen=True):
    """The sentence, or the beginning, that most answers share."""

    answers: Annotated[NonNegativeInt, about("Answers that were compared.")] = 0
    rows: Rows = Rows()


class Paired(msgspec.Struct, kw_only=True, frozen=True):
    """Words of answers that few questions and few answers have: by them an answer is known to be of its question."""

    words: Annotated[NonNegativeInt, about("Such words, each once an answer.")] = 0
    own: Annotated[NonNegativeInt, about("Those that the question of the same row has.")] = 0
    offset: Annotated[int, about("The most frequent number of rows from the answer on to the question.")] = 0
    at_offset: Annotated[NonNegativeInt, about("Words whose question is so many rows on.")] = 0
    rows: Annotated[list[int], about("The first and the last row that is looked at, if not all are.")] = []


class Longest(msgspec.Struct, kw_only=True, frozen=True):
    """The longest questions, or answers: many of one length were cut there."""

    of: Annotated[NonNegativeInt, about("Texts whose length was looked at.")] = 0
    characters: Annotated[NonNegativeInt, about("Their greatest length.")] = 0
    texts: Annotated[NonNegativeInt, about("Texts of this length that differ in their middle.")] = 0
    unended: Annotated[NonNegativeInt, about("Those among them that end with a letter, a comma or a blank.")] = 0


class Languages(msgspec.Struct, kw_only=True, frozen=True):
    """Rows whose answer is in another language than their question."""

    stated: Annotated[NonNegativeInt, about("Rows compared: question and answer are long enough to tell.")] = 0
    rows: Rows = Rows()
    reason: Annotated[str, about("Why they were not compared; else empty.")] = ""


class NearRows(msgspec.Struct, kw_only=True, frozen=True):
    """Rows that nearly repeat an earlier one, by word trigrams that few other rows share."""

    compared: Annotated[NonNegativeInt, about("Rows that were compared; rows that repeat another exactly are not.")] = 0
    drawn_from: Annotated[
        NonNegativeInt, about("Rows that these were drawn from, so that like rows are drawn together; 0 if all were.")
    ] = 0
    rows: Rows = Rows()
    reason: Annotated[str, about("Why rows were not compared; else empty.")] = ""


class RowOverlap(msgspec.Struct, kw_only=True, frozen=True):
    """Rows of the evaluation set that also occur in the training set."""

    eval_rows: NonNegativeInt = 0
    exact: Annotated[Rows, about("Rows of the evaluation set that equal a training row.")] = Rows()
    by_words: Annotated[Rows, about("Rows that equal a training row word for word, but not in case or marks.")] = Rows()
    other_answer: Annotated[Rows, about("Rows whose question is in the training set with another answer.")] = Rows()
    near: Annotated[Rows, about("Rows of the evaluation set that resemble a training row but do not equal it.")] = (
        Rows()
    )
    near_judged: Annotated[bool, about("Whether near overlap was searched for.")] = False
    near_reason: Annotated[str, about("Why it was not searched for; else empty.")] = ""
    threshold: Annotated[Fraction, about("Jaccard similarity of word trigrams from which two rows count as near.")] = (
        0.0
    )
    hashes: Annotated[NonNegativeInt, about("Number of MinHash permutations.")] = 0


class ShownRow(msgspec.Struct, kw_only=True, frozen=True):
    """The text of a row that a finding names; included on request only."""

    row: NonNegativeInt
    text: str


class DataReport(msgspec.Struct, kw_only=True, frozen=True):
    """A data set as the trainer would feed it to the model."""

    path: str
    eval_path: str | None = None
    format: DataFormat
    trainer: Annotated[Trainer, about("Kind of trainer whose preparation of rows was followed.")]
    masked_by: Annotated[str, about("Program whose loss mask was followed, such as `trl`.")] = "trl"
    rows: Annotated[NonNegativeInt, about("Rows in the files.")] = 0
    rows_read: Annotated[NonNegativeInt, about("Rows that were tokenised: all of them, or a sample.")] = 0
    sampled: Annotated[bool, about("Whether only a sample of the rows was tokenised.")] = False
    seed: Annotated[NonNegativeInt, about("Seed of the sample.")] = 0
    tokenizer: str | None = None
    template: Annotated[str, about("Source of the chat template; empty if none is used.")] = ""
    template_digest: Annotated[str, about("Beginning of the SHA-256 of the tokenizer's chat template; else empty.")] = (
        ""
    )
    template_marks_answers: Annotated[bool, about("Whether the template has a `{% generation %}` block.")] | None = None
    template_tokens_split: Annotated[
        list[str], about("Control tokens of the template that the tokenizer splits or does not know.")
    ] = []
    loss: Annotated[LossMode, about("Which tokens the loss is computed on.")]
    loss_from: Annotated[str, about("Where the loss mode was set.")] = ""
    max_length: Annotated[NonNegativeInt, about("Limit in tokens; null without one.")] | None = None
    packing: bool = False
    pad_is_end: Annotated[bool, about("Whether the pad token is the tokenizer's end-of-sequence token.")] | None = None
    has_labels: Annotated[bool, about("Whether the rows hold labels.")] = False
    end_tokens: Annotated[list[str], about("Tokens that end generation.")] = []
    turn_end: Annotated[str, about("Control token that ends most answers but is no end token; else empty.")] = ""
    sequences: Annotated[NonNegativeInt, about("Sequences that were tokenised.")] = 0
    whole_rows: Annotated[NonNegativeInt, about("Rows with a supervised sequence that no cut shortens.")] = 0
    tokens: TokenCounts = TokenCounts()
    lengths: Lengths = Lengths()
    batching: Batching = Batching()
    seen: Annotated[dict[str, Rows], about("Rows by what was observed in them.")] = {}
    faults: Annotated[list[RowFault], about("The first rows that cannot be used, and why.")] = []
    answers: Answers = Answers()
    pairs: Pairs | None = None
    repeated: Repeated = Repeated()
    paired: Paired = Paired()
    shifted: Annotated[Paired, about("The stretch of rows in which most words are equally many rows off.")] = Paired()
    rejected: Annotated[Paired, about("As `paired`, of rejected answers.")] = Paired()
    longest_questions: Longest = Longest()
    longest_answers: Longest = Longest()
    near: NearRows | None = None
    answered: Languages = Languages()
    parts_joined: Annotated[
        bool, about("Whether the template takes text only, so that the parts of a message were joined.")
    ] = False
    prompt: Annotated[
        str, about("The prompt that was assumed, or the trainer's own; empty if it is the tokenizer's in any case.")
    ] = ""
    unwritten_roles: Annotated[
        dict[str, Rows], about("Rows by the role of a turn that the chat template leaves out.")
    ] = {}
    calls_unwritten: Annotated[bool, about("Whether the chat template leaves out the calls of the rows.")] = False
    foreign: Annotated[list[str], about("Control tokens in the text that the tokenizer does not have.")] = []
    program_stated: Annotated[bool, about("Whether a recipe or training arguments say which program trains.")] = False
    batch_stated: Annotated[bool, about("Whether a recipe or training arguments state the batch size.")] = False
    keeps_overflow: Annotated[bool, about("Whether packing keeps what is beyond the limit, in the next sequence.")] = (
        False
    )
    pads: Annotated[bool, about("Whether batches of rows are padded.")] = True
    overlong: Annotated[
        Overlong,
        about(
            "What becomes of a row over the limit: cut at its end or its beginning, cut in each question and answer by "
            "their shares, left out, or refused, so that training ends before it begins."
        ),
    ] = "cut"
    encodes_arguments: Annotated[
        bool, about("Whether the template encodes arguments of calls as JSON, whatever they are.")
    ] = False
    labels: Annotated[dict[str, int], about("Number of rows by label, the most frequent first.")] = {}
    label_names: Annotated[dict[str, dict[str, int]], about("Number of rows by label and by the name beside it.")] = {}
    labels_total: Annotated[NonNegativeInt, about("Number of different labels.")] = 0
    label_stretches: Annotated[NonNegativeInt, about("Stretches of rows with one label, in the order of the rows.")] = 0
    length_tells: (
        Annotated[
            float,
            about(
                "Of the pairs of a text of the most frequent label and another, the share where the former is longer."
            ),
        ]
        | None
    ) = None
    rating_agrees: (
        Annotated[
            float, about("Of the pairs of a wanted and an unwanted answer of KTO, the share where it is rated higher.")
        ]
        | None
    ) = None
    label_weights: Annotated[
        list[float], about("KTO's weights of wanted and of unwanted answers; empty of another trainer.")
    ] = []
    unread_length: (
        Annotated[NonNegativeInt, about("A limit stated as max_seq_length alone, which TRL no longer reads.")] | None
    ) = None
    num_labels: Annotated[NonNegativeInt, about("Number of classes of the model.")] | None = None
    overlap: RowOverlap | None = None
    shown: list[ShownRow] = []
    shares: Annotated[
        list[NonNegativeInt], about("Sequences by the share of their kept tokens that is in the loss, 5 % a bar.")
    ] = []
    rewards_lack: Annotated[
        dict[str, list[str]], about("Columns that a reward function of the recipe needs and the first row lacks.")
    ] = {}
    columns: Annotated[list[str], about("Of the first usable row.")] = []
    has_processor: Annotated[bool, about("Whether a processor of images is beside the tokenizer.")] | None = None
    notes: list[str] = []

    def rows_with(self, name: str) -> Rows:
        """The rows in which this was observed."""
        return self.seen.get(name, Rows())


def announced_by(report: DataReport) -> dict[str, Json]:
    """Return the batches that a check predicts, which a recorder compares with the batches that it sees."""
    tokens = report.tokens
    return {
        "supervised_share": tokens.supervised / tokens.kept if tokens.kept and report.loss != "none" else None,
        "tokens_per_sequence": tokens.kept / report.sequences if report.sequences else None,
        "rows_read": report.rows_read,
        "max_length": report.max_length,
        "data": PurePath(report.path).name,
        "template": report.template,
        "template_digest": report.template_digest,
        "bin_width": report.lengths.bin_width,
        "bins": report.lengths.bins,
    }


CHECK_SCHEMA_ID: Final = "gradience.check/v3"
IMPORT_SCHEMA_ID: Final = "gradience.import/v2"
MONITOR_SCHEMA_ID: Final = "gradience.monitor/v2"
VALIDATE_SCHEMA_ID: Final = "gradience.validate/v2"
VALIDATE_LOGS_SCHEMA_ID: Final = "gradience.validate-logs/v2"


class SourceLocation(NamedTuple):
    """The file that a finding refers to, and the line if it is known."""

    path: str
    line: int | None = None


class InputFile(msgspec.Struct, kw_only=True, frozen=True):
    """A file that was read, and its role."""

    role: str
    path: str


Fate: TypeAlias = Literal[
    "applied", "dropped in silence", "refused at start", "applied otherwise than trained", "not judged"
]


class GroupFate(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What an engine does with one group of an adapter's tensors, or with a part of one."""

    engine: Annotated[str, about("As `--serve` names it, with the version.")]
    group: Annotated[str, about("The group in words, such as `the vision or audio tower`.")]
    modules: Annotated[NonNegativeInt, about("Modules in the group, or in this part of it.")]
    fate: Fate
    of: Annotated[NonNegativeInt, about("Modules in the whole group, if this is about a part.")] = 0
    which: Annotated[str, about("The part in words: ends of its modules' names.")] = ""
    share: Annotated[float, about("What of the factors' energy the modules hold, if they are lost.")] | None = None
    reason: str = ""
    source: Annotated[str, about("The address of what was read.")] = ""


class CheckReport(Report, kw_only=True, frozen=True):
    """A configuration as it was understood, and the findings of the rules."""

    schema: Literal["gradience.check/v3"]
    sources: list[InputFile] = []
    config: ConfigSnapshot
    derived: Annotated[
        dict[str, Real], about("Quantities computed from the config, by name: scaling, effective batch, ...")
    ] = {}
    coverage: Coverage | None = None
    findings: list[Finding] = []
    readings: Annotated[list[Finding], about("What rules read that is no finding: it counts nowhere.")] = []
    not_run: list[NotRun] = []
    unknown_keys: Annotated[list[str], about("Keys of the input that no rule reads.")] = []
    data: Annotated[DataReport, about("The data set as the trainer feeds it, with --data.")] | None = None
    memory: Annotated[Memory, about("What a training step takes of the device's memory, with --base.")] | None = None
    time: Annotated[Time, about("By a log beside the settings, with --base.")] | None = None
    serving: Annotated[list[GroupFate], about("With --serve: what each engine does with the groups of tensors.")] = []


class BadLine(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A line of a log that is not a valid event."""

    line: Annotated[int, Meta(ge=1, description="Number of the line, from 1.")]
    offset: Annotated[NonNegativeInt, about("Byte offset of the line's start.")]
    reason: Annotated[str, about("Why it is not a valid event.")]
    path: Annotated[str, about("Place in the document, as `$.a.b`.")] | None = None
    torn: Annotated[
        bool,
        about("Whether the line was cut off while being written: the last line, or the last of an earlier session."),
    ] = False
    expected: str | None = None
    got: str | None = None
    hint: Annotated[str, about("What was probably meant.")] | None = None


class EvalPoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The newest evaluation of one split."""

    split: str
    step: NonNegativeInt | None
    metrics: EvalMetrics


class GapReading(msgspec.Struct, kw_only=True, frozen=True):
    """Train loss against held-out loss of the same step, the newest with both."""

    train_split: str
    test_split: str
    ratio: Annotated[Real, about("Held-out perplexity over train perplexity.")]
    nats: Annotated[Real, about("Held-out loss minus train loss, nats.")]
    step: NonNegativeInt | None = None
    train_loss: Real | None = None
    test_loss: Real | None = None


class TrainSummary(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Summary of the training rows of a run."""

    rows: Annotated[NonNegativeInt, about("Training rows, without superseded ones.")]
    superseded_rows: Annotated[NonNegativeInt, about("Rows and evaluations that a resume superseded.")] = 0
    non_finite_rows: Annotated[NonNegativeInt, about("Rows whose loss is not finite.")] = 0
    first_step: NonNegativeInt | None = None
    last_step: NonNegativeInt | None = None
    first_loss: Real | None = None
    last_loss: Real | None = None
    first_level: Annotated[float, about("Median of the first rows, where the rows scatter; null elsewhere.")] | None = (
        None
    )
    last_level: Annotated[float, about("Median of the last fifth of the rows, there.")] | None = None
    min_loss: Annotated[Real, about("Lowest finite training loss.")] | None = None
    min_loss_step: NonNegativeInt | None = None
    max_lr: Annotated[Real, about("Highest logged learning rate.")] | None = None
    duration_s: Annotated[float, about("Newest minus oldest clock reading, seconds; null if unknown.")] | None = None


class SignalSummary(msgspec.Struct, kw_only=True, frozen=True):
    """A column of rewards, margins, KL or similar values over the run."""

    rows: NonNegativeInt
    first: Annotated[float, about("Median of the first fifth of its rows.")]
    last: Annotated[float, about("Median of the last fifth of its rows.")]
    lowest: float
    highest: float


LossKind: TypeAlias = Literal[
    "language_model", "tokens", "classification", "regression", "preference", "reward", "rl", "unknown"
]
"""What a loss measures. `tokens`: of a model a task metric judges, such as WER; only the first has a perplexity."""

RateSource: TypeAlias = Literal["configured", "logged"]
"""Where a peak learning rate is from: the config, or the largest rate logged, which may be lower than the peak."""


class MetricAccount(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One task metric over the evaluations of a run. The loss is not one."""

    name: str
    split: str
    higher_is_better: Annotated[bool, about("Whether more is better; null if its name does not tell.")] | None = None
    count: Annotated[NonNegativeInt, about("Evaluations that have it.")]
    first: float
    last: float
    best: Annotated[float, about("The best value; null without a direction.")] | None = None
    best_step: NonNegativeInt | None = None
    error: Annotated[float, about("Two values nearer than this may differ by chance.")] = 0.0


class LossPair(msgspec.Struct, kw_only=True, frozen=True):
    """A held-out loss and the training loss of the same step: the mean of the rows near it."""

    split: str
    step: NonNegativeInt
    held_out: float
    train: float
    rows: Annotated[NonNegativeInt, about("Training rows averaged; 0 if the train split itself was evaluated.")]
    first_step: Annotated[NonNegativeInt, about("First step of those rows.")]
    last_step: Annotated[NonNegativeInt, about("Last step of those rows.")]


class Selection(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """How the trainer chose its best checkpoint, as its config and its state say. All null if they say nothing."""

    by: Annotated[str, about("`loss`, or the name of a task metric.")] | None = None
    higher_is_better: bool | None = None
    value: Annotated[float, about("The best value that the trainer saw.")] | None = None
    step: Annotated[NonNegativeInt, about("Step of the checkpoint that the trainer calls its best.")] | None = None
    restored: Annotated[bool, about("Whether the best checkpoint was loaded at the end.")] | None = None


class Saving(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """When checkpoints were saved and how many were kept, as configured. Null is not known."""

    every: Annotated[NonNegativeInt, about("Steps between two checkpoints.")] | None = None
    most: Annotated[NonNegativeInt, about("Checkpoints kept at most.")] | None = None


class Schedule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The learning rate over the run."""

    name: Annotated[str, about("Name of the scheduler, as configured.")] | None = None
    peak: Real | None = None
    peak_from: RateSource | None = None
    logged_peak: Annotated[float, about("The largest rate logged.")] | None = None
    last: Annotated[float, about("The last rate logged.")] | None = None
    warmup_steps: Annotated[NonNegativeInt, about("Steps of warm-up, as configured.")] | None = None
    in_warmup: Annotated[bool, about("Whether the rate was still rising at the end of the log.")] = False
    restarts: Annotated[NonNegativeInt, about("Times that the rate rose again after it had decayed.")] = 0


class Ending(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """How the run ended, as its log says."""

    status: Annotated[str, about("Status of run_end, or `no_run_end`.")]
    step: NonNegativeInt | None = None
    planned: Annotated[NonNegativeInt, about("Planned steps.")] | None = None
    finished: Annotated[bool, about("Whether it is known to have made its planned steps.")] = False


class EvaluationMark(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """An evaluation that the choice of weights rests on."""

    step: NonNegativeInt
    roles: Annotated[list[str], about("`lowest loss`, `best METRIC`, `last`, `restored` or `the trainer's best`.")]
    loss: float | None = None
    loss_noise: Annotated[float, about("Standard deviation between evaluations; null if fewer than five.")] | None = (
        None
    )
    loss_ties: Annotated[bool, about("Whether it is within that of the lowest; null if not known.")] | None = None
    metric: Annotated[str, about("The task's metric.")] | None = None
    value: float | None = None
    value_noise: Annotated[float, about("The difference of the metric that chance explains.")] | None = None
    value_ties: Annotated[bool, about("Whether it is within that of the best; null if not known.")] | None = None


class RunAccount(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What one run was and did, derived once; every statement about the run rests on it. Null is not established."""

    objective: Annotated[str, about("`sft`, `classification`, `preference`, `reward`, `rl` or `unknown`.")] = "unknown"
    loss: LossKind = "unknown"
    floor: Annotated[float, about("The least loss that label smoothing allows, nats; null if not known.")] | None = 0.0
    adapter: Annotated[bool, about("Whether the run trained a PEFT adapter; null if its files do not say.")] | None = (
        None
    )
    passes: Annotated[float, about("Passes over the data, by the log.")] | None = None
    split: Annotated[str, about("The held-out split that is judged.")] | None = None
    evaluations: Annotated[NonNegativeInt, about("Held-out evaluations of that split at different steps.")] = 0
    held_out_loss: Annotated[MetricAccount, about("Its loss, without evaluations of restored weights.")] | None = None
    metrics: Annotated[list[MetricAccount], about("Its task metrics, in the order logged.")] = []
    decisive: (
        Annotated[str, about("What decides which checkpoint is best: `loss`, or a metric; null without either.")] | None
    ) = None
    best_step: Annotated[NonNegativeInt, about("Step of the best evaluation by that.")] | None = None
    shown_step: Annotated[NonNegativeInt, about("Step whose weights the newest evaluation measured.")] | None = None
    last_pair: LossPair | None = None
    learns: (
        Annotated[bool, about("Whether held-out or training values show that it learns; null if neither.")] | None
    ) = None
    comparable: Annotated[bool, about("Whether held-out and training loss are on one scale.")] = True
    marks: Annotated[list[EvaluationMark], about("Evaluations that the choice of weights rests on, by step.")] = []
    kept_step: Annotated[NonNegativeInt, about("Step of the weights that the run left; null if not told.")] | None = (
        None
    )
    selection: Selection = Selection()
    saving: Saving = Saving()
    schedule: Schedule = Schedule()
    resumed_from: list[NonNegativeInt] = []
    starts_at: (
        Annotated[NonNegativeInt, about("The first logged step, if the log is only the last part of a longer run.")]
        | None
    ) = None
    ending: Ending = Ending(status="unknown")


Cause: TypeAlias = Literal[
    "nothing_supervised",
    "not_finite",
    "evaluation_not_finite",
    "rate_zero",
    "rate_absurd",
    "diverged",
    "no_gradient",
    "no_learning",
    "at_chance",
    "overfits",
    "gap",
    "other_scale",
    "evaluations_empty",
    "in_warmup",
    "cut_off",
    "unfinished",
    "resumed_otherwise",
]
"""What is behind a finding, so far as advice differs."""


class Advice(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The one piece of advice of a report: for the leading cause, by what is possible now and was not done already."""

    cause: Annotated[Cause, about("What is behind it; null where the finding alone says what to do.")] | None = None
    finding: Annotated[str, about("Id of the finding that it answers.")]
    text: str
    alternative: str | None = None


class Pace(msgspec.Struct, kw_only=True, frozen=True):
    """The speed and the memory of a run: medians of its windows of steps, the first left out where there are more."""

    windows: NonNegativeInt
    seconds_per_step: Real | None = None
    waiting_share: Annotated[Fraction, about("Share of a step before its batch was there.")] | None = None
    tokens_per_second: Annotated[Real, about("Without padding.")] | None = None
    padded_tokens_per_second: Annotated[Real, about("With padding, or as another program counts them.")] | None = None
    samples_per_second: Real | None = None
    padding_share: Annotated[Fraction, about("Of all tokens of these windows.")] | None = None
    longest: Annotated[NonNegativeInt, about("Tokens of the longest row, with padding.")] | None = None
    peak_bytes: Annotated[NonNegativeInt, about("By torch's allocator, else of the process.")] | None = None
    reserved_bytes: NonNegativeInt | None = None
    total_bytes: Annotated[NonNegativeInt, about("Memory of the card, or of the machine.")] | None = None
    of_process: Annotated[bool, about("Whether the memory is the whole process's, on a CPU.")] = False


class StoryPart(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One clause of the story. With a `finding` it states that finding; without one, it states logged values."""

    says: str
    finding: Annotated[str, about("Id of a finding of this report; null for logged values.")] | None = None
    values: Annotated[dict[str, Json], about("The numbers in the clause, by name.")] = {}
    doubt: Annotated[bool, about("Whether it is reason for a look, so that no verdict says all is well.")] = False


class MonitorReport(Report, kw_only=True, frozen=True):
    """The high-level story of one run, as `gradience monitor --json` prints it."""

    schema: Literal["gradience.monitor/v2"]
    story: Annotated[str, about("The run in one line: the `says` of story_parts, joined.")] = ""
    story_parts: list[StoryPart] = []
    file: str
    run_id: str | None = None
    other_runs: Annotated[list[str], about("Ids of other runs in the same log.")] = []
    sessions: Annotated[NonNegativeInt, about("Number of process starts; 0 if not recorded.")] = 0
    config: ConfigSnapshot
    status: Annotated[str, about("Status of run_end, or `no_run_end`.")]
    status_reason: str | None = None
    events: Annotated[dict[str, int], about("Number of events in the file by name.")] = {}
    train: TrainSummary
    signals: Annotated[
        dict[str, SignalSummary], about("Values that preference training and RL log besides the loss, by name.")
    ] = {}
    probes: Annotated[
        dict[str, SignalSummary],
        about("`update_norm` and `stable_rank_mean` of the adapter during training, if they were probed."),
    ] = {}
    objective: Annotated[str, about("`sft`, `classification`, `preference`, `reward`, `rl` or `unknown`.")] = "unknown"
    account: Annotated[RunAccount, about("What the run was and did.")] = RunAccount()
    evals: list[EvalPoint] = []
    gap: GapReading | None = None
    lora_audit: Annotated[dict[str, Json], about("The newest audit recorded in the log.")] | None = None
    lora_audit_step: NonNegativeInt | None = None
    data: (
        Annotated[dict[str, Json], about("What the model was fed in the batches that were watched; null if none was.")]
        | None
    ) = None
    pace: Annotated[Pace, about("Speed and memory; null if the log has no throughput event.")] | None = None
    alerts: list[Alert] = []
    recommendations: list[RecommendationItem] = []
    findings: list[Finding] = []
    readings: Annotated[list[Finding], about("What rules read that is no finding: it counts nowhere.")] = []
    advice: Annotated[Advice, about("What to do next; null if nothing needs doing.")] | None = None
    not_run: list[NotRun] = []
    issues: Annotated[list[BadLine], about("The first lines that are not valid events.")] = []
    issues_total: Annotated[NonNegativeInt, about("Number of lines that are not valid events.")] = 0
    notes: list[str] = []


class ValidateReport(Report, kw_only=True, frozen=True):
    """Whether a log follows the schema, and which lines do not."""

    schema: Literal["gradience.validate/v2"]
    file: str
    valid: bool
    lines: Annotated[NonNegativeInt, about("Number of lines.")]
    events: dict[str, int] = {}
    unknown_events: Annotated[dict[str, int], about("Number of events by name that the schema does not know.")] = {}
    issues: Annotated[list[BadLine], about("The first lines that are not valid events.")] = []
    issues_total: Annotated[NonNegativeInt, about("Number of lines that are not valid events.")] = 0
    warnings: Annotated[
        list[str],
        about("What is legal, but probably not meant: names like a known one, values that no reader uses."),
    ] = []
    notes: list[str] = []
    error: Annotated[str, about("Why the log could not be read, if it is one of several.")] | None = None


class ValidateLogsReport(Report, kw_only=True, frozen=True):
    """Whether several logs follow the schema."""

    schema: Literal["gradience.validate-logs/v2"]
    valid: Annotated[bool, about("Whether all are valid.")]
    logs: list[ValidateReport]


class SkippedRow(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A row of another program's log that could not become an event."""

    file: Annotated[str, about("Base name of the file.")]
    line: Annotated[NonNegativeInt, about("Line from 1, or number of the row from 1 in a format without lines.")]
    reason: str


class ImportedRunReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One run found by an import."""

    run_id: str
    name: Annotated[str, about("Name of the run in the source.")] = ""
    status: Annotated[str, about("Status of the run_end that was written.")] = "unknown"
    status_reason: str | None = None
    first_step: NonNegativeInt | None = None
    last_step: NonNegativeInt | None = None
    sessions: Annotated[NonNegativeInt, about("Number of the program's starts, as far as the steps show.")] = 1
    events: Annotated[dict[str, int], about("Number of events by name.")] = {}


class ImportReport(Report, kw_only=True, frozen=True):
    """The result of `gradience import`: the runs that were read and written."""

    schema: Literal["gradience.import/v2"]
    source: str
    format: str
    out: Annotated[str, about("The run.jsonl that was written.")] = ""
    runs: Annotated[list[ImportedRunReport], about("Runs in the order written; the last one is the one shown.")] = []
    files: Annotated[list[str], about("Files that were read.")] = []
    skipped: Annotated[list[SkippedRow], about("The first rows that were not imported.")] = []
    skipped_total: Annotated[NonNegativeInt, about("Number of rows that were not imported.")] = 0
    notes: Annotated[list[str], about("Choices that were made, and other observations.")] = []
