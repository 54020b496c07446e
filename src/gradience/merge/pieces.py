"""Each module merged, its factors on disk, and the tensors that they make up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from gradience.adapters.modules import Array
from gradience.adapters.tensors import DTYPES
from gradience.adapters.write import PlannedTensor, planned
from gradience.merge.methods import DENSE, Losses, Recipe, merged_module
from gradience.merge.slots import Slot
from gradience.rewrite.several import Side
from gradience.rewrite.spool import Spool

__all__ = ["DTYPE_NAMES", "Piece", "Progress", "common_dtype", "merged_pieces", "ranks_of", "tensors_of"]

Progress: TypeAlias = Callable[[int, int, str], None]

DTYPE_NAMES: Final[Mapping[str, str]] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DOUBLE: Final = 8  # bytes


class Piece(NamedTuple):
    """A module merged: its factors on disk, and what they cost."""

    name: str
    kind: str
    ranks: list[int]
    rank: int
    load: Callable[[], tuple[Array, Array]]
    losses: Losses
    dense_bytes: int


def merged_pieces(
    slots: Sequence[Slot], recipe: Recipe, stored: str, spool: Spool, progress: Progress | None
) -> list[list[Piece]]:
    """Return each slot's modules merged, one in memory at a time."""
    total = sum(len(slot.rows) for slot in slots)
    pieces: list[list[Piece]] = []
    done = 0
    for slot in slots:
        pieces.append([])
        for row in slot.rows:
            module = next(m for m in row if m is not None)
            rounded, losses = merged_module(row, recipe, DTYPES[stored])
            b, a = spool.keep(rounded.b), spool.keep(rounded.a)
            dense = math.prod(module.shape) * _DOUBLE if recipe.method in DENSE else 0
            ranks = [m.r if m is not None else 0 for m in row]
            pieces[-1].append(Piece(module.name, module.kind, ranks, rounded.b.shape[1], _both(b, a), losses, dense))
            done += 1
            if progress is not None:
                progress(done, total, module.name)
    return pieces


def _both(b: Callable[[], Array], a: Callable[[], Array]) -> Callable[[], tuple[Array, Array]]:
    return lambda: (b(), a())


def ranks_of(slots: Sequence[Slot], merged: Sequence[Sequence[Piece]], recipe: Recipe) -> dict[str, int]:
    """Return the rank of each path: one for all modules where `linear` found it, as far as their factors go."""
    ranks: dict[str, int] = {}
    most = max(piece.rank for pieces in merged for piece in pieces)
    for slot, pieces in zip(slots, merged, strict=True):
        for piece in pieces:
            rank = min(most, sum(piece.ranks)) if recipe.method == "linear" else piece.rank
            ranks[slot.path] = max(ranks.get(slot.path, 1), rank)
    return ranks


def common_dtype(sides: Sequence[Side], slots: Sequence[Slot]) -> str:
    """Return the dtype that all factors have, by safetensors' name, if it is one that adapters are saved in."""
    found = {
        side.adapter.tensors[name].dtype
        for slot in slots
        for side, module in zip(sides, slot.rows[0], strict=True)
        if module is not None
        for name in module.keys.values()
    }
    return found.pop() if len(found) == 1 and found <= set(DTYPE_NAMES.values()) else "F32"


def tensors_of(
    slots: Sequence[Slot], merged: Sequence[Sequence[Piece]], ranks: Mapping[str, int], stored: str
) -> list[PlannedTensor]:
    """Return the tensors of the pairs; `stored` is their dtype by safetensors' name."""
    tensors = []
    for slot, pieces in zip(slots, merged, strict=True):
        rank = ranks[slot.path]
        shapes = slot.shapes(rank)
        for place, name in enumerate((slot.a_name, slot.b_name)):
            tensors.append(planned(name, stored, shapes[place], _laid_out(slot, pieces, rank, place)))
    return tensors


def _laid_out(slot: Slot, pieces: Sequence[Piece], rank: int, place: int) -> Callable[[], Array]:
    return lambda: slot.laid_out([piece.load() for piece in pieces], rank)[place]
