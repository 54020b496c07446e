"""SIGTERM as an orderly end while a command writes: what it had begun is removed, as after Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["cleaning_up"]

_SIGNAL_CODES = 128  # a shell's exit code of a program that a signal ended is 128 + its number


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Turn SIGTERM into SystemExit inside the block, unless the process has a handler of its own for it."""
    in_charge = threading.current_thread() is threading.main_thread()
    if not in_charge or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(_SIGNAL_CODES + number)
