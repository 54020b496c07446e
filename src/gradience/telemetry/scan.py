"""One pass over a log in constant memory: its events in file order, and the faults of every bad line.

A block of lines is decoded at once. If that fails, each of its lines is decoded by itself. Both ways give the same
result: the fast one accepts nothing in which the slow one would find a fault.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Final, TypeAlias

import msgspec

from gradience.errors import SchemaError
from gradience.schema import SCHEMA_ID
from gradience.schema.events import RunStart, TrainStep, UnknownEvent
from gradience.schema.reports import BadLine
from gradience.telemetry.codec import (
    MAX_LINE_BYTES,
    JsonObject,
    RowDecoder,
    Stretch,
    convert,
    decode_block,
    decode_lines,
    decode_objects,
    decode_rows,
    is_minor,
    is_plain,
    parse,
    row_decoder,
    soften,
)
from gradience.telemetry.lines import MOST_FAULTS, Block, Fault, Line, find_faults, find_unnamed, read_blocks

MAX_ISSUES: Final = 100  # bad lines kept; all are counted


class BadLines(msgspec.Struct, frozen=True):
    """One line that is not an event, with all its faults."""

    faults: list[BadLine]
    broken: bool = False  # not JSON: perhaps cut off while being written


Scanned: TypeAlias = Stretch | UnknownEvent | BadLines


class LogScan:
    """Iterate it for a log's contents in file order. The counts are complete at the end.

    Args:
        path: the log.
        strict: find every fault of a line; treat bare NaN and lines of another version as faults. Events may lack
            their extras then.
        plain: training rows may come as `PlainRow`s.
        seen: is called with the JSON object of every line that is one, under `strict`.

    Raises:
        RecorderError: the file cannot be read.
        SchemaError: the log is of another major version.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = False,
        plain: bool = False,
        seen: Callable[[JsonObject], None] | None = None,
    ) -> None:
        self.path = path
        self.lines = 0
        self.unnamed = 0  # lines with bare NaN or Infinity
        self.softened: Counter[str] = Counter()  # values of choices that are not known here, read as `unknown`
        self.version = SCHEMA_ID  # of the first event
        self._strict, self._plain = strict, plain
        self._names: frozenset[str] = frozenset()  # of the further values of the training rows met
        self._rows: RowDecoder | None = None  # of rows like the last ones
        self._seen = seen

    def __iter__(self) -> Iterator[Scanned]:
        """Yield the log's events and bad lines."""
        known = False
        for item in _name_torn_tails(self._read()):
            if not known and not isinstance(item, BadLines):
                self.version, known = _version(item), True
            yield item

    def _read(self) -> Iterator[Scanned]:
        for piece in read_blocks(self.path):
            if isinstance(piece, Line):
                self.lines += 1
                fault = Fault(f"a line of {piece.length} bytes; one may have {MAX_LINE_BYTES}")
                yield BadLines([_bad(piece, fault)])
            elif (events := self._at_once(piece)) is not None:
                self.lines += piece.count
                yield from events
            else:
                for line in piece.lines():
                    self.lines += 1
                    yield self._look_closely(line)

    def _at_once(self, block: Block) -> list[Stretch] | None:
        if not self._strict:
            rows = None if self._rows is None else decode_rows(block.data, block.count, self._rows)
            return self._typed(block) if rows is None else rows
        events = decode_lines(block.data)
        if events is None or self._seen is None:
            return None if events is None else [events]
        documents = decode_objects(block.data, block.count)
        for document in documents or ():
            self._seen(document)
        return None if documents is None else [events]

    def _typed(self, block: Block) -> list[Stretch] | None:
        """Return a block's typed events, after a look at what the next rows may have in common with them."""
        if (events := decode_block(block.data, block.count)) is None:
            return None
        rows = [event for event in events if isinstance(event, TrainStep)] if self._plain else []
        if rows:
            self._names = self._names.union(*(row.extras for row in rows))
            self._rows = row_decoder(rows[-1].run_id, rows[-1].session, self._names)
        return [events]

    def _look_closely(self, line: Line) -> Scanned:
        try:
            document, unnamed = parse(line.data)
        except SchemaError as error:
            fault = Fault(error.message if line.ended else f"torn tail: {error.message}")
            return BadLines([_bad(line, fault, torn=not line.ended)], broken=True)
        self.unnamed += unnamed
        if self._seen is not None:
            self._seen(document)
        # Under `strict` a line of v1 is held to v1's values; a later minor version may have others.
        if not self._strict or is_minor(document.get("schema")):
            self.softened.update(soften(document))
        if unnamed and self._strict:
            return _all_bad(line, [*find_unnamed(line.data), *find_faults(document)])
        try:
            event = convert(document)
        except msgspec.ValidationError:
            return _all_bad(line, find_faults(document, MOST_FAULTS if self._strict else 1))
        except SchemaError:  # another major version
            # A log that begins in another version is no log of ours. One such line within ours is a fault to be listed.
            if self.lines == 1 or not self._strict:
                raise
            return _all_bad(line, find_faults(document))
        return event if isinstance(event, UnknownEvent) else [event]


def _all_bad(line: Line, faults: list[Fault]) -> BadLines:
    return BadLines([_bad(line, fault) for fault in faults])


def _bad(line: Line, fault: Fault, *, torn: bool = False) -> BadLine:
    return BadLine(line=line.number, offset=line.offset, torn=torn, **msgspec.structs.asdict(fault))


def _name_torn_tails(found: Iterator[Scanned]) -> Iterator[Scanned]:
    """Mark a broken line as a torn tail if a later session wrote the next line."""
    bad: BadLines | None = None
    session: str | None = None
    for item in found:
        if isinstance(item, BadLines):
            if bad is not None:
                yield bad
            bad = item
            continue
        if bad is not None:
            yield _torn(bad) if bad.broken and _begins_session(item, session) else bad
            bad = None
        session = _session(item, last=True) or session
        yield item
    if bad is not None:
        yield bad


def _begins_session(item: Stretch | UnknownEvent, before: str | None) -> bool:
    if isinstance(item, list) and isinstance(item[0], RunStart):
        return True
    now = _session(item, last=False)
    return now is not None and now != before


def _session(item: Stretch | UnknownEvent, *, last: bool) -> str | None:
    """Return the session of the first event, or the last session that any event names; None if none does."""
    if isinstance(item, UnknownEvent):
        return item.session
    if is_plain(item):
        return item[0].session  # all are of one
    named = map(attrgetter("session"), reversed(item) if last else item[:1])
    return next((session for session in named if session is not None), None)


def _version(item: Stretch | UnknownEvent) -> str:
    return item.schema if isinstance(item, UnknownEvent) else item[0].schema


def _torn(bad: BadLines) -> BadLines:
    faults = [
        msgspec.structs.replace(f, torn=True, reason=f"torn tail of an earlier session: {f.reason}") for f in bad.faults
    ]
    return msgspec.structs.replace(bad, faults=faults)
