"""The reader: every line an event or a bad line, nothing skipped silently, constant memory."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gradience.schema.config import ConfigSnapshot
from gradience.schema.events import Eval, Event, RunStart, UnknownEvent
from gradience.schema.reports import BadLine
from gradience.telemetry.scan import MAX_ISSUES, BadLines, LogScan, RowBlock, require_log

if TYPE_CHECKING:
    from gradience.telemetry.summary import RunSummary


E_ = TypeVar("E_")


class TelemetryReader:
    """Reads a `run.jsonl`: iterate it for all events, in file order.

    After a pass `issues` holds the first bad lines, `issues_total` their number, and `notes` what else is
    worth knowing about the file.

    Raises:
        RecorderError: the file is missing, empty, or not a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.issues: list[BadLine] = []
        self.issues_total = 0
        self.notes: list[str] = []
        require_log(self.path)

    def __iter__(self) -> Iterator[Event | UnknownEvent]:
        """Yield every event with its extras; bad lines go to `issues`, and reading goes on.

        Raises:
            RecorderError: the file cannot be read.
            SchemaError: the log is of another major version.
        """
        self.issues, self.issues_total, self.notes = [], 0, []
        for item in self.read():
            if not isinstance(item, BadLine):
                yield item
                continue
            self.issues_total += 1
            if len(self.issues) < MAX_ISSUES:
                self.issues.append(item)

    def read(self) -> Iterator[Event | UnknownEvent | BadLine]:
        """Yield every line, as an event or as a bad line."""
        scan = LogScan(self.path)
        for found in scan:
            if isinstance(found, BadLines):
                yield found.faults[0]
            elif isinstance(found, UnknownEvent):
                yield found
            else:
                yield from found.events() if isinstance(found, RowBlock) else found
        if scan.unnamed:
            self.notes = [unnamed_note(scan.unnamed)]

    def of(self, kind: type[E_]) -> Iterator[E_]:
        """Yield the events of one type."""
        return (event for event in self if isinstance(event, kind))

    def latest_config(self) -> ConfigSnapshot | None:
        """Return the config of the newest run_start, or None."""
        config = None
        for start in self.of(RunStart):
            config = start.config
        return config

    def latest_eval(self, split: str) -> Eval | None:
        """Return the newest evaluation of the split in the last run that no resume superseded, or None."""
        run = self.summarize().last
        return run.latest_eval(split) if run else None

    def summarize(self, values: Collection[str] = ()) -> RunSummary:
        """Return the runs' series and latest values, from one pass; of training rows also the further values named."""
        from gradience.telemetry.summary import summarize  # noqa: PLC0415  # summary scans on its own

        return summarize(self.path, values)


def unnamed_note(lines: int) -> str:
    """Return the one sentence about lines that hold NaN or Infinity as bare tokens.

    >>> unnamed_note(1)
    '1 line holds a bare NaN or Infinity, which is not JSON; read anyway'
    """
    subject = "1 line holds" if lines == 1 else f"{lines} lines hold"
    return f"{subject} a bare NaN or Infinity, which is not JSON; read anyway"
