"""The page of a check of data: findings, histograms, and rows as the model sees them, with what is in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Final

from gradience.blocks import (
    Bars,
    Block,
    Figure,
    Heading,
    Note,
    Page,
    Section,
    Spans,
    by_severities,
    count,
    facts,
    findings,
    percent,
    words,
)
from gradience.schema.reports import CheckReport, DataReport, Example, ShownSequence
from gradience.verbs.check.view import data_blocks

_KINDS: Final = {
    "loss": "in the loss: the model learns to write it",
    "context": "read, not learnt",
    "cut": "cut off: the model never sees it",
}
_SHARE: Final = 5  # per cent of a bar


def data_page(report: CheckReport) -> Page:
    """The page of a check of data.

    Raises:
        ValueError: the report is on a configuration alone.
    """
    data = report.data
    if data is None:
        raise ValueError("a report without data")
    lead = Note("Hypotheses with their grounds: verify on held-out data. You decide.")
    understood, lengths = data_blocks(data, report.derived, caption="As the trainer feeds it")
    sections = (
        Section("findings", f"Findings ({len(report.findings)})", (lead, findings(report.findings))),
        Section("lengths", "Lengths", (lengths, *_shares(data))),
        *_examples(data),
        Section("data", "Data as understood", (understood,)),
    )
    return Page("data", PurePath(data.path).name, "", (facts(_main(report, data)),), sections)


def _main(report: CheckReport, data: DataReport) -> Iterator[tuple[str, str]]:
    tokens = data.tokens
    yield "findings", by_severities(report.findings) or "none"
    yield "rows", f"{data.rows_read:,} of {data.rows:,}" if data.sampled else f"{data.rows:,}"
    yield "tokens", count(tokens.kept)
    if data.loss != "none":
        yield "in the loss", percent(tokens.supervised / tokens.kept if tokens.kept else 0.0)
    yield "longest", f"{data.lengths.longest:,} tokens"
    if data.max_length is not None:
        yield "limit", f"{data.max_length:,} tokens"


def _shares(data: DataReport) -> list[Figure]:
    if not any(data.shares):
        return []
    about = f"{sum(data.shares):,} sequences, in per cent"
    drawing = Bars(tuple(data.shares), _SHARE)
    return [Figure("Share in the loss", drawing, summary=about, caption="Of the tokens that the limit leaves.")]


def _examples(data: DataReport) -> list[Section]:
    if not data.examples:
        return []
    lead = Note("Decoded from the tokens; a mark shows each line break. Most faults first, then rows without one.")
    legend = Spans(tuple((kind, f"{kind}: {text}") for kind, text in _KINDS.items()), _KINDS)
    rows = [block for example in data.examples for block in _example(example)]
    return [Section("rows", f"Rows as the model sees them ({len(data.examples)})", (lead, legend, *rows))]


def _example(example: Example) -> Iterator[Block]:
    faults = ", ".join(map(words, example.faults)) or "no fault noted"
    yield Heading(f"Row {example.row:,}: {faults}")
    for sequence in example.sequences:
        yield Note(f"{f'{sequence.name}, ' if sequence.name else ''}{sequence.tokens:,} tokens")
        yield _spans(sequence)


def _spans(sequence: ShownSequence) -> Spans:
    pieces = ((p.kind, f" [{p.text} not shown] " if p.kind == "left_out" else p.text) for p in sequence.pieces)
    return Spans(tuple(pieces), _KINDS)
