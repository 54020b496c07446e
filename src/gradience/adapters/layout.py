"""The types of an opened adapter: parsed tensor names, modules with their updates, and tensors left over.

A reader (`adapters.formats`) sorts the tensors of a file into groups, one for each adapted module. A builder
(`adapters.kinds`) makes a `Module` of each group, whose `load` returns the two factors of its update. If that is not
possible, it raises UnsuitableError with the reason. No tensor's data is read until a module is loaded.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from gradience.adapters.config import AdapterConfig, ScalingRules, parse_config, read_config
from gradience.errors import AdapterError
from gradience.io.safetensors import TensorInfo, TensorSource, is_float
from gradience.schema.audit import LeftoverReason, Role

Array: TypeAlias = npt.NDArray[Any]
LoadFactors: TypeAlias = Callable[[], tuple[Array, Array]]
DenseUpdate: TypeAlias = Callable[[Array], Array]
FactoredUpdate: TypeAlias = Callable[[Array], tuple[Array, Array]]

PREFIX: Final = "base_model.model."
MOST_ELEMENTS: Final = 1 << 27
"""Entries of the largest array that a factor may be unfolded to; real adapters stay far below it."""

LARGEST_ENTRY: Final = 3.4e38
"""The largest magnitude of a factor's or update's entry.

It is float32's range, in which merges compute, and its fourth power is within float64's range.
"""

_EXPONENTS: Final = {"float16": 0x7C00, "bfloat16": 0x7F80}  # the exponent bits: all are set if a number is not finite

LOHA_FIELDS: Final = tuple(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))
LOKR_FIELDS: Final = tuple(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"))
_LORA_FIELDS: Final = (
    *("lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B"),
    *("lora_magnitude_vector", "lora_diag"),
)
_FIELDS: Final = frozenset({*_LORA_FIELDS, *LOHA_FIELDS, *LOKR_FIELDS, "vera_lambda_b", "vera_lambda_d"})
# torch.compile and FSDP leave their own wrappers in the names of a raw state dict.
_WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_LAYER: Final = re.compile(r"((?:^|\.)(?:layers|layer|h)\.)(\d+)(?=\.)")

_P = ParamSpec("_P")
_T = TypeVar("_T")


def within_range(*arrays: Array) -> bool:
    """Whether all entries are finite and at most `LARGEST_ENTRY` in magnitude."""
    return all(all_finite(array) and not _beyond(array) for array in arrays)


def all_finite(array: Array) -> bool:
    """Whether all entries are finite; for 16-bit floats the bit patterns are compared, an eighth of isfinite's work."""
    exponent = _EXPONENTS.get(array.dtype.name)
    # The bits are read in the machine's order; .npz and HDF5 files may have the other.
    if exponent is None or array.dtype.byteorder == ">":
        return bool(np.isfinite(array).all())
    bits = array.view(np.uint16) & np.uint16(0x7FFF)
    return not bits.size or bool(bits.max() < exponent)


def _beyond(array: Array) -> bool:
    return array.dtype == np.float64 and bool((np.abs(array) > LARGEST_ENTRY).any())


def check_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse an update whose shape is not the base weight's.

    Raises:
        AdapterError: the shapes differ.
    """
    if shape != expected:
        message = f"an update of shape {list(shape)} for a base weight of {list(expected)}"
        raise AdapterError(message, advice="give the base model that the adapter was trained on")


def oriented(b: Array, a: Array, shape: tuple[int, ...]) -> tuple[Array, Array, bool]:
    """B and A in the orientation of a base weight of this shape, and whether they were transposed for that.

    Experts of some models are stored (in, out), and the adapter's file does not say so: the base's shape decides.

    Raises:
        AdapterError: the base weight has another shape.
    """
    if (len(b), a.shape[1]) != shape and (a.shape[1], len(b)) == shape:
        return a.T, b.T, True
    check_shape((len(b), a.shape[1]), shape)
    return b, a, False


class Key(NamedTuple):
    """The parsed name of a tensor that belongs to a module's update; `leaf` is `weight`, `bias` or empty."""

    module: str
    field: str
    adapter: str
    leaf: str


