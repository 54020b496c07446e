"""One pass over a log: runs of events, and every line that is none, named for what it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, TypeAlias

import msgspec

from gradience.errors import SchemaError
from gradience.schema.events import Event, RunStart, TrainStep, UnknownEvent
from gradience.schema.reports import BadLine
from gradience.telemetry.codec import (
    KNOWN_ARRAY,
    MAX_LINE_BYTES,
    convert,
    decode,
    decode_array,
    decode_known,
    decode_lines,
    parse,
)
from gradience.telemetry.faults import MOST_FAULTS, Fault, find_faults, find_unnamed
from gradience.telemetry.lines import Block, Line, read_blocks
from gradience.telemetry.rows import PlainRow, row_decoder

__all__ = ["BadLines", "Found", "LogScan", "Rows"]


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
