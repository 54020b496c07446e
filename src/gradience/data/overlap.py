"""Rows of an evaluation set that also occur in the training set: equal, equal word for word, or similar by MinHash.

Candidates for near overlap come from `datasketch`'s MinHash and its LSH index. The similarity of each candidate is then
computed from the trigrams themselves, so no pair below the threshold is reported. docs/evidence/data.md gives the
share that LSH misses.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradience.data import Columns, answers_of, digest, question_of, whole_text
from gradience.data.equality import beside_of, differ, row_key
from gradience.schema.reports import RowOverlap, Rows

NEAR: Final = 0.8  # Jaccard similarity of word trigrams
HASHES: Final = 128  # permutations of MinHash: a standard error of 1 / sqrt(128) = 0.09 for an estimate
# Bands of LSH, and the hashes of each: what datasketch finds, anew for each index, for a similarity of 0.6, which is
# below NEAR, so that LSH misses little above NEAR.
_BANDS: Final = (18, 7)
_FIRST: Final = 5
_WORD: Final = re.compile(r"\w+")
_TRIGRAM: Final = 3
_ASKED: Final = 4  # words from which a question is no greeting
_FEWEST: Final = 8  # a row with fewer trigrams is not judged for nearness, because one word would decide
_ODD: Final = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)  # of multiply-shift hashing: any odd numbers

Hashes: TypeAlias = NDArray[np.uint32]
"""A set of 32-bit hashes: each once, in order."""

NO_DATASKETCH: Final = "near rows need datasketch: in the clone: pip install -e '.[data]'"


class NearIndex:
    """Sets of trigrams by number, and for another set those that are probably similar.

    Raises:
        ModuleNotFoundError: datasketch, an extra, is not installed.
    """

    def __init__(self) -> None:
        from datasketch import MinHash, MinHashLSH  # an extra

        # Trigrams are hashes already, so `int` leaves them as they are.
        self._empty: Any = MinHash(num_perm=HASHES, hashfunc=int)  # copied: to make its permutations takes long
        self._index: Any = MinHashLSH(num_perm=HASHES, params=_BANDS)

    def _hashed(self, grams: Hashes) -> Any:
        made = self._empty.copy()
        made.update_batch(grams.tolist())
        return made

    def insert(self, number: int, grams: Hashes) -> None:
        """Add a set."""
        self._index.insert(number, self._hashed(grams))

    def candidates(self, grams: Hashes) -> list[int]:
        """The numbers of the sets that are probably similar."""
        places: list[int] = self._index.query(self._hashed(grams))
        return places

    def candidates_before(self, number: int, grams: Hashes) -> list[int]:
        """The numbers of similar sets that were added before; the set is added, too."""
        hashed = self._hashed(grams)
        places: list[int] = self._index.query(hashed)
        self._index.insert(number, hashed)
        return places


def near_index() -> NearIndex | None:
    """An empty index; None without datasketch."""
    try:
        return NearIndex()
    except ModuleNotFoundError:
        return None


def can_be_near(grams: Hashes) -> bool:
    """Whether a row has enough trigrams: with fewer, one word would decide."""
    return len(grams) >= _FEWEST


class EvalRows:
    """The rows of an evaluation set, with which rows of a training set are compared."""

    def __init__(self) -> None:
        self._by_words: dict[bytes, list[int]] = {}
        self._keys: dict[int, bytes] = {}
        self._beside: dict[int, Mapping[str, str]] = {}
        self._questions: dict[bytes, list[tuple[int, bytes]]] = {}
        self._grams: dict[int, Hashes] = {}
        self._every: set[int] = set()
        self._rows = 0
        self._exact: set[int] = set()
        self._same_words: set[int] = set()
        self._near: set[int] = set()
        self._other_answer: set[int] = set()
        self._index = near_index()

    def read(self, rows: Iterable[tuple[int, Columns]]) -> None:
        """Take the numbered rows of the evaluation set."""
        for number, columns in rows:
            self._rows += 1
            words = words_of(columns)
            self._by_words.setdefault(_key(words), []).append(number)
            self._keys[number], self._beside[number] = row_key(columns), beside_of(columns)
            question = _asked(columns)
            if question is not None:
                self._questions.setdefault(question[0], []).append((number, question[1]))
            grams = trigrams(words)
            if self._index is not None and can_be_near(grams):
                self._grams[number] = grams
                self._every.update(grams.tolist())
                self._index.insert(number, grams)

    def compare(self, columns: Columns) -> None:
        """Compare a row of the training set with the rows of the evaluation set."""
        words, beside = words_of(columns), beside_of(columns)
        same = {n for n in self._by_words.get(_key(words), ()) if not differ(beside, self._beside[n])}
        self._same_words |= same
        self._exact |= {n for n in same if self._keys[n] == row_key(columns)}
        question = _asked(columns) if self._questions else None
        if question is not None:
            others = self._questions.get(question[0], ())
            other = {n for n, answer in others if answer != question[1]}
            self._other_answer |= {n for n in other if not differ(beside, self._beside[n])}
        self._compare_grams(trigrams(words), beside)

    def _compare_grams(self, grams: Hashes, beside: Mapping[str, str]) -> None:
        # Jaccard similarity is at most the share of these trigrams that any row of the evaluation set has.
        if self._index is None or not can_be_near(grams):
            return
        if sum(map(self._every.__contains__, grams.tolist())) < NEAR * len(grams):
            return
        for number in self._index.candidates(grams):
            alike = number not in self._near and jaccard(grams, self._grams[number]) >= NEAR
            if alike and not differ(beside, self._beside[number]):
                self._near.add(number)

    def result(self) -> RowOverlap:
        """The overlap that was found so far."""
        repeated = self._same_words | self._near
        return RowOverlap(
            eval_rows=self._rows,
            exact=_rows(self._exact),
            by_words=_rows(self._same_words - self._exact),
            near=_rows(self._near - self._same_words),
            other_answer=_rows(self._other_answer - repeated),
            near_judged=self._index is not None,
            near_reason="" if self._index is not None else NO_DATASKETCH,
            threshold=NEAR,
            hashes=HASHES,
        )


def _rows(numbers: set[int]) -> Rows:
    return Rows(count=len(numbers), first=sorted(numbers)[:_FIRST])


def words_of(columns: Columns) -> list[str]:
    """The words of a row in lower case; for a row that is already tokenised, its ids."""
    if "input_ids" in columns:
        return [str(one) for one in columns["input_ids"]]
    return _WORD.findall(whole_text(columns).lower())


def _key(words: list[str]) -> bytes:
    return digest(" ".join(words))


def _asked(columns: Columns) -> tuple[bytes, bytes] | None:
    """The hashes of a question's and its answers' words; None without a question of some words."""
    words = _WORD.findall(question_of(columns).lower())
    if len(words) < _ASKED:
        return None
    return _key(words), _key(_WORD.findall(" ".join(answers_of(columns)).lower()))


def hashed(words: list[str]) -> NDArray[np.uint64]:
    """The 32-bit hash of each word."""
    # One encoding of all words takes half the time of one for each. `replace`: JSON can spell lone surrogates.
    coded = " ".join(words).encode("utf-8", "replace").split(b" ") if words else []
    return np.fromiter(map(zlib.crc32, coded), np.uint64, len(coded))


def trigrams(words: list[str]) -> Hashes:
    """The hashes of every three consecutive words."""
    return np.unique(_every_trigram(words))


def smallest_trigram(words: list[str]) -> int:
    """A hash of the trigram with the smallest hash, which rows that are near mostly share; else a hash of all words."""
    every = _every_trigram(words)
    shared = len(every) >= _FEWEST
    return zlib.crc32(every.min().tobytes() if shared else " ".join(words).encode("utf-8", "replace"))


def _every_trigram(words: list[str]) -> Hashes:
    one = hashed(words)
    count = max(len(one) - _TRIGRAM + 1, 0)
    mixed = sum(one[i : i + count] * np.uint64(odd) for i, odd in enumerate(_ODD))
    # The upper half: the lower bits of a product depend on the lower bits of the hashes alone.
    return (np.asarray(mixed, np.uint64) >> np.uint64(32)).astype(np.uint32)


def jaccard(some: Hashes, others: Hashes) -> float:
    """The Jaccard similarity of two sets: common elements over all elements; 0 if both are empty."""
    common = len(np.intersect1d(some, others, assume_unique=True))
    union = len(some) + len(others) - common
    return common / union if union else 0.0
