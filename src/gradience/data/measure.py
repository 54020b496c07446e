"""The counts of a `DataReport` from rows of tokens, in one pass that keeps only the length and the hashes of a row."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradience.data import Columns, Shape, answers_of, digest, every_turn, text_of, whole_text
from gradience.data.asked import AskedRow, RowTests, Vocabulary, foreign_in
from gradience.data.cutting import cut_at
from gradience.data.encoder import Encoder
from gradience.data.equality import beside_of, encoded, row_key
from gradience.data.rows import UnusableRow
from gradience.data.sample import HashSet, RowSample
from gradience.data.tokens import Sequence as TokenSequence, TokenRow
from gradience.schema import Json
from gradience.schema.reports import Answers, Batching, Lengths, Overlong, Pairs, RowFault, Rows, ShownRow, TokenCounts

COUNTED: Final = (  # what no test of one row can see: it needs the limit, the number of classes or the rows before
    *("unreadable", "cut", "answer_cut", "answer_lost", "question_cut", "end_supervised", "end_masked"),
    *("duplicate", "conflict", "label_out_of_range", "over_default", "label_in_text"),
)
TRL_LENGTH: Final = 1024  # default max_length of TRL's SFT, DPO, reward and KTO configs (1.16)
_ROLE: Final = "role: "  # begins the name under which rows with a role are counted
_FIRST: Final = 5  # row numbers that are kept for each kind
_FAULTS: Final = 20
_TEXT: Final = 240  # characters of a row that is shown
_BARS: Final = 48  # bars of the histogram
_SHARES: Final = 20  # bars of the histogram of supervised shares
_RATINGS: Final = ("rating", "score", "reward", "stars", "quality")  # of an answer of KTO, the higher the better
_NAMES: Final = ("label_text", "label_name")  # columns with the name of a label
_LABELS: Final = 50  # labels that the report lists
_NAMED: Final = 3  # characters from which a label in a text is no chance
_DISTINCT: Final = 100_000  # different answers that are counted, some 15 MB
_WHITESPACE: Final = 2  # tokens after the end of a turn that are ignored, such as a line break


def batching(lengths: Sequence[int], *, per_batch: int, batch_size: int, max_length: int | None, seed: int) -> Batching:
    """The padding and packing of sequences that are already cut.

    Args:
        lengths: tokens of each sequence.
        per_batch: sequences per batch, which is twice the rows if a row is a pair.
        batch_size: rows per batch, for the report.
        max_length: tokens per packed sequence; None if packing is not counted.
        seed: seed of the random order.
    """
    total = sum(lengths)
    order = array("I", lengths)
    random.Random(seed).shuffle(order)  # noqa: S311  # an order of rows, not a secret
    room = sum(max(order[i : i + per_batch]) * len(order[i : i + per_batch]) for i in range(0, len(order), per_batch))
    packed = None if max_length is None or not total else packed_count(lengths, max_length)
    return Batching(
        batch_size=batch_size,
        padding_share=1.0 - total / room if room else None,
        packed_sequences=packed,
    )


def packed_count(lengths: Sequence[int], room: int) -> int:
    """The number of bins of `room` tokens that best-fit decreasing fills, as `trl.pack_dataset(strategy="bfd")`."""
    free: list[int] = []  # distinct amounts of free space in the bins, sorted
    bins_with: Counter[int] = Counter()
    bins = 0
    # Strategy bfd cuts what is longer than a bin; only bfd_split keeps the rest.
    counts = Counter(min(length, room) for length in lengths if length)
    for length in chain.from_iterable(repeat(one, counts[one]) for one in sorted(counts, reverse=True)):
        place = bisect_left(free, length)
        if place == len(free):
            bins += 1
            left = room - length
        else:
            space = free[place]
            bins_with[space] -= 1
            if not bins_with[space]:
                del free[place]
            left = space - length
        if left:
            if not bins_with[left]:
                insort(free, left)
            bins_with[left] += 1
    return bins


class MeasureSettings(NamedTuple):
    """The settings under which rows are counted: the trainer's limits, and options of the report."""

    max_length: int | None = None
    packing: bool = False
    batch_size: int = 8
    num_labels: int | None = None
    seed: int = 0
    show_rows: bool = False
    overlong: Overlong = "cut"
    trl: bool = True
    """TRL trains: a row whose tokens in the loss are all cut off is dropped, whichever end is."""


