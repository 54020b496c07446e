"""Where in a document: the `$.a[0].b` paths of msgspec's messages, followed."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

__all__ = ["Place", "find", "path_of"]

_AT: Final = re.compile(r" - at `(?P<path>[^`]+)`$")
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


class Place(NamedTuple):
    """A value's container and its key there; `every` if the path speaks of one of the value's own values."""

    container: Any
    key: str | int
    every: bool = False

    @property
    def value(self) -> Any:
        """The value at this place."""
        return self.container[self.key]


def path_of(message: str) -> str:
    """Return the path at the end of a msgspec message, `$` if it names none.

    >>> path_of("Expected `int`, got `str` - at `$.step`")
    '$.step'
    """
    at = _AT.search(message)
    return at["path"] if at else "$"


def find(document: dict[str, Any], path: str) -> Place | None:
    """Return the place a path names, or None where the document has no such container."""
    steps: list[str | int] = [int(i) if i else name for name, i in _STEP.findall(path)]
    if not steps:
        return None
    node: Any = document
    try:
        for step in steps[:-1]:
            node = node[step]
    except (KeyError, IndexError, TypeError):
        return None
    return Place(node, steps[-1], path.endswith("[...]"))
