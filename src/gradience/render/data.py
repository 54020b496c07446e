"""A data set in the report of a check: what was read, how it was tokenised, and the histogram of lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gradience.render.plots import histogram_lines
from gradience.render.text import clean, count, labelled, listed, number, percent
from gradience.schema.data import DataReport
from gradience.schema.scalars import Real, as_float

_TRAINERS = {
    "sft": "SFTTrainer",
    "dpo": "DPOTrainer",
    "reward": "RewardTrainer",
    "kto": "KTOTrainer",
    "classification": "Trainer with a classifier head",
}
_LABELS = 6


def data_lines(data: DataReport, derived: Mapping[str, Real]) -> Iterator[str]:
    """The data set as understood, and the histogram of its lengths."""
    yield "Data as the trainer feeds it:"
    yield from labelled(data_rows(data, derived), indent=2)
    bars = histogram_lines(data.lengths.bins, data.lengths.bin_width, limit=data.max_length)
    if bars:
        yield "  Tokens per sequence:"
        yield from (f"  {line}" for line in bars)


def data_rows(data: DataReport, derived: Mapping[str, Real]) -> Iterator[tuple[str, str]]:
    """Labels and values."""
    read = f"{data.rows_read:,} of {data.rows:,}, drawn with seed {data.seed}" if data.sampled else f"{data.rows:,}"
    yield "Rows", f"{read} ({data.format}, for {_trainer(data)})"
    yield "Tokenizer", f"{clean(data.tokenizer) if data.tokenizer else 'none: the rows are tokens'}{_template(data)}"
    if data.loss != "none":
        yield "Loss", f"on {_loss(data)} ({data.loss_from})"
    packed = ", packed" if data.packing else ""
    yield "Limit", f"{data.max_length:,} tokens{packed}" if data.max_length is not None else f"none{packed}"
    yield "Tokens", _tokens(data)
    lengths = data.lengths
    yield "Lengths", f"median {lengths.p50:,}, 95 % {lengths.p95:,}, 99 % {lengths.p99:,}, longest {lengths.longest:,}"
    if data.batching.padding_share is not None:
        packing = f"; packed {data.batching.packed_sequences:,} sequences" if data.batching.packed_sequences else ""
        yield "Padding", f"{percent(data.batching.padding_share)} at {data.batching.batch_size} rows{packing}"
    if data.labels:
        some = [f"{label} {n:,}" for label, n in data.labels.items()]
        yield "Labels", listed(some, _LABELS)
    if data.overlap is not None:
        yield "Overlap", _overlap(data)
    yield from _per_epoch(derived)
    yield from (("Note", clean(note)) for note in data.notes)


def _trainer(data: DataReport) -> str:
    named = _TRAINERS[data.trainer]
    return named if data.masked_by == "trl" else f"{named}, masked as by {clean(data.masked_by)}"


def _template(data: DataReport) -> str:
    return f", chat template of {data.template}" if data.template else ""


def _loss(data: DataReport) -> str:
    return {"assistant": "the assistant's turns", "completion": "completions"}.get(data.loss, "all tokens")


def _tokens(data: DataReport) -> str:
    tokens = data.tokens
    lost = f"; {count(tokens.total - tokens.kept)} lost to the limit" if tokens.total > tokens.kept else ""
    if data.loss == "none":
        return f"{count(tokens.kept)}{lost}"
    share = tokens.supervised / tokens.kept if tokens.kept else 0.0
    return f"{count(tokens.kept)}, {count(tokens.supervised)} of them supervised ({share:.1%}){lost}"


def _overlap(data: DataReport) -> str:
    found = data.overlap
    if found is None:
        return ""
    near = f"{found.near.count:,} near" if found.near_judged else clean(found.near_reason)
    return f"{found.exact.count:,} of {found.eval_rows:,} evaluation rows in the training set, {near}"


def _per_epoch(derived: Mapping[str, Real]) -> Iterator[tuple[str, str]]:
    parts = [f"{count(int(as_float(derived['tokens_per_epoch'])))} tokens"] if "tokens_per_epoch" in derived else []
    if "steps_per_epoch" in derived:
        parts.append(f"{int(as_float(derived['steps_per_epoch'])):,} steps")
    if "tokens_per_parameter" in derived:
        parts.append(f"{number(derived['tokens_per_parameter'], '.3g')} tokens per adapter parameter")
    if parts:
        yield "Epoch", ", ".join(parts)
