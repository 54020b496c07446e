"""One event, one line. Only this module turns events into bytes and bytes into events."""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from itertools import groupby
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, TypeAlias, TypeGuard, TypeVar, Union

import msgspec
from msgspec import Meta
from msgspec.structs import asdict

from gradience.errors import SchemaError
from gradience.io.reading import check_depth
from gradience.schema import MAX_INT, SCHEMA_ID, SCHEMA_PATTERN, SCHEMA_PREFIX, NonNegativeInt, Real, real
from gradience.schema.document import escape_controls
from gradience.schema.events import EVENT_TYPES, Eval, Event, EventBase, Recommendation, TrainStep, UnknownEvent
from gradience.schema.flat import CHOICES, Checked, expectation, known_keys, spread, unchecked

_OPEN: Final = {  # where an event has a choice that a later minor version may add to
    "run_start": ("config", "task_profile"),
    "alert": ("severity",),
    "recommendation": ("recommendations", "severity"),
    "run_end": ("status",),
}
_OF_THIS_MAJOR: Final = re.compile(SCHEMA_PATTERN)
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
MAX_LINE_BYTES: Final = 64 * 1024  # most bytes of one line without its newline
T_ = TypeVar("T_")
P_ = TypeVar("P_", bound=Checked)
_SHOWN: Final = 80  # characters of an unknown value
_INT_NOT_FLOAT: Final = re.compile(r"^Expected `[^`]*\bint\b[^`]*`, got `float`")


class Place(NamedTuple):
    """A value's container and its key there; `every` if the path means any of the values within that value."""

    container: Any
    key: str | int
    every: bool = False

    @property
    def value(self) -> Any:
        """The value at this place."""
        return self.container[self.key]


def find(document: dict[str, Any], path: str) -> Place | None:
    """Return the place that a path names, or None if the document has no such container."""
    steps: list[str | int] = [int(i) if i else name for name, i in _STEP.findall(path)]
    if not steps:
        return None
    node: Any = document
    try:
        for step in steps[:-1]:
            node = node[step]
    except (KeyError, IndexError, TypeError):
        return None
    return Place(node, steps[-1], path.endswith("[...]"))


JsonObject: TypeAlias = dict[str, Any]


# gc=False: a row of JSON holds no cycle, so the collector need not walk rows by the million.
class PlainRow(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="event",
    tag="train_step",
    gc=False,
):
    """A training row as nearly all are: of this version, with a step, a loss, and finite numbers for what is known.

    msgspec decodes it in less than half the time of a `TrainStep`: no pattern is matched, no dict is made, and a text
    that each row repeats is compared while it is read (`row_decoder`).

    Attributes:
        further: the names of further values, with the attributes that hold them.
    """

    further: ClassVar[dict[str, str]] = {}

    schema: Literal[SCHEMA_ID]  # type: ignore[valid-type]  # a constant
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
        """The row as a typed event."""
        values = asdict(self)
        extras = {name: value for name, at in self.further.items() if (value := values.pop(at)) is not None}
        return unchecked(TrainStep, **values, extras=extras)


_encoder = msgspec.json.Encoder()
_known = msgspec.json.Decoder(Event)
_object = msgspec.json.Decoder(dict[str, Any])
_KNOWN_ARRAY: Final[msgspec.json.Decoder[list[Event]]] = msgspec.json.Decoder(list[Event])
_OBJECT_ARRAY: Final[msgspec.json.Decoder[list[JsonObject]]] = msgspec.json.Decoder(list[dict[str, Any]])
_ROW_KEYS: Final = known_keys(TrainStep)
_MOST_NAMES: Final = 256  # of further values; where rows have more, they are decoded as any other event
Stretch: TypeAlias = list[PlainRow] | list[Event]


class RowDecoder(NamedTuple):
    """Decoders of arrays of plain rows of one run and session: of such rows alone, and among other events."""

    alone: msgspec.json.Decoder[list[PlainRow]]
    among: msgspec.json.Decoder[list[PlainRow | Event]]


