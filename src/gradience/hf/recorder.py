"""One run's log in the hands of a callback: opened, continued or closed as training begins, resumes and ends.

Nothing that fails here reaches the training: `with recorder:` takes note of a failure and swallows it, the run goes on,
and its last line counts the events that were lost. A training that is left without its end (an exception, Ctrl-C, an
exit) is closed by `close_interrupted`, with the exception that was its reason as far as one can be seen.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self
from weakref import WeakValueDictionary

from gradience.errors import RecorderError, SchemaError
from gradience.io.reading import open_regular
from gradience.schema.config import ConfigSnapshot
from gradience.schema.scalars import Status
from gradience.telemetry import TelemetryWriter, decode

_TAIL_BYTES: Final = 1 << 18  # four lines of the greatest length
_logger = logging.getLogger("gradience")
_open: WeakValueDictionary[Path, RunRecorder] = WeakValueDictionary()


class RunRecorder:
    """One log, written for one callback.

    Args:
        allow_text: write long strings and exceptions' texts in clear.
    """

    def __init__(self, *, allow_text: bool = False) -> None:
        self.run_id: str | None = None
        self.in_run = False
        self.dropped = 0
        self._allow_text = allow_text
        self._path: Path | None = None
        self._writer: TelemetryWriter | None = None
        self._enabled = True
        self._pid = os.getpid()
        self._earlier = 0

    def __enter__(self) -> Self:
        """Begin something whose failure must not reach the training."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Take note of a failure and swallow it; Ctrl-C and exits pass."""
        if not isinstance(error, Exception):
            return False
        self.fail(error)
        return True

    @property
    def began(self) -> bool:
        """Whether a run was ever begun here, ended or not."""
        return self._path is not None

    def start(self, path: Path, config: ConfigSnapshot, meta: Mapping[str, Any], *, step: int, restart: bool) -> None:
        """Begin a run at step 0, go on with the log's last run at a later step, or begin the open run again."""
        if restart and self._writer is not None:
            self._writer.run_start(config, meta=meta, resumed_from_step=step)
            return
        self.close_interrupted()
        path = path.absolute()
        if (other := _open.get(path)) is not None:
            other.close_interrupted()  # a loop in this process that was left, and whose Trainer still lives
        self.run_id = (last_run_id(path) or self.run_id) if step else None
        self.dropped, self.in_run, self._enabled, self._path = 0, True, True, path
        self._pid, self._earlier = os.getpid(), id(_uncaught())
        self._writer = TelemetryWriter(path, self.run_id, allow_text=self._allow_text)
        self.run_id = self._writer.run_id
        _open[path] = self
        self._writer.run_start(config, meta=meta, resumed_from_step=step or None)

    def record(self, write: Callable[[TelemetryWriter], None]) -> None:
        """Have one event written; after the run's end the log is opened for it and closed again."""
        if os.getpid() != self._pid:
            return  # a forked worker: the log is its parent's
        if not self._enabled or self._path is None:
            self.dropped += 1
        elif self._writer is not None:
            write(self._writer)
        else:
            writer = TelemetryWriter(self._path, self.run_id, allow_text=self._allow_text)
            try:
                write(writer)
            finally:
                writer.close()

    def fail(self, error: Exception) -> None:
        """Take note of an event that could not be written; give up if the log is at fault."""
        self.dropped += 1
        if self.dropped == 1:
            self.warn(f"an event of this run could not be recorded, training goes on: {_shown(error)}")
        if _is_the_log(error):
            self._enabled = False

    def end(self, status: Status, reason: str | None = None) -> None:
        """Close the run. Its last line, and a warning, count the events that were lost."""
        if not self.in_run or os.getpid() != self._pid:
            return
        self.in_run = False
        lost = f"{self.dropped} events could not be recorded" if self.dropped else None
        try:
            self._last_line(status, "; ".join(part for part in (reason, lost) if part) or None)
        except (RecorderError, OSError) as error:
            lost = f"{self.dropped + 1} events could not be recorded, the last one too: {_shown(error)}"
        finally:
            self._close()
            self._enabled = True  # for late evaluations
        if lost:
            self.warn(lost)

    def close_interrupted(self) -> None:
        """Close a run whose training was left without its end: by an exception, Ctrl-C or an exit."""
        if self.in_run:
            self.end(*self._how_it_was_left())

    def _last_line(self, status: Status, reason: str | None) -> None:
        if self._path is not None and (not self._enabled or self._writer is None):
            self._close()  # a new descriptor: the disk may have room again, and a torn line gets its newline
            self._writer = TelemetryWriter(self._path, self.run_id, allow_text=self._allow_text)
        if self._writer is not None:
            self._writer.run_end(status=status, reason=reason)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if self._path is not None and _open.get(self._path) is self:
            del _open[self._path]
        if writer is not None:
            try:
                writer.close()
            except (RecorderError, OSError) as error:
                self.warn(f"the log could not be closed: {_shown(error)}")

    def _how_it_was_left(self) -> tuple[Status, str]:
        """Return the status by the exception in flight, or by the one that ended the program."""
        error = sys.exception() or _uncaught()
        if error is None or id(error) == self._earlier:
            return "aborted", "training was left before its end"
        reason = f"{type(error).__name__}: {error}" if self._allow_text else type(error).__name__
        return ("interrupted" if isinstance(error, KeyboardInterrupt) else "error"), reason

    def warn(self, message: str) -> None:
        """Say what went wrong; training goes on, also where warnings are errors."""
        try:
            warnings.warn(f"gradience: {message}", RuntimeWarning, stacklevel=3)
        except RuntimeWarning:
            _logger.warning("gradience: %s", message)


def last_run_id(path: Path) -> str | None:
    """Return the run_id of the last event in the log, or None; reads the tail only."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return decode(line).run_id
        except SchemaError:
            continue  # a torn line, or the end of one
    return None


def _uncaught() -> BaseException | None:
    """Return the last uncaught exception that the interpreter, or the notebook, reported."""
    return getattr(sys, "last_value", None)


def _is_the_log(error: Exception) -> bool:
    """Whether the log was at fault (disk, permission, descriptor) and not the event: the next may not pass."""
    return isinstance(error, OSError) or isinstance(error.__cause__, OSError)


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, (RecorderError, OSError)) else type(error).__name__
