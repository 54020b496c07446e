"""The tensors of the merged file: which modules share a pair, what it is named, and how it is laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.keys import PREFIX, parse_key
from gradience.adapters.modules import Array, Module
from gradience.errors import AdapterError
from gradience.rewrite.several import Side

__all__ = ["Slot", "slots_of"]

_MATRIX: Final = 2

Row = Sequence[Module | None]


class Slot(NamedTuple):
    """One pair of tensors: of one module, or of all experts of a parameter. Rows hold each adapter's module or None.

    `path` is what PEFT matches patterns against. `turned`: the base stores the weight transposed to B A.
    `kernel` is what follows (r, in) in A's shape; `inner` is in.
    """

    path: str
    rows: tuple[Row, ...]
    a_name: str
    b_name: str
    inner: int
    out: int
    kernel: tuple[int, ...]
    turned: bool

    @property
    def first(self) -> Module:
        """A module that holds the pair."""
        return next(module for module in self.rows[0] if module is not None)

    @property
    def is_parameter(self) -> bool:
        """Whether PEFT finds it through target_parameters: the path then ends with the parameter's own name."""
        return (self.first.base_name or "").rpartition(".")[2] == self.path.rpartition(".")[2]

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of A and B at a rank."""
        n = len(self.rows)
        return (rank * n, self.inner, *self.kernel), (self.out, rank * n, *(1 for _ in self.kernel))

    def laid_out(self, pairs: Sequence[tuple[Array, Array]], rank: int) -> tuple[Array, Array]:
        """Return (A, B) as the file has them, from each row's (b, a) in the base's orientation; padded to the rank."""
        padded = [_padded(*((a.T, b.T) if self.turned else (b, a)), rank) for b, a in pairs]
        a = np.stack([a for _, a in padded])  # experts outermost
        b = np.stack([b for b, _ in padded], axis=_MATRIX)  # experts innermost
        shape_a, shape_b = self.shapes(rank)
        return a.reshape(shape_a), b.reshape(shape_b)


def _padded(b: Array, a: Array, rank: int) -> tuple[Array, Array]:
    missing = rank - len(a)
    return np.pad(b, ((0, 0), (0, missing))), np.pad(a, ((0, missing), (0, 0)))


def slots_of(sides: Sequence[Side], rows: Mapping[str, Row]) -> list[Slot]:
    """Return the pairs of tensors to write, in the order of the modules' names.

    Raises:
        AdapterError: adapters hold one module in different layouts, or different numbers of experts.
    """
    shared: dict[str, list[Row]] = {}
    for row in rows.values():
        layouts = [_layout(side, module) for side, module in zip(sides, row, strict=True) if module is not None]
        if any(layout != layouts[0] for layout in layouts):
            raise AdapterError(
                f"{next(m.name for m in row if m)} is laid out as {layouts[0]} in one adapter and as "
                f"{next(x for x in layouts if x != layouts[0])} in another",
                advice="are they of one base model?",
            )
        shared.setdefault(layouts[0][0], []).append(row)
    return [_slot(sides, some) for some in shared.values()]


def _layout(side: Side, module: Module) -> tuple[str, str, tuple[int, ...]]:
    """Return A's and B's names in the file that is written, and A's shape after the rank."""
    embedding = "lora_embedding_A" in module.keys
    names = [module.keys[f"lora_{'embedding_' if embedding else ''}{letter}"] for letter in "AB"]
    return _named(names[0]), _named(names[1]), tuple(side.adapter.tensors[names[0]].shape[1:])


def _named(name: str) -> str:
    """Return a tensor's name as PEFT saves it: with its prefix, without an adapter's name."""
    key = parse_key(name)
    if key is None:
        raise AdapterError(f"{name!r} is no tensor of a LoRA pair", advice="report this as a bug")
    return f"{PREFIX}{key.module}.{key.field}" + (f".{key.leaf}" if key.leaf else "")


def _slot(sides: Sequence[Side], rows: list[Row]) -> Slot:
    holders = [tuple(module is not None for module in row) for row in rows]
    if any(held != holders[0] for held in holders):
        raise AdapterError(
            f"the adapters have different numbers of experts in {_path(rows[0])}", advice="are they of one base model?"
        )
    side, module = next((s, m) for s, m in zip(sides, rows[0], strict=True) if m is not None)
    a_name, b_name, (inner, *kernel) = _layout(side, module)
    embedding = "lora_embedding_A" in module.keys
    return Slot(
        _path(rows[0]),
        tuple(rows),
        a_name,
        b_name,
        inner,
        _out(side, module),
        tuple(kernel),
        turned=embedding or (side.adapter.config.fan_in_fan_out and not kernel),
    )


def _out(side: Side, module: Module) -> int:
    key = "lora_embedding_B" if "lora_embedding_B" in module.keys else "lora_B"
    return side.adapter.tensors[module.keys[key]].shape[0]


def _path(row: Row) -> str:
    module = next(m for m in row if m is not None)
    if module.pattern_path is None or (module.expert is not None and module.base_name is None):
        raise AdapterError(
            f"{module.name}: which parameter this pair belongs to cannot be told, so no pattern can give it a rank",
            advice="name the parameters in target_parameters as the model does",
        )
    return module.pattern_path
