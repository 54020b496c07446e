"""A bar of progress with the time left, drawn by rich on one line of stderr."""

from __future__ import annotations

import os
import shutil
import sys
import time
from threading import Lock
from typing import Final

from gradience.commands.output import tell
from gradience.schema.document import escape_controls

_EVERY: Final = 0.1  # seconds between two drawings
_PATIENCE: Final = 2.0  # seconds of work before the first: what ends sooner needs none
_LEAST: Final = 40  # columns, below which a line would break
_ERASE: Final = "\r\x1b[K"


class Bar:
    """Draws (done, total, name) of what takes over two seconds.

    No thread is started and no cursor hidden, so that nothing is left to restore.
    """

    def __init__(self, what: str) -> None:
        from rich.console import Console  # a pipe pays for none of it
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._start, self._last = time.monotonic(), 0.0
        stream = getattr(sys.stderr, "plain", sys.stderr)
        self._console = Console(
            file=stream, force_terminal=True, width=max(_LEAST, shutil.get_terminal_size().columns - 1)
        )
        texts = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[name]}", markup=False)
        counts = MofNCompleteColumn(), TimeRemainingColumn(compact=True)
        self._progress = Progress(
            texts[0], BarColumn(20), *counts, texts[1], console=self._console, get_time=time.monotonic
        )
        self._task = self._progress.add_task(what, total=None, name="")
        self._lock = Lock()

    def __call__(self, done: int, total: int, name: str) -> None:
        """Draw, at most ten times a second; erase the line when all is done. A total of 0 is one that is not known."""
        now = time.monotonic()
        with self._lock:
            if 0 < done < total and now - self._last < _EVERY:
                return
            is_drawn, self._last = self._last - self._start >= _PATIENCE, now
            if total and done >= total:
                self._progress.reset(self._task, total=None)
                if is_drawn:
                    tell("", begin=_ERASE, end="")
                return
            name = escape_controls(name)
            self._progress.update(self._task, completed=done, total=total or None, name=name)
            if now - self._start < _PATIENCE:
                return
            with self._console.capture() as drawn:
                self._console.print(self._progress.get_renderable(), no_wrap=True, overflow="ellipsis", end="")
            tell("", begin=_ERASE + drawn.get().partition("\n")[0], end="")


def on_terminal(what: str) -> Bar | None:
    """The bar of a job; None where stderr is no terminal that can draw one."""
    return Bar(what) if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else None
