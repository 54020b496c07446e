"""Types of a receipt, and of the report of `gradience verify` by answers.

A receipt says what a base with an adapter answered where it was trained: log-probabilities of given tokens. Whatever
serves the adapter later is asked for the same.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import NonNegativeInt, Real, about
from gradience.schema.document import Finding, NotRun, Report

RECEIPT_SCHEMA_ID: Final = "gradience.receipt/v1"
VERIFY_SERVED_SCHEMA_ID: Final = "gradience.verify-served/v3"

LogProbs: TypeAlias = list[Annotated[float, Meta(le=0.0)]]
TokenIds: TypeAlias = list[NonNegativeInt]
Size: TypeAlias = Annotated[float, Meta(ge=0.0)]

NoiseOf: TypeAlias = Literal["batch", "bfloat16", "int8", "int4"]

ServedVerdict: TypeAlias = Literal[
    "same",
    "same_within_quantisation",
    "another_checkpoint",
    "part_missing",
    "wrong_scale",
    "another_adapter",
    "the_base",
    "tokens_or_template_differ",
    "cannot_tell",
]


class ReceiptRow(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One token sequence, and what base and adapter give to it, in nats."""

    ids: Annotated[TokenIds, about("Token ids of the whole sequence.")]
    first: Annotated[
        NonNegativeInt, about("Position whose prediction is the first that counts; it predicts token `first` + 1.")
    ] = 0
    base: Annotated[LogProbs, about("Under the base: of each next token, or of each class of a classifier.")]
    adapter: Annotated[LogProbs, about("The same under base and adapter.")]
    text: Annotated[str, about("The row as it was given, if it was asked to be kept.")] = ""


class SelfDistance(msgspec.Struct, kw_only=True, frozen=True):
    """How far the same model goes from itself, measured on the machine that wrote the receipt."""

    of: Annotated[
        NoiseOf,
        about(
            "`batch`: one sequence at a time, without padding. `bfloat16`: computed in it. `int8`, `int4`: weights "
            "rounded to codes of so many bits, 32 to a scale."
        ),
    ]
    residual: Annotated[Size, about("|y - adapter| / |adapter - base|.")]
    predictions: Annotated[NonNegativeInt, about("Log-probabilities on which it was measured.")]


class Tokens(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """How the tokenizer and its chat template treat a text and a conversation of our own."""

    text: Annotated[str, about("The text.")]
    ids: Annotated[TokenIds, about("Its token ids, with the special tokens that the tokenizer adds.")]
    chat: Annotated[TokenIds, about("Token ids of the text as a user's turn; empty without a chat template.")] = []
    template: Annotated[str, about("Beginning of the SHA-256 of the chat template; empty without one.")] = ""


class Receipt(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What an adapter answers on its base, for a comparison with whatever serves it later."""

    schema: Literal["gradience.receipt/v1"]
    task: Annotated[str, about("`causal-lm` or `sequence-classification`.")]
    adapter: Annotated[str, about("`sha256:...` of the adapter's tensors, by name and value in float32.")]
    adapter_name: Annotated[str, about("Name of its folder.")] = ""
    base: Annotated[str, about("Digest of the base's weights files; empty if they were not at hand.")] = ""
    base_name: str = ""
    tokens: Tokens | None = None
    rows: list[ReceiptRow]
    rows_from: Annotated[str, about("Where the rows are from: a file, the recipe that names it, or a sample.")] = ""
    noise: list[SelfDistance]
    dtype: Annotated[str, about("Dtype in which it was computed, such as `float32`.")] = "float32"
    device: Annotated[str, about("`cpu`, `cuda`, ...")] = "cpu"
    forward_rows: Annotated[NonNegativeInt, about("Sequences that were run, counted once for each run.")] = 0


class Part(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A part of the adapter, or a scale, and how near its loss comes to what was served."""

    name: str
    residual: Annotated[Size, about("|y - what would be read| / |adapter - base|.")]


class VerifyServedReport(Report, kw_only=True, frozen=True, omit_defaults=True):
    """Whether what is served is what a receipt was written of, and if not, what it is."""

    schema: Literal["gradience.verify-served/v3"]
    receipt: str
    target: str
    kind: Annotated[Literal["adapter", "model", "endpoint"], about("What the target is.")]
    how: Annotated[str, about("How it was asked for log-probabilities.")]
    precision: Annotated[str, about("Width of the target's weights, as files and values say; empty if unknown.")] = ""
    verdict: ServedVerdict
    story: Annotated[str, about("The answer in one line.")]
    engine: Annotated[str, about("As `--serve` names it, with the version: as given, or as the server says.")] = ""
    cause: Annotated[str, about("Which of the losses that are foretold of the engine is the case.")] = ""
    residual: Annotated[Real, about("|y - adapter| / |adapter - base|: 0 is the adapter.")] | None = None
    share: (
        Annotated[
            Real,
            about("<y - base, adapter - base> / |adapter - base|^2: how much of the effect is there; 0 is the base."),
        ]
        | None
    ) = None
    from_base: Annotated[Real, about("|y - base| / |adapter - base|: 0 is the base.")] | None = None
    noise: Annotated[Real, about("The residual up to which the target counts as the same.")] | None = None
    factor: Annotated[Real, about("Of the adapter's scale, where another one explains what was read.")] | None = None
    missing: Annotated[list[str], about("Modules whose absence explains what was read.")] = []
    tried: Annotated[list[Part], about("Explanations that were computed, the nearest first.")] = []
    compared: Annotated[NonNegativeInt, about("Log-probabilities that were compared.")] = 0
    of: Annotated[NonNegativeInt, about("Log-probabilities that the receipt has.")] = 0
    notes: list[str] = []
    findings: list[Finding] = []
    not_run: list[NotRun] = []
