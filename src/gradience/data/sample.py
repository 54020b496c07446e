"""What only many rows show together: one sentence in many answers, rows that nearly repeat, answers of other rows.

At most `COMPARED` rows are compared, drawn from all that are read, so time and memory are bounded. Rows that may be
near are drawn by the hash of their smallest trigram, which rows that nearly repeat each other mostly share: such rows
are drawn together, or not at all, and their share in the sample is that in the data set.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from functools import cache, cached_property
from heapq import heappush, heappushpop
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.data import Columns, answers_of, content_of, every_turn, text_of
from gradience.data.equality import beside_of, differ
from gradience.data.formats import ALPACA_END
from gradience.data.overlap import (
    NEAR,
    NO_DATASKETCH,
    Hashes,
    NearIndex,
    can_be_near,
    hashed,
    jaccard,
    near_index,
    smallest_trigram,
    trigrams,
    words_of,
)
from gradience.schema.reports import Languages, Longest, NearRows, Paired, Repeated, Rows

COMPARED: Final = 5000  # rows: MinHash takes some 0.2 ms a row, as long as a tokenizer takes for 1 kB
_TOLD: Final = 1000  # rows whose language is told, which takes a millisecond each
_MERGED: Final = 1 << 16  # hashes that wait to be merged with the others
_FIRST: Final = 5
_COMMON: Final = 0.1  # share of rows from which a trigram is a phrase of the task, such as its instruction
_SAME_ANSWER: Final = 0.5  # Jaccard similarity of words: answers to other questions on one text share fewer
_SENTENCE: Final = re.compile(r"[^.!?\n]+[.!?]?")
_SPELT: Final = re.compile(r"[^\W\d_]{2,}")
_WORDS: Final = 4  # words from which a sentence is no formula such as "the answer is"
_OPENING: Final = 6  # words of an answer's beginning that are compared
_SURE: Final = 0.95  # probability from which the language of an answer is taken
_LONG: Final = 60  # characters from which a language can be told
# A question that speaks of a language may ask for it.
_TONGUE: Final = re.compile(
    r"translat|tradu[czi]|\u00fcbersetz|\u043f\u0435\u0440\u0435\u0432\u043e\u0434|\u7ffb\u8bd1|\u7ffb\u8a33|\u7ffb\u8b6f|language|sprache|langue|idioma|lingua"
    r"|english|german|deutsch|french|fran\u00e7ais|spanish|espa\u00f1ol|italian|portugu|dutch|russian|chinese|japanese|korean|arabic"
    r"|hindi|turkish|polish|\u4e2d\u6587|\u82f1\u6587|\u82f1\u8bed|\u65e5\u672c\u8a9e",
    re.IGNORECASE,
)
_OPENERS: Final = frozenset("{[<`#|")
_FENCED: Final = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_SIGNS: Final = re.compile(r"[=;(){}\[\]<>_|]")
_LONG_WORD: Final = re.compile(r"(?!\d+\b)\w{4,}")  # a number stands in two rows by chance
_FEW: Final = 4  # questions, and answers, that a word stands in by which they are joined
_MIDDLE: Final = 20  # characters of a text's middle, by which texts of one pattern are one
_PROSE: Final = re.compile(
    r"(?:[^\W\d_]{2,}[\s,.;]+){3}"
)  # words: a sequence of amino acids is of one length by its form
_CODE: Final = 0.03  # share of such signs from which an answer is code or a table: its lines repeat by nature


class HashSet:
    """The 64-bit hashes that were added: 8 bytes each, and those that wait to be merged with the others.

    Of a million rows, two that differ have one hash with a probability of 3e-8.
    """

    def __init__(self) -> None:
        self._ordered = np.empty(0, np.uint64)
        self._new: set[int] = set()

    def add(self, digest: bytes) -> bool:
        """Add the first 8 bytes of a digest; return whether they were there already."""
        one = int.from_bytes(digest[:8])
        place = int(np.searchsorted(self._ordered, np.uint64(one)))
        if one in self._new or (place < len(self._ordered) and int(self._ordered[place]) == one):
            return True
        self._new.add(one)
        if len(self._new) >= _MERGED:
            self._ordered = np.union1d(self._ordered, np.fromiter(self._new, np.uint64, len(self._new)))
            self._new.clear()
        return False


class _NearRow(NamedTuple):
    """A row that may be near another. Key and number are negative: the first of a heap is then the last key."""

    key: int
    number: int
    grams: Hashes
    said: Hashes
    beside: Mapping[str, str]


class _Pairing:
    """The rows of each word that few questions have, and of each that few answers have; none of those of more."""

    def __init__(self) -> None:
        self._asked: dict[str, list[int]] = {}
        self._said: dict[str, list[int]] = {}

    def add(self, number: int, question: str, answer: str) -> None:
        for known, text in ((self._asked, question), (self._said, answer)):
            for word in set(_LONG_WORD.findall(text.casefold())):
                if (rows := known.get(word)) is None:
                    known[word] = [number]
                elif len(rows) <= _FEW:  # one more tells that there are more
                    rows.append(number)

    def result(self) -> tuple[Paired, Paired]:
        """All such words of answers, and those of the stretch of rows where most more are off by one number than not.

        The question of a word is the nearest one that has it.
        """
        joint = sorted(
            (row, min((one - row for one in asked), key=abs))
            for word, rows in self._said.items()
            if len(rows) <= _FEW and len(asked := self._asked.get(word, [])) in range(1, _FEW + 1)
            for row in rows
        )
        off = Counter(offset for _, offset in joint if offset).most_common(1)
        best = begin = end = start = score = 0
        for i, (_, offset) in enumerate(joint):  # the stretch whose sum of 1 and -1 is greatest
            score += 1 if off and offset == off[0][0] else -1
            if score <= 0:
                start, score = i + 1, 0
            elif score > best:
                best, begin, end = score, start, i + 1
        return _paired(joint), _paired(joint[begin:end], [joint[begin][0], joint[end - 1][0]] if end else [])


def _paired(joint: list[tuple[int, int]], rows: list[int] | None = None) -> Paired:
    offsets = Counter(offset for _, offset in joint)
    offset, times = next(iter(offsets.most_common(1)), (0, 0))
    return Paired(words=len(joint), own=offsets[0], offset=offset, at_offset=times, rows=rows or [])


class _Longest:
    """The texts of the greatest length so far that differ, and those that end within a sentence."""

    def __init__(self) -> None:
        self._of = self._length = self._unended = 0
        self._texts: set[int] = set()

    def add(self, text: str) -> None:
        self._of += 1
        if len(text) < self._length:
            return
        if len(text) > self._length:
            self._length, self._unended = len(text), 0
            self._texts.clear()
        middle = len(text) // 2
        if (key := hash(text[middle : middle + _MIDDLE])) not in self._texts:
            self._texts.add(key)
            self._unended += (text[-1:].isalpha() or text[-1:] in {" ", ","}) and _PROSE.search(text) is not None

    def result(self) -> Longest:
        return Longest(of=self._of, characters=self._length, texts=len(self._texts), unended=self._unended)


class RowSample:
    """Takes rows as they come; the results compare `COMPARED` of them.

    Args:
        expected: the number of rows that will come; None if it is not known, which draws the first ones.
        seed: seed of the draw.
    """

    def __init__(self, expected: int | None = None, seed: int = 0) -> None:
        few = expected is None or expected <= COMPARED
        every = range(COMPARED if few else expected or 0)
        self._chosen = frozenset(random.Random(seed).sample(every, COMPARED))  # noqa: S311  # rows, no secret
        # Of a number that is not known, the first ones.
        among = sorted(self._chosen)[: max(expected or 0, _TOLD)]
        self._told = frozenset(random.Random(seed).sample(among, min(_TOLD, len(among))))  # noqa: S311  # the same
        self._drawn: list[_NearRow] = []
        self._single = 0
        self._answers = 0
        self._sentences: Counter[int] = Counter()
        self._numbers: dict[int, list[int]] = {}
        self._rows = 0
        self._pairing, self._rejected, self._questions, self._lengths = _Pairing(), _Pairing(), _Longest(), _Longest()
        self._asked, self._foreign = 0, list[int]()

    def add(self, number: int, columns: Columns, *, repeats: bool) -> None:
        """Take a row, and whether it repeats an earlier one."""
        if "input_ids" in columns:
            return
        self._rows += 1
        if not repeats:
            self._draw(number, columns)
        if self._rows - 1 not in self._chosen:
            return
        answers = answers_of(columns)
        answer = next(iter(answers), None)
        if answer is not None:
            question = _question_of(columns)
            self._take_pair(number, question, answers[-1] if "messages" in columns else answer)
            if "rejected" in columns:
                self._rejected.add(number, question, text_of(columns["rejected"]))
            self._take_answer(number, answer)
            if self._rows - 1 in self._told:
                self._take_languages(number, answer, columns)

    def _draw(self, number: int, columns: Columns) -> None:
        """Keep a row if its key is among the first `COMPARED` keys."""
        self._single += 1
        words, drawn = words_of(columns), self._drawn
        key = -smallest_trigram(words)
        if len(drawn) == COMPARED and key < drawn[0].key:
            return
        answer = np.unique(hashed(" ".join(answers_of(columns)).lower().split()).astype(np.uint32))
        put = heappush if len(drawn) < COMPARED else heappushpop
        put(drawn, _NearRow(key, -number, trigrams(words), answer, beside_of(columns)))

    def _take_pair(self, number: int, question: str, answer: str) -> None:
        self._pairing.add(number, question, answer)
        self._questions.add(question)
        self._lengths.add(answer)

    def pairs(self) -> dict[str, Paired | Longest]:
        """What questions and answers show beside each other, and by their lengths: fields of the report."""
        paired, shifted = self._pairing.result()
        return {
            "paired": paired,
            "shifted": shifted,
            "rejected": self._rejected.result()[0],
            "longest_questions": self._questions.result(),
            "longest_answers": self._lengths.result(),
        }

    def _take_answer(self, number: int, answer: str) -> None:
        self._answers += 1
        prose = _FENCED.sub("", answer)
        if _is_code(prose):
            return
        for key in _phrases(prose):
            self._sentences[key] += 1
            first = self._numbers.setdefault(key, [])
            if len(first) < _FIRST:
                first.append(number)

    @cached_property
    def _identify(self) -> Any:
        """A function that gives the language of a text and its probability; None without py3langid."""
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier  # an extra
        except ModuleNotFoundError:
            return None
        return _classifier(LanguageIdentifier, MODEL_FILE)

    def _take_languages(self, number: int, answer: str, columns: Columns) -> None:
        """Compare the language of an answer with that of its question."""
        question = _question_of(columns)
        if not (_is_prose(question) and _is_prose(answer)):
            return
        self._asked += 1  # counted without py3langid, too: by it the report says what could not be judged
        if self._identify is not None:
            (wanted, sure), (likeliest, probability) = self._identify(question), self._identify(answer)
            if likeliest != wanted and min(sure, probability) >= _SURE:
                self._foreign.append(number)

    def languages(self) -> Languages:
        """Rows whose answer is in another language than their question."""
        lacking = self._asked and self._identify is None
        return Languages(
            stated=self._asked,
            rows=Rows(count=len(self._foreign), first=self._foreign[:_FIRST]),
            reason="languages need py3langid: in the clone: pip install -e '.[data]'" if lacking else "",
        )

    def repeated(self) -> Repeated:
        """The sentence, or beginning, that most answers share."""
        key, times = next(iter(self._sentences.most_common(1)), (0, 0))
        return Repeated(answers=self._answers, rows=Rows(count=times, first=self._numbers.get(key, [])))

    def near(self) -> NearRows:
        """Rows that nearly repeat an earlier one, leaving aside the phrases that the rows of this task share."""
        index = near_index()
        if index is None:
            return NearRows(reason=NO_DATASKETCH)
        drawn = sorted(self._drawn, key=lambda one: -one.number)  # their numbers are negative
        grams = [np.empty(0, np.uint32), *(one.grams for one in drawn)]
        every, times = np.unique(np.concatenate(grams), return_counts=True)
        # Under twenty rows two copies are a tenth of all; their trigrams are still no phrase of the task.
        shared = every[times > max(_COMMON * len(drawn), 2)]
        kept = {-one.number: one._replace(grams=np.setdiff1d(one.grams, shared, assume_unique=True)) for one in drawn}
        hits = [number for number, one in kept.items() if _is_near(number, one, kept, index)]
        return NearRows(
            compared=len(drawn),
            drawn_from=self._single if self._single > COMPARED else 0,
            rows=Rows(count=len(hits), first=hits[:_FIRST]),
        )


@cache
def _classifier(identifier: Any, file: Any) -> Any:
    """The function of a model of languages, whose file takes a quarter of a second to read."""
    return identifier.from_model_file(file, norm_probs=True).classify


def _is_code(text: str) -> bool:
    return text.lstrip()[:1] in _OPENERS or len(_SIGNS.findall(text)) > _CODE * len(text)


def _is_prose(text: str) -> bool:
    """Whether a text is long enough for its language to be told, is no code, and speaks of no language."""
    return len(text) >= _LONG and not _is_code(text) and _TONGUE.search(text) is None


def _question_of(columns: Columns) -> str:
    """What was asked last."""
    prompt = columns.get("prompt")
    if isinstance(prompt, str):
        return prompt.removesuffix(ALPACA_END)
    asked = [turn for turn in every_turn(columns) if turn.get("role") == "user"]
    return content_of(asked[-1]) if asked else ""


def _is_near(number: int, one: _NearRow, every: dict[int, _NearRow], index: NearIndex) -> bool:
    """Whether a row resembles an earlier one in its answer, too: questions on one long text are no copies."""
    if not can_be_near(one.grams):
        return False
    alike = (every[other] for other in index.candidates_before(number, one.grams))
    return any(
        jaccard(one.grams, other.grams) >= NEAR and (not len(one.said) or jaccard(one.said, other.said) >= _SAME_ANSWER)
        for other in alike
        if not differ(one.beside, other.beside)
    )


def _phrases(answer: str) -> set[int]:
    """Hashes of the sentences of an answer, and of its beginning."""
    pieces = {" ".join(hit[0].split()) for hit in _SENTENCE.finditer(answer)}
    words = answer.split(None, _OPENING)
    if len(words) > _OPENING:
        pieces.add(" ".join(words[:_OPENING]))
    return {zlib.crc32(one.encode("utf-8", "replace")) for one in pieces if len(_SPELT.findall(one)) >= _WORDS}
