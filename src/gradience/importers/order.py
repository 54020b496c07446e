"""The rows of one log in order: copies dropped; resumes, restarts and two writers distinguished and noted.

A log without sessions leaves only its steps to go by: a step that was logged before means a resume, or, at the first
step, a new run; many jumps with few rows between them mean several writers. What is decided so is a guess, and the
notes call it one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import sub
from typing import Final, NamedTuple

import msgspec

from gradience.importers.files import LoggedRow, SourceRun, listed

_FEW: Final = 3  # rows between two jumps back: fewer, often, is two writers in one log
_LOST: Final = 3  # strides that a writer may skip, its rows between being lost
_MOST: Final = 8  # writers distinguished
_SHOWN: Final = 5  # places named in a note


class Segment(NamedTuple):
    """Rows between two starts of the training program."""

    rows: list[LoggedRow]
    resumed_from: int | None = None


@dataclass(slots=True)
class _Walk:
    """One pass over the rows, looking for steps that were already passed."""

    runs: list[list[Segment]] = field(default_factory=lambda: [[Segment([])]])
    seen: set[int] = field(default_factory=set)
    last: int = -1
    first: int = -1
    resumes: list[tuple[int, int, int]] = field(default_factory=list)  # place, from step, to step
    restarts: list[int] = field(default_factory=list)
    swapped: list[int] = field(default_factory=list)

    def take(self, row: LoggedRow) -> None:
        """Add a row, behind a new start if its step was logged before."""
        step = row.step
        if step is not None and _is_train(row):
            if step <= self.last and step in self.seen:
                self._begin(row.place, step)
            elif step < self.last:
                self.swapped.append(row.place)
            self.first = step if self.first < 0 else min(self.first, step)
            self.last = max(step, self.last)
            self.seen.add(step)
        self.runs[-1][-1].rows.append(row)

    def _begin(self, place: int, step: int) -> None:
        if step <= self.first:
            self.restarts.append(place)
            self.runs.append([Segment([])])
            self.seen, self.first = set(), -1
        else:
            kept = {s for s in self.seen if s < step}
            self.resumes.append((place, self.last, max(kept)))
            self.runs[-1].append(Segment([], max(kept)))
            self.seen = kept
        self.last = step

    @property
    def jumps(self) -> int:
        return len(self.resumes) + len(self.restarts) + len(self.swapped)


def arrange(raw: SourceRun) -> list[list[Segment]]:
    """Return the runs of a log, each as the segments between its starts; the one to show is last.

    What was found and decided is added to the source's notes.
    """
    rows = list(_without_copies(raw))
    walk = _Walk()
    for row in rows:
        walk.take(row)
    trained = sum(map(_is_train, rows))
    if walk.jumps >= _FEW and trained < _FEW * (walk.jumps + 1):
        return _disentangle(raw, rows)
    _note_jumps(raw, walk)
    return [[_sorted(s) for s in run] for run in walk.runs]


def _is_train(row: LoggedRow) -> bool:
    return "loss" in row.values


def _without_copies(raw: SourceRun) -> Iterator[LoggedRow]:
    seen: set[int] = set()
    copies: list[int] = []
    for row in raw.rows:
        mark = hash((row.step, msgspec.json.encode(row.values, order="sorted")))
        if mark in seen:
            copies.append(row.place)
        else:
            seen.add(mark)
            yield row
    if copies:
        n = f"{len(copies)} rows are copies" if len(copies) > 1 else "1 row is a copy"
        raw.notes.append(f"{n} of an earlier one, written once ({_places(raw.unit, copies)})")


def _note_jumps(raw: SourceRun, walk: _Walk) -> None:
    if walk.swapped:
        n = f"{len(walk.swapped)} rows are" if len(walk.swapped) > 1 else "1 row is"
        raw.notes.append(f"{n} out of order, put in the order of steps ({_places(raw.unit, walk.swapped)})")
    for place, last, kept in walk.resumes[:_SHOWN]:
        raw.notes.append(
            f"steps go back from {last} to {kept} at {raw.unit} {place}: taken for a resume; replayed rows superseded"
        )
    if len(walk.resumes) > _SHOWN:
        raw.notes.append(f"... and {len(walk.resumes) - _SHOWN} more such resumes")
    if walk.restarts:
        raw.notes.append(
            f"steps start over ({_places(raw.unit, walk.restarts)}): {len(walk.runs)} runs in one log, the last shown"
        )


def _places(unit: str, places: list[int]) -> str:
    return f"{unit}{'s' if len(places) > 1 else ''} {listed(places, _SHOWN)}"


def _sorted(segment: Segment) -> Segment:
    """Return the segment by steps; a row without one stays behind the row it followed."""
    keyed: list[tuple[int, LoggedRow]] = []
    last = -1
    for row in segment.rows:
        last = last if row.step is None else row.step
        keyed.append((last, row))
    keyed.sort(key=lambda pair: pair[0])
    return segment._replace(rows=[row for _, row in keyed])


@dataclass(slots=True)
class _Stream:
    """The rows of one of several writers."""

    rows: list[LoggedRow] = field(default_factory=list)
    last: int = -1
    turn: int = 0

    def take(self, row: LoggedRow, turn: int) -> None:
        if row.step is not None and _is_train(row):
            self.last = row.step
        self.rows.append(row)
        self.turn = turn


def _disentangle(raw: SourceRun, rows: list[LoggedRow]) -> list[list[Segment]]:
    """Return a run for each writer: a row goes to the one whose next step it is."""
    stride = _stride(rows)
    streams: list[_Stream] = []
    for turn, row in enumerate(rows):
        stream = _stream_of(row, streams, stride)
        if stream is None:
            stream = _Stream()
            streams.append(stream)
        stream.take(row, turn)
    raw.notes.append(
        f"{len(streams)} writers at once in this log, told apart by their steps (a guess): "
        "each is a run of its own, the one with most rows is shown"
    )
    longest = max(streams, key=lambda stream: len(stream.rows))
    others = [stream for stream in streams if stream is not longest]
    return [[_sorted(Segment(stream.rows))] for stream in (*others, longest)]


def _stride(rows: list[LoggedRow]) -> int:
    """Return the most frequent distance between the steps of one writer."""
    steps = sorted({row.step for row in rows if row.step is not None and _is_train(row)})
    gaps = Counter(map(sub, steps[1:], steps))
    return gaps.most_common(1)[0][0] if gaps else 1


def _stream_of(row: LoggedRow, streams: list[_Stream], stride: int) -> _Stream | None:
    step = row.step
    if step is None or not _is_train(row):
        same = [s for s in streams if s.last == step] or streams
        return max(same, key=lambda s: s.turn, default=None)
    near = [s for s in streams if 0 < step - s.last <= _LOST * stride]
    if not near and len(streams) >= _MOST:
        near = [s for s in streams if s.last < step]
    return min(near, key=lambda s: (abs(step - s.last - stride), s.turn), default=None)
