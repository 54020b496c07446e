"""The base with the whole adapter on it, and the inputs on which it is run to choose, to train and to measure."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from gradience.adapters.pairs import StoredPair
from gradience.errors import ConfigError, OptionError
from gradience.io import PathLike, Progress
from gradience.models import LoadedModel, load_model
from gradience.models.inputs import ModelInput, read_inputs
from gradience.rewrite.resize.subject import Subject, refuse_to_run

MEASURED_ON: Final = 64  # held-out inputs, if each has many predictions
MEASURED_ROWS: Final = 256  # held-out inputs, if each has one prediction
LEAST: Final = 24  # different inputs: choosing by 8 gained nothing, and 8 must be left to measure on


class Running(NamedTuple):
    """The loaded model, and by path PEFT's layers of the adapter and the pairs in its files."""

    loaded: LoadedModel
    layers: Mapping[str, Any]
    pairs: Mapping[str, StoredPair]


def run(subject: Subject, base: PathLike | None, progress: Progress) -> Running:
    """Load the base with the adapter.

    Raises:
        AdapterError: the base does not fit, or the adapter is of a kind that cannot be resized by running it.
        GradienceError: torch, transformers or PEFT is not installed.
    """
    if base is None:
        raise OptionError("the model is run on inputs, and no base is given", advice="give --base MODEL")
    refuse_to_run(subject)
    progress(0, 0, "loading the model")
    loaded = load_model(base, subject.stored.files.folder)
    from gradience.models.statistics import lora_layers  # torch, which only those who run a model need

    pairs = {pair.path: pair for pair in subject.pairs}
    return Running(loaded, lora_layers(loaded, list(pairs)), pairs)


class Split(NamedTuple):
    """The inputs to choose or train by, the held-out inputs to measure on, and how many inputs were truncated."""

    chosen_by: list[ModelInput]
    measured_on: list[ModelInput]
    cut: int


def split_inputs(place: PathLike, loaded: LoadedModel, *, most: int, seed: int, token_ids: bool = False) -> Split:
    """Read the inputs and split them; if there are fewer than wanted, a third of them is held out to measure on.

    Args:
        place: the file.
        loaded: the model.
        most: the inputs that are not held out, at most.
        seed: seed of the choice of inputs.
        token_ids: whether the file holds token ids.

    Raises:
        ConfigError: the file cannot be read, or holds too few different inputs.
    """
    measured = MEASURED_ROWS if loaded.task == "sequence-classification" else MEASURED_ON
    inputs = read_inputs(place, loaded, most=most + measured, seed=seed, token_ids=token_ids)
    different = list({example.ids: example for example in reversed(inputs.examples)}.values())[::-1]
    if len(different) < LEAST:
        raise ConfigError(
            f"{place} has {len(different)} different inputs that can be used, expected at least {LEAST}",
            advice=f"{most + measured} are used where there are so many; they need no labels",
        )
    count = min(most, math.ceil(len(different) * 2 / 3))
    return Split(different[:count], different[count:], inputs.cut)


def targets_of(kept: Collection[str], loaded: LoadedModel) -> dict[str, Any]:
    """The fields of a LoraConfig that target exactly the modules kept, of those that the base has."""
    names = (name for name, _ in loaded.model.base_model.model.named_modules())
    return without_modules(kept, [name.replace(".base_layer", "") for name in names if ".lora_" not in name])


def without_modules(kept: Collection[str], of_model: Iterable[str]) -> dict[str, Any]:
    """The fields of a LoraConfig that target exactly the modules kept.

    PEFT's rule for a list is that a name equals an entry, or ends with a dot and an entry (tuners_utils.py,
    check_target_module_exists). If that matches no other module, the result is a list of whole paths, which every
    inference engine reads. Otherwise it is one regular expression, which PEFT matches against whole names. PEFT allows
    no layers_to_transform beside an expression.

    Args:
        kept: paths of modules of the base.
        of_model: the paths of all its modules.
    """
    wanted = set(kept)
    others = [name for name in of_model if name not in wanted]
    if not any(tail in wanted for name in others for tail in _tails(name)):
        return {"target_modules": sorted(wanted)}
    pattern = "|".join(re.escape(name) for name in sorted(wanted))
    return {"target_modules": f"(?:{pattern})", "layers_to_transform": None, "layers_pattern": None}


def _tails(name: str) -> Iterable[str]:
    at = name.find(".")
    while at >= 0:
        yield name[at + 1 :]
        at = name.find(".", at + 1)