@functools.lru_cache(maxsize=1 << 14)  # four readers ask for each name, and a fleet's files have the same names
def parse_key(key: str) -> Key | None:
    """Parse a tensor's name in PEFT's layout; None if the name is not of a part of an update.

    >>> parse_key("base_model.model.h.0.attn.lora_A.default.weight")
    Key(module='h.0.attn', field='lora_A', adapter='default', leaf='weight')
    """
    parts = key.removeprefix(PREFIX).split(".")
    # Search from the end, because a module may be named like a field. The first part cannot be the field, because a
    # module's name comes before it.
    at = next((i for i in range(len(parts) - 1, 0, -1) if parts[i] in _FIELDS), 0)
    if at == 0:
        return None
    rest = parts[at + 1 :]
    leaf = rest.pop() if rest and rest[-1] in {"weight", "bias"} else ""
    path = parts[:at]
    if not _WRAPPERS.isdisjoint(path):
        path = [part for part in path if part not in _WRAPPERS]
    return Key(".".join(path), parts[at], ".".join(rest), leaf)


def module_path(module: str) -> str:
    """The module's path in the base model, without the `base_layer` parts that PEFT inserts."""
    if "base_layer" not in module:
        return module
    return ".".join(part for part in module.split(".") if part != "base_layer")


def pattern_name(module: str) -> str:
    """The path that PEFT matches patterns against.

    PEFT's MultiheadAttention layer wraps its own out_proj, and gives it the rank and alpha of the whole layer.
    """
    return module.removesuffix(".base_layer.out_proj")


@dataclass(frozen=True, slots=True)
class Module:
    """The update dW = scale * b @ a of one module; `load` returns (b, a), b (d_out, r), a (r, d_in).

    Both are oriented as the base stores its weight: for a Conv1D, fan_in_fan_out or embedding module, `load`
    transposes them. `shape` is (b's rows, a's columns). A convolution's weight is flattened to (out, in * kernel). For
    experts of some models the file does not say whether the stored weight is transposed. The base's shape decides
    there; singular values do not depend on it. `alpha` is r if the format has none. `note` is a remark on this module.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    r: int
    alpha: float
    scale: float
    params: int
    load: LoadFactors
    config_r: int | None = None
    alpha_pattern: str | None = None
    """The key of alpha_pattern that matched, or None for the config's alpha."""
    rank_pattern: str | None = None
    pattern_path: str | None = None
    """The path that PEFT matches patterns against; modules with one path share rank and alpha. None outside PEFT."""
    rslora: bool = False
    base_name: str | None = None
    """The base's tensor, such as `model.layers.0.self_attn.q_proj.weight`, before any replication of layers."""
    dense: DenseUpdate | None = None
    """If the true update is not s b a: a function from the base weight as stored to the true update as a matrix."""
    factored: FactoredUpdate | None = None
    """Beside `dense`, if the true update's rank is far below its sides (2 r for PiSSA): the true update as (b, a)."""
    is_unknown: bool = False
    """The initialisation changed the base by an unrecorded amount, so not even the base gives the true update."""
    expert: int | None = None
    """The index of the slice of the base's 3-D tensor that this updates; `dense` takes the slice."""
    magnitude: Callable[[], Array] | None = None
    """DoRA's magnitudes, one for each output (for each column of an embedding)."""
    note: str | None = None
    adapter: str | None = None
    """The adapter's name if the file holds several."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """The module's tensors: a field (`lora_A`, `lora_B.bias`, ...) to the name in the file. Experts share theirs."""


class NeedsBase(NamedTuple):
    """A module whose update only follows with the base weight, and the reason."""

    module: Module
    reason: str


