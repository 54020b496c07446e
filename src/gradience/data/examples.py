"""The rows of a data set that are worth a look, as the model sees them: those with the most faults, and a few without.

Of each kind of fault only a few rows are kept, so one fault that many rows share does not hide the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from gradience.data.cutting import cut_at
from gradience.data.encoder import Encoder
from gradience.data.tokens import Sequence as TokenSequence, TokenRow
from gradience.schema.reports import Example, Overlong, PieceKind, ShownSequence, TokenRun

MOST_TOKENS: Final = 600  # tokens shown of a sequence, half of them from its end

_ALIKE: Final = 2  # rows kept with the same faults
_MOST_KINDS: Final = 256  # combinations of faults that are kept
_WITHOUT: Final = 3  # rows kept without a fault
_WEIGHTS: Final = {  # how much a fault counts in the order of the rows; a heuristic
    **dict.fromkeys(("unsupervised", "answer_lost", "inverted", "template_twice", "empty_answer", "equal_pair"), 4),
    **dict.fromkeys(("labels_differ", "unknown_ids", "padding_supervised", "missing_value"), 3),
    **dict.fromkeys(("label_out_of_range", "mojibake", "replacement", "next_turn_in_answer", "foreign_tokens"), 3),
    **dict.fromkeys(("answer_cut", "roles_out_of_order", "no_assistant", "unanswered", "empty_prompt", "echo"), 2),
    **dict.fromkeys(("conflict", "arguments_broken", "result_uncalled", "call_unanswered", "torn", "double_bos"), 2),
    **dict.fromkeys(("question_cut", "cut", "duplicate", "markup", "escaped_breaks", "value_parts", "end_masked"), 1),
    **dict.fromkeys(("speaker_label", "placeholder"), 1),
}


class _ExampleRow(NamedTuple):
    number: int
    faults: list[str]
    row: TokenRow


class Examples:
    """Takes rows with their faults, and keeps those that are worth a look.

    Args:
        most: rows to show.
        limit: the length limit in tokens; None without one.
        overlong: what becomes of a sequence over the limit.
    """

    def __init__(self, most: int, limit: int | None, overlong: Overlong) -> None:
        self._most, self._limit, self._overlong = most, limit, overlong
        self._kept: dict[frozenset[str], list[_ExampleRow]] = {}

    def add(self, row: TokenRow, signs: Collection[str]) -> None:
        """Take a row, and what was noted of it."""
        if not self._most:
            return
        faults = sorted((sign for sign in signs if sign in _WEIGHTS), key=lambda sign: (-_WEIGHTS[sign], sign))
        kind = frozenset(faults)
        same = self._kept.get(kind, [])
        if len(same) < (_ALIKE if faults else _WITHOUT) and (same or len(self._kept) < _MOST_KINDS):
            self._kept.setdefault(kind, []).append(_ExampleRow(row.number, faults, row))

    def result(self, encoder: Encoder | None) -> list[Example]:
        """The rows with the most faults first, then those without; none without a tokenizer, which writes tokens."""
        if encoder is None:
            return []
        every = [one for some in self._kept.values() for one in some]
        every.sort(key=lambda one: (-sum(_WEIGHTS[fault] for fault in one.faults), one.number))
        return [self._shown(one, encoder) for one in every[: self._most]]

    def _shown(self, one: _ExampleRow, encoder: Encoder) -> Example:
        names = ("chosen", "rejected") if len(one.row.sequences) > 1 else ("",)
        shown = [
            ShownSequence(name=name, tokens=len(sequence.ids), pieces=_pieces(self._runs(sequence), encoder))
            for name, sequence in zip(names, one.row.sequences, strict=True)
        ]
        return Example(row=one.number, faults=one.faults, sequences=shown)

    def _runs(self, sequence: TokenSequence) -> list[tuple[PieceKind, list[int]]]:
        """The runs of tokens of one kind."""
        if sequence.kept is not None and len(sequence.kept.ids) < len(sequence.ids):
            kinds: list[PieceKind] = ["loss" if bit else "context" for bit in sequence.kept.mask]
            return _grouped(zip(kinds, sequence.kept.ids, strict=True))
        places = self._seen(sequence)
        mask = sequence.mask or [1] * len(sequence.ids)
        every: Iterator[tuple[PieceKind, int]] = (
            ("cut" if place not in places else "loss" if bit else "context", token)
            for place, (token, bit) in enumerate(zip(sequence.ids, mask, strict=True))
        )
        return _grouped(every)

    def _seen(self, sequence: TokenSequence) -> Collection[int]:
        length = len(sequence.ids)
        if self._limit is None or length <= self._limit:
            return range(length)
        if self._overlong in {"left_out", "refused"}:
            return range(0)
        places = cut_at(self._limit, sequence.mask, length, self._overlong)
        return places if isinstance(places, range) else set(places)


def _grouped(tokens: Iterator[tuple[PieceKind, int]]) -> list[tuple[PieceKind, list[int]]]:
    return [(kind, [token for _, token in group]) for kind, group in groupby(tokens, key=lambda one: one[0])]


def _pieces(runs: Sequence[tuple[PieceKind, list[int]]], encoder: Encoder) -> list[TokenRun]:
    """The runs as text; of a long sequence its beginning and its end."""
    shown = _shortened(runs)
    texts = iter(encoder.decoded([ids for kind, ids in shown if kind != "left_out"]))
    return [
        TokenRun(kind=kind, text=f"{len(ids):,} tokens" if kind == "left_out" else next(texts)) for kind, ids in shown
    ]


def _shortened(runs: Sequence[tuple[PieceKind, list[int]]]) -> list[tuple[PieceKind, list[int]]]:
    total = sum(len(ids) for _, ids in runs)
    if total <= MOST_TOKENS:
        return list(runs)
    first, last = MOST_TOKENS // 2, total - MOST_TOKENS // 2
    begun = 0
    head: list[tuple[PieceKind, list[int]]] = []
    tail: list[tuple[PieceKind, list[int]]] = []
    for kind, ids in runs:
        head += [(kind, ids[: first - begun])] if begun < first else []
        tail += [(kind, ids[max(last - begun, 0) :])] if begun + len(ids) > last else []
        begun += len(ids)
    return [*head, ("left_out", [0] * (last - first)), *tail]
