"""The adapter that is resized: its pairs, and whether a lower rank can be written, or a model run with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from gradience.adapters.layout import Adapter, Module
from gradience.adapters.open import CONFIG_NAME
from gradience.adapters.pairs import StoredPair, stored_pairs
from gradience.adapters.traits import Operation, obstacles, traits_of
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, TensorSource
from gradience.rewrite.sides import StoredAdapter

BY_WEIGHTS: Final = "resize it by its weights, without --calibrate and --recover"

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
