"""One adapted module, whatever format it came from: names, shapes, scale, and how to load its factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy.typing as npt

from gradience.adapters.config import AdapterConfig
from gradience.adapters.tensors import TensorInfo

__all__ = ["Adapter", "LoadFactors", "Module", "Role", "Skipped"]

Array: TypeAlias = npt.NDArray[Any]
LoadFactors: TypeAlias = Callable[[], tuple[Array, Array]]
Role: TypeAlias = Literal[
    "lora_pair", "magnitude", "bias", "full_module", "token_rows", "base_copy", "scale", "not_analysed", "unknown"
]


@dataclass(frozen=True, slots=True)
class Module:
    """The update dW = scale * b @ a of one module; `load` returns (b, a), b (d_out, r), a (r, d_in).

    `shape` is that of dW as the base stores its weight, so a Conv1D or fan_in_fan_out module, whose
    stored weight is transposed, has it turned. Singular values do not depend on it.
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


@dataclass(frozen=True, slots=True)
class Skipped:
    """A tensor or group that no number speaks of, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as its files declare it: every tensor has a role, every pair is a module."""

    format: str
    config: AdapterConfig
    modules: list[Module]
    roles: dict[str, Role]
    tensors: dict[str, TensorInfo]
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    weights: list[Path] = field(default_factory=list)
