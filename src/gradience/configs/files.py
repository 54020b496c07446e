"""Turn a configuration file, or a live object of PEFT or transformers, into one mapping of plain values.

A configuration file is untrusted input. Folders, pipes, large files, binary files, deep nesting, duplicate keys, and
anything whose top level is not a mapping are refused with a one-line message and advice.

PyYAML composes a YAML document to nodes, and this module converts them. Aliases count as often as they are written out,
so a "billion laughs" file stops at 50 000 values. Unknown tags are refused. Only the YAML 1.1 scalars that JSON has are
converted. Errors name the line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gradience.configs.values import MAX_DIGITS, Malformed, plain
from gradience.errors import ConfigError
from gradience.io.reading import MAX_DEPTH, check_depth, open_regular
from gradience.schema import Json

if TYPE_CHECKING:
    from yaml import SafeLoader


MAX_JSON_BYTES = 5 * 1024 * 1024  # the largest config seen in the wild is under 50 kB
MAX_YAML_BYTES = 256 * 1024  # PyYAML reads about 100 kB/s: keeps the worst case within seconds

_LFS = "version https://git-lfs"

MAX_VALUES = 50_000  # values after aliases are written out, which bounds a "billion laughs" file

_PREFIX = "tag:yaml.org,2002:"
_AS_TEXT = {"str", "timestamp", "value"}
_CONTAINERS = {"map", "seq"}
_CONVERTED = {"int", "float", "bool", "null"}


def read_mapping(path: Path, *, most: int = MAX_JSON_BYTES) -> dict[str, Json]:
    """Return the mapping in a JSON or YAML file, or in the first line of a JSON-lines file, of at most `most` bytes.

    Raises:
        ConfigError: the file cannot be read, is larger, or holds no mapping.
    """
    return mapping_in(path, read_bytes(path, most))


def mapping_in(path: Path, data: bytes) -> dict[str, Json]:
    """The mapping in the bytes of a file, as `read_mapping` returns it.

    Raises:
        ConfigError: they hold none.
    """
    text = _decoded(path, data)
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
    keys: set[str] = set()
    for key, _ in pairs:
        if key in keys:
            raise Malformed(f"the key {key!r} appears twice in one object")
        keys.add(key)
    return mapping


def _decoded(path: Path, data: bytes) -> str:
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
    """The bytes of a regular file; ConfigError if the path is not a regular file, or the file exceeds `most` bytes."""
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises on a name that is too long
        message = f"{path}: a folder, where a file was expected"
        raise ConfigError(message, advice="name a file, or use --adapter and --training-dir for folders")
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
    """The method that PEFT's configs and transformers' TrainingArguments have in common."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        ...


def plain_mapping(config: HasToDict | Mapping[str, Any]) -> dict[str, Json]:
    """Return the settings of an object or a mapping as JSON values.

    Sets become sorted lists, enums their values, paths text, and any other object the name of its type.

    Raises:
        ConfigError: `to_dict` returns something other than a mapping.
    """
    fields = config if isinstance(config, Mapping) else config.to_dict()
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{type(config).__name__}.to_dict() must return a mapping", advice="give a LoraConfig")
    return {str(key): _plain(value, MAX_DEPTH) for key, value in fields.items()}


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


def parse_yaml(text: str) -> Json:
    """Return the plain value of one YAML document; raise Malformed, with the line, if the text is not one."""
    from yaml import SafeLoader  # 15 ms that a JSON config need not pay
    from yaml.error import MarkedYAMLError, YAMLError  # the same

    check_depth(text)
    try:
        loader = SafeLoader(text)
        node = loader.get_single_node()
    except MarkedYAMLError as error:  # its full text is not used, because it quotes the file and any secrets in it
        place = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise Malformed(f"not YAML: {error.problem}{place}") from None
    except YAMLError:
        raise Malformed("not YAML: it holds characters that YAML does not allow") from None
    return None if node is None else _YamlValues(loader).value(node, 0)


class _YamlValues:
    """Converts PyYAML's nodes, by their `id`, to plain values. Each value counts as often as it is written out."""

    def __init__(self, loader: SafeLoader) -> None:
        self._loader = loader
        self._left = MAX_VALUES

    def value(self, node: Any, depth: int) -> Json:
        self._left -= 1
        if self._left < 0:
            raise Malformed(f"more than {MAX_VALUES} values once its aliases are written out")
        if depth > MAX_DEPTH:
            raise RecursionError
        if node.id != "scalar" and node.tag.removeprefix(_PREFIX) not in _CONTAINERS:
            raise Malformed(_at(node, f"the tag {node.tag!r} is not plain data"))
        if node.id == "mapping":
            return self._mapping(node, depth)
        if node.id == "sequence":
            return [self.value(item, depth + 1) for item in node.value]
        return self._scalar(node)

    def _mapping(self, node: Any, depth: int) -> dict[str, Json]:
        own: dict[str, Json] = {}
        merged: dict[str, Json] = {}
        for key, item in node.value:
            if key.id != "scalar":
                raise Malformed(_at(key, "a key that is not text"))
            if key.tag == f"{_PREFIX}merge":
                merged |= self._merged(item, depth)
                continue
            if key.value in own:
                raise Malformed(_at(key, f"the key {key.value!r} appears twice in one mapping"))
            own[key.value] = self.value(item, depth + 1)
        # A mapping's own keys win over merged ones, wherever `<<` stands.
        return {**merged, **own}

    def _merged(self, node: Any, depth: int) -> dict[str, Json]:
        sources = node.value if node.id == "sequence" else [node]
        merged: dict[str, Json] = {}
        # By YAML's merge key the earlier of several mappings wins.
        for source in reversed(sources):
            value = self.value(source, depth + 1)
            if not isinstance(value, dict):
                raise Malformed(_at(node, "`<<` wants a mapping"))
            merged |= value
        return merged

    def _scalar(self, node: Any) -> Json:
        kind = node.tag.removeprefix(_PREFIX)
        if kind in _AS_TEXT:
            return node.value
        if kind not in _CONVERTED:
            raise Malformed(_at(node, f"the tag {node.tag!r} is not plain data"))
        if len(node.value) > MAX_DIGITS and kind in {"int", "float"}:
            raise Malformed(_at(node, f"a number of {len(node.value)} digits, over the limit of {MAX_DIGITS}"))
        try:
            return self._loader.construct_object(node)
        except (ValueError, OverflowError, KeyError):
            return node.value  # for example `!!int x`: the setting's reader will report the kind that it expects


def _at(node: Any, text: str) -> str:
    return f"{text} (line {node.start_mark.line + 1})"