@dataclass(frozen=True, slots=True)
class LeftoverTensor:
    """A tensor or group that is not analysed; `reason` is text for people, `cause` is for programs."""

    name: str
    reason: str
    cause: LeftoverReason = LeftoverReason.SHAPE


ReadModule: TypeAlias = Module | NeedsBase | LeftoverTensor


class UnsuitableError(Exception):
    """A group's tensors do not form a module that can be analysed. Builders raise it, and readers report it."""

    def __init__(self, reason: str, cause: LeftoverReason = LeftoverReason.SHAPE) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause


class Files(NamedTuple):
    """An adapter's opened weights, and the path of its config, which may not exist; `raw` if its bytes are at hand.

    `unscaled` allows that no config states the scale.
    """

    source: TensorSource
    config: Path
    raw: bytes | None = None
    unscaled: bool = False

    @property
    def has_config(self) -> bool:
        """Whether the config exists."""
        return self.config.is_file()

    def read_config(self) -> AdapterConfig:
        """Read the config.

        Raises:
            AdapterError: it is missing, or not an adapter's.
        """
        return read_config(self.config) if self.raw is None else parse_config(self.raw, str(self.config))

    def optional_config(self) -> AdapterConfig:
        """Read the config, or return the defaults if there is none."""
        return self.read_config() if self.has_config else AdapterConfig()


