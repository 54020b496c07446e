"""The rows of a receipt: of a file, of the data set that a recipe names, or sampled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from gradience.configs.document import read_data_plan
from gradience.errors import ConfigError
from gradience.io import PathLike
from gradience.io.reading import real_path
from gradience.verbs.receipt.options import ReceiptOptions

if TYPE_CHECKING:
    from gradience.models import LoadedModel
    from gradience.models.inputs import ModelInput

CANDIDATES: Final = 1.5
"""Sequences that are read for each that is kept, so that the choice costs half as many passes more."""

SAMPLED: Final = "sampled by base and adapter"

_RECIPES: Final = (".yaml", ".yml")
_LENGTH: Final = 48  # tokens of a sampled row: the 40 predictions that are kept, and a beginning


class Candidates(NamedTuple):
    """Rows to choose from, and where they are from, in words."""

    examples: list[ModelInput]
    origin: str


def candidates(loaded: LoadedModel, adapter: PathLike, prompts: PathLike | None, options: ReceiptOptions) -> Candidates:
    """Return the rows to choose from.

    Without `prompts`, a recipe in the adapter's folder or the one above it is asked for its data set: the evaluation
    set if it names one below its own folder, else the training set. Without such a recipe the model samples rows.

    Args:
        loaded: base and adapter.
        adapter: the adapter's folder.
        prompts: a file of rows, or a recipe in YAML that names one; None as above.
        options: how many rows are kept, and the seed.

    Raises:
        ConfigError: the rows cannot be read, or none can be sampled.
    """
    from gradience.models.inputs import read_inputs  # torch, late
    from gradience.models.reading import sampled  # the same

    place, recipe = (None, None) if prompts is None else _place(Path(prompts))
    if prompts is None:
        place, recipe = next(_found(real_path(adapter)), (None, None))
    if place is None:
        return Candidates(sampled(loaded, options.rows, length=_LENGTH, seed=options.seed), SAMPLED)
    most = round(CANDIDATES * options.rows)
    examples = read_inputs(place, loaded, most=most, seed=options.seed).examples
    if not examples:
        raise ConfigError(f"{place} has no row with a token to predict", advice="give rows of two tokens or more")
    return Candidates(examples, place.name if recipe is None else f"{place.name}, which {recipe.name} names")


def files_of(adapter: PathLike, prompts: PathLike | None) -> list[Path]:
    """The adapter's folder, and the files from which `candidates` takes rows."""
    named = next(_found(real_path(adapter)), ()) if prompts is None else _place(Path(prompts))
    return [Path(adapter), *(place for place in named if place is not None)]


def _place(prompts: Path) -> tuple[Path, Path | None]:
    """The file of rows, and the recipe that names it."""
    if prompts.suffix not in _RECIPES:
        return prompts, None
    if (file := _named(prompts)) is None:
        raise ConfigError(f"{prompts} names no data set below its folder", advice="give --data a file of rows")
    return file, prompts


def _named(recipe: Path) -> Path | None:
    plan = read_data_plan(recipe)
    return next((place for place in (plan.evaluation, plan.train) if place is not None and place.is_file()), None)


def _found(adapter: Path) -> Iterator[tuple[Path, Path]]:
    """Data sets that recipes beside the adapter name, and those recipes."""
    for folder in (adapter, adapter.parent):
        for recipe in sorted(place for place in folder.glob("*") if place.suffix in _RECIPES):
            try:
                file = _named(recipe)
            except ConfigError:
                continue  # another program's file
            if file is not None:
                yield file, recipe
