"""What only many rows show together: one sentence in many answers, rows that nearly repeat, documents in one row.

Rows are compared among the first `COMPARED` that are read, so time and memory are bounded whatever the size of the
data set.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from typing import Any, Final

from gradience.data import Columns, answers_of, text_of
from gradience.data.overlap import NEAR, NO_DATASKETCH, NearIndex, can_be_near, jaccard, near_index, trigrams, words_of
from gradience.data.signs import opening
from gradience.schema.reports import Documents, Languages, NearRows, Repeated, Rows

COMPARED: Final = 5000  # rows: MinHash takes some 0.2 ms a row, as long as a tokenizer takes for 1 kB
_FIRST: Final = 5
_COMMON: Final = 0.1  # share of rows from which a trigram is a phrase of the task, such as its instruction
_SAME_ANSWER: Final = 0.5  # Jaccard similarity of words: answers to other questions on one text share fewer
_SENTENCE: Final = re.compile(r"[^.!?\n]+[.!?]?")
_SPELT: Final = re.compile(r"[^\W\d_]{2,}")
_WORDS: Final = 4  # words from which a sentence is no formula such as "the answer is"
_OPENING: Final = 6  # words of an answer's beginning that are compared
_SURE: Final = 0.95  # probability from which the language of an answer is taken
_LONG: Final = 60  # characters from which a language can be told
_CODES: Final = {
    "english": "en",
    "german": "de",
    "deutsch": "de",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "portuguese": "pt",
    "dutch": "nl",
    "russian": "ru",
    "chinese": "zh",
    "zho": "zh",
    "japanese": "ja",
    "jpn": "ja",
    "korean": "ko",
    "deu": "de",
    "ger": "de",
    "spa": "es",
    "por": "pt",
}
_CODE: Final = frozenset("{[<`#|")


_unset: Final = object()


class Crowd:
    """Takes rows as they come; the results compare the first `COMPARED` of them."""

    def __init__(self) -> None:
        self._grams: dict[int, frozenset[int]] = {}
        self._said: dict[int, frozenset[int]] = {}
        self._answers = 0
        self._sentences: Counter[int] = Counter()
        self._numbers: dict[int, list[int]] = {}
        self._openings: Counter[str] = Counter()
        self._joined: dict[str, list[int]] = {}
        self._texts = self._rows = self._stated = 0
        self._foreign: list[int] = []
        self._identify: Any = _unset

    def add(self, number: int, columns: Columns, *, repeats: bool) -> None:
        """Take a row, and whether it repeats an earlier one."""
        if self._rows >= COMPARED or "input_ids" in columns:
            return
        self._rows += 1
        if not repeats:
            self._grams[number] = trigrams(words_of(columns))
            self._said[number] = _words_of(answers_of(columns))
        answer = next(iter(answers_of(columns)), None)
        if answer is not None:
            self._take_answer(number, answer)
            self._take_language(number, answer, columns.get("language"))
        if isinstance(columns.get("text"), str) and "label" not in columns:
            self._take_document(number, text_of(columns["text"]))

    def _take_answer(self, number: int, answer: str) -> None:
        self._answers += 1
        if answer.lstrip()[:1] in _CODE:
            return
        for key in _phrases(answer):
            self._sentences[key] += 1
            first = self._numbers.setdefault(key, [])
            if len(first) < _FIRST:
                first.append(number)

    def _take_language(self, number: int, answer: str, stated: Any) -> None:
        code = _code_of(stated) if isinstance(stated, str) else ""
        if not code or len(answer) < _LONG:
            return
        self._stated += 1
        if self._identify is _unset:
            self._identify = _identifier()
        if self._identify is not None:
            found, probability = self._identify(answer)
            if found != code and probability >= _SURE:
                self._foreign.append(number)

    def languages(self) -> Languages:
        """Rows whose answer is in another language than the row states."""
        lacking = self._stated and self._identify is None
        return Languages(
            stated=self._stated,
            rows=Rows(count=len(self._foreign), first=self._foreign[:_FIRST]),
            reason="languages need py3langid: in the clone: pip install -e '.[data]'" if lacking else "",
        )

    def _take_document(self, number: int, text: str) -> None:
        self._texts += 1
        label = opening(text)
        if label:
            self._openings[label] += 1
            if f"\n{label}" in text:
                self._joined.setdefault(label, []).append(number)

    def repeated(self) -> Repeated:
        """The sentence, or beginning, that most answers share."""
        key, times = next(iter(self._sentences.most_common(1)), (0, 0))
        return Repeated(answers=self._answers, rows=Rows(count=times, first=self._numbers.get(key, [])))

    def documents(self) -> Documents:
        """Rows of text in which the label that begins most rows begins a line again."""
        label, times = next(iter(self._openings.most_common(1)), ("", 0))
        joined = self._joined.get(label, [])
        return Documents(
            label=label, rows=self._texts, begun=times, joined=Rows(count=len(joined), first=joined[:_FIRST])
        )

    def near(self) -> NearRows:
        """Rows that nearly repeat an earlier one, leaving aside the phrases that the rows of this task share."""
        index = near_index()
        if index is None:
            return NearRows(reason=NO_DATASKETCH)
        often = Counter(gram for grams in self._grams.values() for gram in grams)
        shared = {gram for gram, times in often.items() if times > max(_COMMON * len(self._grams), 2)}
        kept = {number: grams - shared for number, grams in self._grams.items()}
        hits = [number for number, grams in kept.items() if self._is_near(number, grams, kept, index)]
        return NearRows(compared=len(self._grams), rows=Rows(count=len(hits), first=hits[:_FIRST]))

    def _is_near(self, number: int, grams: frozenset[int], every: dict[int, frozenset[int]], index: NearIndex) -> bool:
        """Whether a row resembles an earlier one in its answer, too: questions on one long text are no copies."""
        if not can_be_near(grams):
            return False
        alike = (other for other in index.candidates_before(number, grams) if jaccard(grams, every[other]) >= NEAR)
        said = self._said[number]
        return any(not said or jaccard(said, self._said[other]) >= _SAME_ANSWER for other in alike)


def _words_of(answers: list[str]) -> frozenset[int]:
    return frozenset(
        zlib.crc32(word.encode("utf-8", "replace")) for answer in answers for word in answer.lower().split()
    )


def _phrases(answer: str) -> set[int]:
    """Hashes of the sentences of an answer, and of its beginning."""
    pieces = {" ".join(hit[0].split()) for hit in _SENTENCE.finditer(answer)}
    words = answer.split(None, _OPENING)
    if len(words) > _OPENING:
        pieces.add(" ".join(words[:_OPENING]))
    return {zlib.crc32(one.encode("utf-8", "replace")) for one in pieces if len(_SPELT.findall(one)) >= _WORDS}


def _identifier() -> Any:
    """A function that gives the language of a text and its probability; None without py3langid."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # an extra
    except ModuleNotFoundError:
        return None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify


def _code_of(language: str) -> str:
    """The two letters of a stated language, such as `en` for English, eng or en-US; else empty."""
    stated = language.strip().lower()
    return _CODES.get(stated, stated[:2] if len(stated.partition("-")[0].partition("_")[0]) in {2, 3} else "")
