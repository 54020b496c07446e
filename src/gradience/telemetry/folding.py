"""Keys a Struct does not know: beside the known ones on the wire, in `extras` in Python."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, TypeAlias

import msgspec

from gradience.errors import SchemaError
from gradience.schema.config import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.events import EVENT_TYPES, EvalMetrics, RecommendationItem

__all__ = ["JsonObject", "fold", "unfold"]

JsonObject: TypeAlias = dict[str, Any]

_LISTED: Final = "[]"

# Levels below the event itself: where their unknown keys are.
_FLAT: Final[dict[str, tuple[tuple[str, ...], type[msgspec.Struct]]]] = {
    "eval": (("metrics",), EvalMetrics),
    "recommendation": (("recommendations", _LISTED), RecommendationItem),
}
# A config's levels nest `extras` on the wire, too; whatever stands beside it joins it.
_NESTED: Final[tuple[tuple[tuple[str, ...], type[msgspec.Struct]], ...]] = (
    (("config",), ConfigSnapshot),
    (("config", "optimizer"), OptimizerSnapshot),
    (("config", "lora"), LoraSnapshot),
    (("config", "training"), TrainingSnapshot),
)


def fold(document: JsonObject, name: str) -> JsonObject:
    """Return the document of a known event with unknown keys moved into `extras`, at every level."""
    document = _flat_in(document, EVENT_TYPES[name])
    if name in _FLAT:
        path, cls = _FLAT[name]
        document = _at(document, path, cls, nested=False)
    if name == "run_start":
        for path, cls in _NESTED:
            document = _at(document, path, cls, nested=True)
    return document


def unfold(document: JsonObject, name: str) -> JsonObject:
    """Return the document of a known event with `extras` beside the known keys.

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
    """Return the keys a Struct knows on the wire, its `extras` not among them."""
    names = set(cls.__struct_encode_fields__) - {"extras"}
    return frozenset(names | {"event"} if cls.__struct_config__.tag else names)