class _Envelope(msgspec.Struct):
    """The fields that an event of an unknown name must have too."""

    schema: str
    ts: Real | None
    run_id: str
    event: str
    step: NonNegativeInt | None


def encode(event: Event | UnknownEvent) -> bytes:
    """Return the event as one JSON object without a newline, with non-finite numbers by name.

    Raises:
        TypeError: the event holds a value that JSON does not have.
    """
    return encode_document(to_document(event))


def encode_row(event: TrainStep) -> bytes:
    """Return a row without extras as `encode` does, but faster."""
    line = _encoder.encode(event)  # which writes NaN as null
    # DEL is the one control character of ASCII that no writer of JSON escapes.
    if b"null" in line or b"\x7f" in line or not line.isascii():
        return encode(event)
    return line


def encode_document(document: JsonObject) -> bytes:
    """Return a document made by `to_document` as one JSON object without a newline."""
    return _escape(_encoder.encode(document))


def to_document(event: EventBase | UnknownEvent) -> JsonObject:
    """Return the event as on the wire: plain values, with extras beside the known keys.

    Raises:
        TypeError: the event holds a value that JSON does not have.
    """
    if isinstance(event, UnknownEvent):
        head = {
            "schema": event.schema,
            "ts": event.ts,
            "run_id": event.run_id,
            "event": event.event,
            "step": event.step,
        }
        return {**head, **_named(event.payload)}
    document: JsonObject = _named(msgspec.to_builtins(event))
    if isinstance(event, Eval):
        document["metrics"] = spread(document["metrics"])
    elif isinstance(event, Recommendation):
        document["recommendations"] = [spread(item) for item in document["recommendations"]]
    return spread(document)


def decode(line: bytes) -> Event | UnknownEvent:
    """Return the event of one line, with every unknown key kept.

    An event name this version does not know gives an `UnknownEvent`, and an unknown status or severity is `unknown`.

    Raises:
        SchemaError: not JSON, another major version, or a field of the wrong type.
    """
    document, _ = parse(line)
    soften(document)
    try:
        return convert(document)
    except msgspec.ValidationError as error:
        raise SchemaError(str(error)) from error


def decode_known(line: bytes) -> Event:
    """Return the event of one line without its unknown keys, decoded by msgspec alone.

    Raises:
        msgspec.MsgspecError: the line is not an event of a known name.
    """
    event: Event = _known.decode(line)
    return event


def decode_block(block: bytes, count: int) -> list[Event] | None:
    """Return the events of whole lines with all their keys; None if a line needs a closer look."""
    events = decode_array(block, count, _KNOWN_ARRAY)
    documents = None if events is None else decode_objects(block, count)
    if events is None or documents is None:
        return None
    return [_whole(event, document) for event, document in zip(events, documents, strict=True)]


@lru_cache(maxsize=16)
def row_decoder(run_id: str, session: str | None, names: frozenset[str]) -> RowDecoder | None:
    """Return decoders of the plain rows of a run and session, with further values of these names; None if too many."""
    fields = {name: f"further_{i}" for i, name in enumerate(sorted(names))}
    own = ("session", Literal[session]) if session else ("session", None, None)
    if len(fields) > _MOST_NAMES:
        return None
    try:
        row = msgspec.defstruct(
            "PlainRow",
            [("run_id", Literal[run_id]), own, *((at, Any, None) for at in fields.values())],
            bases=(PlainRow,),
            namespace={"further": fields},
            rename={at: name for name, at in fields.items()},
            frozen=True,
            kw_only=True,
            gc=False,
        )
    except ValueError:  # msgspec cannot rename a field to a name with quotes or control characters
        return None
    others = (kind for kind in EVENT_TYPES.values() if kind is not TrainStep)
    return RowDecoder(msgspec.json.Decoder(list[row]), msgspec.json.Decoder(list[Union[(row, *others)]]))  # type: ignore[valid-type]  # made above


