"""One pass over a log in constant memory: its events in file order, and the faults of every bad line.

A long log mostly holds plain training rows, and these are decoded by the thousand (`RowBlock`). A row decoder is made
for one run, one session and the names of further values met so far; it refuses a block that holds anything else. A
refused block is split into lines that look like rows and other lines. A part that is still refused is decoded as typed
events, and if that fails, line by line. All ways give the same result: the fast ones accept nothing in which the slow
one would find a fault.

Further values of training rows (`reward`, `kl`, ...) are kept if asked for, so that no part of a log is read twice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from gradience.errors import SchemaError
from gradience.schema import SCHEMA_ID, NonNegativeInt
from gradience.schema.events import Event, RunStart, TrainStep, UnknownEvent
from gradience.schema.flat import extended, unchecked
from gradience.schema.reports import BadLine
from gradience.telemetry.codec import (
    KNOWN_ARRAY,
    MAX_LINE_BYTES,
    OBJECT_ARRAY,
    JsonObject,
    convert,
    decode_array,
    decode_known,
    decode_lines,
    decode_object,
    is_minor,
    parse,
    soften,
)
from gradience.telemetry.lines import MOST_FAULTS, Block, Fault, Line, find_faults, find_unnamed, read_blocks

MAX_ISSUES: Final = 100  # bad lines kept; all are counted

_MAX_NAMES: Final = 256  # names of further values; if rows have more, they are decoded as typed events
_ROW_FIELDS: Final = frozenset({*TrainStep.__struct_fields__, "event"})


class PlainRow(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="event", tag="train_step"):
    """A training row of the same run and session as the row before, with a step and finite numbers."""

    schema: str
    ts: float | None
    run_id: Annotated[str, Meta(min_length=1)]
    step: NonNegativeInt
    loss: float
    lr: float | None = None
    grad_norm: float | None = None
    epoch: float | None = None
    seq: NonNegativeInt | None = None
    session: str | None = None

    def event(self) -> TrainStep:
        """Return the row as a typed event, without its further values."""
        known = {name: getattr(self, name) for name in PlainRow.__struct_fields__}
        return unchecked(TrainStep, **known)


class RowBlock(NamedTuple):
    """Plain rows of one run and session. `fields` maps the names of further values to the rows' attributes."""

    run_id: str
    rows: Sequence[PlainRow]
    fields: dict[str, str]

    def events(self) -> Iterator[TrainStep]:
        """Yield the rows as typed events, with the further values that were kept."""
        for row in self.rows:
            kept = {name: getattr(row, at) for name, at in self.fields.items()}  # null where a row has none
            yield extended(row.event(), kept)


class _RowDecoder(NamedTuple):
    """A decoder for an array of plain rows of one run and session; it fails on anything else."""

    run_id: str
    decoder: msgspec.json.Decoder[list[PlainRow]]
    fields: dict[str, str]


@lru_cache(maxsize=16)
def _row_decoder(
    schema: str, run_id: str, session: str | None, names: frozenset[str], kept: frozenset[str]
) -> _RowDecoder | None:
    """Return a decoder for rows whose further values have these names; None if msgspec cannot make it.

    The version, the run's and session's ids are compared while decoding, so no string is built for each row. A name
    that is not among `names` makes the decoder fail, because it might be one to keep.
    """
    fields = {name: f"value_{i}" for i, name in enumerate(sorted(names))}
    own = ("session", Literal[session]) if session else ("session", None, None)
    types = [(at, float | None if name in kept else Any, None) for name, at in fields.items()]
    try:
        cls = msgspec.defstruct(
            "PlainRow",
            [("schema", Literal[schema]), ("run_id", Literal[run_id]), own, *types],
            bases=(PlainRow,),
            rename={at: name for name, at in fields.items()},
            forbid_unknown_fields=True,
            frozen=True,
            kw_only=True,
            gc=False,
        )
    except ValueError:  # msgspec cannot rename a field to a name with quotes or control characters
        return None
    rows: msgspec.json.Decoder[list[PlainRow]] = msgspec.json.Decoder(list[cls])  # type: ignore[valid-type]  # made above
    return _RowDecoder(run_id, rows, {name: at for name, at in fields.items() if name in kept})


