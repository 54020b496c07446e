"""A mapping being read: typed values out by name, and what was left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from gradience.configs.values import MAX_TEXT, Malformed, plain, printable
from gradience.errors import ConfigError
from gradience.schema.scalars import Json
from gradience.schema.scalars import real as on_the_wire

__all__ = ["Fields"]

T = TypeVar("T")

_SECRET = re.compile(r"(?:.*_)?(?:token|api_?key|access_?key|secret(?:_key)?|password)", re.IGNORECASE)
_VOCABULARY = re.compile(  # tokens of a tokenizer, not of an account
    r"(?:.*_)?(?:eos|bos|pad|unk|sep|cls|mask|start|end|stop|image|audio|video|vision|think|special|boi|eoi)_token",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"<[A-Z0-9_]+>")  # what TrainingArguments.to_dict() writes, set or not


class Fields:
    """One level of a document. Nothing is read by ``getattr`` or by guess; secrets are never read."""

    def __init__(self, mapping: dict[str, Json], where: str, at: str = "$") -> None:
        self._mapping = mapping
        self._where = where
        self._at = at
        self._read: set[str] = set()

    def __contains__(self, name: object) -> bool:
        """Whether the document has the key."""
        return name in self._mapping

    @property
    def n_read(self) -> int:
        """How many keys were understood."""
        return len(self._read)

    def is_null(self, *keys: str) -> bool:
        """Whether one of the keys is there and none of them has a value."""
        present = [key for key in keys if key in self._mapping]
        return bool(present) and all(self._mapping[key] is None for key in present)

    def is_mapping(self, key: str) -> bool:
        """Whether the key holds a mapping: a section, where a plain value could have stood."""
        return isinstance(self._mapping.get(key), dict)

    def holds(self, key: str, inner: str) -> bool:
        """Whether the key holds a mapping with that key in it; neither counts as read."""
        value = self._mapping.get(key)
        return isinstance(value, dict) and inner in value

    def take(self, keys: Sequence[str], read: Callable[[Json], T]) -> T | None:
        """Return the value under whichever of the keys is set; ConfigError where two of them disagree."""
        found: dict[str, T] = {}
        for key in keys:
            if key not in self._mapping:
                continue
            self._read.add(key)
            if self._mapping[key] is not None:
                found[key] = self._value(key, read)
        values = list(found.values())
        if any(value != values[0] for value in values):
            message = f"{self._where}: {self._at}: {' and '.join(found)} say different things"
            raise ConfigError(message, advice="they are names of one setting: keep one")
        return values[0] if values else None

    def section(self, key: str) -> Fields | None:
        """Return the mapping under a key as fields of its own, or None where there is none."""
        value = self._mapping.get(key)
        if not isinstance(value, dict):
            return None
        self._read.add(key)
        return Fields(value, self._where, f"{self._at}.{printable(key)}")

    def contradiction(self, setting: str) -> ConfigError:
        """Return the error for a setting that another level of the document has with another value."""
        message = f"{self._where}: {self._at}: {setting} is given twice, with different values"
        return ConfigError(message, advice="a section and the top level speak of one setting: keep one")

    def left_over(self, known: Callable[[str], bool]) -> Iterator[str]:
        """Yield the keys that were neither read nor known, with their place; never a value."""
        for key in self._mapping:
            if key not in self._read and not known(key) and not _is_secret(key):
                yield f"{self._at}.{printable(key)[:MAX_TEXT]}".removeprefix("$.")

    def secrets(self) -> Iterator[str]:
        """Yield the keys that hold a credential. The values are not looked at any further."""
        for key, value in self._mapping.items():
            if _is_secret(key) and isinstance(value, str) and value and not _PLACEHOLDER.fullmatch(value):
                yield printable(key)[:MAX_TEXT]

    def masked(self) -> Iterator[str]:
        """Yield the keys whose credential, if any, was masked before it came here."""
        for key, value in self._mapping.items():
            if _is_secret(key) and isinstance(value, str) and _PLACEHOLDER.fullmatch(value):
                yield printable(key)[:MAX_TEXT]

    def scalars(self) -> dict[str, Json]:
        """Return the short plain values that are no credential: what may be kept of an `extras`."""
        kept = {key: value for key, value in self._mapping.items() if _is_short(value) and not _is_secret(key)}
        self._read |= set(kept)
        return {
            printable(key)[:MAX_TEXT]: on_the_wire(value) if isinstance(value, float) else value
            for key, value in kept.items()
        }

    def _value(self, key: str, read: Callable[[Json], T]) -> T:
        try:
            return read(self._mapping[key])
        except Malformed as error:
            got = plain(self._mapping[key])
            message = f"{self._where}: {self._at}.{key}: expected {error}, got {got}"
            raise ConfigError(message, advice="correct the value, or leave the key out") from None


def _is_secret(key: str) -> bool:
    return _SECRET.fullmatch(key) is not None and _VOCABULARY.fullmatch(key) is None


def _is_short(value: Json) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and value == printable(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, bool | float)