def is_plain(stretch: Stretch) -> TypeGuard[list[PlainRow]]:
    """Whether events are plain rows: all are, or none."""
    return isinstance(stretch[0], PlainRow)


def decode_rows(block: bytes, count: int, decoder: RowDecoder) -> list[Stretch] | None:
    """Return whole lines as stretches of plain rows and of events with all their keys; None as in `decode_array`."""
    if (rows := decode_array(block, count, decoder.alone)) is not None:
        return [rows]
    if (found := decode_array(block, count, decoder.among)) is None:
        return None
    lines = iter(block.split(b"\n"))
    stretches = [(kind, list(zip(stretch, lines, strict=False))) for kind, stretch in groupby(found, type)]
    try:
        return [
            [one if issubclass(kind, PlainRow) else convert(_object.decode(line)) for one, line in stretch]  # type: ignore[misc]  # of one kind
            for kind, stretch in stretches
        ]
    except msgspec.MsgspecError:  # the items are not those of the lines
        return None


def _whole(event: Event, document: JsonObject) -> Event:
    """Return a decoded event with the unknown keys of its JSON object."""
    if not isinstance(event, TrainStep):
        return convert(document)  # type: ignore[return-value]  # its name is known
    # On the wire `extras` is a key like any other, which msgspec took for the field; the document has it too.
    event.extras.clear()
    event.extras.update({key: value for key, value in document.items() if key not in _ROW_KEYS})
    return event


def decode_objects(block: bytes, count: int) -> list[JsonObject] | None:
    """Return the JSON objects of whole lines; None if a line needs a closer look."""
    return decode_array(block, count, _OBJECT_ARRAY)


def decode_array(block: bytes, count: int, decoder: msgspec.json.Decoder[list[T_]]) -> list[T_] | None:
    """Return the items of whole lines; None if any line needs a closer look.

    The lines are decoded as one array, with a comma for each newline, and must give as many items. `decode_lines` also
    catches two events joined on one line near a line that is broken at a comma.
    """
    try:
        if not block.isascii():
            # msgspec does not check the UTF-8 of strings that it skips.
            block.decode()
        items = decoder.decode(b"[%b]" % block.removesuffix(b"\n").replace(b"\n", b","))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return items if len(items) == count else None


def decode_lines(block: bytes) -> list[Event] | None:
    """Return the events of whole lines without unknown keys, each decoded by itself: exact but slower.

    None as in `decode_array`.
    """
    try:
        if not block.isascii():
            block.decode()
        return [_known.decode(line) for line in block.removesuffix(b"\n").split(b"\n")]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def parse(line: bytes) -> tuple[JsonObject, bool]:
    """Return the line's JSON object, and whether it held bare non-finite numbers, which are replaced by their names.

    Raises:
        SchemaError: the line is not a JSON object.
    """
    try:
        check_depth(line)
        return _object.decode(line), False
    except RecursionError as error:
        raise SchemaError(str(error)) from error
    except UnicodeDecodeError:  # of a string; the place in the line is what helps
        return _parse_leniently(line, msgspec.DecodeError("not UTF-8")), True
    except msgspec.DecodeError as error:
        return _parse_leniently(line, error), True


def convert(document: JsonObject) -> Event | UnknownEvent:
    """Return the event of one parsed line.

    Raises:
        msgspec.ValidationError: a field has the wrong type.
        SchemaError: the line is of another major version.
    """
    name = document.get("event")
    _refuse_other_major(document.get("schema"))
    if not isinstance(name, str) or name not in EVENT_TYPES:
        return _unknown(document)
    return convert_part(document, EVENT_TYPES[name])  # type: ignore[return-value]  # every type there is an Event


def convert_part(document: JsonObject, cls: type[P_]) -> P_:
    """Return an event, or a part of one, of its JSON object. Modifies it: 4.0 becomes 4 where an integer is wanted.

    Raises:
        msgspec.ValidationError: a field has the wrong type.
    """
    # msgspec names one fault at a time: each turn mends one number, until a fault is left that is none of a number.
    while True:
        try:
            return cls.from_document(document)
        except msgspec.ValidationError as error:
            if not _make_whole(document, str(error)):
                raise


