"""The command ``gradience monitor``.

With ``--follow`` it shows a run while it is written: as a frame on a terminal, as lines, or not at all.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.types import PositiveFloat

from gradience.blocks import clean
from gradience.commands import options as opt
from gradience.commands.output import DONE, FOUND, draws_blocks, emit, print_text, safe_lines, tell
from gradience.errors import RecorderError
from gradience.folder.runs import RunList, log_place, read_run, run_list
from gradience.io.reading import open_regular
from gradience.reading import Reading
from gradience.reading.follow import LiveRun, Tail
from gradience.reading.logs import is_log
from gradience.rules import excluded_rules
from gradience.rules.judged import ALL
from gradience.schema.document import SEVERITIES
from gradience.schema.events import Event, TrainStep, UnknownEvent
from gradience.verbs.monitor.run import monitored
from gradience.verbs.monitor.view import chart_lines, event_line, frame_lines, monitor_text, progress_line

_EVERY: Final = 1.0  # seconds between two reads of the file
_LOOK: Final = 4096  # bytes of a log's beginning that show its format


def monitor(
    *logs: Path,
    gap_threshold: PositiveFloat | None = None,
    run: str | None = None,
    follow: Annotated[bool, Parameter(alias="-f", negative=())] = False,
    options: opt.Options = opt.DEFAULT_OPTIONS,
    verbose: opt.Details = False,
) -> int:
    """Summarise a run from its telemetry, or from what another program left of it; of several, the table of 'runs'.

    Parameters
    ----------
    logs:
        The run.jsonl, the folder of a run, or anything that gradience import reads. Of several, or of a folder of
        runs, the table that 'gradience runs' prints.
    gap_threshold:
        Held-out over train perplexity from which the gap is a finding. Default: 1.5.
    run:
        Show the run of this id, where a log holds several; else the last is shown.
    follow:
        Watch a log while it is written, until its run ends; then print the report. Ctrl-C stops watching.
    """
    resolved = options.resolved()
    if not logs:
        raise RecorderError("monitor needs a log, none given", advice="give a run.jsonl or the folder of a run")
    several, gap = len(logs) > 1, resolved.gap(gap_threshold)
    if run is not None and several:
        raise RecorderError("--run shows one run of one log", advice="leave --run away, or the other logs")
    if follow:
        if several:
            raise RecorderError("--follow watches one log", advice="give one run.jsonl")
        return _follow(logs[0], run, gap, resolved, verbose=verbose)
    if several:
        return _table(logs, gap, resolved)
    if run is not None or not os.path.isdir(logs[0]):  # noqa: PTH112  # Path.is_dir raises where a name is too long
        return _one(read_run(logs[0], run), gap, resolved, verbose=verbose, chosen=run is not None)
    listed = run_list(logs[0])
    if len(listed.places) > 1:
        return _table([listed], gap, resolved)
    return _one(listed.read(listed.places[0]), gap, resolved, verbose=verbose)


def _one(reading: Reading, gap: float, resolved: opt.ResolvedOptions, *, verbose: bool, chosen: bool = False) -> int:
    report = monitored(reading, gap_threshold=gap, left_out=excluded_rules(ALL, **resolved.rules))
    before = ""
    if reading.other_runs and not chosen and resolved.format == "text":
        from gradience.verbs.runs.command import table_before  # most logs hold one run

        this = RunList([reading.path], readings={reading.path: reading})
        before = table_before(this, gap_threshold=gap, **resolved.rules)
    return resolved.show(
        report,
        lambda it: before + monitor_text(it, verbose=verbose) + _chart(reading, it.account.split),
        report.findings,
        groups=("log", "joins"),
        locations=lambda: [log_place(report.file)] * len(report.findings),
        not_run=report.not_run,
    )


def _chart(reading: Reading, split: str | None) -> str:
    """Return the run's losses as a small chart where stdout is a terminal, below an empty line; else nothing."""
    if not _on_screen() or os.environ.get("TERM") == "dumb":
        return ""
    columns, rows = shutil.get_terminal_size()
    size = {"width": min(columns - 1, 100), "height": max(3, min(8, rows - 10))}
    return "\n".join(["", "", *chart_lines(reading.run, split, dots=draws_blocks(), **size)])


def _table(logs: Sequence[Path | RunList], gap: float, resolved: opt.ResolvedOptions) -> int:
    if resolved.format != "text":
        form = "--json" if resolved.format == "json" else f"--format {resolved.format}"
        raise RecorderError(
            f"{form} is for one run", advice="see 'gradience runs --json', or call it once for each log"
        )
    from msgspec.structs import asdict

    from gradience.verbs.runs.command import table_of  # the same
    from gradience.verbs.runs.rows import read_rows  # the same

    rows = read_rows(*logs, gap_threshold=gap, **resolved.rules)
    print_text(table_of([asdict(row) for row in rows]))
    grave = () if resolved.fail_on is None else SEVERITIES[SEVERITIES.index(resolved.fail_on) :]
    return FOUND if any(row.verdict in grave for row in rows) else DONE


