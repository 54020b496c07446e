"""Errors a caller can act on: each says what is wrong and carries one line of advice; and how messages name many."""

from __future__ import annotations

from collections.abc import Sequence


class GradienceError(Exception):
    """Base of every error raised on purpose; ``advice`` is one line saying what to do, or empty."""

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class SchemaError(GradienceError):
    """A document does not follow its schema."""


class AdapterError(GradienceError):
    """An adapter folder or weights file cannot be read."""


class RecorderError(GradienceError):
    """A telemetry log cannot be written or read."""


class ConfigError(GradienceError):
    """A configuration file cannot be read or understood."""


class OutputError(GradienceError):
    """A file or folder cannot be written, or something of its name exists already."""


def few(items: Sequence[object], shown: int = 3, between: str = ", ") -> str:
    """The first of many items, for a message, and how many more there are.

    >>> few(["q", "k", "v", "o"]), few(["q", "k"])
    ('q, k, v and 1 more', 'q, k')
    """
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return between.join(map(str, items[:shown])) + more
