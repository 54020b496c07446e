"""Data sets as their trainer feeds them to the model: files to rows, rows to examples, examples to tokens and masks.

This module has what the others share: a row in its trainer's columns, and the texts in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias

from gradience.schema import Json
from gradience.schema.reports import DataFormat, Trainer

Turn: TypeAlias = dict[str, Json]
Columns: TypeAlias = dict[str, Json]

ANSWERERS: Final = frozenset({"assistant", "gpt"})
_SPOKEN: Final = ("prompt", "messages", "completion", "chosen", "rejected", "text", "steps", "segments")
_TEXTS: Final = ("text", "content", "value", "thinking")  # keys of a part's text: transformers', and those of others


class Unusable(Exception):  # noqa: N818  # a row that is not of the format, which becomes a finding
    """The row cannot be used; the exception's text is the reason."""


class Shape(NamedTuple):
    """A format, the trainer that reads it, and the column with the texts to classify."""

    format: DataFormat
    trainer: Trainer
    text_column: str = "text"
    label_column: str = "label"
    unread: tuple[str, ...] = ()
    """Columns of text beside an instruction's own, which no trainer reads."""


def digest(text: str | bytes) -> bytes:
    """A hash of 12 bytes, by which texts are compared."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    return hashlib.blake2b(raw, digest_size=12).digest()


def template_digest(template: object) -> str:
    """The beginning of the SHA-256 of a chat template, or of the default one of several; empty if there is none."""
    text = template.get("default") if isinstance(template, dict) else template
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16] if isinstance(text, str) and text else ""


def text_of(value: Json) -> str:
    """The text of a column of text, messages, steps or segments, without system messages and roles."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    return "\n".join(one if isinstance(one, str) else content_of(one) for one in value if _is_said(one))


def _is_said(one: Json) -> bool:
    return isinstance(one, str) or (isinstance(one, dict) and one.get("role") != "system")


def turns_of(value: Json) -> Iterable[Turn]:
    """The messages among the values of a column."""
    return (turn for turn in value if isinstance(turn, dict)) if isinstance(value, list) else ()


def every_turn(columns: Columns) -> list[Turn]:
    """The turns of a row in their order; of a pair of answers, the chosen one's."""
    names = ("messages", "prompt", "completion", "chosen")
    return [turn for name in names for turn in turns_of(columns.get(name))]


def content_of(turn: Mapping[str, Json]) -> str:
    """The text of one message, or of one segment."""
    content = turn.get("content", turn.get("text"))
    if isinstance(content, list):
        return "".join(part_text(part) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def part_text(part: Mapping[str, Json]) -> str:
    """The text of a part of a message; empty if it is an image or a sound."""
    return next((part[name] for name in _TEXTS if isinstance(part.get(name), str)), "")


def whole_text(columns: Columns) -> str:
    """The whole text of a row, for comparison with other rows; system messages are left out."""
    return "\n".join(text_of(columns[name]) for name in _SPOKEN if name in columns)


def answers_of(columns: Columns) -> list[str]:
    """The answers of a row, which a model should learn to write; none for plain text."""
    if "messages" in columns:
        turns = turns_of(columns["messages"])
        return [content_of(turn) for turn in turns if turn.get("role") in ANSWERERS and not _is_call(turn)]
    if "segments" in columns:
        return ["".join(content_of(one) for one in turns_of(columns["segments"]) if one.get("label"))]
    values = (columns[name] for name in ("completion", "chosen", "rejected") if name in columns)
    return [text_of(value) for value in values if not any(_is_call(turn) for turn in turns_of(value))]


def unsaid(columns: Columns) -> list[bool]:
    """Of each answer that a model should learn to write, whether it is empty with nothing in its place.

    An unwanted answer may be empty. A thought, a call, an image and a sound say something.
    """
    if columns.get("label") is False and "completion" in columns:
        return []
    if "messages" in columns:
        return [not _says(turn) for turn in turns_of(columns["messages"]) if turn.get("role") in ANSWERERS]
    wanted = columns.get("chosen", columns.get("completion"))
    if isinstance(wanted, list):
        return [not any(map(_says, turns_of(wanted)))]
    return [not answer.strip() for answer in answers_of(columns)[:1]]


def _says(turn: Turn) -> bool:
    content = turn.get("content")
    parts = content if isinstance(content, list) else ()
    thought = turn.get("reasoning_content") or turn.get("reasoning") or turn.get("thinking")
    shows = any(isinstance(part, dict) and part.get("type") not in {"text", None} for part in parts)
    return bool(_is_call(turn) or thought or shows or content_of(turn).strip())


def _is_call(turn: Turn) -> bool:
    return bool(turn.get("tool_calls") or turn.get("function_call"))


def question_of(columns: Columns) -> str:
    """What is asked in a row: its prompt, or all that stands before the last answer; empty for plain text."""
    if "segments" in columns:
        return "".join(content_of(one) for one in turns_of(columns["segments"]) if not one.get("label"))
    if "messages" not in columns:
        return text_of(columns.get("prompt"))
    turns = list(turns_of(columns["messages"]))
    last = next((i for i in range(len(turns) - 1, -1, -1) if turns[i].get("role") in ANSWERERS), len(turns))
    return text_of(turns[:last])
