"""A run while it is being written: what of it a person looks at, in constant memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import msgspec

from gradience.errors import SchemaError
from gradience.schema.config import ConfigSnapshot
from gradience.schema.events import Alert, Eval, Event, RunEnd, RunStart, TrainStep, UnknownEvent
from gradience.schema.scalars import as_float
from gradience.telemetry.codec import MAX_LINE_BYTES, convert, decode_known, parse
from gradience.telemetry.values import number_of

_CHUNK: Final = 1 << 20
_HEAD: Final = 256  # bytes that tell a file from one written over it


class Tail:
    """Whole lines as they come; a line without its newline yet is held back.

    The file may not exist yet, may be cut and written anew, or replaced by another: then `restarts` counts up,
    and what follows comes from the new file's beginning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restarts = 0
        self._file: BinaryIO | None = None
        self._head = b""
        self._held = b""
        self._overlong = False  # inside a line longer than one may be: no event, skipped to its end

    def __enter__(self) -> Self:
        """Return the tail itself."""
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
        """Yield the lines that were finished since the last call, without their newlines."""
        if self._file is None and not self._open():
            return
        if self._was_written_over():
            self._start_over()
        yield from self._drain()
        if self._was_replaced():
            self.close()
            if self._open():
                self._forget()
                yield from self._drain()

    def close(self) -> None:
        """Close the file; the next poll opens what is there then."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError:
            return False
        return True

    def _was_written_over(self) -> bool:
        """Whether the open file is shorter than what was read of it, or begins otherwise."""
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
        self._head = head[:place]
        return False

    def _was_replaced(self) -> bool:
        """Whether the path now names another file; one that is gone may come back."""
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
            yield from (line for line in lines if line.strip())
            if len(self._held) > MAX_LINE_BYTES:
                self._held, self._overlong = b"", True


_REWARD: Final = "reward"  # the one further value that is watched: under RL the loss says little
_REWARD_KEY: Final = b'"reward":'

_MOST: Final = 512  # points of a curve
_EVALS: Final = 1000


class Points:
    """A curve of at most 512 points: as it grows each comes to stand for twice as many rows, by their mean."""

    def __init__(self) -> None:
        self.rows = 0  # rows per point
        self._steps: list[int] = []
        self._sums: list[float] = []
        self._counts: list[int] = []
        self.clear()

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self._steps)

    def clear(self) -> None:
        """Forget all points."""
        self.rows, self._steps, self._sums, self._counts = 1, [], [], []

    def add(self, step: int, value: float) -> None:
        """Add one row; not finite is left out."""
        if not math.isfinite(value):
            return
        if self._counts and self._counts[-1] < self.rows:
            self._steps[-1], self._sums[-1], self._counts[-1] = step, self._sums[-1] + value, self._counts[-1] + 1
            return
        if len(self._steps) == _MOST:
            self._halve()
        self._steps.append(step)
        self._sums.append(value)
        self._counts.append(1)

    def cut(self, step: int) -> None:
        """Forget what lies beyond a step."""
        keep = sum(s <= step for s in self._steps)
        del self._steps[keep:], self._sums[keep:], self._counts[keep:]

    def _halve(self) -> None:
        self.rows *= 2
        self._steps = self._steps[1::2]
        self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
        self._counts = [a + b for a, b in zip(self._counts[::2], self._counts[1::2], strict=True)]

    def pairs(self) -> Sequence[tuple[int, float]]:
        """Return (step, mean) of every point, by rising step."""
        means = (total / count for total, count in zip(self._sums, self._counts, strict=True))
        return sorted(zip(self._steps, means, strict=True))


class Watch:
    """The run that began last, from its lines one by one."""

    def __init__(self) -> None:
        self.bad_lines = 0
        self.begin(None)

    def begin(self, run_id: str | None) -> None:
        """Forget the run before, for another one."""
        self.run_id = run_id
        self.config = ConfigSnapshot()
        self.step: int | None = None
        self.loss: float | None = None
        self.rate: float | None = None
        self.not_finite = 0
        self.reward: float | None = None
        self.points = Points()
        self.rewards = Points()
        self.evals: list[tuple[str, int, float]] = []
        self.alerts: list[Alert] = []
        self.end: RunEnd | None = None

    def take(self, line: bytes) -> Event | UnknownEvent | None:
        """Add one line and return its event; None for a line that is none.

        Raises:
            SchemaError: the line is of another major version: so is the whole log.
        """
        event: Event | UnknownEvent | None
        try:
            event = decode_known(line)
        except (msgspec.MsgspecError, RecursionError):
            event = self._look_closely(line)
        if isinstance(event, TrainStep) and _REWARD_KEY in line:
            event = self._look_closely(line)  # with its further values
        if event is None:
            self.bad_lines += 1
        elif not isinstance(event, UnknownEvent):
            self._take_event(event)
        return event

    def _look_closely(self, line: bytes) -> Event | UnknownEvent | None:
        try:
            document, _ = parse(line)
        except SchemaError:
            return None
        try:
            return convert(document)
        except msgspec.ValidationError:
            return None

    def _take_event(self, event: Event) -> None:
        if event.run_id != self.run_id and (isinstance(event, RunStart) or self.run_id is None):
            self.begin(event.run_id)
        if event.run_id != self.run_id:
            return
        if event.step is not None:
            self.step = event.step
        match event:
            case RunStart():
                self._start(event)
            case TrainStep():
                self._row(event)
            case Eval() if event.step is not None and event.metrics.loss is not None:
                self.evals = [*self.evals, (event.split, event.step, as_float(event.metrics.loss))][-_EVALS:]
            case Alert():
                self.alerts.append(event)
            case RunEnd():
                self.end = event

    def _start(self, start: RunStart) -> None:
        self.config, self.end = start.config, None
        if (back := start.resumed_from_step) is not None:
            self.step = back
            self.points.cut(back)
            self.rewards.cut(back)
            self.evals = [point for point in self.evals if point[1] <= back]

    def _row(self, row: TrainStep) -> None:
        if isinstance(row.lr, list):
            self.rate = as_float(row.lr[0]) if row.lr else None
        elif row.lr is not None:
            self.rate = as_float(row.lr)
        if row.step is None:
            return
        reward = number_of(row.extras.get(_REWARD))
        if reward is not None and math.isfinite(as_float(reward)):
            self.reward = as_float(reward)
            self.rewards.add(row.step, self.reward)
        if row.loss is None:
            return
        self.loss = as_float(row.loss)
        self.not_finite += not math.isfinite(self.loss)
        self.points.add(row.step, self.loss)
