"""Read adapter configs, training arguments and hand-written documents into one configuration snapshot.

This file itself reads a project's own settings for gradience, from gradience.toml or [tool.gradience] in
pyproject.toml.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.errors import ConfigError
from gradience.io.reading import read_small
from gradience.schema import Severity

FailOn: TypeAlias = Literal[Severity, "never"]

_OWN: Final = "gradience.toml"
_PROJECT: Final = "pyproject.toml"
_MENTION: Final = re.compile(rb"^[^#\n]*gradience", re.MULTILINE)  # a pyproject.toml without this word is not parsed
_LARGEST: Final = 256 << 10  # bytes
_MOST_PARTS: Final = 16  # parts of a dotted key: tomllib's time and memory grow with the square of their number
_PART: Final = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY: Final = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{_MOST_PARTS}}}")


class Preferences(msgspec.Struct, kw_only=True, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """The settings that a project states once, in its settings file.

    Every command that judges reads `select`, `ignore` and `fail_on`. `gap_threshold` is read by monitor and diagnose,
    `serve` by check. A command-line option of the same name overrides the file.
    """

    select: list[str] = []
    ignore: list[str] = []
    fail_on: FailOn | None = None
    gap_threshold: Annotated[float, Meta(gt=0.0)] | None = None
    serve: list[str] = []


def find_preferences(start: Path) -> Path | None:
    """Return the settings file of the nearest folder from `start` upwards that has one, or None.

    A gradience.toml is preferred to the pyproject.toml beside it. A pyproject.toml without `[tool.gradience]` does not
    count.
    """
    for folder in (start, *start.parents):
        if (folder / _OWN).is_file():
            return folder / _OWN
        if _has_word(folder / _PROJECT) and "gradience" in _tools(_read_toml(folder / _PROJECT)):
            return folder / _PROJECT
    return None


def read_preferences(path: Path) -> Preferences:
    """Return the settings in a file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or holds an unknown key or an invalid value.
    """
    document: object = _read_toml(path)
    if path.name == _PROJECT and isinstance(document, dict):
        document = _tools(document).get("gradience", {})
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: $.tool.gradience: expected a table of settings", advice=_keys())
    names = {field.encode_name for field in msgspec.structs.fields(Preferences)}
    strange = sorted(key for key in document if key not in names)
    if strange:
        raise ConfigError(f"{path}: unknown setting {', '.join(map(ascii, strange))}", advice=_keys())
    try:
        return msgspec.convert(document, Preferences)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}", advice="correct the value, or leave the key out") from None


def _keys() -> str:
    return f"settings: {', '.join(field.encode_name for field in msgspec.structs.fields(Preferences))}"


def _has_word(path: Path) -> bool:
    try:
        return _MENTION.search(read_small(path, most=_LARGEST, what="settings")) is not None
    except OSError:
        return False


def _tools(document: dict[str, object]) -> dict[str, object]:
    tools = document.get("tool")
    return tools if isinstance(tools, dict) else {}


def _read_toml(path: Path) -> dict[str, object]:
    import tomllib  # imported only if there is a file

    try:
        text = read_small(path, most=_LARGEST, what="settings").decode()
        if _LONG_KEY.search(text):
            message = f"{path}: a key of more than {_MOST_PARTS} dotted parts, the limit for settings"
            raise ConfigError(message, advice="correct it, or leave it alone with --settings none")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", advice="check the path") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not TOML: {error}", advice="correct it, or leave it alone with --settings none"
        ) from None
