"""What recipes of other trainers have in common: a section under another name, and words for one thing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gradience.configs.fields import Fields
from gradience.configs.settings import Draft, Level, Setting
from gradience.configs.values import Malformed, flag, names
from gradience.schema.scalars import Json

__all__ = ["comma_names", "left_over", "maybe", "read_all", "split_names"]


def read_all(draft: Draft, fields: Fields, table: Iterable[tuple[Level, tuple[Setting, ...]]]) -> None:
    """Read several levels by the native names of their settings."""
    for level, settings in table:
        draft.read(level, settings, fields, loose=False)


def maybe(value: Json) -> bool | None:
    """Return a yes or no, or None for a word such as `auto` that leaves it to the machine."""
    try:
        return flag(value)
    except Malformed:
        if isinstance(value, str):
            return None
        raise


def split_names(value: str) -> list[str]:
    """Return the names in a text with commas."""
    return [name.strip() for name in value.split(",") if name.strip()]


def comma_names(value: Json) -> list[str]:
    """Return names from a list, or from one text with commas between."""
    found = names(value)
    return found if isinstance(found, list) else split_names(found)


def left_over(levels: Iterable[Fields], known: frozenset[str]) -> Iterator[str]:
    """Yield the keys of these levels that nobody read or knows."""
    for fields in levels:
        yield from fields.left_over(known.__contains__)
