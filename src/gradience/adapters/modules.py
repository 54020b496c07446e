"""One adapted module, whatever format it came from: names, shapes, scale, and how to load its factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy.typing as npt

from gradience.adapters.config import AdapterConfig
from gradience.adapters.tensors import TensorInfo, TensorSource

__all__ = ["Adapter", "Array", "DenseUpdate", "LoadFactors", "Module", "NeedsBase", "Role", "Skipped"]

Array: TypeAlias = npt.NDArray[Any]
LoadFactors: TypeAlias = Callable[[], tuple[Array, Array]]
DenseUpdate: TypeAlias = Callable[[Array], Array]
Role: TypeAlias = Literal[
    "lora_pair", "magnitude", "bias", "full_module", "token_rows", "base_copy", "scale", "not_analysed", "unknown"
]


@dataclass(frozen=True, slots=True)
class Module:
    """The update dW = scale * b @ a of one module; `load` returns (b, a), b (d_out, r), a (r, d_in).

    Both are oriented as the base stores its weight: for a Conv1D, fan_in_fan_out or embedding module `load`
    has already turned them, and `shape` is b's rows by a's columns. A convolution's weight is flattened to
    (out, in * kernel). Where the file cannot say whether the stored weight is turned (experts of some
    models), the base's shape decides; singular values do not depend on it. `alpha` is r where a format has
    none. `note` is a remark on this module alone.
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
    """The key of alpha_pattern that applied, or None for the config's alpha."""
    rank_pattern: str | None = None
    pattern_path: str | None = None
    """The path that PEFT matches patterns against: modules that share it share rank and alpha. None outside PEFT."""
    rslora: bool = False
    base_name: str | None = None
    """The base's tensor, such as `model.layers.0.self_attn.q_proj.weight`, before any replication of layers."""
    dense: DenseUpdate | None = None
    """Given the base weight as stored: the true update as a matrix, where s b a is not the whole of it."""
    expert: int | None = None
    """Which slice of the base's 3-D tensor this is; `dense` takes the slice."""
    magnitude: Callable[[], Array] | None = None
    """DoRA's magnitudes, one for each output (each column of an embedding)."""
    note: str | None = None
    adapter: str | None = None
    """The adapter's name where the file holds several."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """The tensors it is made of: `lora_A`, `lora_B.bias`, ... to the name in the file. Experts share theirs."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A tensor or group that no number speaks of, and why."""

    name: str
    reason: str


class NeedsBase(NamedTuple):
    """A module whose update is a function of the base weight alone, and why."""

    module: Module
    reason: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as its files declare it: every tensor has a role, every pair is a module.

    `needs_base` are modules whose update is a function of the base weight alone (`dense`): their `load`
    raises AdapterError, a width of 0 in `shape` means that the file does not say it, and each is named in
    `skipped` too, for an audit without a base.
    """

    format: str
    config: AdapterConfig
    modules: list[Module]
    roles: dict[str, Role]
    tensors: dict[str, TensorInfo]
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    weights: list[Path] = field(default_factory=list)
    needs_base: list[Module] = field(default_factory=list)
    unmatched_rank_patterns: list[str] = field(default_factory=list)
    unmatched_alpha_patterns: list[str] = field(default_factory=list)
    source: TensorSource | None = None
    """The file or files that hold the tensors."""
