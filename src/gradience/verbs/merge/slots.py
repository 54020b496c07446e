"""What cannot be merged from factors alone, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.kinds.lora import base_changing
from gradience.adapters.layout import PREFIX, Array, Module, parse_key
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, PlannedTensor, planned
from gradience.io.spool import Spool
from gradience.io.types import Progress
from gradience.verbs.merge.methods import DENSE, Losses, Recipe, merged_module
from gradience.verbs.several import Side

_KINDS: Final = ("linear", "embedding", "conv", "expert")
_CONVERT: Final = "'gradience convert' makes a plain LoRA of most types"
_SAME: Final = ("fan_in_fan_out", "layer_replication", "ensure_weight_tying")


def refuse(sides: Sequence[Side]) -> None:
    """Raise where the sum of the updates cannot be written as one plain LoRA.

    Raises:
        AdapterError: with the first reason.
    """
    for side in sides:
        reason = next(obstacles_of(side), None)
        if reason is not None:
            raise AdapterError(f"cannot merge {side.path}: {reason}", advice=_CONVERT)
    reason = next(obstacles_between(sides), None)
    if reason is not None:
        raise AdapterError(f"cannot merge these adapters: {reason}", advice="see 'gradience merge-check'")


def obstacles_of(side: Side) -> Iterator[str]:
    """Yield why an adapter is no plain LoRA: its update is another than s B A, or holds more than that."""
    adapter, config = side.adapter, side.adapter.config
    if adapter.format != "peft":
        yield f"it is in {adapter.format}'s format, not PEFT's"
        return
    if config.peft_type not in {"LORA", None}:
        yield f"peft_type {config.peft_type} is not LoRA"
        return
    if (init := base_changing(config.init_lora_weights)) is not None:
        yield (
            f"init_lora_weights={config.init_lora_weights!r}: {init} took a part out of the base, so its update is not "
            "s B A alone"
        )
    if any(module.magnitude is not None for module in adapter.modules):
        yield "DoRA rescales each row of W + s B A: its update is no function of the factors alone"
    for field, what in (
        ("kasa_config", "KaSA takes singular values out of the base"),
        ("use_bdlora", "BD-LoRA's factors are block-diagonal"),
        ("use_qalora", "QALoRA's A is of pooled inputs"),
        ("arrow_config", "Arrow routes by the input"),
        ("alora_invocation_tokens", "aLoRA applies after its invocation tokens only"),
        ("lora_bias", "lora_bias: a bias of its own beside B A"),
    ):
        if side.raw.get(field):
            yield f"{what} ({field})"
    if any(module.adapter is not None for module in adapter.modules):
        yield "the file holds several adapters"
    yield from _unknown(side)


def _unknown(side: Side) -> Iterator[str]:
    adapter = side.adapter
    other = next((m for m in adapter.modules if m.kind not in _KINDS and m.magnitude is None), None)
    if other is not None:
        yield f"{other.name} is of kind {other.kind}"
    if adapter.base_dependent:
        yield f"{adapter.base_dependent[0].name} needs the base model"
    strange = [name for name, role in adapter.roles.items() if role in {"unknown", "not_analysed"}]
    if strange:
        yield f"{len(strange)} of its tensors are not understood (first: {strange[0]})"


def obstacles_between(sides: Sequence[Side]) -> Iterator[str]:
    """Yield why plain LoRAs do not fit each other."""
    for field in _SAME:
        values = [side.raw.get(field) or None for side in sides]
        if any(value != values[0] for value in values):
            told = " and ".join(f"{side.name} has {value!r}" for side, value in zip(sides, values, strict=True))
            yield f"{field} differs: {told}"
    named = [sorted(side.raw["target_parameters"]) for side in sides if side.raw.get("target_parameters")]
    other = next((value for value in named if value != named[0]), None)
    if other is not None:
        yield f"target_parameters differs ({named[0]} and {other}), and with it which tensors are of which parameter"


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
        b = np.stack([b for b, _ in padded], axis=2)  # experts innermost
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
