"""Lines that a training loop of one's own prints: `step 10/2000 | loss: 1.23 | lr 1e-4`.

A line is read if it is nothing but names and their numbers, the first of which says where it stands, as a step or an
epoch; before it are only times, levels, places in code, or a split. One that begins so and goes on otherwise is listed
as skipped. A step that begins anew with each epoch is counted on if the lines say how many an epoch has; epochs are
counted where no line names a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Final, NamedTuple

from gradience.errors import RecorderError
from gradience.importers.files import SourceRun, count_of
from gradience.importers.table import Numbered, cell_value
from gradience.schema import Json
from gradience.telemetry.rows import HELD_OUT

EXAMPLE: Final = "`step 10/2000, loss 1.23, lr 1e-4`"
_NUMBER: Final = r"(?:[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?|nan|[-+]?inf)"
_TIME: Final = r"(?:(?:\d+:)+\d[\d.]*|(?:\d+[dhms] ?){2,3})"
_PACE: Final = r"(?:(?:tok\w*|it|s|samples?)/\w+)"
_PART: Final = re.compile(
    r"(?P<name>[a-z_][\w@/.-]*(?: [a-z_][\w@/.-]*){0,2})['\"]?(?: *[:=#] *| +)"
    rf"(?:tensor\()?[\[('\"]?(?:{_TIME}|(?P<number>{_NUMBER}))(?: *(?:/|of) *(?P<of>\d[\d,]{{0,14}}))?"
    rf"(?:, (?:device|dtype|grad_fn)=[^ ,]*)*(?: ?(?:[kmgt]?i?b|ms|s|min|h|k|m|%|{_PACE}))?(?!\w|[.:/]\w)"
    # what parts two: a mean in brackets, `(best)`, a pace without a name
    rf"(?:\(\s*{_NUMBER}%?\s*\)|\([^()\d]*\)|[^\w.+-]|[.+-](?!\d)|{_NUMBER} ?{_PACE})*",
    re.IGNORECASE,
)
_STEP: Final = r"(?:step|iter(?:ation)?|it|batch|update)s?"
_AT: Final = r"(?:(?:train(?:ing)?|global|optim(?:izer)?)[ _-])?"
_PLACE: Final = re.compile(rf"{_AT}(?:(?P<step>{_STEP})|ep(?:och)?)")
_BEFORE: Final = re.compile(
    rf"(?>\[(?![^]]*\b(?i:{_STEP}|ep(?:och)?)\b)(?:[^]]*\d[^]]*|[A-Z]+)\]|<[^>]*>|\([^()]*pid=[^()]*\)"
    r"|(?:TRACE|DEBUG|INFO|NOTICE|SUCCESS|WARN(?:ING)?)\b(?::[\w.]+:)?|[\w.]+ - (?=[A-Z]+ - )"
    rf"|(?i:(?P<split>train(?:ing)?|evaluation|{'|'.join(HELD_OUT)})\b)|[^\w\s]|\s+|\S*\d\S*)*?"
    rf"(?=\b(?i:{_AT}(?:{_STEP}|ep(?:och)?)\b))"
)
_PROSE: Final = re.compile(
    r"\b(?:an?|the|at|in|on|with|ha[sd]|is|was|and|of|for|to|from|got|reached|gave|when)\b", re.IGNORECASE
)
_MEAN: Final = re.compile(r"^(?:avg|average|mean)_")
_LONGEST: Final = 512  # characters
_FEWEST: Final = 2  # lines, by which a file is known


class _Line(NamedTuple):
    number: int
    values: dict[str, Json]
    step: int | None = None
    of: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    is_whole: bool = True


def is_loop(texts: Iterable[str]) -> bool:
    """Whether two of the lines are a loop's own."""
    found = (line for text in texts if (line := _line(0, text)) is not None and line.is_whole and line.values)
    return len(list(islice(found, _FEWEST))) == _FEWEST


