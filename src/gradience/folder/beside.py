"""What lies beside an adapter: its base, and rows of its data."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Final

from gradience.configs.document import DataPlan, read_data_plan
from gradience.configs.files import read_mapping
from gradience.errors import GradienceError
from gradience.schema import Json
from gradience.schema.audit import Beside
from gradience.schema.events import RunStart
from gradience.telemetry.reader import TelemetryReader

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+")
RECIPES: Final = (".yaml", ".yml", ".toml")
MOST: Final = 20  # recipes that are opened


def beside(
    folder: Path, names: Iterable[str | None], held: dict[Path, dict[str, Json]], *, passed: Collection[Path] = ()
) -> Beside:
    """The base by the first of the names that can be one, or by a log; and the rows that one recipe names.

    Args:
        folder: the adapter's; recipes and logs are looked for in it, and in the one above.
        names: what the base is called by the files of the run.
        held: gets the fields of each recipe.
        passed: folders whose log is told by the names already.
    """
    folders = (folder, folder.parent)
    plans = [plan for each in folders for plan in _plans(each, held)]
    texts, held_out = _only(plan.train for plan in plans), _only(plan.evaluation for plan in plans)
    return Beside(
        base=base_of(chain(names, (_logged(each) for each in folders if each not in passed))),
        texts=texts,
        held_out=held_out,
    )


def base_of(names: Iterable[str | None]) -> str | None:
    """The first name that is a folder or `owner/name` of the hub; with another a command would end with an error."""
    return next((name for name in names if name and (Path(name).is_dir() or _HUB_ID.fullmatch(name))), None)


def _logged(folder: Path) -> str | None:
    """The base by the first line of the log in a folder."""
    with suppress(GradienceError, OSError):
        first = next(iter(TelemetryReader(folder / "run.jsonl")), None)
        return first.config.model_name if isinstance(first, RunStart) else None
    return None


def _only(files: Iterable[Path | None]) -> str | None:
    """The one file among them that exists; None if there are several."""
    places = {str(file) for file in files if file is not None and file.is_file()}
    return places.pop() if len(places) == 1 else None


def _plans(folder: Path, held: dict[Path, dict[str, Json]]) -> Iterator[DataPlan]:
    """What the recipes in a folder say of data."""
    recipes = (path for path in sorted(folder.iterdir()) if path.suffix in RECIPES) if folder.is_dir() else ()
    for path in islice(recipes, MOST):
        with suppress(GradienceError, OSError):
            held[path] = read_mapping(path)
            yield read_data_plan(path, held[path])
