"""One pass over a log: runs of events, and every line that is none, named for what it is."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias, get_args

import msgspec

from gradience.errors import RecorderError, SchemaError
from gradience.schema.events import Event, RunStart, TrainStep, UnknownEvent
from gradience.schema.reports import BadLine
from gradience.schema.scalars import SCHEMA_ID, Severity, Status, TaskProfile, real
from gradience.telemetry.codec import (
    KNOWN_ARRAY,
    MAX_LINE_BYTES,
    JsonObject,
    convert,
    decode,
    decode_array,
    decode_known,
    decode_lines,
    find,
    parse,
    path_of,
)
from gradience.telemetry.rows import PlainRow, row_decoder

MAX_ISSUES: Final = 100  # bad lines kept; all are counted

_CHUNK: Final = MAX_LINE_BYTES  # so that only the first line of a block can be longer than a line may be
_BOM: Final = b"\xef\xbb\xbf"
_ADVICE: Final = "give the run.jsonl that a run wrote"


class Line(msgspec.Struct, frozen=True, gc=False):
    """One raw line without its newline; `data` is cut where the line is longer than one may be."""

    number: int
    offset: int
    data: bytes
    length: int
    ended: bool = True

    @property
    def too_long(self) -> bool:
        """Whether no event may be this long."""
        return self.length > MAX_LINE_BYTES


class Block(msgspec.Struct, frozen=True, gc=False):
    """Some whole lines as one piece of bytes, none of them too long; `number` lines precede its `count`."""

    number: int
    offset: int
    data: bytes
    count: int

    def lines(self) -> Iterator[Line]:
        """Yield the block's lines that are not blank, numbered as in the file."""
        offset = self.offset
        pieces = self.data.split(b"\n")
        for number, piece in enumerate(pieces, self.number + 1):
            data = piece.removeprefix(_BOM) if offset == 0 else piece
            if data.strip():
                yield Line(number, offset, data, len(piece), number - self.number < len(pieces))
            offset += len(piece) + 1


def require_log(path: Path) -> None:
    """Refuse a path that cannot be a log, by name.

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
    """Yield the log in blocks of whole lines; a line longer than one may be comes as itself.

    Raises:
        RecorderError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
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
    """Return the over-long line that starts the data, measured to its end but not kept, and what follows it."""
    head = data[:MAX_LINE_BYTES]
    if first >= 0:
        return Line(number, offset, head, first), data[first + 1 :]
    length, ended = len(data), False
    while not ended and (more := file.readline(_CHUNK)):
        ended = more.endswith(b"\n")
        length += len(more) - ended
    return Line(number, offset, head, length, ended), b""


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


MOST_FAULTS: Final = 64  # of one line
_SHOWN: Final = 80

_EXPECTED = re.compile(r"^Expected (?P<expected>.+?)(?:, got `(?P<got>[^`]+)`)?$")
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`")
_A_NUMBER: Final = 'a number, "NaN", "Infinity" or "-Infinity"'
_ENUMS: Final = {
    "schema": SCHEMA_ID,
    "severity": "one of " + ", ".join(get_args(Severity)),
    "status": "one of " + ", ".join(get_args(Status)),
    "task_profile": "one of " + ", ".join(get_args(TaskProfile)),
}
_STAND_INS: Final[JsonObject] = {
    "schema": SCHEMA_ID,
    "ts": None,
    "step": None,
    "run_id": "-",
    "event": "-",
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


class Fault(msgspec.Struct, frozen=True):
    """One thing wrong with one line, and where in it."""

    reason: str
    path: str | None = None
    expected: str | None = None
    got: str | None = None


def find_faults(document: JsonObject, most: int = MOST_FAULTS) -> list[Fault]:
    """Return everything wrong with one parsed line, in the order found; empty for a valid event.

    The document is mended fault by fault on the way, so that the next one shows.
    """
    found: list[Fault] = []
    while len(found) < most:
        try:
            convert(document)
        except msgspec.ValidationError as error:
            fault = _fault(str(error), document)
            found.append(fault)
            if not _mend(document, fault):
                return found
        except SchemaError as error:
            found.append(Fault(str(error), "$.schema", SCHEMA_ID, _shown(document, "$.schema")))
            document["schema"] = SCHEMA_ID
        else:
            return found
    return found


def find_unnamed(line: bytes, most: int = MOST_FAULTS) -> list[Fault]:
    """Return every bare NaN or Infinity of a line that is JSON but for them."""
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
    path = path_of(message)
    reason = message.removesuffix(f" - at `{path}`")
    if missing := _MISSING.search(reason):
        return Fault(reason, f"{path}.{missing['field']}", "a value (required)", "nothing")
    hit = _EXPECTED.search(reason)
    expected = hit["expected"].replace("`", "") if hit else _ENUMS.get(path.rsplit(".", 1)[-1], _A_NUMBER)
    got = hit["got"] if hit and hit["got"] else _shown(document, path)
    return Fault(reason, path, expected, got)


