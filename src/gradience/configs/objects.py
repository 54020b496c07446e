"""Configuration objects of other libraries (PEFT's LoraConfig, transformers' TrainingArguments) as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from os import PathLike
from typing import Any, Protocol, runtime_checkable

from gradience.errors import ConfigError
from gradience.io.decoding import MAX_DEPTH
from gradience.schema.scalars import Json


@runtime_checkable
class HasToDict(Protocol):
    """What PEFT's configs and transformers' TrainingArguments have in common."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        ...


def plain_mapping(config: HasToDict) -> dict[str, Json]:
    """Return the object's settings as JSON values: sets sorted, enums by value, anything else by its type's name.

    Raises:
        ConfigError: `to_dict` returns something other than a mapping.
    """
    found = config.to_dict()
    if not isinstance(found, Mapping):
        raise ConfigError(f"{type(config).__name__}.to_dict() must return a mapping", advice="give a LoraConfig")
    return {str(key): _plain(value, MAX_DEPTH) for key, value in found.items()}


def _plain(value: object, depth: int) -> Json:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > 0 and isinstance(value, Mapping):
        return {str(key): _plain(item, depth - 1) for key, item in value.items()}
    if depth > 0 and isinstance(value, list | tuple | set | frozenset):
        items = [_plain(item, depth - 1) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    return str(value) if isinstance(value, PathLike) else type(value).__name__
