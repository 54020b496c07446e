"""The lines of a log: read in blocks of whole lines in constant memory, and checked for all faults of a line.

A fault names its path and what was expected there. msgspec reports only the first fault of a document, so the document
is mended with stand-in values until no further fault shows. The mended document is not used.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from gradience.errors import RecorderError, SchemaError
from gradience.io.reading import open_regular
from gradience.schema import SCHEMA_ID, real
from gradience.schema.flat import A_NUMBER, CHOICES, expectation
from gradience.telemetry.codec import MAX_LINE_BYTES, JsonObject, convert, find
from gradience.telemetry.near import near_choice, near_required

_CHUNK: Final = MAX_LINE_BYTES  # no larger, so that only the first line of a block can be too long
_BOM: Final = b"\xef\xbb\xbf"
_ADVICE: Final = "give the run.jsonl that a run wrote"

_LONGEST_LINE: Final = 256 << 20  # bytes; measuring stops there, because a sparse file may go on without end

MOST_FAULTS: Final = 64  # most faults reported of one line
_SHOWN: Final = 80
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`")
_STAND_INS: Final[JsonObject] = {
    "schema": SCHEMA_ID,
    "ts": None,
    "step": None,
    "run_id": "-",
    # This makes it an unknown event: only its envelope is checked from then on.
    "event": "-",
    "phase": "-",
    "steps": 0,
    "first": 0,
    "batches": [],
    "config": {},
    "metrics": {},
    "split": "-",
    "kind": "-",
    "severity": "info",
    "code": "-",
    "message": "-",
    "action": "-",
    "recommendations": [],
    "status": "unknown",
}


class Line(msgspec.Struct, frozen=True, gc=False):
    """One raw line without its newline. `data` is cut if the line is too long; `length` is its full length in bytes."""

    number: int
    offset: int
    data: bytes
    length: int
    ended: bool = True


class Block(msgspec.Struct, frozen=True, gc=False):
    """Some whole lines as one piece of bytes, none of them too long: `count` lines, after the file's first `number`."""

    number: int
    offset: int
    data: bytes
    count: int

    def lines(self) -> Iterator[Line]:
        """Yield the block's lines that are not blank, with their numbers in the file."""
        offset = self.offset
        pieces = self.data.split(b"\n")
        for number, piece in enumerate(pieces, self.number + 1):
            # msgspec refuses a byte order mark, so the first block of a log that has one is decoded line by line.
            data = piece.removeprefix(_BOM) if offset == 0 else piece
            if data.strip():
                yield Line(number, offset, data, len(piece), number - self.number < len(pieces))
            offset += len(piece) + 1


def require_log(path: Path) -> None:
    """Check that a path can be a log.

    Raises:
        RecorderError: the path is missing, empty, or not a file.
    """
    try:
        if path.is_dir():
            raise RecorderError(f"{path} is a folder, not a log", advice=f"give the file, such as {path / 'run.jsonl'}")
        if path.stat().st_size == 0 and path.is_file():
            raise RecorderError(f"{path} is empty: no event was ever written", advice=_ADVICE)
    except (OSError, ValueError) as error:
        raise RecorderError(f"cannot read {path}: {_why(error)}", advice=_ADVICE) from error


