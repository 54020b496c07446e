"""What is asked of one row, of a file or of a live batch: tests that stand beside the rules that judge their counts.

A test sees one row. What needs the rows before it, or the limit, is counted in `measure`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from gradience.data import Columns, Turn, answers_of, content_of, every_turn, whole_text

if TYPE_CHECKING:
    from gradience.data.tokens import Sequence  # which reads tokenizers, and a test does not

# DeepSeek's tokens have a full-width bar, and U+2581 between their words.
_CONTROL: Final = re.compile(
    r"<[|\uff5c][A-Za-z0-9_\u2581]{1,40}[|\uff5c]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
)


class ControlTokens(NamedTuple):
    """The control tokens of the tokenizer, as text, and those among them that the chat template writes."""

    known: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    templated: bool = False
    """Whether the chat template begins turns by tokens of its own."""


class Vocabulary(NamedTuple):
    """What tests know of a tokenizer. `pad` is None if it ends generation, too."""

    size: int | None = None
    ends: frozenset[int] = frozenset()
    controls: frozenset[int] = frozenset()
    pad: int | None = None
    bos: int | None = None
    own: ControlTokens = ControlTokens()
    think: tuple[int, ...] = ()
    """The tokens that begin a block of thought."""
    ends_plain_turns: bool = False
    """Whether the chat template ends turns by the end token, and begins them by none of control."""
    untaught: frozenset[int] = frozenset()
    """Tokens of a live batch whose embedding was not trained, and does not train."""


class AskedRow:
    """A row as tests see it: its columns, and the sequences that its trainer makes of it.

    `in_loss` are the sequences if the loss is computed on tokens. Of a row that is tokenised already no text is asked.
    """

    def __init__(
        self,
        columns: Columns,
        vocabulary: Vocabulary,
        sequences: tuple[Sequence, ...] = (),
        *,
        has_tokens_loss: bool = True,
    ) -> None:
        self.columns, self.vocabulary, self.sequences = columns, vocabulary, sequences
        self.in_loss = sequences if has_tokens_loss else ()
        self.spoken: Columns = {} if "input_ids" in columns else columns

    @property
    def stored(self) -> Columns:
        """The row as its file has it, under the standard names of its columns; empty for a live batch."""
        stored: Columns = self.columns.get("stored", {})
        return stored

    @cached_property
    def text(self) -> str:
        """The whole text, without system messages."""
        return whole_text(self.columns)

    @cached_property
    def turns(self) -> list[Turn]:
        """The turns; of a pair, with the chosen answer."""
        return every_turn(self.spoken)

    @cached_property
    def contents(self) -> list[str]:
        """The text of each turn."""
        return [content_of(turn) for turn in self.turns]

    @cached_property
    def parts(self) -> list[Turn]:
        """The parts of messages that are lists of parts."""
        return [part for turn in self.turns for part in parts_of(turn)]

    @cached_property
    def answers(self) -> list[str]:
        """The answers that a model should learn to write."""
        return answers_of(self.spoken)


@dataclass(frozen=True)
class RowTest:
    """A question to a row. It yields those of its `names` that are true of the row."""

    names: tuple[str, ...]
    of: Callable[[AskedRow], Iterable[str]]


RowTests: TypeAlias = tuple[RowTest, ...]


def row_test(holds: Callable[[AskedRow], bool]) -> RowTest:
    """A test of one name, the function's own."""
    return RowTest((holds.__name__,), lambda row: (holds.__name__,) if holds(row) else ())


def row_kinds(*names: str) -> Callable[[Callable[[AskedRow], Iterable[str]]], RowTest]:
    """A test that tells several kinds apart."""
    return lambda of: RowTest(names, of)


def parts_of(turn: Turn) -> list[Turn]:
    """The parts of a message that is a list of parts."""
    content = turn.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def foreign_in(texts: list[str], own: ControlTokens) -> set[str]:
    """Control tokens in these texts that the tokenizer does not have."""
    return {token for text in texts for token in _controls(text) if token not in own.known}


def _controls(text: str) -> Iterator[str]:
    if "<" not in text and "[" not in text:
        return
    for hit in _CONTROL.finditer(text):
        # <s> is also strikethrough in HTML: as a token it stands at an end of the text
        inside = (hit[0] == "<s>" and text[: hit.start()].strip()) or (hit[0] == "</s>" and text[hit.end() :].strip())
        if not inside:
            yield hit[0]
