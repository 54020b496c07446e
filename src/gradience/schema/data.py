"""What a data set holds as its trainer feeds it: counts of tokens and rows, lengths, labels, and overlap."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from gradience.schema.scalars import Fraction, Json, NonNegativeInt, about

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
    turn_end: Annotated[str, about("Control token that ends most answers, where it is no end token; else empty.")] = ""
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
