"""One event, one line. Only this module turns events into bytes and bytes into events."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import msgspec

from gradience.errors import SchemaError
from gradience.io.reading import check_depth
from gradience.schema import MAX_INT, SCHEMA_ID, SCHEMA_PREFIX, NonNegativeInt, Real, real
from gradience.schema.document import escape_controls
from gradience.schema.events import (
    EVENT_TYPES,
    ConfigSnapshot,
    Eval,
    EvalMetrics,
    Event,
    LoraSnapshot,
    OptimizerSnapshot,
    Recommendation,
    RecommendationItem,
    TrainingSnapshot,
    TrainStep,
    UnknownEvent,
)

_AT: Final = re.compile(r" - at `(?P<path>[^`]+)`$")
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_LISTED: Final = "[]"
# Levels below the event itself that may have unknown keys.
_FLAT: Final[dict[str, tuple[tuple[str, ...], type[msgspec.Struct]]]] = {
    "eval": (("metrics",), EvalMetrics),
    "recommendation": (("recommendations", _LISTED), RecommendationItem),
}
# Levels of a config. They hold `extras` as a key on the wire too; unknown keys beside it are moved into it.
_NESTED: Final[tuple[tuple[tuple[str, ...], type[msgspec.Struct]], ...]] = (
    (("config",), ConfigSnapshot),
    (("config", "optimizer"), OptimizerSnapshot),
    (("config", "lora"), LoraSnapshot),
    (("config", "training"), TrainingSnapshot),
)

MAX_LINE_BYTES: Final = 64 * 1024  # most bytes of one line without its newline
T_ = TypeVar("T_")
KNOWN_ARRAY: Final[msgspec.json.Decoder[list[Event]]] = msgspec.json.Decoder(list[Event])
OBJECT_ARRAY: Final[msgspec.json.Decoder[list[JsonObject]]] = msgspec.json.Decoder(list[dict[str, Any]])

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


def path_of(message: str) -> str:
    """Return the path at the end of a msgspec message, `$` if it names none.

    >>> path_of("Expected `int`, got `str` - at `$.step`")
    '$.step'
    """
    at = _AT.search(message)
    return at["path"] if at else "$"


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


def fold(document: JsonObject, name: str) -> JsonObject:
    """Return the document of a known event with unknown keys moved into `extras` at every level."""
    document = _flat_in(document, EVENT_TYPES[name])
    if name in _FLAT:
        path, cls = _FLAT[name]
        document = _at(document, path, cls, nested=False)
    if name == "run_start":
        for path, cls in _NESTED:
            document = _at(document, path, cls, nested=True)
    return document


def unfold(document: JsonObject, name: str) -> JsonObject:
    """Return the document of a known event with its `extras` moved beside the known keys.

    Raises:
        SchemaError: an extra has the name of a known key.
    """
    if name in _FLAT:
        path, cls = _FLAT[name]
        node, key = document, path[0]
        child = node[key]
        flat = [_flat_out(item, cls) for item in child] if path[-1] == _LISTED else _flat_out(child, cls)
        document = {**document, key: flat}
    return _flat_out(document, EVENT_TYPES[name])


def _at(node: Any, path: tuple[str, ...], cls: type[msgspec.Struct], *, nested: bool) -> Any:
    if path and path[0] == _LISTED:
        return [_at(item, path[1:], cls, nested=nested) for item in node] if isinstance(node, list) else node
    if not isinstance(node, dict):
        return node
    if path:
        return {**node, path[0]: _at(node[path[0]], path[1:], cls, nested=nested)} if path[0] in node else node
    return _nested_in(node, cls) if nested else _flat_in(node, cls)


def _flat_in(node: JsonObject, cls: type[msgspec.Struct]) -> JsonObject:
    known = _wire_names(cls)
    if node.keys() <= known:
        return node
    folded = {k: v for k, v in node.items() if k in known}
    folded["extras"] = {k: v for k, v in node.items() if k not in known}
    return folded


def _nested_in(node: JsonObject, cls: type[msgspec.Struct]) -> JsonObject:
    known = _wire_names(cls)
    beside = {k: v for k, v in node.items() if k not in known and k != "extras"}
    nested = node.get("extras", {})
    if not beside or not isinstance(nested, dict):
        return node
    return {**{k: v for k, v in node.items() if k in known}, "extras": {**nested, **beside}}


def _flat_out(node: JsonObject, cls: type[msgspec.Struct]) -> JsonObject:
    extras = node.get("extras")
    if not extras:
        return node
    known = _wire_names(cls)
    if taken := sorted(known & extras.keys()):
        raise SchemaError(f"extras of {cls.__name__} may not use the name of a known key: {', '.join(taken)}")
    return {**{k: v for k, v in node.items() if k != "extras"}, **extras}


@cache
def _wire_names(cls: type[msgspec.Struct]) -> frozenset[str]:
    """Return the keys that a Struct has on the wire, without `extras`."""
    names = set(cls.__struct_encode_fields__) - {"extras"}
    return frozenset(names | {"event"} if cls.__struct_config__.tag else names)


_encoder = msgspec.json.Encoder()
_known = msgspec.json.Decoder(Event)
_object = msgspec.json.Decoder(dict[str, Any])


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
        SchemaError: an extra has the name of a known key.
        TypeError: the event holds a value that JSON does not have.
    """
    if not isinstance(event, UnknownEvent) and not _has_extras(event):
        line = _encoder.encode(event)
        if b"null" not in line:  # the encoder writes NaN as null
            return _escape(line)
    return encode_document(to_document(event))