@dataclass(frozen=True, slots=True)
class Format:
    """A format of adapter files: how to recognise it, how to read it, and its conventions.

    Each format has one record, in the module of `adapters.formats` that reads it. `adapters.formats.FORMATS` is the
    table of them.
    """

    name: str
    matches: Callable[[Files], bool]
    read: Callable[[Files], Adapter]
    is_peft: bool = False
    """The config is PEFT's, with its patterns of rank and alpha, `fan_in_fan_out` and types other than LoRA."""
    module_paths: bool = True
    """Modules are named by their path in the base model. (sd-scripts writes underscores for the dots.)"""
    component_prefix: bool = False
    """Names begin with a component of a pipeline, such as `unet.`"""
    embeds_by_name: bool = False
    """Only a module's name shows that it is an embedding; its update applies to a tied head too."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as its files declare it: every tensor has a role, every pair is a module.

    `base_dependent` are modules whose update only follows with the base weight (`dense`). Their `load` raises
    AdapterError. A width of 0 in their `shape` means that the file does not give it. Each is also in `skipped`, for an
    audit without a base.
    """

    file_format: Format
    config: AdapterConfig
    modules: list[Module]
    roles: dict[str, Role]
    tensors: dict[str, TensorInfo]
    skipped: list[LeftoverTensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    weights: list[Path] = field(default_factory=list)
    base_dependent: list[Module] = field(default_factory=list)
    unmatched_rank_patterns: list[str] = field(default_factory=list)
    unmatched_alpha_patterns: list[str] = field(default_factory=list)
    by_peft: bool = False
    """Whether no formula is known here: the update is what PEFT's own merge makes of the base (`models.merged`)."""
    source: TensorSource | None = None
    """The file or files that hold the tensors."""

    @property
    def format(self) -> str:
        """The name of the format, as reports give it."""
        return self.file_format.name


@dataclass(slots=True)
class Group:
    """One module's tensors: `keys` maps a field (`lora_A`, `lora_B.bias`, `alpha`, ...) to a tensor's name."""

    module: str
    adapter: str = ""
    keys: dict[str, str] = field(default_factory=dict)


class _ThreadCache(threading.local):
    """A cache for each thread, because several threads load modules."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Context:
    """The data that the builders of one adapter's modules share."""

    source: TensorSource
    config: AdapterConfig
    rules: ScalingRules
    several: bool = False
    """Whether the file holds more than one adapter."""
    attention: frozenset[str] = frozenset()
    """Paths of the modules that are a MultiheadAttention; their own pair belongs to in_proj."""
    layers: tuple[int, ...] = ()
    """layer_replication unrolled: the index of the base's layer for each layer of the adapted model."""
    memory: _ThreadCache = field(default_factory=_ThreadCache)

    @property
    def kept(self) -> dict[str, Any]:
        """This thread's cache of the tensors it read last, for modules that share a tensor."""
        return self.memory.kept

    def shape(self, group: Group, name: str) -> tuple[int, ...]:
        """The shape of a field's tensor, from the file's header."""
        return self.source.tensors[group.keys[name]].shape

    def size(self, group: Group, *without: str) -> int:
        """The number of parameters in the group's tensors, without those of the given fields."""
        return sum(self.source.tensors[key].size for name, key in group.keys.items() if name not in without)

    def reader(self, group: Group, name: str) -> Callable[[], Array]:
        """A function that reads a field's tensor."""
        key = group.keys[name]
        return lambda: self.source.read(key)

    def expert(self, read: LoadFactors, key: str, index: int) -> LoadFactors:
        """A loader of one expert's factors from the stacks that `read` gives; `key` names these.

        A thread holds the stacks that it read last, so those of experts loaded one after the other are read once.
        """

        def load() -> tuple[Array, Array]:
            stack = self.kept.get("stack")
            if stack is None or stack[0] != key:
                self.kept.clear()  # so that a thread holds at most one pair of an adapter
                stack = self.kept["stack"] = (key, *read())
            return stack[1][index], stack[2][index]

        return load

    def name(self, group: Group) -> str:
        """The module's name for reports: its path, with the adapter's name if the file holds several."""
        path = module_path(group.module)
        return f"{path}:{group.adapter or 'default'}" if self.several else path

    def adapter(self, group: Group) -> str | None:
        """The adapter's name if the file holds several, else None."""
        return (group.adapter or "default") if self.several else None

    def base_path(self, module: str) -> str:
        """The module's path in the base's checkpoint, with a replicated layer's index mapped back to the base's."""
        path = module_path(module)
        if not self.layers:
            return path
        return _LAYER.sub(lambda hit: f"{hit[1]}{self._base_layer(int(hit[2]))}", path, count=1)

    # layer_replication renumbers the layers, and the base's checkpoint holds each original layer once.
    def _base_layer(self, index: int) -> int:
        return self.layers[index] if index < len(self.layers) else index

    def require(self, group: Group, *names: str) -> None:
        """Check that the fields' tensors are present, floating point and not empty.

        Raises:
            UnsuitableError: one of them is missing, of another dtype, or empty.
        """
        missing = [name for name in names if name not in group.keys]
        if missing:
            present = ", ".join(name for name in names if name in group.keys) or "nothing else"
            reason = f"{', '.join(missing)} is missing beside {present}"
            raise UnsuitableError(reason, LeftoverReason.FACTOR_MISSING)
        infos = [self.source.tensors[group.keys[name]] for name in names]
        if not all(is_float(info.dtype) for info in infos):
            reason = f"factors of dtype {_listed(info.dtype for info in infos)}: not floating point"
            raise UnsuitableError(reason, LeftoverReason.DTYPE)
        if any(0 in info.shape for info in infos):
            raise UnsuitableError(f"factors of shape {_listed(list(info.shape) for info in infos)}: no elements")


def _listed(items: Iterable[object]) -> str:
    return " and ".join(map(str, items))


Builder: TypeAlias = Callable[[Context, Group], ReadModule]


def reported(
    build: Callable[Concatenate[Context, Group, _P], _T],
) -> Callable[Concatenate[Context, Group, _P], _T | LeftoverTensor]:
    """Decorate a builder to return `LeftoverTensor`, with the module's name and the reason, for an UnsuitableError."""

    @functools.wraps(build)
    def wrapped(ctx: Context, group: Group, /, *args: _P.args, **options: _P.kwargs) -> _T | LeftoverTensor:
        try:
            return build(ctx, group, *args, **options)
        except UnsuitableError as error:
            return LeftoverTensor(ctx.name(group), error.reason, error.cause)

    return wrapped
