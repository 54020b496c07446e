"""The runs of a log, gathered in one pass: their series and latest values, the bad lines, and what was counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from gradience.schema.events import Event, RunStart, UnknownEvent
from gradience.schema.reports import BadLine
from gradience.telemetry.scan import MAX_ISSUES, BadLines, LogScan, RowBlock
from gradience.telemetry.series import RunSeries


@dataclass(slots=True)
class RunSummary:
    """The runs of one log, the bad lines among them, and what was counted."""

    path: Path
    kept: frozenset[str] = frozenset()  # names of the further values of training rows that are kept
    runs: dict[str, RunSeries] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    issues: list[BadLine] = field(default_factory=list)
    issues_total: int = 0
    lines: int = 0
    bare_tokens: int = 0

    @property
    def last(self) -> RunSeries | None:
        """The run that began last in the file, or None for a log without one event."""
        return next(reversed(self.runs.values()), None)

    def take(self, event: Event) -> None:
        """Add one event to its run; the run that begins is the last from then on."""
        self.counts[str(event.__struct_config__.tag)] += 1
        run = self.of(event.run_id)
        run.take(event)
        if isinstance(event, RunStart):
            self.runs[run.run_id] = self.runs.pop(run.run_id)

    def take_rows(self, block: RowBlock) -> None:
        """Add plain rows at once, or one by one where something about their order is to be counted."""
        if self.of(block.run_id).take_rows(block):
            self.counts["train_step"] += len(block.rows)
            return
        for event in block.events():
            self.take(event)

    def of(self, run_id: str) -> RunSeries:
        """Return the run of this id, a new one if it is the first of its events."""
        run = self.runs.get(run_id)
        if run is None:
            run = self.runs[run_id] = RunSeries(run_id, self.kept)
        return run


def summarize(path: Path, values: Collection[str] = ()) -> RunSummary:
    """Return what the log holds, reading it once.

    Kept are 32 bytes a training row, 16 more for each further value asked for, and evaluations and alerts whole: about
    0.8 KB each, for the detectors compare what they measured. A run evaluated every second of a day takes 70 MB.

    Args:
        path: the log.
        values: names of further values of training rows, such as `reward`, to keep as columns.

    Raises:
        RecorderError: the file cannot be read.
        SchemaError: the log is of another major version.
    """
    summary = RunSummary(path, frozenset(values))
    scan = LogScan(path, values=summary.kept)
    for found in scan:
        if isinstance(found, BadLines):
            summary.issues_total += 1
            if len(summary.issues) < MAX_ISSUES:
                summary.issues.append(found.faults[0])
        elif isinstance(found, UnknownEvent):
            summary.unknown[found.event] += 1
        elif isinstance(found, RowBlock):
            summary.take_rows(found)
        else:
            for event in found:
                summary.take(event)
    summary.lines = scan.lines
    summary.bare_tokens = scan.unnamed
    return summary
