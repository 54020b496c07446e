"""``gradience monitor --follow``: a run shown while it is written, on a terminal, as lines, or not at all."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from gradience.cli.output import emit
from gradience.errors import RecorderError
from gradience.render.monitor import Glance, event_line, frame_lines, progress_line
from gradience.render.text import clean
from gradience.schema.config import ConfigSnapshot
from gradience.schema.events import Event, TrainStep, UnknownEvent
from gradience.telemetry.secrets import hide_secrets
from gradience.verbs.monitor.source import is_log
from gradience.verbs.monitor.watch import Tail, Watch

_EVERY: Final = 1.0  # seconds between two looks at the file
_LOOK: Final = 4096  # bytes in which the first line of a log shows what it is


def log_to_follow(path: Path) -> Path:
    """Return the log that a path stands for, whether it exists yet or not: a folder's is its run.jsonl.

    Raises:
        RecorderError: there is a file, and it is no log of ours.
    """
    log = path / "run.jsonl" if path.is_dir() or not path.suffix else path
    try:
        with log.open("rb") as file:
            begun = b"\n" in file.read(_LOOK)
    except OSError:
        return log
    if begun and not is_log(log):
        raise RecorderError(f"{log} is no run.jsonl: only that is followed", advice="leave --follow away to import it")
    return log


def follow_log(log: Path, *, quiet: bool = False, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Watch a log until its run ends, and return whether it did; False if Ctrl-C came first.

    Args:
        log: the run.jsonl; it may not exist yet.
        quiet: print nothing, but on stderr that there is no log yet.
        sleep: waits between two looks, in seconds.

    Raises:
        SchemaError: the log is of another major version.
    """
    screen = _Nothing() if quiet else _Terminal() if _on_screen() else _Lines()
    try:
        with Tail(log) as tail:
            _watch(tail, screen, sleep)
    except KeyboardInterrupt:
        screen.close()
        sys.stderr.write("gradience: stopped watching; the run itself goes on\n")
        return False
    screen.close()
    return True


def _on_screen() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


class _Screen(Protocol):
    """Where a run is shown."""

    def wait(self, path: Path) -> None: ...

    def event(self, event: Event | UnknownEvent) -> None: ...

    def show(self, glance: Glance) -> None: ...

    def close(self) -> None: ...


def _watch(tail: Tail, screen: _Screen, sleep: Callable[[float], None]) -> None:
    watch, restarts = Watch(), 0
    while True:
        new = False
        for line in tail.poll():
            if tail.restarts != restarts:
                watch, restarts = Watch(), tail.restarts
            event = watch.take(line)
            new = True
            if event is not None and not isinstance(event, TrainStep):
                screen.event(event)
        if new:
            screen.show(_glance(watch))
        elif not tail.found:
            screen.wait(tail.path)
        if watch.run.end is not None:
            return
        sleep(_EVERY)


def _glance(watch: Watch) -> Glance:
    run, rewards = watch.run, watch.rewards
    config = run.config or ConfigSnapshot()
    return Glance(
        model=config.model_name,
        step=run.last_step,
        max_steps=config.training.max_steps,
        loss=run.losses[-1] if run.losses else None,
        rate=watch.rate,
        points=watch.points,
        evals=watch.evals,
        reward=run.columns["reward"].values[-1] if rewards else None,
        rewards=rewards,
        alerts=run.alerts,
        not_finite=watch.not_finite,
        bad_lines=watch.bad_lines,
    )


class _Nothing:
    """Shows nothing but that it waits, on stderr: for a caller that wants the report at the end alone."""

    def __init__(self) -> None:
        self._waiting = False

    def wait(self, path: Path) -> None:
        """Say once that there is no log yet."""
        if not self._waiting:
            self._waiting = True
            sys.stderr.write(f"gradience: waiting for {clean(str(path))}\n")

    def event(self, event: Event | UnknownEvent) -> None:
        """Do nothing."""

    def show(self, glance: Glance) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Lines(_Nothing):
    """Plain lines, for a file or a pipe."""

    def wait(self, path: Path) -> None:
        """Say once that there is no log yet."""
        if not self._waiting:
            self._waiting = True
            _write([f"waiting for {clean(str(path))}"])

    def event(self, event: Event | UnknownEvent) -> None:
        """Print a line for an event that deserves one."""
        line = event_line(event)
        if line is not None:
            _write([line])

    def show(self, glance: Glance) -> None:
        """Print where the run is."""
        _write([progress_line(glance)])


class _Terminal(_Nothing):
    """One frame, redrawn in place."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = 0

    def wait(self, path: Path) -> None:
        """Say once that there is no log yet."""
        if not self._drawn:
            self._draw([f"waiting for {clean(str(path))}"])

    def show(self, glance: Glance) -> None:
        """Draw the run anew."""
        columns, rows = shutil.get_terminal_size()
        dots = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
        height = max(3, min(12, rows - 10))
        self._draw(frame_lines(glance, width=min(columns - 1, 100), height=height, dots=dots))

    def _draw(self, lines: list[str]) -> None:
        _write(lines, back=f"\x1b[{self._drawn}F\x1b[J" if self._drawn else "")
        self._drawn = len(lines)


def _write(lines: Sequence[str], *, back: str = "") -> None:
    emit(back + "".join(f"{hide_secrets(line)}\n" for line in lines))
