"""Secrets in values, events and whole reports: what names mark in mappings, lists, pairs and lists of arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from gradience.telemetry.secrets import HIDDEN, MAX_NAME, hide_secrets, holds_secret, is_mixed, kind_of

_NAME_KEYS: Final = ("name", "key", "option", "variable", "field")
_VALUE_KEYS: Final = frozenset({
    "value", "val", "default", "values",
})  # fmt: skip


def hide_in(value: Any, key: str = "") -> Any:  # noqa: PLR0911  # one for each type
    """Return a report, or a value of JSON, with the secrets in its texts hidden: a copy where there is one.

    Below a secret name every text is hidden, in lists and mappings, too; so is what follows `--token` in a list of
    arguments, and the value beside `{"name": "API_KEY"}`. Keys are texts as well.
    """
    if isinstance(value, str):
        return HIDDEN if holds_secret(key, value) else hide_secrets(value, key)
    if isinstance(value, msgspec.Struct):
        return _hide_in_fields(value, value.__struct_fields__, key, msgspec.structs.replace)
    if dataclasses.is_dataclass(value):
        return _hide_in_fields(value, [field.name for field in dataclasses.fields(value)], key, dataclasses.replace)
    if isinstance(value, dict):
        found = {
            _key_of(k): hide_in(v, below(key, name))
            for (k, v), name in zip(value.items(), names_in(value), strict=True)
        }
        return value if _same(found, value) else found
    if isinstance(value, (list, tuple)):
        named = zip(value, names_beside(value, key), strict=True)
        items = [item if type(item) in _NUMBERS else hide_in(item, name) for item, name in named]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return items if isinstance(value, list) else getattr(value, "_make", tuple)(items)
    return value


_NUMBERS: Final = frozenset({int, float, bool})


def _hide_in_fields(value: Any, names: Iterable[str], key: str, replace: Callable[..., Any]) -> Any:
    changed = {}
    held = {name: getattr(value, name) for name in names}
    for (name, old), judged in zip(held.items(), names_in(held), strict=True):
        if old is not None and type(old) not in _NUMBERS and (new := hide_in(old, below(key, judged))) is not old:
            changed[name] = new
    return replace(value, **changed) if changed else value


def _key_of(key: Any) -> Any:
    return hide_secrets(key) if isinstance(key, str) else key


def _same(new: dict[Any, Any], old: dict[Any, Any]) -> bool:
    if len(new) != len(old):
        return False
    return all(k is j and v is w for (k, v), (j, w) in zip(new.items(), old.items(), strict=True))


def below(key: str, name: Any) -> str:
    """Return the name under which a value in a mapping of that key is judged: a secret's stays one all the way down.

    >>> below("hub_token", "value"), below("wandb", "key"), below("config", "lr")
    ('hub_token', 'wandb.key', 'lr')
    """
    if not isinstance(name, str):
        return key
    if key and kind_of(key[-MAX_NAME:]) in {"secret", "token"} and not kind_of(name[-MAX_NAME:]):
        return key
    return f"{key}.{name}" if "wandb" in key[:MAX_NAME].lower() else name


def names_in(mapping: dict[Any, Any]) -> list[Any]:
    """Return the names under which a mapping's values are judged: its keys; n for v in `{"name": n, "value": v}`."""
    label = next(
        (mapping[k] for k in _NAME_KEYS if isinstance(mapping.get(k), str) and kind_of(mapping[k][-MAX_NAME:])), ""
    )
    if not label:
        return list(mapping)
    return [label if k in _VALUE_KEYS else k for k in mapping]


def names_beside(items: list[Any] | tuple[Any, ...], key: str) -> list[str]:
    """Return the names under which a list's items are judged: the list's own, or the option that stands before one."""
    names = [key] * len(items)
    for place, item in enumerate(items[:-1], 1):
        if isinstance(item, str) and item[:1] == "-" and kind_of(item[-MAX_NAME:]) and "=" not in item:
            names[place] = item.lstrip("-")
    if len(items) == 2 and isinstance(items[0], str) and len(items[0]) <= MAX_NAME:  # one of a list of pairs
        kind = kind_of(items[0])
        if kind == "secret" or (kind == "token" and isinstance(items[1], str) and is_mixed(items[1])):
            names[1] = items[0]
    return names
