"""One event, one line: the only place where events become bytes and bytes become events."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any, Final, TypeAlias, get_args

import msgspec

from gradience.errors import SchemaError
from gradience.schema.config import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.events import (
    EVENT_TYPES,
    Eval,
    EvalMetrics,
    Event,
    EventBase,
    TrainStep,
    UnknownEvent,
)
from gradience.schema.scalars import (
    SCHEMA_ID,
    SCHEMA_PREFIX,
    NonNegativeInt,
    Real,
    Severity,
    Status,
    TaskProfile,
    real,
)

__all__ = ["MAX_LINE_BYTES", "Fault", "decode", "decode_known", "encode", "faults", "parse"]

MAX_LINE_BYTES: Final = 64 * 1024

JsonObject: TypeAlias = dict[str, Any]

_encoder = msgspec.json.Encoder()
_known = msgspec.json.Decoder(Event)
_object = msgspec.json.Decoder(dict[str, Any])

# Levels whose unknown keys are kept, and where: in `extras`, from beside the known keys.
_FOLDED: Final[dict[str, dict[str, type[msgspec.Struct]]]] = {
    "run_start": {
        "config": ConfigSnapshot,
        "config.optimizer": OptimizerSnapshot,
        "config.lora": LoraSnapshot,
        "config.training": TrainingSnapshot,
    },
    "train_step": {"": TrainStep},
    "eval": {"metrics": EvalMetrics},
}


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with one line, and where in it."""

    reason: str
    path: str | None = None
    expected: str | None = None
    got: str | None = None


class _Envelope(msgspec.Struct):
    """What an event of an unknown name must have all the same."""

    schema: str
    ts: Real | None
    run_id: str
    event: str
    step: NonNegativeInt | None


def encode(event: Event) -> bytes:
    """Return the event as one JSON object, without a newline; `extras` unfolded beside the known keys."""
    if isinstance(event, TrainStep) and event.extras:
        return _encoder.encode(_unfold(msgspec.to_builtins(event)))
    if isinstance(event, Eval) and event.metrics.extras:
        plain = msgspec.to_builtins(event)
        return _encoder.encode({**plain, "metrics": _unfold(plain["metrics"])})
    return _encoder.encode(event)


def decode(line: bytes) -> Event | UnknownEvent:
    """Return the event of one line, with every unknown key kept.

    An event name this version does not know gives an `UnknownEvent`.

    Raises:
        SchemaError: not JSON, another major version, or a field of the wrong type.
    """
    document, _ = parse(line)
    try:
        return _convert(document)
    except msgspec.ValidationError as error:
        raise SchemaError(str(error)) from error


def decode_known(line: bytes) -> Event:
    """Return the event of one line, dropping unknown keys: what a summary needs, at decoder speed.

    Raises:
        msgspec.MsgspecError: the line is no event of a known name.
    """
    return _known.decode(line)


def parse(line: bytes) -> tuple[JsonObject, bool]:
    """Return the line's JSON object, and whether it held bare NaN or Infinity tokens (made strings here).

    Raises:
        SchemaError: the line is not a JSON object.
    """
    try:
        return _object.decode(line), False
    except msgspec.ValidationError as error:
        raise SchemaError(str(error)) from error
    except RecursionError as error:
        raise SchemaError("nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if b"NaN" in line or b"Infinity" in line:
            return _parse_bare_tokens(line), True
        raise SchemaError(f"not JSON: {error}") from error


def faults(document: JsonObject) -> list[Fault]:
    """Return everything wrong with one parsed line, in the order found; empty for a valid event."""
    found: list[Fault] = []
    while len(found) < _MOST_FAULTS:
        try:
            _convert(document)
        except msgspec.ValidationError as error:
            fault = _fault(str(error), document)
            if fault in found or not _mend(document, fault):
                return [*found, fault] if fault not in found else found
            found.append(fault)
        except SchemaError as error:
            return [*found, Fault(str(error), "$.schema", SCHEMA_ID, repr(document.get("schema")))]
        else:
            return found
    return found


_MOST_FAULTS = 64
_EXPECTED = re.compile(r"Expected (?P<expected>.+?)(?:, got `(?P<got>.+?)`)?(?: - at `.+`)?$")
_AT = re.compile(r" - at `(?P<path>.+)`$")
_MISSING = re.compile(r"Object missing required field `(?P<field>.+?)`")
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


def _fault(message: str, document: JsonObject) -> Fault:
    at = _AT.search(message)
    path = at["path"] if at else "$"
    if missing := _MISSING.search(message):
        return Fault(message, f"{path}.{missing['field']}", missing["field"], "nothing")
    hit = _EXPECTED.search(message)
    expected = hit["expected"].replace("`", "") if hit else _ENUMS.get(path.rsplit(".", 1)[-1], _A_NUMBER)
    got = hit["got"] if hit and hit["got"] else _shown(document, path)
    return Fault(message, path, expected, got)


def _steps(path: str) -> list[str | int]:
    return [int(i) if i else name for name, i in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path)]


