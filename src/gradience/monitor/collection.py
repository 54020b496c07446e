"""Which runs a path stands for: one, or each that a folder of runs holds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final

from gradience.importers.folder import MAX_DEPTH, MAX_RUNS, run_folders
from gradience.monitor.source import is_log

__all__ = ["MAX_RUNS", "holds_runs", "names_of", "runs_in"]

_LOG: Final = "run.jsonl"
_MAX_ENTRIES: Final = 2000  # of a folder that are looked at


def runs_in(path: str | os.PathLike[str]) -> list[Path]:
    """Return the runs of a folder of runs, by name; the path itself where it is a run, or anything else.

    A folder that one run wrote into is that run. Else each log of ours in it or up to three levels below is a
    run, and so is each folder there that another program's run wrote into; at most 100.
    """
    place = Path(path)
    if not place.is_dir() or is_log(place / _LOG):
        return [place]
    foreign = run_folders(place)
    if foreign == [place]:
        return [place]
    ours = list(_logs(place, MAX_DEPTH))
    found = {*ours, *(folder for folder in foreign if not is_log(folder / _LOG))}
    return sorted(found)[:MAX_RUNS] or [place]


def holds_runs(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a folder of several runs."""
    return len(runs_in(path)) > 1


def _logs(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())[:_MAX_ENTRIES]
    except OSError:
        return
    if is_log(folder / _LOG):
        yield folder / _LOG  # what else lies beside it is the same run's
        return
    yield from (path for path in entries if path.suffix == ".jsonl" and is_log(path))
    if depth:
        for child in entries:
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _logs(child, depth - 1)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return short names of the paths, each its own: what they share in front and at the end is left out.

    >>> names_of([Path("runs/a/run.jsonl"), Path("runs/b/run.jsonl")])
    ['a', 'b']
    >>> names_of([Path("seed1-run.jsonl"), Path("seed2-run.jsonl")])
    ['seed1', 'seed2']
    """
    parts = [(path.parent if path.name == _LOG else path).parts or (str(path),) for path in paths]
    shared = 0
    while len({part[: shared + 1] for part in parts}) == 1 and all(len(part) > shared + 1 for part in parts):
        shared += 1
    names = _without_ending(["/".join(part[shared:]) for part in parts])
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _without_ending(names: Sequence[str]) -> list[str]:
    """Return the names without what all end in, from a point, dash or underscore on."""
    if len(names) == 1:
        return list(names)
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*map(reversed, names), strict=False))
    shared = "".join(letters[0] for letters in same)[::-1]
    ending = shared[next((place for place, letter in enumerate(shared) if letter in "._-"), len(shared)) :]
    shorter = [name.removesuffix(ending) for name in names]
    return shorter if all(shorter) else list(names)