class BadLines(msgspec.Struct, frozen=True):
    """One line that is not an event, with all its faults."""

    faults: list[BadLine]
    broken: bool = False  # not JSON: perhaps cut off while being written


Scanned: TypeAlias = RowBlock | list[Event] | UnknownEvent | BadLines


class LogScan:
    """Iterate it for a log's contents in file order. The counts are complete at the end.

    Args:
        path: the log.
        strict: find every fault of a line; treat bare NaN and lines of another version as faults.
        values: names of the further values of training rows to keep, for a summary; None keeps all, more slowly.
            Other events always keep theirs, except under `strict`, which looks for faults only.
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
        values: Collection[str] | None = None,
        seen: Callable[[JsonObject], None] | None = None,
    ) -> None:
        self.path = path
        self.lines = 0
        self.unnamed = 0  # lines with bare NaN or Infinity
        self.softened: Counter[str] = Counter()  # values of choices that are not known here, read as `unknown`
        self.version = SCHEMA_ID  # of the first event
        self._strict = strict
        self._seen = seen
        self._kept = None if values is None else frozenset(values)
        self._names: frozenset[str] = frozenset()  # names of all further values met so far
        self._rows: _RowDecoder | None = None

    def __iter__(self) -> Iterator[Scanned]:
        """Yield the log's rows, events and bad lines."""
        for first, item in enumerate(_name_torn_tails(self._read())):
            if not first and not isinstance(item, BadLines):
                self.version = _version(item)
            yield item

    def _read(self) -> Iterator[Scanned]:
        for piece in read_blocks(self.path):
            if isinstance(piece, Line):
                self.lines += 1
                fault = Fault(f"a line of {piece.length} bytes; one may have {MAX_LINE_BYTES}")
                yield BadLines([_bad(piece, fault)])
            elif (rows := self._plain(piece)) is not None:
                self.lines += piece.count
                yield rows
            else:
                for part in piece.parts() if self._kept is not None else [piece]:
                    yield from self._part(part, again=part is not piece)

    def _part(self, part: Block, *, again: bool) -> Iterator[Scanned]:
        """Yield the contents of a block or a part; `again` if a part may be plain rows though its block was not."""
        found = (self._plain(part) if again else None) or self._typed(part)
        if found is not None:
            self.lines += part.count
            yield found
            return
        for line in part.lines():
            self.lines += 1
            yield self._slow(line)

    def _plain(self, block: Block) -> RowBlock | None:
        if self._rows is None:
            return None
        rows = decode_array(block.data, block.count, self._rows.decoder)
        return None if rows is None else RowBlock(self._rows.run_id, rows, self._rows.fields)

    def _typed(self, block: Block) -> list[Event] | None:
        if self._strict:
            return self._shown(block, decode_lines(block.data))
        kept = self._kept
        events = None if kept is None else decode_array(block.data, block.count, KNOWN_ARRAY)
        documents = None if events is None else decode_array(block.data, block.count, OBJECT_ARRAY)
        if kept is None or events is None or documents is None:
            return None
        if set(map(type, events)) == {TrainStep}:  # more rows like these may follow
            self._learn(events[-1], documents, kept)
        return [_with_values(event, document, kept) for event, document in zip(events, documents, strict=True)]

    def _shown(self, block: Block, events: list[Event] | None) -> list[Event] | None:
        """Show a block's objects to `seen`; return the events, or None if the objects need a closer look."""
        if self._seen is None or events is None:
            return events
        documents = decode_array(block.data, block.count, OBJECT_ARRAY)
        if documents is None:
            return None
        for document in documents:
            self._seen(document)
        return events

    def _learn(self, row: Event, documents: list[JsonObject], kept: frozenset[str]) -> None:
        """Make the decoder for rows like those of a block; none, and no more names, if there are too many names."""
        if len(self._names) <= _MAX_NAMES:
            self._names = self._names.union(*documents) - _ROW_FIELDS
        few = len(self._names) <= _MAX_NAMES
        self._rows = _row_decoder(row.schema, row.run_id, row.session, self._names, kept) if few else None

    def _slow(self, line: Line) -> Scanned:
        if (self._strict or self._kept is not None) and line.data.isascii():
            try:
                event = decode_known(line.data)
                if self._seen is not None:
                    self._seen(decode_object(line.data))
                return [event if self._kept is None else _with_values(event, decode_object(line.data), self._kept)]
            except (msgspec.MsgspecError, RecursionError):
                pass
        return self._look_closely(line)

    def _look_closely(self, line: Line) -> Scanned:
        try:
            document, unnamed = parse(line.data)
        except SchemaError as error:
            fault = Fault(str(error) if line.ended else f"torn tail: {error}")
            return BadLines([_bad(line, fault, torn=not line.ended)], broken=True)
        self.unnamed += unnamed
        if self._seen is not None:
            self._seen(document)
        if not self._strict or is_minor(document.get("schema")):
            self.softened.update(soften(document))
        if unnamed and self._strict:
            return _all_bad(line, [*find_unnamed(line.data), *find_faults(document)])
        try:
            event = convert(document)
        except msgspec.ValidationError:
            return _all_bad(line, find_faults(document, MOST_FAULTS if self._strict else 1))
        except SchemaError:  # another major version
            if self.lines == 1 or not self._strict:
                raise
            return _all_bad(line, find_faults(document))
        return event if isinstance(event, UnknownEvent) else [event]


