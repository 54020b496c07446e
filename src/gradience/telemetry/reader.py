"""The reader: every line an event or a bad line, nothing skipped silently, constant memory."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar

import msgspec

from gradience.errors import RecorderError, SchemaError
from gradience.schema.config import ConfigSnapshot
from gradience.schema.events import Eval, Event, RunStart, UnknownEvent
from gradience.schema.reports import BadLine
from gradience.telemetry.codec import MAX_LINE_BYTES, Fault, faults, parse
from gradience.telemetry.codec import decode as decode_line

if TYPE_CHECKING:
    from gradience.telemetry.summary import RunSummary

__all__ = ["Block", "Line", "TelemetryReader", "bad_line", "read_blocks", "read_line", "read_lines"]

_CHUNK: Final = 1 << 18
_BOM: Final = b"\xef\xbb\xbf"

E_ = TypeVar("E_")


class Line(msgspec.Struct, frozen=True, gc=False):
    """One raw line: its number from 1, its byte offset, its bytes (cut when over-long), and whether it ended."""

    number: int
    offset: int
    data: bytes
    ended: bool = True
    length: int = 0


class TelemetryReader:
    """Reads a `run.jsonl`: iterate it for all events, in file order.

    Raises:
        RecorderError: the file is missing, empty, or not a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.issues: list[BadLine] = []
        self.notes: list[str] = []
        _require_log(self.path)

    def __iter__(self) -> Iterator[Event | UnknownEvent]:
        """Yield every event with its extras; bad lines go to `issues`, and reading goes on."""
        self.issues = []
        for item in self.read():
            if isinstance(item, BadLine):
                self.issues.append(item)
            else:
                yield item

    def read(self) -> Iterator[Event | UnknownEvent | BadLine]:
        """Yield every line, as an event or as a bad line."""
        for line in read_lines(self.path):
            yield read_line(line)

    def of(self, kind: type[E_]) -> Iterator[E_]:
        """Yield the events of one type."""
        return (event for event in self if isinstance(event, kind))

    def latest_config(self) -> ConfigSnapshot | None:
        """Return the config of the newest run_start, or None."""
        config = None
        for start in self.of(RunStart):
            config = start.config
        return config

    def latest_eval(self, split: str) -> Eval | None:
        """Return the newest evaluation of the split, or None."""
        newest = None
        for event in self.of(Eval):
            if event.split == split:
                newest = event
        return newest

    def summarize(self) -> RunSummary:
        """Return the last run's series and latest values, from one pass."""
        from gradience.telemetry.summary import summarize  # noqa: PLC0415  # summary reads lines from here

        return summarize(self.path)


def _require_log(path: Path) -> None:
    advice = "give the run.jsonl that a run wrote"
    try:
        if path.is_dir():
            message = f"{path} is a folder, not a log"
            raise RecorderError(message, advice=f"give the file, such as {path / 'run.jsonl'}")
        if path.stat().st_size == 0 and path.is_file():
            message = f"{path} is empty: no event was ever written"
            raise RecorderError(message, advice=advice)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise RecorderError(message, advice=advice) from error


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the non-empty lines of a log, split on the newline byte only.

    Raises:
        RecorderError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from _split(file)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise RecorderError(message, advice="give the run.jsonl that a run wrote") from error


def _split(file: BinaryIO, number: int = 0, offset: int = 0) -> Iterator[Line]:
    while data := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        length = len(data)
        ended = data.endswith(b"\n")
        while not ended and length > MAX_LINE_BYTES and (more := file.readline(_CHUNK)):
            length += len(more)
            ended = more.endswith(b"\n")
        if number == 1:
            data = data.removeprefix(_BOM)
        if data.strip():
            yield Line(number, offset, data, ended, length)
        offset += length


def read_line(line: Line) -> Event | UnknownEvent | BadLine:
    """Return the event on the line, or what is wrong with it.

    Raises:
        SchemaError: the line is of another major version: the whole log is another format.
    """
    try:
        event = decode_line(line.data) if line.length <= MAX_LINE_BYTES + 1 else None
    except SchemaError as error:
        if error.advice:
            raise
        return bad_line(line, str(error))
    return event if event is not None else bad_line(line, "")


def bad_line(line: Line, reason: str) -> BadLine:
    """Return the first thing wrong with a line that could not be decoded."""
    if line.length > MAX_LINE_BYTES + 1:
        text = f"a line of {line.length} bytes, more than the {MAX_LINE_BYTES} a line may have"
        return BadLine(line=line.number, offset=line.offset, reason=text)
    torn = not line.ended
    try:
        document, _ = parse(line.data)
    except SchemaError as error:
        text = f"torn tail: {error}" if torn else str(error)
        return BadLine(line=line.number, offset=line.offset, reason=text, torn=torn)
    first = next(iter(faults(document)), Fault(reason))
    return BadLine(
        line=line.number,
        offset=line.offset,
        reason=first.reason,
        path=first.path,
        expected=first.expected,
        got=first.got,
        torn=torn,
    )


class Block(msgspec.Struct, frozen=True):
    """Some whole lines, as one piece of bytes: what a fast reader decodes at once."""

    number: int
    offset: int
    data: bytes

    def lines(self) -> Iterator[Line]:
        """Yield the block's lines one by one, numbered as in the file."""
        return _split(io.BytesIO(self.data), self.number, self.offset)


def read_blocks(path: Path) -> Iterator[Block | Line]:
    """Yield the log in blocks of whole lines; a line too long for any block comes as itself.

    Raises:
        RecorderError: the file cannot be read.
    """
    number, offset, carry = 0, 0, b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                data = carry + chunk
                cut = data.rfind(b"\n") + 1
                if not cut:
                    line = _over_long(file, data, number, offset)
                    yield line
                    number, offset, carry = number + 1, offset + line.length, b""
                    continue
                yield Block(number, offset, data[:cut])
                number, offset, carry = number + data.count(b"\n"), offset + cut, data[cut:]
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise RecorderError(message, advice="give the run.jsonl that a run wrote") from error
    if carry.strip():
        yield Block(number, offset, carry)


def _over_long(file: BinaryIO, head: bytes, number: int, offset: int) -> Line:
    """Return the line that starts with `head`, measured to its end but not kept."""
    length, ended = len(head), False
    while not ended and (more := file.readline(_CHUNK)):
        length += len(more)
        ended = more.endswith(b"\n")
    return Line(number + 1, offset, head[: MAX_LINE_BYTES + 1], ended, length)
