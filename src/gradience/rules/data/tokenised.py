"""Rules on rows that are tokenised already: labels beside tokens, ids that no tokenizer gave, padding in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradience.data.asked import AskedRow, RowTests, Vocabulary, row_kinds, row_test
from gradience.rules import Observation, Threshold, Unknown, premise
from gradience.rules.data.content import HALF, SLIPS, DataRule, on_rows, seen_in, share
from gradience.schema.reports import DataReport, Rows

ONE_LENGTH = Threshold("one_length", 0.95, "of the longest row", "proposal: rows of turns differ in length")
_CLASSES: Final = 256  # labels of tokens that are all below it are classes: parts of speech, names
_PADDED: Final = 2  # padding tokens at the end of a row, of which one may stand for an end
_IGNORED: Final = -100  # label of a token that the loss ignores
_WHITESPACE: Final = 2  # tokens after the end of a turn that are ignored, such as a line break


@premise("the rows are tokenised already")
def _given(data: DataReport) -> str | None:
    return None if data.format == "tokenised" else "the rows are not tokenised already"


@row_kinds("labels_differ", "labels_shifted")
def _of_labels(row: AskedRow) -> Iterator[str]:
    """At least half of the supervised labels are not the ids of their tokens; they are those of the next tokens."""
    ids, labels = _given_of(row)
    kept = [i for i, label in enumerate(labels) if label != _IGNORED]
    if not kept or 2 * sum(labels[i] != ids[i] for i in kept) < len(kept) or max(labels[i] for i in kept) < _CLASSES:
        return
    yield "labels_differ"
    # transformers' models shift labels themselves: those that are shifted already are shifted twice.
    if 2 * sum(i + 1 < len(ids) and labels[i] == ids[i + 1] for i in kept) > len(kept):
        yield "labels_shifted"


def _given_of(row: AskedRow) -> tuple[list[int], list[int]]:
    """The ids and the labels of a row that is tokenised already."""
    ids: list[int] = row.columns.get("input_ids", [])
    labels: list[int] = row.columns.get("labels", ids)
    return ids, labels


@DataRule(
    "DAT347",
    severity="error",
    confidence=0.85,
    groups=("data", "log"),
    needs=(_given,),
    thresholds=(SLIPS,),
)
def _labels(data: DataReport) -> Iterator[Observation]:
    """labels are not the tokens

    in {slips} of the rows at least half of the supervised labels are not the ids of their tokens; warning if they
    are not those of the next tokens

    Why: The loss of a causal model compares each label with the token at its place, one step later.
    Scope: input_ids with labels of the same length, for causal models; labels that are all below 256 are taken for
        classes of tokens
    Action: rebuild the labels: the ids, with -100 where the loss should not look
    Verify: decode ids and labels of a row beside each other
    Seen: https://github.com/InternLM/InternLM/issues/318 -- labels shifted in the data set, and by the model once
        more
    """
    if not data.has_labels:
        raise Unknown("the rows hold no labels")
    rows, shifted = data.rows_with("labels_differ"), data.rows_with("labels_shifted")
    if share(rows, data.rows_read) < SLIPS.value:
        return
    by_one = shifted.count * 2 > rows.count
    says = "the next token's: causal models shift labels themselves" if by_one else "not the tokens beside them"
    yield on_rows(
        data,
        rows,
        f"have labels that are {says}",
        severity=None if by_one else "warning",  # which labels of an encoder-decoder are, too
        shifted=shifted.count,
        action="give each token its own id as its label; the model's loss shifts them" if by_one else None,
    )


@row_test
def unknown_ids(row: AskedRow) -> bool:
    """A token id is not one of the tokenizer's."""
    size = row.vocabulary.size or 0
    return size > 0 and not all(0 <= one < size for one in _given_of(row)[0])


@DataRule(
    "DAT348",
    severity="error",
    confidence=0.85,
    needs=(_given,),
)
def _ids(data: DataReport) -> Iterator[Observation]:
    """ids of another tokenizer

    a row holds a token id below 0, or not below the tokenizer's size

    Why: Such ids are of another tokenizer: they fail in the embedding, or hit rows that were never trained.
    Scope: input_ids, with the tokenizer given
    Action: tokenise with the tokenizer of the model, or give that one to the check
    Verify: tokenizer.decode of a row
    Source: definition -- the ids beside the number of the tokenizer's tokens
    Source: torch/nn/functional.py:embedding@2.13.0 -- an id beyond the table is an IndexError
    """
    if data.tokenizer is None:
        raise Unknown("no tokenizer is given")
    rows = data.rows_with("unknown_ids")
    if rows.count:
        yield on_rows(data, rows, f"hold token ids that {data.tokenizer} does not have")


@row_test
def padding_supervised(row: AskedRow) -> bool:
    """The row ends in padding that is in the loss, or labels tokens that its attention mask hides."""
    ids, labels = _given_of(row)
    mask: list[int] | None = row.stored.get("attention_mask") if "labels" in row.columns else None
    if isinstance(mask, list) and len(mask) == len(labels):
        return sum(seen == 0 and label != _IGNORED for seen, label in zip(mask, labels, strict=True)) >= _PADDED
    pad = row.vocabulary.pad
    return pad is not None and ids[-_PADDED:] == labels[-_PADDED:] == [pad] * _PADDED