def _shown(document: JsonObject, path: str) -> str | None:
    place = find(document, path)
    try:
        return repr(place.value)[:_SHOWN] if place else None
    except (KeyError, IndexError, TypeError):
        return None


def _mend(document: JsonObject, fault: Fault) -> bool:
    """Put a valid value where the fault was; False where that is not possible."""
    place = find(document, fault.path or "$")
    if place is None or not isinstance(place.container, (dict, list)):
        return False
    container, key = place.container, place.key
    if isinstance(container, list):
        container[int(key)] = _item(fault.expected or "")
        return True
    if key in _STAND_INS:
        stand_in = _STAND_INS[str(key)]
        container[key] = type(stand_in)() if isinstance(stand_in, (dict, list)) else stand_in
        return True
    return container.pop(key, container) is not container


def _item(expected: str) -> object:
    """Return a valid item for a list: its places must not shift."""
    if "object" in expected:
        return {"severity": "info", "action": "-", "message": "-"}
    return 0 if any(word in expected for word in ("float", "int", "number")) else "-"


class Rows(msgspec.Struct, frozen=True, gc=False):
    """Whole lines that are all plain rows of one run and session."""

    run_id: str
    session: str | None
    rows: list[PlainRow]


class BadLines(msgspec.Struct, frozen=True):
    """One line that is no event, and everything found wrong with it."""

    faults: list[BadLine]
    broken: bool = False  # not even JSON: perhaps cut off while being written


Keep: TypeAlias = Literal["all", "few", "none"]
Found: TypeAlias = Rows | list[Event] | UnknownEvent | BadLines


class LogScan:
    """Iterate it for what a log holds, in file order; the counts are complete at the end.

    Args:
        path: the log.
        strict: find every fault of a line, and take bare NaN and lines of another version for faults.
        keep: which extras to keep: of `all` events, of all but train rows (`few`), or of `none`. Keeping
            costs a slower way through the line.

    Raises:
        RecorderError: the file cannot be read.
        SchemaError: the log is of another major version: all of it is another format.
    """

    def __init__(self, path: str | os.PathLike[str], *, strict: bool = False, keep: Keep = "none") -> None:
        self.path = path
        self.lines = 0
        self.unnamed = 0  # lines with NaN or Infinity that were not named, as JSON requires
        self._strict = strict
        self._before: tuple[str, str | None] | None = None  # whose rows the last block was made of
        self._keep = keep

    def __iter__(self) -> Iterator[Found]:
        """Yield what the log holds."""
        return _name_torn_tails(self._read())

    def _read(self) -> Iterator[Found]:
        for piece in read_blocks(self.path):
            if isinstance(piece, Line):
                self.lines += 1
                yield BadLines([_bad(piece, f"a line of {piece.length} bytes; one may have {MAX_LINE_BYTES}")])
            elif (events := self._fast(piece)) is not None:
                self.lines += piece.count
                yield events
            else:
                for line in piece.lines():
                    self.lines += 1
                    yield self._slow(line)

    def _fast(self, block: Block) -> Rows | list[Event] | None:
        """Return what the block holds by way of a decoder alone, or None if that will not do."""
        if self._keep == "all":
            return None
        if self._strict:
            return decode_lines(block.data)
        if self._before is not None:
            rows = decode_array(block.data, block.count, row_decoder(*self._before))
            if rows is not None:
                return Rows(*self._before, rows)
        events = decode_array(block.data, block.count, KNOWN_ARRAY)
        self._before = None if events is None else _plain_source(events)
        if events is None or self._keep == "none":
            return events
        return _with_extras(events, block.data)

    def _slow(self, line: Line) -> Found:
        if self._keep != "all" and line.data.isascii():
            try:
                event = decode_known(line.data)
            except (msgspec.MsgspecError, RecursionError):
                return self._look_closely(line)
            if self._keep == "none" or type(event) is TrainStep:
                return [event]
        return self._look_closely(line)

    def _look_closely(self, line: Line) -> Found:
        try:
            document, unnamed = parse(line.data)
        except SchemaError as error:
            return BadLines(
                [_bad(line, str(error) if line.ended else f"torn tail: {error}", torn=not line.ended)], broken=True
            )
        self.unnamed += unnamed
        if unnamed and self._strict:
            return _all_bad(line, [*find_unnamed(line.data), *find_faults(document)])
        try:
            event = convert(document)
        except msgspec.ValidationError:
            return _all_bad(line, find_faults(document, MOST_FAULTS if self._strict else 1))
        except SchemaError:  # of another major version
            if self.lines == 1 or not self._strict:
                raise
            return _all_bad(line, find_faults(document))
        return event if isinstance(event, UnknownEvent) else [event]


