"""What lies beside an adapter: its base, rows of its data, and the optimizer that trained it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from gradience.configs.document import read_data_plan
from gradience.configs.training import TRAINING_NAMES, read_training_dir
from gradience.errors import ConfigError, GradienceError
from gradience.schema.audit import Beside
from gradience.schema.events import RunStart
from gradience.telemetry.reader import TelemetryReader

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_RECIPES: Final = (".yaml", ".yml", ".toml")
_MOST: Final = 20  # recipes that are opened


def beside(adapter: Path, base_model: str | None) -> Beside:
    """The base by adapter_config.json or by the log, and the rows that one recipe names below its own folder.

    A name that is neither a folder nor `owner/name` of the hub is not taken: the command would end with an error.
    """
    folders = (adapter, adapter.parent)
    plans = {str(plan) for folder in folders for plan in _rows(folder)}
    names = (name for name in (base_model, *map(_logged, folders)) if name)
    bases = (name for name in names if Path(name).is_dir() or _HUB_ID.fullmatch(name))
    return Beside(base=next(bases, None), texts=plans.pop() if len(plans) == 1 else None)


def optimizer_beside(config: Path) -> str | None:
    """The optimizer by the training arguments beside an adapter's config; None if none can be read there."""
    if not config.is_file() or not any((config.parent / name).is_file() for name in TRAINING_NAMES):
        return None
    try:
        return read_training_dir(config.parent).config.optimizer.name
    except ConfigError:  # of a class of the user's own: nothing is known of the optimizer
        return None


def _logged(folder: Path) -> str | None:
    """The base by the first line of the log in a folder."""
    with suppress(GradienceError, OSError):
        first = next(iter(TelemetryReader(folder / "run.jsonl")), None)
        return first.config.model_name if isinstance(first, RunStart) else None
    return None


def _rows(folder: Path) -> Iterator[Path]:
    """The files of training rows that the recipes in a folder name."""
    recipes = (path for path in sorted(folder.iterdir()) if path.suffix in _RECIPES) if folder.is_dir() else ()
    for path in islice(recipes, _MOST):
        with suppress(GradienceError, OSError):
            plan = read_data_plan(path)
            if plan.train is not None and plan.train.is_file():
                yield plan.train