class RowCounts(NamedTuple):
    """The counts of a data set: the fields of a `DataReport` that come from its rows."""

    read: int
    fields: dict[str, Any]
    faults: list[RowFault]
    tokens: TokenCounts
    seen: dict[str, Rows]
    turn_end: int | None
    """The control token that ends most answers, if it does not end generation."""


class RowCounter:
    """Counts rows as they come: `add` each of them, then ask for the `result`. Each row is asked the `tests`."""

    def __init__(
        self,
        shape: Shape,
        encoder: Encoder | None,
        limits: MeasureSettings,
        tests: RowTests,
        *,
        expected: int | None = None,
    ) -> None:
        self._shape, self._limits, self._tests = shape, limits, tests
        self._vocabulary = Vocabulary() if encoder is None else encoder.vocabulary
        self._has_tokens_loss = shape.trainer in {"sft", "dpo", "kto"}
        self._count: Counter[str] = Counter()
        self._first: dict[str, list[int]] = {}
        self._faults: list[RowFault] = []
        self._lengths, self._fed = array("I"), array("I")
        self._tokens = dict.fromkeys(TokenCounts.__struct_fields__, 0)
        self._hashes, self._judged, self._disputed = HashSet(), HashSet(), set[bytes]()
        self._answers: Counter[bytes] = Counter()
        self._answered = 0
        self._labels: Counter[str] = Counter()
        self._sizes: dict[str, array[int]] = {}
        self._named: dict[str, Counter[str]] = {}
        self._rated = (array("d"), array("d"))
        self._label, self._stretches = "", 0
        self._last: Counter[int] = Counter()
        self._read, self._has_labels = 0, False
        self._sample, self._pairs = RowSample(expected, limits.seed), Counter[str]()
        self._roles: set[str] = set()
        self._foreign: set[str] = set()
        self._texts: dict[int, str] = {}
        self._shares = [0] * _SHARES

    def add(self, row: TokenRow | UnusableRow) -> None:
        """Count a row."""
        if isinstance(row, UnusableRow):
            self._note("unreadable", row.number, "")
            if len(self._faults) < _FAULTS:
                self._faults.append(RowFault(row=row.number, reason=row.reason))
            return
        self._read += 1
        self._has_labels |= "labels" in row.columns
        asked = AskedRow(row.columns, self._vocabulary, row.sequences, has_tokens_loss=self._has_tokens_loss)
        for name in self._seen_in(row, asked):
            self._note(name, row.number, asked.text)
        self._tokens["images"] += len(row.sequences) * sum(row.columns.get("image_tokens", ()))
        for role in {str(turn.get("role")) for turn in every_turn(row.columns)}:
            self._roles.add(role)
            self._note(_ROLE + role, row.number, "")
        self._count_label(row.columns.get("label"), row, asked.text)

    def result(self) -> RowCounts:
        """The counts of all rows that were added."""
        pairs = 2 if self._shape.format == "preference" else 1
        tokens = TokenCounts(**self._tokens)
        seen = {name: self._rows(name) for name in (*COUNTED, *chain.from_iterable(test.names for test in self._tests))}
        fields = {
            "rows_read": self._read,
            "sequences": len(self._lengths),
            "whole_rows": self._count["whole"],
            "has_labels": self._has_labels,
            "tokens": tokens,
            "lengths": _lengths(self._lengths, self._limits.max_length),
            "batching": batching(
                self._fed,
                per_batch=self._limits.batch_size * pairs,
                batch_size=self._limits.batch_size,
                max_length=self._limits.max_length if self._shape.trainer == "sft" else None,
                seed=self._limits.seed,
            ),
            "seen": seen,
            "faults": self._faults,
            "answers": Answers(
                rows=self._answered,
                most_common=max(self._answers.values(), default=0),
                distinct=len(self._answers),
            ),
            "pairs": self._pair_counts() if self._shape.format == "preference" else None,
            "repeated": self._sample.repeated(),
            **self._sample.pairs(),
            "near": self._sample.near(),
            "answered": self._sample.languages(),
            "foreign": sorted(self._foreign),
            "labels": dict(self._labels.most_common(_LABELS)),
            "labels_total": len(self._labels),
            "label_names": {label: dict(names.most_common(_LABELS)) for label, names in self._named.items()},
            "label_stretches": self._stretches,
            "length_tells": self._told_by_length(),
            "rating_agrees": _area(self._rated[1], self._rated[0]) if all(map(len, self._rated)) else None,
            "shares": self._shares if self._has_tokens_loss else [],
            "shown": [ShownRow(row=number, text=text) for number, text in sorted(self._texts.items())],
        }
        return RowCounts(self._read, fields, self._faults, tokens, seen, self._turn_end())

    def _rows(self, name: str) -> Rows:
        return Rows(count=self._count[name], first=self._first.get(name, []))

    def _note(self, name: str, number: int, text: str) -> None:
        self._count[name] += 1
        first = self._first.setdefault(name, [])
        if len(first) < _FIRST:
            first.append(number)
            if self._limits.show_rows and text:
                self._texts[number] = text[:_TEXT]

    def _seen_in(self, row: TokenRow, asked: AskedRow) -> set[str]:
        """The names of what is seen in a row: by its tests, by the limit, and beside the rows before it."""
        columns = row.columns
        seen = {name for test in self._tests for name in test.of(asked)}
        for sequence in row.sequences:
            self._lengths.append(len(sequence.ids))
            seen |= self._seen_in_sequence(sequence, row)
        if repeats := self._hashes.add(row_key(columns)):
            seen.add("duplicate")
        if answers := answers_of(columns):
            self._answered += 1
            key = digest(answers[0])
            if key in self._answers or len(self._answers) < _DISTINCT:  # one that many rows share is among the first
                self._answers[key] += 1
        if "foreign_tokens" in seen:
            self._foreign |= foreign_in([asked.text], self._vocabulary.own)
        if "rejected" in columns and "chosen" in columns:
            self._compare_sides(text_of(columns["chosen"]), text_of(columns["rejected"]))
        if self._contradicts(columns):
            seen.add("conflict")
        self._sample.add(row.number, columns, repeats=repeats or "conflict" in seen)
        return seen

    def _compare_sides(self, chosen: str, rejected: str) -> None:
        if chosen.strip() == rejected.strip():
            return
        counts = self._pairs
        counts["compared"] += 1
        counts["chosen_longer"] += len(chosen) > len(rejected)
        counts["rejected_longer"] += len(rejected) > len(chosen)
        counts["chosen"] += len(chosen)
        counts["rejected"] += len(rejected)

    def _pair_counts(self) -> Pairs:
        counts = self._pairs
        n = counts["compared"]
        return Pairs(
            compared=n,
            chosen_longer=counts["chosen_longer"],
            rejected_longer=counts["rejected_longer"],
            chosen_mean=counts["chosen"] / n if n else 0.0,
            rejected_mean=counts["rejected"] / n if n else 0.0,
        )

    def _contradicts(self, columns: Columns) -> bool:
        """Whether an earlier row has the same text with another label, or prefers the other answer."""
        if "label" in columns:
            texts, judged = [whole_text(columns)], str(columns["label"])
        elif "rejected" in columns and "chosen" in columns:
            sides = [text_of(columns[name]) for name in ("chosen", "rejected")]
            # Sorted, so that a pair whose answers are exchanged is the same question.
            texts, judged = [text_of(columns.get("prompt")), *sorted(sides)], sides[0]
        else:
            return False
        key = digest(encoded([*texts, dict(beside_of(columns))]))
        was_said, was_judged = self._judged.add(key), self._judged.add(digest(key + encoded(judged)))
        if was_said and not was_judged:
            self._disputed.add(key)
        # Once a question is disputed, all further rows of it are, whichever label they have.
        return key in self._disputed

    def roles(self) -> dict[str, Rows]:
        """Rows by the roles of their turns."""
        return {role: self._rows(_ROLE + role) for role in sorted(self._roles)}

    def _seen_in_sequence(self, sequence: TokenSequence, row: TokenRow) -> set[str]:
        ids, mask = sequence.ids, sequence.mask
        length, supervised = len(ids), len(ids) if mask is None else sum(mask)
        kept, left = self._kept(sequence, supervised)
        dropped, overlong = self._is_dropped(row, left, is_cut=kept < length), self._limits.overlong
        if not dropped:
            self._fed.append(kept)
        seen = {"cut"} if kept < length else set()
        if length > TRL_LENGTH:
            seen.add("over_default")
        if overlong == "shared" and left and length - supervised > kept - left:
            seen.add("question_cut")
        if self._has_tokens_loss:
            if left < supervised:
                seen.add("answer_cut")
            if supervised and (dropped or not left):
                seen.add("answer_lost")
            if kept == length and supervised:
                seen |= {"whole", *self._ends_of(ids, mask)}
        elif dropped:
            seen.add("answer_lost")
        self._count_tokens(length, supervised, *((0, 0) if dropped else (kept, left)))
        return seen

    def _count_tokens(self, length: int, supervised: int, kept: int, left: int) -> None:
        """Count a sequence: its tokens and the supervised ones, before the limit and after it."""
        counts = self._tokens
        counts["total"] += length
        counts["kept"] += kept
        if self._has_tokens_loss:
            counts["supervised"] += left
            counts["supervised_lost"] += supervised - left
            if kept:
                self._shares[min(_SHARES * left // kept, _SHARES - 1)] += 1

    def _kept(self, sequence: TokenSequence, supervised: int) -> tuple[int, int]:
        """The tokens that the limit leaves of a sequence, and the supervised ones among them."""
        limit, ids, mask = self._limits.max_length, sequence.ids, sequence.mask
        if sequence.kept is not None:
            return len(sequence.kept.ids), sum(sequence.kept.mask)
        if limit is None or len(ids) <= limit:
            return len(ids), supervised
        places = cut_at(limit, mask, len(ids), self._limits.overlong)
        return len(places), len(places) if mask is None else sum(mask[i] for i in places)

    def _is_dropped(self, row: TokenRow, left: int, *, is_cut: bool) -> bool:
        """Whether the trainer drops a sequence, of which so many tokens in the loss are left."""
        limit, trainer, overlong = self._limits.max_length, self._shape.trainer, self._limits.overlong
        if limit is None or trainer == "classification" or overlong == "shared":
            return False
        if overlong in {"left_out", "refused"}:
            return is_cut
        # TRL 1.16 leaves out: pairs with a side over the limit (reward); where the beginning is kept, prompts that fill
        # it (DPO, KTO); and rows of which no token in the loss is left (SFT without packing).
        if trainer == "reward":
            return any(len(side.ids) > limit for side in row.sequences)
        if trainer in {"dpo", "kto"}:
            return overlong == "cut" and row.prompt >= limit
        return is_cut and not left and not self._limits.packing and (overlong == "cut" or self._limits.trl)

    def _ends_of(self, ids: list[int], mask: list[int] | None) -> list[str]:
        """The names of what the row shows about end tokens: one is supervised, or one after an answer is masked.

        It also counts the row's last control token. At least one token of the row must be supervised.
        """
        places = [i for end in self._vocabulary.ends for i in _places(ids, end)]
        signs = ["end_supervised"] if any(mask is None or mask[i] for i in places) else []
        if mask is not None and any(not mask[i] and i and mask[i - 1] for i in places):
            signs.append("end_masked")
        last = len(ids) if mask is None else next(i + 1 for i in range(len(ids) - 1, -1, -1) if mask[i])
        tail = ids[max(last - _WHITESPACE, 0) : last]
        control = next((one for one in reversed(tail) if one in self._vocabulary.controls), None)
        if control is not None:
            self._last[control] += 1
        return signs

    def _told_by_length(self) -> float | None:
        """Of the pairs of a text of the most frequent label and another, the share in which the former is longer."""
        first = next(iter(self._labels.most_common(1)), ("", 0))[0]
        if first not in self._sizes or len(self._sizes) < 2:  # one class alone tells nothing
            return None
        others = np.concatenate([np.asarray(some) for name, some in self._sizes.items() if name != first])
        return _area(self._sizes[first], others)

    def _turn_end(self) -> int | None:
        """The control token that ends most answers, unless it ends generation; then None."""
        token, times = next(iter(self._last.most_common(1)), (None, 0))
        return token if token not in self._vocabulary.ends and 2 * times > self._count["whole"] else None

    def _count_label(self, label: Json, row: TokenRow, text: str) -> None:
        if label is None:
            return
        name = str(label)[:64]
        self._labels[name] += 1
        stored = row.columns.get("stored", {})
        if isinstance(label, bool) and self._shape.trainer == "kto":
            rated = (stored.get(column) for column in _RATINGS)
            rating = next((one for one in rated if isinstance(one, int | float) and not isinstance(one, bool)), None)
            if rating is not None:
                self._rated[label].append(rating)
        for beside in (stored[column] for column in _NAMES if column in stored):
            if len(self._labels) <= _LABELS:
                self._named.setdefault(name, Counter())[str(beside)[:64]] += 1
        self._stretches += name != self._label
        self._label = name
        if self._shape.trainer == "classification" and len(self._labels) <= _LABELS:
            self._sizes.setdefault(name, array("I")).append(len(text))
            if (
                isinstance(label, str)
                and len(label) >= _NAMED
                and [one for one in self._labels if one in text] == [name]
            ):
                self._note("label_in_text", row.number, text)
        classes = self._limits.num_labels
        is_id = isinstance(label, int) and not isinstance(label, bool)
        if (
            is_id
            and self._shape.trainer == "classification"
            and (label < 0 or (classes is not None and label >= classes))
        ):
            self._note("label_out_of_range", row.number, text)


def _places(ids: list[int], wanted: int) -> Iterator[int]:
    place = -1
    with suppress(ValueError):  # faster than to look at each
        while True:
            yield (place := ids.index(wanted, place + 1))


def _area(own: Sequence[float], others: Sequence[float] | NDArray[np.uint32]) -> float:
    """The share of the pairs of one of each in which the first is the higher one; of equals half."""
    ordered = np.sort(np.asarray(others))
    below, upto = np.searchsorted(ordered, own, "left"), np.searchsorted(ordered, own, "right")
    return float((below + upto).mean() / 2 / len(ordered))


def _lengths(lengths: array[int], limit: int | None) -> Lengths:
    if not lengths:
        return Lengths()
    ordered = np.sort(np.asarray(lengths))
    width, bins = _histogram(ordered, limit)
    return Lengths(
        mean=int(ordered.sum()) / len(ordered),
        **{f"p{percent}": quantile(ordered, percent) for percent in (50, 90, 95, 99)},
        longest=int(ordered[-1]),
        bin_width=width,
        bins=bins,
    )


def quantile(ordered: Sequence[int] | NDArray[np.uint32], percent: int) -> int:
    """The smallest value that at least `percent` per cent of the values do not exceed."""
    return int(ordered[-(-len(ordered) * percent // 100) - 1])


def _histogram(ordered: Sequence[int] | NDArray[np.uint32], limit: int | None) -> tuple[int, list[int]]:
    """The width of a bar, and the bars, up to the limit or the 99th percentile, whichever is longer.

    The last bar holds all longer sequences.
    """
    top = min(int(ordered[-1]), max(quantile(ordered, 99), 2 * limit if limit else 0))
    width = max(1, -(-(top + 1) // _BARS))
    return width, np.bincount(np.minimum(np.asarray(ordered) // width, _BARS - 1)).tolist()