def _plain_source(events: list[Event]) -> tuple[str, str | None] | None:
    """Return whose plain rows may follow, or None where other events come so often that asking does not pay."""
    last = events[-1]
    return (last.run_id, last.session) if set(map(type, events)) == {TrainStep} else None


def _with_extras(events: list[Event], data: bytes) -> list[Event] | None:
    """Return the events with the extras of all but train rows; None if a line needs a closer look."""
    kept: list[Event] = []
    try:
        for event, line in zip(events, data.split(b"\n"), strict=False):
            whole = event if type(event) is TrainStep else decode(line)
            if isinstance(whole, UnknownEvent):
                return None
            kept.append(whole)
    except SchemaError:
        return None
    return kept


def _all_bad(line: Line, faults: list[Fault]) -> BadLines:
    return BadLines([_bad(line, f.reason, path=f.path, expected=f.expected, got=f.got) for f in faults])


def _bad(
    line: Line,
    reason: str,
    *,
    path: str | None = None,
    expected: str | None = None,
    got: str | None = None,
    torn: bool = False,
) -> BadLine:
    return BadLine(
        line=line.number, offset=line.offset, reason=reason, path=path, expected=expected, got=got, torn=torn
    )


def _name_torn_tails(found: Iterator[Found]) -> Iterator[Found]:
    """Name a broken line for what it is if the next line was written by a later session: its torn tail."""
    held: BadLines | None = None
    session: str | None = None
    for item in found:
        if isinstance(item, BadLines):
            if held is not None:
                yield held
            held = item
            continue
        if held is not None:
            yield _torn(held) if held.broken and _begins_session(item, session) else held
            held = None
        session = _session(item, last=True) or session
        yield item
    if held is not None:
        yield held


def _begins_session(item: Rows | list[Event] | UnknownEvent, before: str | None) -> bool:
    if isinstance(item, list) and isinstance(item[0], RunStart):
        return True
    now = _session(item, last=False)
    return now is not None and now != before


def _session(item: Rows | list[Event] | UnknownEvent, *, last: bool) -> str | None:
    if isinstance(item, Rows):
        return item.session
    if isinstance(item, UnknownEvent):
        session = item.payload.get("session")
        return session if isinstance(session, str) else None
    return item[-1 if last else 0].session


def _torn(bad: BadLines) -> BadLines:
    faults = [
        msgspec.structs.replace(f, torn=True, reason=f"torn tail of an earlier session: {f.reason}") for f in bad.faults
    ]
    return msgspec.structs.replace(bad, faults=faults)
