"""Read a log: iterate its events, summarise its runs, or validate it. No line is skipped silently.

Every line is an event or a bad line. `TelemetryReader` yields events in constant memory. A `RunSummary` keeps the
series and latest values of each run, the first bad lines, and counts of everything. Each takes one pass over the file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from gradience.errors import RecorderError, SchemaError, few
from gradience.schema import SCHEMA_ID
from gradience.schema.events import ConfigSnapshot, Eval, Event, RunStart, UnknownEvent
from gradience.schema.reports import (
    VALIDATE_LOGS_SCHEMA_ID,
    VALIDATE_SCHEMA_ID,
    BadLine,
    ValidateLogsReport,
    ValidateReport,
)
from gradience.telemetry.codec import PlainRow, Stretch, is_plain
from gradience.telemetry.lines import require_log
from gradience.telemetry.near import Census
from gradience.telemetry.scan import MAX_ISSUES, BadLines, LogScan
from gradience.telemetry.series import RunSeries

E_ = TypeVar("E_")

DEFAULT_MAX_ISSUES: Final = 100
_MOST_NAMES: Final = 1000  # unknown event names that get a count of their own


class TelemetryReader:
    """Reads a `run.jsonl`: iterate it for all events, in file order.

    After a pass `issues` holds the first bad lines, `issues_total` their number, and `notes` further remarks on the
    file.

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
        for item in scan:
            if isinstance(item, BadLines):
                yield item.faults[0]
            elif isinstance(item, UnknownEvent):
                yield item
            else:
                yield from item  # type: ignore[misc]  # not `plain`
        self.notes = version_notes(scan.version, scan.softened)
        if scan.unnamed:
            self.notes.append(unnamed_note(scan.unnamed))

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
        """Return the last run's newest evaluation of the split that no resume superseded, or None."""
        run = self.summarize().last
        return run.latest_eval(split) if run else None

    def summarize(self, values: Collection[str] = ()) -> RunSummary:
        """Return the runs' series and latest values in one pass, with the named further values of training rows."""
        return summarize(self.path, values)


def unnamed_note(lines: int) -> str:
    """Return a sentence about lines that hold NaN or Infinity as bare tokens.

    >>> unnamed_note(1)
    '1 line holds a bare NaN or Infinity, which is not JSON; read anyway'
    """
    subject = "1 line holds" if lines == 1 else f"{lines} lines hold"
    return f"{subject} a bare NaN or Infinity, which is not JSON; read anyway"


def version_notes(version: str, softened: Mapping[str, int]) -> list[str]:
    """Return sentences about what a later minor version added to a log.

    >>> version_notes("gradience.vnext.telemetry/v1", {"status 'preempted'": 1})
    ["status 'preempted' is not known to gradience.vnext.telemetry/v1: read as unknown"]
    """
    notes = []
    if version != SCHEMA_ID:
        notes.append(f"the log is {version}, this reader knows {SCHEMA_ID}: fields it does not know are kept unread")
    values = list(softened)
    if values:
        verb = "is" if len(values) == 1 else "are"
        notes.append(f"{few(values)} {verb} not known to {SCHEMA_ID}: read as unknown")
    return notes


@dataclass(slots=True)
class RunSummary:
    """The runs of one log, its first bad lines, and counts of its events and lines."""

    path: Path
    kept: frozenset[str] = frozenset()  # names of the further values of training rows that are kept
    runs: dict[str, RunSeries] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    issues: list[BadLine] = field(default_factory=list)
    issues_total: int = 0
    lines: int = 0
    bare_tokens: int = 0
    softened: Counter[str] = field(default_factory=Counter)  # values read as `unknown`, such as "status 'preempted'"
    version: str = SCHEMA_ID

    @property
    def last(self) -> RunSeries | None:
        """The run that started last in the file, or None for a log without events."""
        return next(reversed(self.runs.values()), None)

    def add(self, event: Event) -> None:
        """Add one event to its run. A `run_start` makes its run the last one."""
        self.counts[str(event.__struct_config__.tag)] += 1
        run = self.of(event.run_id)
        run.add(event)
        if isinstance(event, RunStart):
            self.runs[run.run_id] = self.runs.pop(run.run_id)

    def take_unknown(self, event: UnknownEvent) -> None:
        """Count an event of an unknown name, also among the lines of its run. Alone it makes no run."""
        _count(event.event, self.unknown)
        if event.run_id in self.runs:
            self.runs[event.run_id].take_unknown(event)

    def add_all(self, events: Stretch) -> None:
        """Add events in their order: plain rows at once, if their order allows it."""
        if is_plain(events) and self.of(events[0].run_id).take_rows(events):
            self.counts["train_step"] += len(events)
            return
        for event in events:
            self.add(event.event() if isinstance(event, PlainRow) else event)

    def of(self, run_id: str) -> RunSeries:
        """Return the run of this id, created if it is new."""
        run = self.runs.get(run_id)
        if run is None:
            run = self.runs[run_id] = RunSeries(run_id, self.kept)
        return run