def soften(document: JsonObject) -> list[str]:
    """Replace every value of a choice that this version does not know by `unknown`, and return those values by name.

    >>> soften({"event": "run_end", "status": "preempted"})
    ["status 'preempted'"]
    """
    *way, name = _OPEN.get(str(document.get("event")), ("",))
    below: Any = document.get(way[0]) if way else document
    unknown = []
    for part in below if isinstance(below, list) else [below]:
        value = part.get(name) if name and isinstance(part, dict) else None
        if isinstance(value, str) and value not in CHOICES[name]:
            part[name] = "unknown"
            unknown.append(f"{name} {value[:_SHOWN]!r}")
    return unknown


def is_minor(schema: object) -> bool:
    """Whether a schema id is of this major version, and not of the one version that this reader knows all of."""
    return isinstance(schema, str) and schema != SCHEMA_ID and _OF_THIS_MAJOR.match(schema) is not None


def _escape(line: bytes) -> bytes:
    if line.isascii() and b"\x7f" not in line:
        return line
    return escape_controls(line.decode()).encode()


def _make_whole(document: JsonObject, message: str) -> bool:
    """Turn whole floats into integers where the schema wants one: JSON Schema's integer includes 4.0."""
    place = find(document, expectation(message).path) if _INT_NOT_FLOAT.match(message) else None
    if place is None:
        return False
    if not place.every:
        return _whole_at(place.container, place.key)
    values = place.value
    made = [_whole_at(values, k) for k in values] if isinstance(values, dict) else []
    return any(made)


def _whole_at(container: Any, key: str | int) -> bool:
    value = container[key]
    if not (isinstance(value, float) and value.is_integer() and abs(value) <= MAX_INT):
        return False
    container[key] = int(value)
    return True


def _refuse_other_major(schema: object) -> None:
    if isinstance(schema, str) and schema.startswith(SCHEMA_PREFIX) and not _OF_THIS_MAJOR.match(schema):
        raise SchemaError(
            f"this log is {schema[:80]!r}, this reader knows {SCHEMA_ID!r}",
            advice="another major version means other fields: read it with a release of gradience that writes it",
        )


def _unknown(document: JsonObject) -> UnknownEvent:
    head = msgspec.convert(document, _Envelope)
    if not _OF_THIS_MAJOR.match(head.schema):
        raise msgspec.ValidationError(f"Invalid enum value {head.schema[:80]!r} - at `$.schema`")
    if not head.run_id:
        # The words are msgspec's, because `expectation` reads the path and what was expected out of them.
        raise msgspec.ValidationError("Expected `str` of length >= 1 - at `$.run_id`")
    payload = {k: v for k, v in document.items() if k not in _Envelope.__struct_fields__}
    return UnknownEvent(
        event=head.event, ts=head.ts, run_id=head.run_id, step=head.step, payload=payload, schema=head.schema
    )


def _parse_leniently(line: bytes, error: msgspec.DecodeError) -> JsonObject:
    """Return the object of a line whose only fault is NaN, Infinity or 1e999, which other writers emit."""
    try:
        document = json.loads(line.decode())
    except UnicodeDecodeError as broken:
        raise SchemaError(f"not UTF-8: {broken.reason} at byte {broken.start}") from error
    except ValueError:
        raise SchemaError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SchemaError(str(error)) from error
    named: JsonObject = _named(document)
    try:
        # `json` reads half of a surrogate pair, which no writer can put into UTF-8 again.
        _encoder.encode(named)
    except UnicodeEncodeError:
        raise SchemaError("not Unicode: half of a surrogate pair in a string") from error
    return named


def _named(value: Any) -> Any:
    """Return the JSON value with non-finite floats replaced by their names."""
    if type(value) is float:
        return value if math.isfinite(value) else real(value)
    if isinstance(value, dict):
        return {k: _named(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_named(v) for v in value]
    return real(value) if isinstance(value, float) else value