def _holder(document: JsonObject, path: str) -> tuple[Any, str | int] | None:
    """Return the container and key that a `$.a[0].b` path names, or None where it is not there."""
    steps = _steps(path)
    node: Any = document
    for step in steps[:-1]:
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            return None
    return (node, steps[-1]) if steps else None


def _shown(document: JsonObject, path: str) -> str | None:
    held = _holder(document, path)
    try:
        return repr(held[0][held[1]])[:80] if held else None
    except (KeyError, IndexError, TypeError):
        return None


def _mend(document: JsonObject, fault: Fault) -> bool:
    """Put a valid value where the fault was, so that the next fault shows; False where that is not possible."""
    held = _holder(document, fault.path or "$")
    if held is None:
        return False
    container, key = held
    if key in _STAND_INS and isinstance(container, dict):
        stand_in = _STAND_INS[str(key)]
        container[key] = type(stand_in)() if isinstance(stand_in, (dict, list)) else stand_in
        return True
    if isinstance(container, dict) and key in container:
        del container[key]
        return True
    return False


def _convert(document: JsonObject) -> Event | UnknownEvent:
    name = document.get("event")
    _refuse_other_major(document.get("schema"))
    cls = EVENT_TYPES.get(name) if isinstance(name, str) else None
    if cls is None:
        return _unknown(document)
    folded = _fold(document, str(name))
    try:
        return msgspec.convert(folded, cls)  # type: ignore[return-value]
    except msgspec.ValidationError:
        whole = _whole(folded)  # JSON Schema's integer includes 4.0, and so do other people's writers
        return msgspec.convert(whole, cls)  # type: ignore[return-value]


def _refuse_other_major(schema: object) -> None:
    if isinstance(schema, str) and schema != SCHEMA_ID and schema.startswith(SCHEMA_PREFIX):
        raise SchemaError(
            f"this log is {schema!r}, this reader knows {SCHEMA_ID!r}",
            advice="read it with a release of gradience that writes that version",
        )


def _unknown(document: JsonObject) -> UnknownEvent:
    head = msgspec.convert(document, _Envelope)
    if head.schema != SCHEMA_ID:
        raise msgspec.ValidationError(f"Invalid enum value {head.schema!r} - at `$.schema`")
    payload = {k: v for k, v in document.items() if k not in _Envelope.__struct_fields__}
    return UnknownEvent(event=head.event, ts=head.ts, run_id=head.run_id, step=head.step, payload=payload)


def _fold(document: JsonObject, name: str) -> JsonObject:
    """Return the document with unknown keys moved into `extras` at the levels that have one."""
    for path, cls in _FOLDED.get(name, {}).items():
        document = _fold_at(document, path.split(".") if path else [], cls)
    return document


def _fold_at(node: JsonObject, path: list[str], cls: type[msgspec.Struct]) -> JsonObject:
    if path:
        child = node.get(path[0])
        return {**node, path[0]: _fold_at(child, path[1:], cls)} if isinstance(child, dict) else node
    known = _wire_names(cls)
    extra = {k: v for k, v in node.items() if k not in known}
    nested = node.get("extras", {})
    if not extra or not isinstance(nested, dict):
        return node
    return {**{k: v for k, v in node.items() if k in known}, "extras": {**nested, **extra}}


@cache
def _wire_names(cls: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(cls.__struct_encode_fields__) | ({"event"} if issubclass(cls, EventBase) else set())


def _unfold(node: JsonObject) -> JsonObject:
    extras = node.pop("extras")
    return {**{k: v for k, v in extras.items() if k not in node}, **node}


def _whole(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """Return the value with whole floats as integers, which every number field accepts."""
    if isinstance(value, dict):
        return {k: _whole(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parse_bare_tokens(line: bytes) -> JsonObject:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SchemaError(f"Expected `object`, got `{type(document).__name__}`")
    named = _named(document)
    assert isinstance(named, dict)  # noqa: S101  # _named keeps the container's type
    return named


def _named(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """Return the value with non-finite floats replaced by their names."""
    if isinstance(value, dict):
        return {k: _named(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_named(v) for v in value]
    return real(value) if isinstance(value, float) and not math.isfinite(value) else value
