"""Follow a log that is being written.

`Tail` yields the whole lines of a file that grows, is cut, is replaced or does not exist yet. `LiveRun` turns them into
the series that a reading of the finished log has.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from gradience.errors import SchemaError
from gradience.io.reading import open_raw
from gradience.schema import as_float
from gradience.schema.events import Event, TrainStep, UnknownEvent
from gradience.telemetry.codec import MAX_LINE_BYTES, convert, decode_known, parse
from gradience.telemetry.reader import RunSummary
from gradience.telemetry.series import Column, RunSeries

_CHUNK: Final = 1 << 20
_HEAD: Final = 256  # first bytes by which a rewritten file is noticed
_REWARD: Final = "reward"  # the only further value watched: under RL the loss shows little
_REWARD_KEY: Final = b'"reward":'
_MOST_POINTS: Final = 512  # most points of a curve
_MOST_EVALS: Final = 1000


class Tail:
    """Yields whole lines of a file as they come; a line without its newline is held back.

    The file may not exist yet. If it is cut, rewritten or replaced, `restarts` counts up and reading starts again at
    the beginning of the new file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restarts = 0
        self._file: FileIO | None = None
        self._head = b""
        self._held = b""
        self._overlong = False  # inside a line that is too long for an event and skipped to its end

    def __enter__(self) -> Self:
        """The tail itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    @property
    def found(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    def poll(self) -> Iterator[bytes]:
        """Yield the lines finished since the last call, without their newlines."""
        if self._file is None and not self._open():
            return
        if self._was_written_over():
            self._start_over()
        # The rest of the old file comes first: it may have been replaced since the last poll.
        yield from self._drain()
        if self._was_replaced():
            self.close()
            if self._open():
                self._forget()
                yield from self._drain()

    def close(self) -> None:
        """Close the file; the next poll opens the path again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        try:
            self._file = open_raw(self.path)
        except OSError:
            return False
        return True

    def _was_written_over(self) -> bool:
        """Whether the open file is now shorter than what was read of it, or begins differently."""
        file = self._file
        if file is None:
            return False
        place = file.tell()
        if os.fstat(file.fileno()).st_size < place:
            return True
        file.seek(0)
        head = file.read(_HEAD)
        file.seek(place)
        if not head.startswith(self._head):
            return True
        # No more than was read: a log that is shorter than its head still grows.
        self._head = head[:place]
        return False

    def _was_replaced(self) -> bool:
        """Whether the path now names another file; False if it names none, for the file may come back."""
        if self._file is None:
            return False
        try:
            now, mine = self.path.stat(), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev)

    def _start_over(self) -> None:
        if self._file is not None:
            self._file.seek(0)
        self._forget()

    def _forget(self) -> None:
        self.restarts += 1
        self._head, self._held, self._overlong = b"", b"", False

    def _drain(self) -> Iterator[bytes]:
        while self._file is not None and (chunk := self._file.read(_CHUNK)):
            *lines, self._held = (self._held + chunk).split(b"\n")
            if self._overlong and lines:
                del lines[0]
                self._overlong = False
            yield from (line for line in lines if len(line) <= MAX_LINE_BYTES and line.strip())
            if len(self._held) > MAX_LINE_BYTES:
                self._held, self._overlong = b"", True


class LiveRun:
    """Collects the lines of a log that is being written, and shows the run that started last."""

    def __init__(self) -> None:
        self.bad_lines = 0
        self._log = RunSummary(Path(), frozenset({_REWARD}))
        self._none = RunSeries("")  # an empty run, shown until one begins

    @property
    def run(self) -> RunSeries:
        """The last run, as logged so far."""
        return self._log.last or self._none

    @property
    def loss(self) -> float | None:
        """The last logged loss, or None."""
        return self.run.losses[-1] if self.run.losses else None

    @property
    def reward(self) -> float | None:
        """The last logged reward, or None."""
        column = self.run.columns.get(_REWARD)
        return column.values[-1] if column is not None and column.values else None

    @property
    def rate(self) -> float | None:
        """The last logged learning rate, or None."""
        return next((rate for rate in reversed(self.run.rates) if not math.isnan(rate)), None)

    @property
    def not_finite(self) -> int:
        """Number of rows whose loss is not finite."""
        losses = self.run.losses
        # One sum answers for nearly every log. If it overflows, the rows are counted one by one.
        return 0 if math.isfinite(sum(losses)) else len(losses) - sum(map(math.isfinite, losses))

    @property
    def points(self) -> list[tuple[int, float]]:
        """Steps and losses of the loss curve."""
        return thinned(self.run.steps, self.run.losses)

    @property
    def rewards(self) -> list[tuple[int, float]]:
        """Steps and rewards of the reward curve, which under RL is drawn instead of the loss."""
        column = self.run.columns.get(_REWARD, Column())
        return thinned(column.steps, column.values)

    @property
    def evals(self) -> list[tuple[str, int, float]]:
        """Split, step and loss of the latest evaluations."""
        return [
            (event.split, event.step, as_float(event.metrics.loss))
            for event in self.run.evals[-_MOST_EVALS:]
            if event.step is not None and event.metrics.loss is not None
        ]

    def add(self, line: bytes) -> Event | UnknownEvent | None:
        """Add one line and return its event; None for a bad line.

        Raises:
            SchemaError: the line, and so the whole log, is of another major version.
        """
        event: Event | UnknownEvent | None
        try:
            event = decode_known(line)
        except (msgspec.MsgspecError, RecursionError):
            event = _decode_whole(line)
        if isinstance(event, TrainStep) and _REWARD_KEY in line:
            event = _decode_whole(line)  # keeps the row's further values
        if event is None:
            self.bad_lines += 1
        elif not isinstance(event, UnknownEvent):
            self._log.add(event)
        return event


def thinned(steps: Sequence[int], values: Sequence[float]) -> list[tuple[int, float]]:
    """A curve of at most 512 points by rising step. Each point is the mean of equally many rows, at their last step.

    The number of rows per point is a power of two, so a growing curve keeps its points until their number is halved.
    Values that are not finite are left out.
    """
    if not math.isfinite(sum(values)):
        rows = [row for row in zip(steps, values, strict=True) if math.isfinite(row[1])]
        steps, values = [step for step, _ in rows], [value for _, value in rows]
    width = 1
    while math.ceil(len(values) / width) > _MOST_POINTS:
        width *= 2
    parts = ((steps[i : i + width], values[i : i + width]) for i in range(0, len(values), width))
    return sorted((part[-1], sum(numbers) / len(numbers)) for part, numbers in parts)


def _decode_whole(line: bytes) -> Event | UnknownEvent | None:
    try:
        document, _ = parse(line)
    except SchemaError:
        return None
    try:
        return convert(document)
    except msgspec.ValidationError:
        return None