def read_blocks(path: str | os.PathLike[str]) -> Iterator[Block | Line]:
    """Yield the log in blocks of whole lines. A line that is too long is yielded by itself.

    Raises:
        RecorderError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            yield from _split(file)
    except OSError as error:
        raise RecorderError(f"cannot read {path}: {_why(error)}", advice=_ADVICE) from error


def _split(file: BinaryIO) -> Iterator[Block | Line]:
    number, offset, carry = 0, 0, b""
    while chunk := file.read(_CHUNK):
        data = carry + chunk
        first = data.find(b"\n")
        if (len(data) if first < 0 else first) > MAX_LINE_BYTES:
            line, data = _too_long(file, data, first, number + 1, offset)
            yield line
            number, offset = number + 1, offset + line.length + line.ended
        cut = data.rfind(b"\n") + 1
        if cut:
            count = data.count(b"\n")
            yield Block(number, offset, data[:cut], count)
            number, offset = number + count, offset + cut
        carry = data[cut:]
    if carry:
        yield Block(number, offset, carry, 1)


def _too_long(file: BinaryIO, data: bytes, first: int, number: int, offset: int) -> tuple[Line, bytes]:
    """Return the over-long line at the start of the data, and the bytes after it. Its rest is measured but not kept."""
    head = data[:MAX_LINE_BYTES]
    if first >= 0:
        return Line(number, offset, head, first), data[first + 1 :]
    length, ended = len(data), False
    while not ended and (more := file.readline(_CHUNK)):
        if length > _LONGEST_LINE:
            message = f"line {number} is longer than {_LONGEST_LINE >> 20} MiB, the limit for a line of any log"
            raise OSError(errno.EFBIG, message)
        ended = more.endswith(b"\n")
        length += len(more) - ended
    return Line(number, offset, head, length, ended), b""


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class Fault(msgspec.Struct, frozen=True):
    """One fault of a line: what is wrong, where, and what was expected."""

    reason: str
    path: str | None = None
    expected: str | None = None
    got: str | None = None
    hint: str | None = None


def find_faults(document: JsonObject, most: int = MOST_FAULTS) -> list[Fault]:
    """Return all faults of one parsed line in the order found; empty for a valid event.

    Modifies the document: each fault is mended, so that the next one shows.
    """
    faults: list[Fault] = []
    while len(faults) < most:
        try:
            convert(document)
        except msgspec.ValidationError as error:
            fault = _fault(str(error), document)
            faults.append(fault)
            if not _mend(document, fault):
                return faults
        except SchemaError as error:
            faults.append(Fault(error.message, "$.schema", SCHEMA_ID, _shown(document, "$.schema")))
            document["schema"] = SCHEMA_ID
        else:
            return faults
    return faults


def find_unnamed(line: bytes, most: int = MOST_FAULTS) -> list[Fault]:
    """Return every bare NaN or Infinity of a line that is JSON otherwise."""
    paths = islice(_non_finite(json.loads(line), "$"), most)
    reason = "Bare NaN and Infinity are not JSON"
    return [Fault(reason, path, f'"{name}"', f"{name} without quotes") for path, name in paths]


def _non_finite(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for k, v in value.items():
            yield from _non_finite(v, f"{path}.{k}")
    elif isinstance(value, list):
        for i, v in enumerate(value):
            yield from _non_finite(v, f"{path}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, str(real(value))


def _fault(message: str, document: JsonObject) -> Fault:
    path, expected, got = expectation(message)
    reason = message.removesuffix(f" - at `{path}`")
    if missing := _MISSING.search(reason):
        at = f"{path}.{missing['field']}"
        return Fault(reason, at, "a value (required)", "nothing", _meant(document, at))
    name = path.rsplit(".", 1)[-1]
    if name == "schema":
        expected = SCHEMA_ID
    shown = got if expected != A_NUMBER and got and name not in CHOICES else _shown(document, path)
    return Fault(reason, path, expected, shown or got, _choice(document, path))


def _meant(document: JsonObject, path: str) -> str | None:
    """Return what was probably meant as a missing field, or None."""
    place = find(document, path)
    if place is None or not isinstance(place.container, dict):
        return None
    event = "recommendation.recommendations" if "[" in path else str(document.get("event"))
    key = near_required(str(place.key), event, list(place.container))
    return None if key is None else f"perhaps `{key[:_SHOWN]}` is meant as `{place.key}`"


def _choice(document: JsonObject, path: str) -> str | None:
    """Return the known value that was probably meant, or None."""
    place = find(document, path)
    if place is None or place.key not in CHOICES or not isinstance(place.value, str):
        return None
    value = near_choice(str(place.key), place.value)
    return None if value is None else f"perhaps `{value}` is meant"


def _shown(document: JsonObject, path: str) -> str | None:
    place = find(document, path)
    try:
        return repr(place.value)[:_SHOWN] if place else None
    except (KeyError, IndexError, TypeError):
        return None


def _mend(document: JsonObject, fault: Fault) -> bool:
    """Put a valid value in place of the fault; return False if that is not possible."""
    place = find(document, fault.path or "$")
    if place is None or not isinstance(place.container, (dict, list)):
        return False
    container, key = place.container, place.key
    if isinstance(container, list):
        container[int(key)] = _item(fault.expected or "")
        return True
    if key in _STAND_INS:
        stand_in = _STAND_INS[str(key)]
        # It is a new one each time, because the document is modified while it is mended.
        container[key] = type(stand_in)() if isinstance(stand_in, (dict, list)) else stand_in
        return True
    # The container stands for a missing key, because it cannot be its own value.
    return container.pop(key, container) is not container


def _item(expected: str) -> object:
    """Return a valid item for a list. The faulty item is not removed, because the others' indices must not shift."""
    if "object" in expected:
        return {"severity": "info", "action": "-", "message": "-"}
    return 0 if any(word in expected for word in ("float", "int", "number")) else "-"