def loop_rows(raw: SourceRun, path: Path, printed: Iterable[tuple[int, str]]) -> Iterator[Numbered]:
    """Yield the rows of a loop's own lines, each with the step of the whole run.

    Raises:
        RecorderError: which step a line is of cannot be told.
    """
    lines = list(_told(printed))
    if all(line.step is None for line in lines):
        lines = _of_epochs(raw, path, lines)
    trained = [line for line in lines if line.step is not None and line.epoch is not None and _trains(line)]
    anew = any(
        (later.epoch or 0) > (line.epoch or 0) and (later.step or 0) <= (line.step or 0)
        for line, later in pairwise(trained)
    )
    first = min([1, *(line.epoch for line in trained if line.epoch is not None)])
    last = 0
    for line in lines:
        values, step = line.values, line.step
        if not line.is_whole:
            yield line.number, "more than names and their numbers"
            continue
        if step is None:  # at the end of an epoch, whose mean of the training loss is of no step
            values = {name: value for name, value in values.items() if name.startswith(HELD_OUT)}
            yield line.number, {**values, "step": last} if values else "no step in it"
            continue
        if anew and line.of is None:
            raise _unplaced(path, "the step begins anew in each epoch, and no line says how many an epoch has")
        if not _trains(line) and step < last:
            yield line.number, "a step before the one above: of an evaluation's own count?"
            continue
        step += ((line.epoch or first) - first) * (line.of or 0) if anew else 0
        if line.of and (anew or (line.epochs or 1) == 1):
            raw.planned = line.of * ((line.epochs or 0) if anew else 1) or raw.planned
        last = step
        yield line.number, {**values, "step": step}


def _told(printed: Iterable[tuple[int, str]]) -> Iterator[_Line]:
    """The lines with values, each with the epoch that it or a line above it names."""
    epoch: int | None = None
    epochs: int | None = None
    for number, text in printed:
        line = _line(number, text)
        if line is not None:
            epoch, epochs = (epoch, epochs) if line.epoch is None else (line.epoch, line.epochs or epochs)
            if line.values:
                yield line._replace(epoch=epoch, epochs=epochs)


def _of_epochs(raw: SourceRun, path: Path, lines: list[_Line]) -> list[_Line]:
    """The lines of a loop that names no step, with the epoch in its place."""
    epochs = [line.epoch for line in lines if line.is_whole and _trains(line)]
    if len(set(epochs)) < len(epochs):
        raise _unplaced(path, "an epoch has several losses, and no line names its step")
    if lines:
        raw.notes.append("no line names a step: steps are counted in epochs")
    return [line._replace(step=line.epoch, of=line.epochs, epoch=None, epochs=None) for line in lines]


def _trains(line: _Line) -> bool:
    return any(name.endswith("loss") and not name.startswith(HELD_OUT) for name in line.values)


def _unplaced(path: Path, why: str) -> RecorderError:
    advice = "print the step of the whole run in each line, or give a trainer_state.json or a logger's files"
    return RecorderError(f"{path}: {why}", advice=advice)


def _line(number: int, text: str) -> _Line | None:
    """What a line says; None if it names no place, or a step without a loss or an evaluation."""
    before = _BEFORE.match(text) if len(text) <= _LONGEST else None
    if before is None:
        return None
    line, at = _Line(number, {}), before.end()
    split = (before["split"] or "train").lower()
    is_prose = False
    while part := _PART.match(text, at):
        at = part.end()
        is_prose |= _PROSE.search(part["name"]) is not None
        name = _MEAN.sub("", re.sub(r"[ -]+", "_", part["name"]).lower())
        if part["number"] is None:
            continue  # a time
        value, of = part["number"].replace(",", ""), count_of((part["of"] or "").replace(",", ""))
        place = _PLACE.fullmatch(name)
        if place is None or not value.isdecimal():
            line.values.setdefault(name if split.startswith("train") else f"{split}_{name}", cell_value(value))
        elif place["step"]:
            line = line._replace(step=int(value), of=of) if line.step is None else line
        elif line.epoch is None:
            line = line._replace(epoch=int(value), epochs=of)
    if line.step is None and line.epoch is None:
        return None
    tells = any(name.endswith("loss") or name.startswith(HELD_OUT) for name in line.values)
    if not tells:
        return line if line.step is None and not line.values and at == len(text) else None
    return line._replace(is_whole=at == len(text) and not is_prose)
