"""The tensors of a file gathered by the module they belong to, and what every reader of them needs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from gradience.adapters.config import AdapterConfig, ScalingRules
from gradience.adapters.keys import module_path
from gradience.adapters.modules import Array, Skipped
from gradience.adapters.tensors import TensorInfo, TensorSource, is_float

__all__ = ["MOST_ELEMENTS", "Context", "Group"]

MOST_ELEMENTS: Final = 1 << 27
"""The largest array that a factor may be unfolded to; no real adapter comes near."""

_LAYER: Final = re.compile(r"((?:^|\.)(?:layers|layer|h)\.)(\d+)(?=\.)")


@dataclass(slots=True)
class Group:
    """One module's tensors: `keys` maps a field (`lora_A`, `lora_B.bias`, `alpha`, ...) to a tensor's name."""

    module: str
    adapter: str = ""
    keys: dict[str, str] = field(default_factory=dict)


class Memory(threading.local):
    """What one thread keeps: modules are loaded from several."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Context:
    """What the modules of one adapter share."""

    source: TensorSource
    config: AdapterConfig
    rules: ScalingRules
    several: bool = False
    """Whether the file holds more than one adapter."""
    attention: frozenset[str] = frozenset()
    """Modules that are a MultiheadAttention: their own pair is in_proj's."""
    memory: Memory = field(default_factory=Memory)
    layers: tuple[int, ...] = ()
    """layer_replication unrolled: the base's layer for each layer of the adapted model."""

    @property
    def kept(self) -> dict[str, Any]:
        """What this thread read last, where several modules share a tensor."""
        return self.memory.kept

    def info(self, group: Group, name: str) -> TensorInfo:
        """Return what the file declares of a field's tensor."""
        return self.source.tensors[group.keys[name]]

    def reader(self, group: Group, name: str) -> Callable[[], Array]:
        """Return a function that reads a field's tensor."""
        key = group.keys[name]
        return lambda: self.source.read(key)

    def name(self, group: Group) -> str:
        """Return the module's name as a report shows it."""
        path = module_path(group.module)
        return f"{path}:{group.adapter or 'default'}" if self.several else path

    def adapter(self, group: Group) -> str | None:
        """Return the adapter's name where the file holds several."""
        return (group.adapter or "default") if self.several else None

    def base_path(self, module: str) -> str:
        """Return the module's path in the base's own checkpoint: a replicated layer's index mapped back."""
        path = module_path(module)
        if not self.layers:
            return path
        return _LAYER.sub(lambda hit: f"{hit[1]}{self._base_layer(int(hit[2]))}", path, count=1)

    def _base_layer(self, index: int) -> int:
        return self.layers[index] if index < len(self.layers) else index

    def misuse(self, group: Group, *names: str) -> Skipped | None:
        """Return why tensors cannot be used: missing, not floating point, or an axis of no elements."""
        held = [self.source.tensors[group.keys[n]] for n in names if n in group.keys]
        if len(held) < len(names):
            missing = ", ".join(n for n in names if n not in group.keys)
            present = ", ".join(n for n in names if n in group.keys) or "nothing else"
            return Skipped(self.name(group), f"{missing} is missing beside {present}")
        if not all(is_float(info.dtype) for info in held):
            return Skipped(self.name(group), f"factors of dtype {_listed(i.dtype for i in held)}: not floating point")
        if any(0 in info.shape for info in held):
            return Skipped(self.name(group), f"factors of shape {_listed(list(i.shape) for i in held)}: no elements")
        return None


def _listed(items: object) -> str:
    return " and ".join(str(item) for item in items)  # type: ignore[attr-defined]
