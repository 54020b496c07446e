"""The adapter that is resized, the model that runs with it, and the inputs to choose, to train and to measure on."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from gradience.adapters.files import CONFIG_NAME
from gradience.adapters.layout import Adapter, Module
from gradience.adapters.pairs import StoredPair, stored_pairs
from gradience.adapters.patterns import dotted_tails
from gradience.adapters.traits import Operation, obstacles, traits_of
from gradience.errors import AdapterError, ConfigError, OptionError
from gradience.io import PathLike, Progress
from gradience.io.safetensors import DTYPES, TensorSource
from gradience.models import LoadedModel, load_model
from gradience.models.inputs import ModelInput, read_inputs
from gradience.rewriting.sides import StoredAdapter

MEASURED_ON: Final = 64  # held-out inputs, if each has many predictions
MEASURED_ROWS: Final = 256  # held-out inputs, if each has one prediction
LEAST: Final = 24  # different inputs: choosing by 8 gained nothing, and 8 must be left to measure on
BY_WEIGHTS: Final = "resize it by its weights, without --kl, --calibrate and --recover"

_METADATA: Final = {"format": "pt"}
_OF_PEFT: Final = ("adapter_model.safetensors", "adapter_model.bin")
_CONVERT: Final = "turn it into plain LoRA first: see 'gradience convert --help'"


class Subject(NamedTuple):
    """The adapter with its pairs, and the dtype of new factors (safetensors' name); None keeps each tensor's own."""

    stored: StoredAdapter
    pairs: list[StoredPair]
    dtype: str | None

    @property
    def tensors(self) -> TensorSource:
        """The tensors of its files."""
        return self.stored.tensors

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the weights file."""
        return self.tensors.metadata or _METADATA

    def dtype_of(self, name: str) -> str:
        """Return the dtype that a factor is stored in."""
        return self.dtype or self.tensors.tensors[name].dtype

    def bytes_per_rank(self, pair: StoredPair) -> int:
        """Return the bytes that one more rank costs, in both factors."""
        sizes = {name: self.tensors.tensors[name].size // pair.layout.rank for name in factor_names(pair)}
        return sum(size * DTYPES[self.dtype_of(name)].itemsize for name, size in sizes.items())


def factor_names(pair: StoredPair) -> tuple[str, str]:
    """Return the names of A and B in the file."""
    return pair.layout.a_name, pair.layout.b_name


def resizable_pairs(adapter: Adapter) -> list[StoredPair]:
    """Return the adapter's pairs, in the order of its modules.

    Raises:
        AdapterError: a lower rank would change more than the part left out, or no config can express it.
    """
    refusal = next(obstacles(adapter, Operation.RESIZE), None)
    if refusal is not None:
        raise AdapterError(f"cannot resize this adapter: {refusal}", advice=_CONVERT)
    unread = [name for name, role in adapter.roles.items() if role == "not_analysed"]
    if unread:
        why = adapter.skipped[0].reason if adapter.skipped else "not understood"
        raise AdapterError(
            f"cannot resize this adapter: {len(unread)} of its tensors may depend on the rank ({unread[0]}: {why})",
            advice="'gradience audit --verbose' lists them",
        )
    if not adapter.modules:
        raise AdapterError("cannot resize this adapter: it holds no LoRA pair", advice="give the folder PEFT saved")
    pairs = stored_pairs(adapter)
    _refuse_unequal(pairs)
    return pairs


def _refuse_unequal(pairs: Sequence[StoredPair]) -> None:
    """Refuse pairs that share a pattern but differ in rank or scale, because no config can express that."""
    firsts: dict[str, Module] = {}
    for pair in pairs:
        module, other = pair.first, firsts.setdefault(pair.path, pair.first)
        if (module.r, module.scale) != (other.r, other.scale):
            raise AdapterError(
                f"{other.name} and {module.name} share their config, but have ranks {other.r} and {module.r} "
                f"and scales {other.scale:g} and {module.scale:g}",
                advice="save each adapter in a folder of its own",
            )


def refuse_to_run(subject: Subject) -> None:
    """Refuse an adapter that no model can run with while its pairs change.

    Raises:
        AdapterError: PEFT would not load these files, or the adapter is of a kind that cannot be resized so.
    """
    adapter, files = subject.stored.adapter, subject.stored.files
    if adapter.format != "peft":
        raise AdapterError(
            f"the adapter is in {adapter.format}'s format, which PEFT does not load",
            advice="'gradience convert' makes a PEFT adapter of it",
        )
    if files.config != files.folder / CONFIG_NAME or files.weights.name not in _OF_PEFT:
        raise AdapterError(
            f"PEFT loads {CONFIG_NAME} and {_OF_PEFT[0]} of one folder, and these are {files.config} and "
            f"{files.weights}",
            advice="to run the model, put both into a folder under these names",
        )
    if traits_of(adapter).dora:
        raise AdapterError(
            "DoRA's magnitudes are relative to norm(W + s B A), and would have to follow each change of B A",
            advice=BY_WEIGHTS,
        )
    experts = next((pair.path for pair in subject.pairs if pair.first.expert is not None), None)
    if experts is not None:
        raise AdapterError(
            f"{experts} is a parameter of experts: their factors are multiplied before any token meets them, so that "
            "there is no A x to observe",
            advice=BY_WEIGHTS,
        )


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


def split_inputs(place: PathLike, loaded: LoadedModel, *, most: int, seed: int) -> Split:
    """Read the inputs and split them; if there are fewer than wanted, a third of them is held out to measure on.

    Args:
        place: the file.
        loaded: the model.
        most: the inputs that are not held out, at most.
        seed: seed of the choice of inputs.

    Raises:
        ConfigError: the file cannot be read, or holds too few different inputs.
    """
    measured = MEASURED_ROWS if loaded.task == "sequence-classification" else MEASURED_ON
    inputs = read_inputs(place, loaded, most=most + measured, seed=seed)
    # Rows that differ may be equal once they are cut; of these the first is taken.
    first: dict[tuple[int, ...], ModelInput] = {}
    for example in inputs.examples:
        first.setdefault(example.ids, example)
    different = list(first.values())
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
    if not any(tail in wanted for name in others for tail in dotted_tails(name)):
        return {"target_modules": sorted(wanted)}
    pattern = "|".join(re.escape(name) for name in sorted(wanted))
    return {"target_modules": f"(?:{pattern})", "layers_to_transform": None, "layers_pattern": None}
