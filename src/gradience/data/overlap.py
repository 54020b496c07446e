"""Rows of an evaluation set that also occur in the training set: equal after normalisation, or similar by MinHash.

Candidates for near overlap come from `datasketch`'s MinHash and its LSH index. The similarity of each candidate is then
computed from the trigrams themselves, so no pair below the threshold is reported. docs/data.md gives the share that LSH
misses.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable
from typing import Any, Final

from gradience.data import Columns, whole_text
from gradience.schema.reports import Overlap, Rows

NEAR: Final = 0.8  # Jaccard similarity of word trigrams
HASHES: Final = 128  # permutations of MinHash: a standard error of 1 / sqrt(128) = 0.09 for an estimate
_CANDIDATE: Final = 0.6  # similarity that LSH searches for; below NEAR, so that LSH misses little above NEAR
_FIRST: Final = 5
_WORD: Final = re.compile(r"\w+")
_TRIGRAM: Final = 3
_FEWEST: Final = 8  # a row with fewer trigrams is not judged for nearness, because one word would decide


class EvalRows:
    """The rows of an evaluation set, with which rows of a training set are compared."""

    def __init__(self) -> None:
        self._exact: dict[bytes, list[int]] = {}
        self._grams: dict[int, frozenset[int]] = {}
        self._every: set[int] = set()
        self._rows = 0
        self._hit_exact: set[int] = set()
        self._hit_near: set[int] = set()
        self._reason = ""
        self._minhash: Any = None
        self._index: Any = None

    def read(self, rows: Iterable[tuple[int, Columns]]) -> None:
        """Take the numbered rows of the evaluation set."""
        for number, columns in rows:
            self._rows += 1
            words = words_of(columns)
            self._exact.setdefault(_key(words), []).append(number)
            grams = trigrams(words)
            if len(grams) >= _FEWEST:
                self._grams[number] = grams
                self._every |= grams
        self._build()

    def _build(self) -> None:
        try:
            from datasketch import MinHash, MinHashLSH  # an extra, for those who give --eval-data
        except ModuleNotFoundError:
            self._reason = "near overlap needs datasketch: in the clone: pip install -e '.[data]'"
            return
        self._minhash = lambda grams: _hashed(MinHash(num_perm=HASHES, hashfunc=int), grams)
        self._index = MinHashLSH(threshold=_CANDIDATE, num_perm=HASHES)
        for number, grams in self._grams.items():
            self._index.insert(number, self._minhash(grams))

    def compare(self, columns: Columns) -> None:
        """Compare a row of the training set with the rows of the evaluation set."""
        words = words_of(columns)
        self._hit_exact.update(self._exact.get(_key(words), ()))
        if self._index is None:
            return
        grams = trigrams(words)
        # Jaccard similarity is at most the share of these trigrams that any row of the evaluation set has.
        if len(grams) < _FEWEST or len(grams & self._every) < NEAR * len(grams):
            return
        for number in self._index.query(self._minhash(grams)):
            if number not in self._hit_near and jaccard(grams, self._grams[number]) >= NEAR:
                self._hit_near.add(number)

    def result(self) -> Overlap:
        """The overlap that was found so far."""
        return Overlap(
            eval_rows=self._rows,
            exact=_rows(self._hit_exact),
            near=_rows(self._hit_near - self._hit_exact),
            near_judged=not self._reason,
            near_reason=self._reason,
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
    return hashlib.blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=12).digest()


def trigrams(words: list[str]) -> frozenset[int]:
    """The hashes of every three consecutive words."""
    return frozenset(
        zlib.crc32(" ".join(words[i : i + _TRIGRAM]).encode("utf-8", "replace"))
        for i in range(len(words) - _TRIGRAM + 1)
    )


def jaccard(some: frozenset[int], others: frozenset[int]) -> float:
    """The Jaccard similarity of two sets: common elements over all elements; 0 if both are empty."""
    union = len(some | others)
    return len(some & others) / union if union else 0.0


def _hashed(made: Any, grams: frozenset[int]) -> Any:
    made.update_batch(list(grams))
    return made