@DataRule(
    "DAT349",
    severity="warning",
    confidence=0.85,
    groups=("data", "log"),
    needs=(_given,),
    thresholds=(SLIPS,),
)
def _padding_supervised(data: DataReport) -> Iterator[Observation]:
    """padding in the loss

    {slips} of the rows end in two padding tokens or more whose labels are in the loss, or label as many tokens that
    their attention_mask hides

    Why: The model learns to write padding, and the mean of the loss is taken over it.
    Scope: input_ids; tokenizers whose padding token does not end generation, or rows with attention_mask and labels
    Action: set the labels of padding to -100, or leave padding to the collator
    Verify: the labels at the end of these rows
    Seen: https://github.com/01-ai/Yi/issues/110 -- padding is not masked, and is learnt
    Source: definition -- the tokenizer's padding token
    """
    return seen_in(data, data.rows_with("padding_supervised"), "have padding in the loss", at_least=SLIPS)


@row_test
def untaught_tokens(row: AskedRow) -> bool:
    """A token of a live batch has an embedding that nothing trained."""
    return not row.vocabulary.untaught.isdisjoint(row.sequences[0].ids if row.sequences else ())


@row_test
def documents_masked(row: AskedRow) -> bool:
    """Positions of a live batch begin anew, and a mask beside them undoes that."""
    return "masked" in row.columns


@row_kinds("documents_joined", "turns_or_documents")
def _of_documents(row: AskedRow) -> Iterator[str]:
    """Tokens go on after an end token, and no positions begin anew; or a control token does: a turn or a document."""
    ids, known = _given_of(row)[0], row.vocabulary
    if ids and row.sequences:
        ids = row.sequences[0].ids  # of a live batch without its padding
    after = set() if "parted" in row.columns else _after_ends(ids, known)
    if after and not known.ends_plain_turns and not known.controls.issuperset(after - {known.bos}):
        yield "documents_joined"
    elif after and ids[-1] != ids[-2]:  # a padded row of turns is no piece of a packed text
        yield "turns_or_documents"


def _after_ends(ids: list[int], known: Vocabulary) -> set[int]:
    """The tokens that follow an end token within a row, leaving out the ends and the padding at its end.

    The first control token soon after an end counts as the next, such as after a line break. One token at the end of
    the row is such a break, as ChatML's template writes it after each turn.
    """
    ends = known.ends | ({known.pad} if known.pad is not None else set())
    last = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] not in ends), 0)
    first = next((i for i, one in enumerate(ids) if one not in ends), last)  # GPT-2 begins a text with its end token
    near = (ids[i + 1 : i + 2 + _WHITESPACE] for i in range(first, last - 1) if ids[i] in known.ends)
    return {next((one for one in soon if one in known.controls), soon[0]) for soon in near}


@DataRule(
    "DAT355",
    severity="warning",
    confidence=0.75,
    groups=("data", "log"),
    needs=(_given,),
    thresholds=(HALF, ONE_LENGTH),
)
def _documents(data: DataReport) -> Iterator[Observation]:
    """packed without positions

    in {half} of the rows tokens go on after an end token, and neither position_ids that begin anew nor lengths of
    sequences part them; where a turn may begin there, by a control token or by a template that writes none, only if
    the mean length is {one_length} of the longest

    Why: Each document attends to those before it, and begins at a position within the row.
    Scope: input_ids, with the tokenizer given; batches as they are fed, where one row stands for several
    Action: keep the lengths or positions that packing made: with padding_free or flash attention they part documents
    Verify: position_ids of a batch: they begin at 0 once for each document
    Source: transformers/data/data_collator.py:DataCollatorWithFlattening@5.24.0 -- parts the documents of one row
        by position_ids
    Source: transformers/masking_utils.py:_preprocess_mask_arguments@5.24.0 -- looks at position_ids only where no
        attention_mask is given
    """
    if data.tokenizer is None:
        raise Unknown("no tokenizer is given")
    rows, turns = data.rows_with("documents_joined"), data.rows_with("turns_or_documents")
    is_cut = (data.lengths.mean or 0.0) >= ONE_LENGTH.value * data.lengths.longest > 0
    if is_cut and turns.count > rows.count:
        rows = Rows(count=rows.count + turns.count, first=turns.first)
    if share(rows, data.rows_read) >= HALF.value:
        yield on_rows(data, rows, "hold several documents, and no position_ids that begin anew")


RULES = (_labels, _ids, _padding_supervised, _documents)

ROW_TESTS: RowTests = (_of_labels, unknown_ids, padding_supervised, _of_documents)
ASKED_LIVE: RowTests = (_of_labels, padding_supervised, _of_documents, documents_masked, untaught_tokens)
"""Those that a live batch is asked, which has ids and labels and no text."""