def _follow(log: Path, run: str | None, gap: float, resolved: opt.ResolvedOptions, *, verbose: bool) -> int:
    log = log_to_follow(log)
    if follow_log(log, quiet=resolved.format != "text"):
        return _one(read_run(log, run), gap, resolved, verbose=verbose, chosen=True)
    return DONE


def log_to_follow(path: Path) -> Path:
    """Return the log of a path, which need not exist yet: for a folder, its run.jsonl.

    Raises:
        RecorderError: the file is not a log of ours.
    """
    log = path / "run.jsonl" if path.is_dir() or not path.suffix else path
    try:
        with open_regular(log) as file:
            # Before its first line is whole, nothing tells whose log it will be.
            begun = b"\n" in file.read(_LOOK)
    except OSError:
        return log
    if begun and not is_log(log):
        raise RecorderError(
            f"{log} is not a run.jsonl: only that is followed", advice="leave --follow out, and it is read in memory"
        )
    return log


def follow_log(log: Path, *, quiet: bool = False, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Watch a log until its run ends, and return True; return False if Ctrl-C came first.

    Args:
        log: the run.jsonl; it may not exist yet.
        quiet: print nothing, except on stderr that there is no log yet.
        sleep: a function that waits for some seconds between two reads.

    Raises:
        SchemaError: the log is of another major version.
    """
    screen = _Screen() if quiet else _Terminal() if _on_screen() else _LineScreen()
    try:
        with Tail(log) as tail:
            _watch(tail, screen, sleep)
    except KeyboardInterrupt:
        screen.close()
        tell("gradience: stopped watching; the run itself goes on")
        return False
    screen.close()
    return True


def _on_screen() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _watch(tail: Tail, screen: _Screen, sleep: Callable[[float], None]) -> None:
    watch, restarts = LiveRun(), 0
    while True:
        new = False
        for line in tail.poll():
            # The file was written anew, and what was shown is of a run that it no longer holds.
            if tail.restarts != restarts:
                watch, restarts = LiveRun(), tail.restarts
            event = watch.add(line)
            new = True
            if event is not None and not isinstance(event, TrainStep):
                screen.event(event)
        if new:
            screen.show(watch)
        elif not tail.found:
            screen.wait(tail.path)
        if watch.run.end is not None:
            return
        sleep(_EVERY)


class _Screen:
    """A place where a run is shown. This one reports only, on stderr, that it waits for the log.

    It serves a caller that wants nothing but the report.
    """

    def __init__(self) -> None:
        self._waiting = False

    def wait(self, path: Path) -> None:
        """Report, once, that the log does not exist yet."""
        if not self._waiting:
            self._waiting = True
            tell(f"gradience: waiting for {path}")

    def event(self, event: Event | UnknownEvent) -> None:
        """Do nothing."""

    def show(self, live: LiveRun) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _LineScreen(_Screen):
    """A screen of plain lines, for a file or a pipe; a row is printed once, whatever else is logged at its step."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: tuple[object, ...] = ()

    def wait(self, path: Path) -> None:
        """Report, once, that the log does not exist yet."""
        if not self._waiting:
            self._waiting = True
            _write([f"waiting for {clean(str(path))}"])

    def event(self, event: Event | UnknownEvent) -> None:
        """Print a line for an event that deserves one."""
        line = event_line(event)
        if line is not None:
            _write([line])

    def show(self, live: LiveRun) -> None:
        """Print the run's progress as a line, if a row or a fault came."""
        row = (live.run.last_step, live.loss, live.reward, live.not_finite, live.bad_lines)
        if row != self._shown:
            _write([progress_line(live)])
        self._shown = row


class _Terminal(_Screen):
    """A screen of one frame, redrawn in place."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = 0

    def wait(self, path: Path) -> None:
        """Report, once, that the log does not exist yet."""
        if not self._drawn:
            self._draw([f"waiting for {clean(str(path))}"])

    def show(self, live: LiveRun) -> None:
        """Draw the frame again."""
        columns, rows = shutil.get_terminal_size()
        dots = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
        height = max(3, min(12, rows - 10))
        # A full last column starts a new line on some terminals, and the frame would be one line longer than was
        # counted.
        self._draw(frame_lines(live, width=min(columns - 1, 100), height=height, dots=dots))

    def _draw(self, lines: list[str]) -> None:
        # Back to the frame's first line, and clear all below: the new frame may have fewer lines.
        _write(lines, back=f"\x1b[{self._drawn}F\x1b[J" if self._drawn else "")
        self._drawn = len(lines)


def _write(lines: Sequence[str], *, back: str = "") -> None:
    emit(back + safe_lines(lines))
