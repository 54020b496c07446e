"""Everything that is wrong with one line, for `gradience validate`: each fault with its path, and what was expected.

msgspec names the first fault of a document only. So that the next one shows, the document is mended fault by fault with
stand-in values, which nobody sees.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, get_args

import msgspec

from gradience.errors import SchemaError
from gradience.schema.scalars import SCHEMA_ID, Severity, Status, TaskProfile, real
from gradience.telemetry.codec import JsonObject, convert, find, path_of

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
