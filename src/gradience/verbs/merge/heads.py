"""What adapters hold beside their updates: heads, biases and token rows, which have no sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Role
from gradience.errors import AdapterError
from gradience.io.safetensors import PlannedTensor, TensorSource, copied
from gradience.verbs.several import Side

_WHOLE: Final[frozenset[Role]] = frozenset({"full_module", "bias", "base_copy", "token_rows"})
_FIELDS: Final = ("modules_to_save", "bias", "trainable_token_indices")
_NONE: Final = {"bias": "none"}
_SHOWN: Final = 4


class Heads(NamedTuple):
    """Tensors to copy, the config's fields that speak of them, the names of those left out, and who was chosen."""

    carried: list[PlannedTensor]
    fields: dict[str, Any]
    dropped: list[str]
    chosen: str | None = None


def side_named(sides: Sequence[Side], name: str) -> Side:
    """Return the adapter that `name` means: its place (A, B, ... or 1, 2, ...), its name or its path.

    Raises:
        AdapterError: none is meant.
    """
    for place, side in enumerate(sides):
        if name in {side.name, str(side.path), str(place + 1), chr(ord("A") + place)}:
            return side
    known = ", ".join(f"{chr(ord('A') + place)} ({side.name})" for place, side in enumerate(sides))
    raise AdapterError(f"--heads-from {name!r} names none of the adapters", advice=f"give one of {known}")


def heads_of(sides: Sequence[Side], chosen: Side | None) -> Heads:
    """Return what is carried over: all of the chosen adapter's; else what those that hold it agree on.

    Raises:
        AdapterError: two adapters hold a tensor of one name that differs, and none was chosen.
    """
    if chosen is not None:
        names = _whole(chosen)
        left = sorted({name for side in sides if side is not chosen for name in _whole(side)} - set(names))
        source = _source(chosen)
        fields = {field: chosen.raw.get(field) or _NONE.get(field) for field in _FIELDS}
        return Heads([copied(source, name) for name in names], fields, left, chosen.name)
    held: dict[str, Side] = {}
    differing = []
    for side in sides:
        for name in _whole(side):
            first = held.setdefault(name, side)
            if first is not side and not _equal(_source(first), _source(side), name):
                differing.append(name)
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise AdapterError(
            f"the adapters hold different values of {', '.join(differing[:_SHOWN])}{more}: whole tensors (a head, a "
            "bias, token rows) have no sum",
            advice="take one adapter's with --heads-from A (or B, ...)",
        )
    return Heads([copied(_source(side), name) for name, side in held.items()], _agreed(sides), [])


def _whole(side: Side) -> list[str]:
    return [name for name, role in side.adapter.roles.items() if role in _WHOLE]


def _source(side: Side) -> TensorSource:
    if side.adapter.source is None:
        raise AdapterError(f"the tensors of {side.path} cannot be read again", advice="open it from its files")
    return side.adapter.source


def _equal(one: TensorSource, two: TensorSource, name: str) -> bool:
    first, second = one.tensors[name], two.tensors[name]
    return (first.dtype, first.shape) == (second.dtype, second.shape) and np.array_equal(one.raw(name), two.raw(name))


def _agreed(sides: Sequence[Side]) -> dict[str, Any]:
    """Return the fields that speak of whole tensors: the only value that is given, or for modules their union.

    Raises:
        AdapterError: two values are given.
    """
    fields: dict[str, Any] = {}
    for field in _FIELDS:
        given = [value for side in sides if (value := side.raw.get(field)) not in (None, [], _NONE.get(field))]
        if field == "modules_to_save" and given:
            fields[field] = sorted({name for value in given for name in value})
        elif any(value != given[0] for value in given):
            raise AdapterError(
                f"the adapters disagree on {field}: {given[0]!r} and another",
                advice="take one adapter's with --heads-from A (or B, ...)",
            )
        else:
            fields[field] = given[0] if given else _NONE.get(field)
    return fields
