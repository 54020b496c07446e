"""JSON of strangers, decoded within limits of depth.

A decoder that recurses, and everything that later walks through the value, is bounded by the interpreter's stack: the
depth is therefore counted before anything is decoded, in one pass over the brackets.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")

MAX_DEPTH: Final = 64  # levels of nesting: a config has 3, a trainer_state.json 4
MAX_NAME: Final = 1024  # characters of a tensor's or module's name: the longest on the hub have under 200
MAX_PARTS: Final = 64  # dotted parts of one: they have under 20

_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_STRING: Final = re.compile(rb'"[^"]*"?')
_TOO_DEEP: Final = f"nested more than {MAX_DEPTH} levels deep, the limit for JSON"


def decode_json(data: bytes | str, kind: type[T]) -> T:
    """The document as a value of a type.

    Raises:
        msgspec.MsgspecError: it is not JSON, or of another type.
        UnicodeDecodeError: it is not UTF-8.
        RecursionError: it is nested deeper than `MAX_DEPTH`.
    """
    check_depth(data)
    return msgspec.json.decode(data, type=kind)


def check_depth(data: bytes | str) -> None:
    """Do nothing if the text, JSON or not, is nested at most `MAX_DEPTH` levels deep.

    Raises:
        RecursionError: it is nested deeper.
    """
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    without_escapes = _ESCAPE.sub(b"", raw) if b"\\" in raw else raw
    brackets = _STRING.sub(b"", without_escapes.translate(None, _NOT_STRUCTURE))
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise RecursionError(_TOO_DEEP)


def name_fault(name: str) -> str | None:
    """What is wrong with a tensor's name, to be put after it in an error; None for one of usual length.

    Every tail and every prefix of a dotted name is looked up somewhere: the cost grows with the square of its parts.
    """
    if len(name) > MAX_NAME:
        return f"is {len(name)} characters long, over the limit of {MAX_NAME}"
    parts = name.count(".") + 1
    return f"has {parts} dotted parts, over the limit of {MAX_PARTS}" if parts > MAX_PARTS else None
