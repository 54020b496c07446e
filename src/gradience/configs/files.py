"""A configuration to one mapping of plain values: a file's, or a live object's of PEFT or transformers.

A configuration file comes from anywhere. What is refused here, in one line with its cure: folders, pipes,
large files, binary files, deep nesting, duplicate keys, and anything whose top level is not a mapping.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gradience.configs.values import Malformed, plain
from gradience.errors import ConfigError
from gradience.io.reading import MAX_DEPTH, check_depth, open_regular
from gradience.schema import Json

MAX_JSON_BYTES = 5 * 1024 * 1024  # the largest config seen in the wild is under 50 kB
MAX_YAML_BYTES = 256 * 1024  # PyYAML reads about 100 kB/s: keeps the worst case within seconds

_LFS = "version https://git-lfs"


def read_mapping(path: Path, *, most: int = MAX_JSON_BYTES) -> dict[str, Json]:
    """Return the mapping that a JSON, YAML or JSON-lines (first line) file of at most so many bytes holds.

    Raises:
        ConfigError: it holds none.
    """
    text = _read_text(path, most)
    try:
        value = _parse(text, path.suffix.lower())
    except Malformed as error:
        raise ConfigError(f"{path}: {error}", advice="give a JSON or YAML mapping of settings") from error
    except RecursionError:
        message = f"{path}: nested more than {MAX_DEPTH} levels deep, the limit"
        raise ConfigError(message, advice="a training configuration is nearly flat") from None
    if not isinstance(value, dict):
        message = f"{path}: $: expected a mapping of settings, got {plain(value)}"
        raise ConfigError(message, advice="the top level must be `key: value` pairs")
    return value


def _parse(text: str, suffix: str) -> Json:
    if suffix == ".jsonl":
        text = text.partition("\n")[0]
    if suffix in {".json", ".jsonl"} or (suffix not in {".yaml", ".yml"} and text.startswith("{")):
        return _parse_json(text)
    if len(text) > MAX_YAML_BYTES:
        raise Malformed(f"larger than {MAX_YAML_BYTES // 1024} KiB, the limit for YAML")
    from gradience.configs.yaml import parse_yaml  # noqa: PLC0415  # 15 ms that a JSON config need not pay

    return parse_yaml(text)


def _parse_json(text: str) -> Json:
    check_depth(text)
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise Malformed(f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except ValueError as error:  # a number of more digits than Python converts
        if isinstance(error, Malformed):
            raise
        raise Malformed("not usable: a whole number with thousands of digits") from None
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    mapping = dict(pairs)
    if len(mapping) == len(pairs):
        return mapping
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise Malformed(f"the key {key!r} appears twice in one object")
        seen.add(key)
    return mapping


def _read_text(path: Path, most: int) -> str:
    data = read_bytes(path, most)
    if b"\0" in data:
        message = f"{path}: a binary file (or UTF-16), not JSON or YAML"
        raise ConfigError(message, advice="give the configuration as UTF-8 text")
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 text (byte {error.start})"
        raise ConfigError(message, advice="give the configuration as UTF-8 JSON or YAML") from None
    if not text:
        raise ConfigError(f"{path}: the file is empty", advice="give a JSON or YAML mapping of settings")
    if text.startswith(_LFS):
        raise ConfigError(f"{path}: a git-lfs pointer, not the file itself", advice="fetch it with `git lfs pull`")
    return text


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a regular file, at most so many; ConfigError if it is not one, or is larger."""
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises on a name that is too long
        message = f"{path}: a folder, where a file was expected"
        raise ConfigError(message, advice="name a file, or use --peft-dir and --training-dir for folders")
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: {reason}", advice="check the path") from None
    if len(data) > most:
        message = f"{path}: larger than {most // 1024**2} MiB: not a configuration"
        raise ConfigError(message, advice="give the adapter_config.json or training_args.json itself")
    return data


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