def _with_values(event: Event, document: JsonObject, kept: frozenset[str]) -> Event:
    """Return a known event with its document's extras; for a training row, only the extras in `kept`."""
    if type(event) is not TrainStep:
        return convert(document)  # type: ignore[return-value]  # its name is known
    names = document.keys() & kept
    return extended(event, {name: document[name] for name in names}) if names else event


def _all_bad(line: Line, faults: list[Fault]) -> BadLines:
    return BadLines([_bad(line, fault) for fault in faults])


def _bad(line: Line, fault: Fault, *, torn: bool = False) -> BadLine:
    return BadLine(line=line.number, offset=line.offset, torn=torn, **msgspec.structs.asdict(fault))


def _name_torn_tails(found: Iterator[Scanned]) -> Iterator[Scanned]:
    """Mark a broken line as a torn tail if a later session wrote the next line."""
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


def _begins_session(item: RowBlock | list[Event] | UnknownEvent, before: str | None) -> bool:
    if isinstance(item, list) and isinstance(item[0], RunStart):
        return True
    now = _session(item, last=False)
    return now is not None and now != before


def _session(item: RowBlock | list[Event] | UnknownEvent, *, last: bool) -> str | None:
    """Return the session of the first event, or the last session that any event names; None if none does."""
    if isinstance(item, UnknownEvent):
        return item.session
    if isinstance(item, RowBlock):
        return item.rows[-1].session  # all are of one session
    named = (event.session for event in (reversed(item) if last else item[:1]))
    return next((session for session in named if session is not None), None)


def _version(item: RowBlock | list[Event] | UnknownEvent) -> str:
    if isinstance(item, RowBlock):
        return item.rows[0].schema
    return item.schema if isinstance(item, UnknownEvent) else item[0].schema


def _torn(bad: BadLines) -> BadLines:
    faults = [
        msgspec.structs.replace(f, torn=True, reason=f"torn tail of an earlier session: {f.reason}") for f in bad.faults
    ]
    return msgspec.structs.replace(bad, faults=faults)
