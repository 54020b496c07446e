"""``gradience PATH``: what is there, and the commands that fit it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from gradience.adapters.files import CONFIG_NAME, holds_adapter
from gradience.blocks import Block, counted, facts, listed
from gradience.blocks.text import as_text
from gradience.commands.output import DONE, print_text
from gradience.errors import GradienceError
from gradience.folder.found import Found, find, list_folder
from gradience.folder.runs import runs_in
from gradience.importers.sources import format_of, is_run

_SETTINGS: Final = (".toml", ".yaml", ".yml")
_WEIGHTS: Final = (".safetensors", ".bin", ".npz", ".pt")
_FITTING: Final = {"log": "monitor", "adapter": "audit", "training": "check --training"}
_LOOKED: Final = 500  # most folders that are looked into


def here(place: Path) -> int:
    """Print what a folder or a file is, and which commands fit it; return exit code 0.

    Raises:
        GradienceError: the folder cannot be read, or holds nothing that a command reads.
    """
    print_text(_in_folder(place) if place.is_dir() else _of_file(place))
    return DONE


@as_text
def _in_folder(place: Path) -> Iterator[Block]:
    at = _quoted(place)
    logs = runs_in(place)
    adapters = [folder for folder in islice(_near(place), _LOOKED) if holds_adapter(folder)]
    if len(logs) > 1:
        yield f"{at}: {counted(len(logs), 'run')}, such as {_below(place, logs)}"
        yield from _fitting(f"runs {at}", f"runs best {at}", f"monitor {at}")
    elif len(adapters) > 1 and logs == [place] and not is_run(place):
        yield f"{at}: {counted(len(adapters), 'adapter')}, such as {_below(place, adapters)}"
        yield from _fitting(f"fleet audit {at} --out FLEET", "fleet show FLEET", f"audit {_quoted(adapters[0])}")
    else:
        yield from _one_run(place, find(place))


def _below(place: Path, paths: Sequence[Path]) -> str:
    """The first paths, as they are called below the folder."""
    return listed([str(path.relative_to(place)) for path in paths], 3)


def _near(place: Path) -> Iterator[Path]:
    """Yield the folder and two levels of folders below it: a whole disk is not searched for a hint."""
    yield place
    children = list_folder(place).folders
    yield from children
    for child in children:
        with suppress(GradienceError):  # one that may not be read
            yield from list_folder(child).folders


def _one_run(place: Path, found: Found) -> Iterator[Block]:
    at = _quoted(place)
    parts = (("log", found.log.path), ("adapter", found.weights.path), ("training", found.training))
    there = {name: path for name, path in parts if path is not None}
    fitting = [f"{_FITTING[name]} {_quoted(path)}" for name, path in there.items()]
    if not there.keys() & {"adapter", "training"} and (place / CONFIG_NAME).is_file():
        there["settings"] = place / CONFIG_NAME
        fitting.append(f"check {at}")  # the folder: a checkpoint in it may hold training arguments
    if not there:
        looked = (
            "run.jsonl, trainer_state.json or another log, adapter weights, adapter_config.json, training arguments"
        )
        raise GradienceError(f"{at} holds nothing to look at", advice=f"looked for {looked}; see 'gradience --help'")
    yield f"{at}:"
    yield facts(((name, str(path)) for name, path in there.items()), indent=2)
    whole = [f"diagnose {at}", f"report {at} --out report.html"] if {"log", "adapter"} & there.keys() else []
    yield from _fitting(*whole[: max(1, 3 - len(there))], *fitting)


@as_text
def _of_file(place: Path) -> Iterator[Block]:
    at = _quoted(place)
    if place.suffix in _WEIGHTS:
        yield f"{at}: weights"
        yield from _fitting(f"audit {at}")
    elif place.suffix in _SETTINGS:
        yield f"{at}: settings"
        yield from _fitting(f"check --training {at}")
    elif format_of(place) is not None:
        yield f"{at}: a log"
        yield from _fitting(f"monitor {at}", f"diagnose {at}", f"report {at} --out report.html")
    else:
        yield f"{at}: neither weights nor a log; rows of data, perhaps"
        yield from _fitting(f"check --data {at} --tokenizer FOLDER")


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))


def _fitting(*commands: str) -> Iterator[str]:
    yield "Next:"
    yield from (f"  gradience {command}" for command in commands)
