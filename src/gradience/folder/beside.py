"""What lies beside an adapter: its base, rows of its data, and the optimizer that trained it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from gradience.configs.document import CONFIG_NAME, DataPlan, read_data_plan
from gradience.configs.files import read_mapping
from gradience.configs.training import TRAINING_NAMES, read_training_dir
from gradience.errors import ConfigError, GradienceError
from gradience.schema.audit import Beside
from gradience.schema.events import RunStart
from gradience.telemetry.reader import TelemetryReader

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_RECIPES: Final = (".yaml", ".yml", ".toml")
_MOST: Final = 20  # recipes that are opened


def beside(adapter: Path, base_model: str | None) -> Beside:
    """The base by adapter_config.json or by the log, and the rows that one recipe names below its own folder."""
    folders = (adapter, adapter.parent)
    plans = [plan for folder in folders for plan in _plans(folder)]
    texts, held_out = _only(plan.train for plan in plans), _only(plan.evaluation for plan in plans)
    return Beside(
        base=base_of(_configured(adapter), base_model, *map(_logged, folders)), texts=texts, held_out=held_out
    )


def base_of(*names: str | None) -> str | None:
    """The first name that is a folder or `owner/name` of the hub; with another a command would end with an error."""
    return next((name for name in names if name and (Path(name).is_dir() or _HUB_ID.fullmatch(name))), None)


def optimizer_in(folder: Path) -> str | None:
    """The optimizer by the training arguments in a folder; None if none can be read there."""
    if not any((folder / name).is_file() for name in TRAINING_NAMES):
        return None
    try:
        return read_training_dir(folder).config.optimizer.name
    except ConfigError:  # of a class of the user's own: nothing is known of the optimizer
        return None


def _configured(adapter: Path) -> str | None:
    """The base by the adapter's own config, whole; a snapshot of it holds no path."""
    with suppress(ConfigError, OSError):
        fields = read_mapping(adapter / CONFIG_NAME)
        named = fields.get("base_model_name_or_path") or fields.get("model")
        return named if isinstance(named, str) else None
    return None


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


def _plans(folder: Path) -> Iterator[DataPlan]:
    """What the recipes in a folder say of data."""
    recipes = (path for path in sorted(folder.iterdir()) if path.suffix in _RECIPES) if folder.is_dir() else ()
    for path in islice(recipes, _MOST):
        with suppress(GradienceError, OSError):
            yield read_data_plan(path)
