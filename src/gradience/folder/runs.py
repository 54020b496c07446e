"""Find the runs of a path, which may be a file, the folder of a run, or a folder of runs; and name them."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple

from gradience.adapters.files import holds_adapter
from gradience.errors import GradienceError, RecorderError
from gradience.reading.logs import LOG_NAME, OF_IMPORT, Reading, is_log, read_log
from gradience.schema.reports import SourceLocation

_OF_FOLDERS: Final = (LOG_NAME, "trainer_state.json")
_SHOWN: Final = 10  # names in a sentence
_MOST_LOGS: Final = 6  # folders that are read to see whether they are of one run
_LEAST_SHARED: Final = 3  # losses that two logs share, or all that the shorter one has
_EQUAL: Final = 1e-3  # relative: loggers round
_MAX_ENTRIES: Final = 2000  # entries of a folder that are examined


def log_place(file: str) -> SourceLocation | None:
    """The file of a log: the file itself, or the log in the folder; None if several files were read."""
    path = Path(file)
    if path.is_file():
        return SourceLocation(file)
    return next((SourceLocation(str(path / name)) for name in _OF_FOLDERS if (path / name).is_file()), None)


def runs_in(path: str | os.PathLike[str]) -> list[Path]:
    """The runs of a folder of runs, sorted; the path itself if it is one run or anything else.

    A folder that one run wrote into is that run. Otherwise the runs are the gradience logs in the folder and up to
    three levels below, and the folders there into which another program's run wrote, but for a logger's copy of a run
    that is there too. At most 100 are returned.
    """
    return run_list(path).places


class RunList(NamedTuple):
    """The runs of a path, a note on each copy of one that is left out, and the logs that were read to tell copies."""

    places: list[Path]
    copies: Sequence[str] = ()
    readings: Mapping[Path, Reading] = {}

    def read(self, place: Path) -> Reading:
        """Read the log of one of the runs, as `read_log`, unless it has been read."""
        return self.readings.get(place) or read_log(place)


def run_list(path: str | os.PathLike[str]) -> RunList:
    """The runs of a folder, as `runs_in` has them."""
    place = Path(path)
    if not place.is_dir() or is_log(place / LOG_NAME):
        return RunList([place])
    from gradience.importers.sources import MAX_DEPTH, MAX_RUNS, run_folders  # a log of our own needs none

    foreign = run_folders(place)
    if foreign == [place]:
        return RunList([place])
    ours = list(_logs(place, MAX_DEPTH))
    runs = _distinct(sorted({*ours, *(folder for folder in foreign if not is_log(folder / LOG_NAME))}))
    return runs._replace(places=runs.places[:MAX_RUNS] or [place])


class RunPlace(NamedTuple):
    """Where a run is: its log or folder, and its id or name in there if that holds several."""

    path: Path
    run: str | None = None


def find_run(path: str | os.PathLike[str], run: str | None = None) -> RunPlace:
    """Find a run as every verb does.

    Args:
        path: a log, the folder of a run, or a folder of runs; of the only run in a folder of runs, that is found.
        run: the run as any verb names it: a name as `monitor` prints it for a folder of runs, a path below that
            folder, or a run's id, or name, in a log of several.

    Raises:
        RecorderError: no run is called so, or several are.
    """
    place, places = Path(path), runs_in(path)
    if run is None:
        return RunPlace(places[0] if len(places) == 1 else place)
    if places == [place] and not place.is_dir():
        return RunPlace(place, None if run == place.name else run.rpartition("#")[2])  # of a name such as `seed1#3f2a`
    from gradience.importers.sources import inner_runs  # the same

    inner = inner_runs(place) if places == [place] else []
    names = _called([*places, *inner], place)
    name, _, part = run.rpartition("#")
    for asked, of_log in ((run, None), (name.strip(), part)):
        hits = _matching(asked, names)
        if len(hits) > 1:
            called = ", ".join(str(hit) for hit in hits[:_SHOWN])
            raise RecorderError(f"{path}: several runs are called {asked[:60]!r}", advice=f"there are {called}")
        if hits:
            return RunPlace(hits[0], of_log)
    return _found_within(place, places, run)


def read_run(path: str | os.PathLike[str], run: str | None = None) -> Reading:
    """Read a run of a log, of the folder that holds one, or of anything that can be imported.

    Args:
        path: a run.jsonl, the folder of a run, a folder of runs, or anything that `gradience import` reads.
        run: the run, as `find_run` takes it; the last if None.

    Raises:
        RecorderError: the source is missing, empty, or holds no event of a run, or no run of that name.
        SchemaError: the log is of another major version.
    """
    if run is None and len((runs := run_list(path)).places) == 1:
        return runs.read(runs.places[0])
    return read_log(*find_run(path, run))


def _called(places: Sequence[Path], folder: Path) -> dict[str, Path]:
    """The runs by all names that a verb may print of them."""
    named = dict(zip(names_of(places), places, strict=True))
    for place in places:
        at = place.parent if place.name == LOG_NAME else place
        below = {at.relative_to(folder).as_posix()} if at.is_relative_to(folder) else set()
        named |= dict.fromkeys({str(place), str(at), os.path.abspath(place), os.path.abspath(at), *below}, place)  # noqa: PTH100  # links are kept
    return named


def _matching(asked: str, names: Mapping[str, Path]) -> list[Path]:
    """The run of that name, else those whose names end so, as a table that is short of room prints them (`..a/b`)."""
    if asked in names or not asked:
        return [names[asked]] if asked else []
    numbered = re.sub(r"^\d+:", "", asked)
    if numbered in names:
        return [names[numbered]]
    cut = numbered.startswith("..")
    ending = numbered.lstrip(".") if cut else numbered
    return sorted({at for name, at in names.items() if name.endswith(ending if cut else f"/{ending}")})


def _found_within(place: Path, places: Sequence[Path], run: str) -> RunPlace:
    """The run of this id, or name, in one of the logs, which are read until it is found."""
    for each in places:
        with suppress(GradienceError):  # there is no such run in it, or it cannot be read
            read_log(each, run)
            return RunPlace(each, run)
    if len(places) == 1:
        return RunPlace(places[0], run)  # opening it says what there is
    there = ", ".join(names_of(places)[:_SHOWN])
    raise RecorderError(f"{place}: no run is called {run[:60]!r}", advice=f"there are {there}")


def _distinct(places: list[Path]) -> RunList:
    """Of the logs of one run, only the longest, the trainer's own first; and a note on each other one.

    Loggers write beside the trainer: `output/` and `wandb/` may hold the same losses of the same steps. Only a few
    folders are read for that.
    """
    if not 1 < len(places) <= _MOST_LOGS or all(place.is_file() for place in places):
        return RunList(places)
    readings = dict(_readings(places))
    losses = {place: _losses(readings.get(place)) for place in places}
    trainers = {place for place in places if _holds_results(place)}
    kept: list[Path] = []
    notes: list[str] = []
    for place in sorted(places, key=lambda place: (place not in trainers, -len(losses[place]))):
        # Two trainers' folders, or two logs of one logger, may be alike: of one seed, or of tries that died early
        others = trainers - {place} if place not in trainers else set[Path]()
        same = next((other for other in kept if other in others and _one_run(losses[other], losses[place])), None)
        if same is None:
            kept.append(place)
        else:
            notes.append(f"{place.name} is a log of the same run as {same.name}, which is read")
    return RunList([place for place in places if place in kept], notes, readings)


def _holds_results(place: Path) -> bool:
    """Whether a run is in the trainer's own folder: with an adapter, its states, or our recorder's log."""
    from gradience.importers.trainer_state import find_states  # a log of our own needs none

    folder = place.parent if place.is_file() else place
    try:
        return (
            bool(find_states(folder))
            or holds_adapter(folder)
            or any(map(holds_adapter, filter(Path.is_dir, folder.iterdir())))
        )
    except OSError:
        return False


def _readings(places: Iterable[Path]) -> Iterator[tuple[Path, Reading]]:
    for place in places:
        with suppress(GradienceError):  # reading it again says why
            yield place, read_log(place)


def _losses(reading: Reading | None) -> dict[int, float]:
    return {} if reading is None else dict(zip(reading.run.steps, reading.run.losses, strict=True))


def _one_run(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    shared = one.keys() & other.keys()
    enough = len(shared) >= min(_LEAST_SHARED, len(one), len(other)) > 0
    return enough and all(math.isclose(one[step], other[step], rel_tol=_EQUAL) for step in shared)


def _logs(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())[:_MAX_ENTRIES]
    except OSError:
        return
    if is_log(folder / LOG_NAME):
        yield folder / LOG_NAME  # the files beside it belong to the same run
        return
    yield from (path for path in entries if path.suffix == ".jsonl" and is_log(path))
    if depth:
        for child in entries:
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _logs(child, depth - 1)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short unique names of the paths, without the beginning and the ending that all share.

    >>> names_of([Path("runs/a/run.jsonl"), Path("runs/b/run.jsonl")])
    ['a', 'b']
    >>> names_of([Path("seed1-run.jsonl"), Path("seed2-run.jsonl")])
    ['seed1', 'seed2']
    """
    parts = [(path.parent if path.name == LOG_NAME else path).parts or (str(path),) for path in paths]
    shared = 0
    while len({part[: shared + 1] for part in parts}) == 1 and all(len(part) > shared + 1 for part in parts):
        shared += 1
    names = _without_ending(["/".join(part[shared:]) for part in parts])
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def names_of_runs(runs: Sequence[tuple[str, str]]) -> list[str]:
    """A unique name for each pair of path and run id: the part of the path that differs, and the id if that is needed.

    >>> names_of_runs([("x/a/run.jsonl", "1"), ("x/b/run.jsonl", "2"), ("x/b/run.jsonl", "3")])
    ['a', 'b #2', 'b #3']
    """
    if not runs:
        return []
    paths = list(dict.fromkeys(path for path, _ in runs))
    short = dict(zip(paths, names_of([Path(path) for path in paths]), strict=True))
    count = Counter(path for path, _ in runs)
    ids = [run.removeprefix(OF_IMPORT) for _, run in runs]
    brief = [run[:8] for run in ids]
    if len({(path, each) for (path, _), each in zip(runs, brief, strict=True)}) < len(runs):
        brief = ids  # ids that begin alike
    named = zip((path for path, _ in runs), brief, strict=True)
    return [f"{short[path]} #{run}" if count[path] > 1 else short[path] for path, run in named]


def _without_ending(names: Sequence[str]) -> list[str]:
    """The names without their common ending, which must begin with a point, dash or underscore."""
    if len(names) == 1:
        return list(names)
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*map(reversed, names), strict=False))
    shared = "".join(letters[0] for letters in same)[::-1]
    ending = shared[next((place for place, letter in enumerate(shared) if letter in "._-"), len(shared)) :]
    shorter = [name.removesuffix(ending) for name in names]
    return shorter if all(shorter) else list(names)
