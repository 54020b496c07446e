"""Progress of long work, on stderr, for people only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

__all__ = ["on_terminal"]

_EVERY: Final = 0.1  # seconds between two drawings
_WIDTH: Final = 79


def on_terminal(what: str) -> Callable[[int, int, str], None] | None:
    """Return a function that draws (done, total, name) on one line of stderr; None where nobody watches."""
    if not sys.stderr.isatty():
        return None
    start = last = time.monotonic()

    def draw(done: int, total: int, name: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and done > 0 and now - last < _EVERY:
            return
        last = now
        left = f", {(now - start) * (total - done) / done:.0f} s left" if done else ""
        line = f"{what}: {done}/{total}{left}  {name}" if total else f"{what}: {name}"
        sys.stderr.write("\r" + (line[:_WIDTH].ljust(_WIDTH) if done < total or not total else " " * _WIDTH + "\r"))
        sys.stderr.flush()

    return draw