def encode_row(event: TrainStep) -> bytes:
    """Return a row without extras as `encode` does, but faster."""
    line = _encoder.encode(event)
    if b"null" in line or b"\x7f" in line or not line.isascii():
        return encode(event)
    return line


def encode_document(document: JsonObject) -> bytes:
    """Return a document made by `to_document` as one JSON object without a newline."""
    return _escape(_encoder.encode(document))


def to_document(event: Event | UnknownEvent) -> JsonObject:
    """Return the event as on the wire: plain values, with extras beside the known keys.

    Raises:
        SchemaError: an extra has the name of a known key.
        TypeError: the event holds a value that JSON does not have.
    """
    if isinstance(event, UnknownEvent):
        head = {"schema": SCHEMA_ID, "ts": event.ts, "run_id": event.run_id, "event": event.event, "step": event.step}
        return {**head, **_named(event.payload)}
    plain = msgspec.to_builtins(event)
    return unfold(_named(plain), plain["event"])


def decode(line: bytes) -> Event | UnknownEvent:
    """Return the event of one line, with every unknown key kept.

    An event name this version does not know gives an `UnknownEvent`.

    Raises:
        SchemaError: not JSON, another major version, or a field of the wrong type.
    """
    document, _ = parse(line)
    try:
        return convert(document)
    except msgspec.ValidationError as error:
        raise SchemaError(str(error)) from error


def decode_known(line: bytes) -> Event:
    """Return the event of one line without its unknown keys, decoded by msgspec alone: fast, and enough for a summary.

    Raises:
        msgspec.MsgspecError: the line is not an event of a known name.
    """
    event: Event = _known.decode(line)
    return event


def decode_object(line: bytes) -> JsonObject:
    """Return the JSON object of a line that `decode_known` accepts.

    Raises:
        msgspec.MsgspecError: the line is not a JSON object, or has a lone surrogate in a string.
    """
    return _object.decode(line)


def decode_array(block: bytes, count: int, decoder: msgspec.json.Decoder[list[T_]]) -> list[T_] | None:
    """Return the items of whole lines without unknown keys; None if any line needs a closer look.

    The lines are decoded as one array, with a comma for each newline, and must give as many items. `decode_lines` also
    catches two events joined on one line near a line that is broken at a comma.
    """
    try:
        if not block.isascii():
            block.decode()  # msgspec does not check the UTF-8 of strings that it skips
        items = decoder.decode(b"[%b]" % block.removesuffix(b"\n").replace(b"\n", b","))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return items if len(items) == count else None


def decode_lines(block: bytes) -> list[Event] | None:
    """Return the events of whole lines, each decoded by itself: exact but slower. None as in `decode_array`."""
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
    except UnicodeDecodeError as error:
        raise SchemaError(f"not UTF-8: {error.reason} at byte {error.start} of a string") from error
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
    folded = fold(document, name)
    while True:
        try:
            event: Event = msgspec.convert(folded, EVENT_TYPES[name])  # type: ignore[assignment]
        except msgspec.ValidationError as error:
            if not _make_whole(folded, str(error)):
                raise
        else:
            return event


def _has_extras(event: Event) -> bool:
    if event.extras:
        return True
    if isinstance(event, Eval):
        return bool(event.metrics.extras)
    return isinstance(event, Recommendation) and any(item.extras for item in event.recommendations)


def _escape(line: bytes) -> bytes:
    if line.isascii() and b"\x7f" not in line:
        return line
    return escape_controls(line.decode()).encode()


def _make_whole(document: JsonObject, message: str) -> bool:
    """Turn whole floats into integers where the schema wants one: JSON Schema's integer includes 4.0."""
    place = find(document, path_of(message)) if _INT_NOT_FLOAT.match(message) else None
    if place is None:
        return False
    if not place.every:
        return _whole_at(place.container, place.key)
    held = place.value
    made = [_whole_at(held, k) for k in held] if isinstance(held, dict) else []
    return any(made)


def _whole_at(container: Any, key: str | int) -> bool:
    value = container[key]
    if not (isinstance(value, float) and value.is_integer() and abs(value) <= MAX_INT):
        return False
    container[key] = int(value)
    return True


def _refuse_other_major(schema: object) -> None:
    if isinstance(schema, str) and schema != SCHEMA_ID and schema.startswith(SCHEMA_PREFIX):
        raise SchemaError(
            f"this log is {schema[:80]!r}, this reader knows {SCHEMA_ID!r}",
            advice="read it with a release of gradience that writes that version",
        )


def _unknown(document: JsonObject) -> UnknownEvent:
    head = msgspec.convert(document, _Envelope)
    if head.schema != SCHEMA_ID:
        raise msgspec.ValidationError(f"Invalid enum value {head.schema[:80]!r} - at `$.schema`")
    if not head.run_id:
        raise msgspec.ValidationError("Expected `str` of length >= 1 - at `$.run_id`")
    payload = {k: v for k, v in document.items() if k not in _Envelope.__struct_fields__}
    return UnknownEvent(event=head.event, ts=head.ts, run_id=head.run_id, step=head.step, payload=payload)


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