def _count(name: str, names: Counter[str]) -> None:
    names[name if name in names or len(names) < _MOST_NAMES else "..."] += 1


def summarize(path: Path, values: Collection[str] = ()) -> RunSummary:
    """Return the summary of a log, reading it once.

    A training row takes 32 bytes, and 16 more for each further value. Evaluations and alerts are kept whole, at about
    0.8 KB each, because the detectors compare their measurements. A run evaluated every second of a day takes 70 MB.

    Args:
        path: the log.
        values: names of further values of training rows, such as `reward`, to keep as columns.

    Raises:
        RecorderError: the file cannot be read.
        SchemaError: the log is of another major version.
    """
    summary = RunSummary(path, frozenset(values))
    scan = LogScan(path, plain=True)
    for item in scan:
        if isinstance(item, BadLines):
            summary.issues_total += 1
            if len(summary.issues) < MAX_ISSUES:
                summary.issues.append(item.faults[0])
        elif isinstance(item, UnknownEvent):
            summary.take_unknown(item)
        else:
            summary.add_all(item)
    summary.lines = scan.lines
    summary.bare_tokens = scan.unnamed
    summary.softened, summary.version = scan.softened, scan.version
    return summary


def validate_log(path: str | os.PathLike[str], *, max_issues: int = DEFAULT_MAX_ISSUES) -> ValidateReport:
    """Return a report of every line of a log that does not follow the schema.

    Names that no reader knows are legal. The report warns of those that look like a known one, and of a log that holds
    nothing any reader uses. Bare NaN and Infinity tokens are read, but a log that
    holds one is not valid, because they are not JSON.

    Args:
        path: a run.jsonl.
        max_issues: how many faults the report lists; all are counted.

    Raises:
        RecorderError: the log is missing, empty, or not a file.
        SchemaError: the log is of another major version.
    """
    require_log(Path(path))
    census = Census()
    scan = LogScan(path, strict=True, seen=census.add)
    events: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    issues: list[BadLine] = []
    total = 0
    for item in scan:
        if isinstance(item, BadLines):
            total += len(item.faults)
            issues += item.faults[: max(max_issues - len(issues), 0)]
        elif isinstance(item, UnknownEvent):
            _count(item.event, unknown)
        else:
            events.update(str(event.__struct_config__.tag) for event in item)
    return ValidateReport(
        schema=VALIDATE_SCHEMA_ID,
        file=str(path),
        valid=total == 0 and scan.lines > 0,
        lines=scan.lines,
        events=dict(events),
        unknown_events=dict(unknown),
        issues=issues,
        issues_total=total,
        warnings=census.warnings() if scan.lines else [],
        notes=_notes(scan, unknown, sum(bad.torn for bad in issues)),
    )


def validate_logs(
    paths: Sequence[str | os.PathLike[str]], *, max_issues: int = DEFAULT_MAX_ISSUES
) -> ValidateLogsReport:
    """Return the reports of several logs. A log that cannot be read is not valid, and its `error` says why.

    Args:
        paths: logs, as for `validate_log`.
        max_issues: how many faults the report of each log lists.
    """
    logs = []
    for path in paths:
        try:
            logs.append(validate_log(path, max_issues=max_issues))
        except (RecorderError, SchemaError) as error:
            unread = str(error)
            logs.append(ValidateReport(schema=VALIDATE_SCHEMA_ID, file=str(path), valid=False, lines=0, error=unread))
    return ValidateLogsReport(schema=VALIDATE_LOGS_SCHEMA_ID, valid=all(log.valid for log in logs), logs=logs)


def _notes(scan: LogScan, unknown: Counter[str], torn: int) -> list[str]:
    notes = version_notes(scan.version, scan.softened)
    if not scan.lines:
        notes.append("the file holds no line that is not blank")
    if unknown:
        these = "1 event" if unknown.total() == 1 else f"{unknown.total()} events"
        notes.append(f"{these} of a name unknown to {SCHEMA_ID} here: legal, not checked further")
    if scan.unnamed:
        notes.append(unnamed_note(scan.unnamed))
    if torn:
        notes.append("a torn tail is what a killed process leaves: the events around it are whole")
    return notes
