"""What lies beside an adapter: its base, and rows of its data."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Final

from gradience.adapters.files import holds_adapter
from gradience.configs.document import DataPlan, read_data_plan
from gradience.configs.files import read_mapping
from gradience.errors import GradienceError
from gradience.schema import Json
from gradience.schema.audit import Beside
from gradience.schema.events import RunStart
from gradience.telemetry.reader import TelemetryReader

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# The hub's oldest models have names without an owner; any other such word may be a folder of another machine.
_OWNERLESS: Final = re.compile(
    r"(?:distil)?gpt2|gpt2-(?:medium|large|xl)|openai-gpt|ctrl|camembert-base|t5-(?:small|base|large|3b|11b)"
    r"|(?:distil)?bert-(?:base|large)-(?:(?:multilingual-|german-)?(?:un)?cased(?:-whole-word-masking)?|chinese)"
    r"|(?:distil)?roberta-base|roberta-large(?:-mnli)?|albert-(?:x?x?large|base)-v[12]|xlnet-(?:base|large)-cased"
    r"|xlm-roberta-(?:base|large)"
)
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
    folders = (folder, _above(folder))
    plans = [plan for each in folders for plan in _plans(each, held)]
    texts, held_out = _only(plan.train for plan in plans), _only(plan.evaluation for plan in plans)
    return Beside(
        base=base_of(chain(names, (_logged(each) for each in folders if each not in passed)), folder),
        texts=texts,
        held_out=held_out,
    )


def base_of(names: Iterable[str | None], folder: Path | None = None) -> str | None:
    """The first name that a command can be given: a folder or a name of the hub; another would end it with an error.

    A path that the files in `folder` name may start there, or one above, where the run was started.
    """
    places = () if folder is None else (folder, _above(folder))
    return next((base for name in names if name and (base := _usable(name, places)) is not None), None)


def _usable(name: str, places: Iterable[Path]) -> str | None:
    with suppress(OSError, ValueError):  # a name that no disk can hold
        if Path(name).is_dir():
            return name
        for each in places:
            path = Path(os.path.normpath(each / name))
            if (path / "config.json").is_file() and not holds_adapter(path):  # a model, not the run that is named so
                return str(path)
    return name if _HUB_ID.fullmatch(name) or _OWNERLESS.fullmatch(name) else None


def _above(folder: Path) -> Path:
    return Path(os.path.normpath(folder / ".."))  # the parent of `.` by pathlib is `.`


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
