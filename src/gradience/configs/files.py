"""One file to one mapping of plain values: bounded, strict, and never a surprise.

A configuration file comes from anywhere. What is refused here, in one line with its cure: folders, pipes,
large files, binary files, deep nesting, duplicate keys, and anything whose top level is not a mapping.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from gradience.configs.values import Malformed, plain
from gradience.errors import ConfigError
from gradience.io.decoding import MAX_DEPTH, check_depth
from gradience.io.reading import open_regular
from gradience.schema.scalars import Json

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
        message = f"{path}: {error}"
        raise ConfigError(message, advice="give a JSON or YAML mapping of settings") from error
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
        message = f"larger than {MAX_YAML_BYTES // 1024} KiB, the limit for YAML"
        raise Malformed(message)
    from gradience.configs.yaml import parse_yaml  # noqa: PLC0415  # 15 ms that a JSON config need not pay

    return parse_yaml(text)


def _parse_json(text: str) -> Json:
    check_depth(text)
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise Malformed(message) from None
    except ValueError as error:  # a number of more digits than Python converts
        if isinstance(error, Malformed):
            raise
        message = "not usable: a whole number with thousands of digits"
        raise Malformed(message) from None
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    mapping = dict(pairs)
    if len(mapping) == len(pairs):
        return mapping
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            message = f"the key {key!r} appears twice in one object"
            raise Malformed(message)
        seen.add(key)
    return mapping


def _read_text(path: Path, most: int) -> str:
    data = _read_bytes(path, most)
    if b"\0" in data:
        message = f"{path}: a binary file (or UTF-16), not JSON or YAML"
        raise ConfigError(message, advice="give the configuration as UTF-8 text")
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 text (byte {error.start})"
        raise ConfigError(message, advice="give the configuration as UTF-8 JSON or YAML") from None
    if not text:
        message = f"{path}: the file is empty"
        raise ConfigError(message, advice="give a JSON or YAML mapping of settings")
    if text.startswith(_LFS):
        message = f"{path}: a git-lfs pointer, not the file itself"
        raise ConfigError(message, advice="fetch it with `git lfs pull`")
    return text


def _read_bytes(path: Path, most: int) -> bytes:
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises on a name that is too long
        message = f"{path}: a folder, where a file was expected"
        raise ConfigError(message, advice="name a file, or use --peft-dir and --training-dir for folders")
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"{path}: {reason}"
        raise ConfigError(message, advice="check the path") from None
    if len(data) > most:
        message = f"{path}: larger than {most // 1024**2} MiB: not a configuration"
        raise ConfigError(message, advice="give the adapter_config.json or training_args.json itself")
    return data
