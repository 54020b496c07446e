"""The modules of several adapters that are merged with each other, and the tensors of the merged ones in the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple

import numpy as np

from gradience.adapters.layout import PREFIX, Array, Module, parse_key
from gradience.adapters.pairs import LoraPair, StoredPair, padded, stored_pairs
from gradience.adapters.traits import Operation, obstacles
from gradience.errors import AdapterError
from gradience.io import Progress
from gradience.io.safetensors import DTYPES, PlannedTensor, planned
from gradience.rewriting.sides import StoredAdapter
from gradience.rewriting.writing import STORED, ArraySpool
from gradience.spectral import each_in_threads
from gradience.verbs.merge.methods import DENSE, Losses, Recipe, Row, merged_module

_CONVERT: Final = "'gradience convert' makes a plain LoRA of most types"
_SAME: Final = ("fan_in_fan_out", "layer_replication", "ensure_weight_tying")
_DOUBLE: Final = 8  # bytes


def refuse(sides: Sequence[StoredAdapter]) -> None:
    """Refuse adapters if the sum of their updates cannot be written as one plain LoRA.

    Raises:
        AdapterError: it cannot; the message gives the first reason.
    """
    for side in sides:
        reason = next(obstacles_of(side), None)
        if reason is not None:
            raise AdapterError(f"cannot merge {side.path}: {reason}", advice=_CONVERT)
    reason = next(obstacles_between(sides), None)
    if reason is not None:
        raise AdapterError(f"cannot merge these adapters: {reason}", advice="see 'gradience merge --check'")


def obstacles_of(side: StoredAdapter) -> Iterator[str]:
    """Yield the reasons for which one adapter cannot be merged: its update is not s B A, or is more than that."""
    return obstacles(side.adapter, Operation.MERGE)


def obstacles_between(sides: Sequence[StoredAdapter]) -> Iterator[str]:
    """Yield the reasons for which plain LoRA adapters cannot be merged with each other."""
    for field in _SAME:
        # What is empty, false or not there is PEFT's default alike.
        values = [side.raw.get(field) or None for side in sides]
        if any(value != values[0] for value in values):
            listed = " and ".join(f"{side.name} has {value!r}" for side, value in zip(sides, values, strict=True))
            yield f"{field} differs: {listed}"
    named = [sorted(side.raw["target_parameters"]) for side in sides if side.raw.get("target_parameters")]
    other = next((value for value in named if value != named[0]), None)
    if other is not None:
        yield f"target_parameters differs ({named[0]} and {other}), and with it which tensors are of which parameter"


class MergedPair(NamedTuple):
    """A pair of tensors to write; each of `rows` is one module or expert: every adapter's `Module`, or None."""

    path: str
    layout: LoraPair
    rows: tuple[Row, ...]

    @property
    def is_parameter(self) -> bool:
        """Whether PEFT finds it through target_parameters; the path then ends with the parameter's name."""
        base_name = _first(self.rows[0]).base_name or ""
        return base_name.rpartition(".")[2] == self.path.rpartition(".")[2]


def _first(row: Row) -> Module:
    return next(module for module in row if module is not None)


def merged_pairs(sides: Sequence[StoredAdapter], rows: Mapping[str, Row]) -> list[MergedPair]:
    """Return the pairs of tensors to write, in the order of the modules' names.

    Raises:
        AdapterError: the adapters hold a module in different layouts, or with different numbers of experts.
    """
    by_name = [{module.name: pair for pair in stored_pairs(side.adapter) for module in pair.modules} for side in sides]
    grouped: dict[LoraPair, list[Row]] = {}
    paths: dict[LoraPair, str] = {}
    for name, row in rows.items():
        stored = [pairs[name] for pairs, module in zip(by_name, row, strict=True) if module is not None]
        layouts = [_written_layout(pair) for pair in stored]
        if other := next((layout for layout in layouts if layout != layouts[0]), None):
            raise AdapterError(
                f"{name} is laid out as {_described(layouts[0])} in one adapter and as {_described(other)} in another",
                advice="are they of one base model?",
            )
        grouped.setdefault(layouts[0], []).append(row)
        paths[layouts[0]] = stored[0].path
    return [_merged_pair(paths[layout], layout, some) for layout, some in grouped.items()]


def _written_layout(pair: StoredPair) -> LoraPair:
    """Return a pair's layout under PEFT's names, without rank and experts: it must be equal in all adapters."""
    a_name, b_name = (_saved_name(name) for name in (pair.layout.a_name, pair.layout.b_name))
    return pair.layout._replace(a_name=a_name, b_name=b_name, rank=0, experts=1)


def _saved_name(name: str) -> str:
    """Return a tensor's name as PEFT saves it: with PEFT's prefix, and without an adapter's name."""
    key = parse_key(name)
    if key is None:
        raise AdapterError(f"{name!r} is not a tensor of a LoRA pair", advice="report this as a bug")
    return f"{PREFIX}{key.module}.{key.field}" + (f".{key.leaf}" if key.leaf else "")


def _described(layout: LoraPair) -> str:
    return f"{layout.a_name} (r, {', '.join(map(str, (layout.inner, *layout.kernel)))})"


def _merged_pair(path: str, layout: LoraPair, rows: list[Row]) -> MergedPair:
    holders = [tuple(module is not None for module in row) for row in rows]
    if any(one != holders[0] for one in holders):
        raise AdapterError(
            f"the adapters have different numbers of experts in {path}", advice="are they of one base model?"
        )
    return MergedPair(path, layout._replace(experts=len(rows)), tuple(rows))


class MergedFactors(NamedTuple):
    """A merged module: loaders of its factors, which are on disk, the adapters' ranks and its own, and the losses."""

    name: str
    kind: str
    ranks: list[int]
    rank: int
    load_b: Callable[[], Array]
    load_a: Callable[[], Array]
    losses: Losses
    dense_bytes: int


def merged_modules(
    pairs: Sequence[MergedPair], recipe: Recipe, stored: str, spool: ArraySpool, progress: Progress | None
) -> list[list[MergedFactors]]:
    """Merge the modules of each pair and return them; `stored` is the dtype of their factors.

    One module is in memory at a time, or one for each core if no dense matrix is formed.
    """
    tasks = [partial(_merged, row, recipe, stored, spool) for pair in pairs for row in pair.rows]
    merged = []
    for one in (task() for task in tasks) if recipe.method in DENSE else each_in_threads(tasks):
        merged.append(one)
        if progress is not None:
            progress(len(merged), len(tasks), one.name)
    rest = iter(merged)
    return [[next(rest) for _ in pair.rows] for pair in pairs]


def _merged(row: Row, recipe: Recipe, stored: str, spool: ArraySpool) -> MergedFactors:
    module = _first(row)
    factors, losses = merged_module(row, recipe, DTYPES[stored])
    load_b, load_a = spool.keep(factors.b), spool.keep(factors.a)
    return MergedFactors(
        module.name,
        module.kind,
        ranks=[m.r if m is not None else 0 for m in row],
        rank=factors.b.shape[1],
        load_b=load_b,
        load_a=load_a,
        losses=losses,
        dense_bytes=math.prod(module.shape) * _DOUBLE if recipe.method in DENSE else 0,
    )


def ranks_of(pairs: Sequence[MergedPair], merged: Sequence[Sequence[MergedFactors]], recipe: Recipe) -> dict[str, int]:
    """Return the rank of each path: the largest of its modules' ranks.

    With `linear`, a module's rank is the largest of all modules, but at most the sum of its adapters' ranks.
    """
    ranks: dict[str, int] = {}
    most = max(module.rank for modules in merged for module in modules)
    for pair, modules in zip(pairs, merged, strict=True):
        for module in modules:
            rank = min(most, sum(module.ranks)) if recipe.method == "linear" else module.rank
            ranks[pair.path] = max(ranks.get(pair.path, 1), rank)
    return ranks


def common_dtype(sides: Sequence[StoredAdapter], pairs: Sequence[MergedPair]) -> str:
    """Return the dtype (safetensors' name) of all factors if they share one that adapters are saved in, else F32."""
    dtypes = {
        side.adapter.tensors[name].dtype
        for pair in pairs
        for side, module in zip(sides, pair.rows[0], strict=True)
        if module is not None
        for name in module.keys.values()
    }
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(STORED.values()) else "F32"


def tensors_of(
    pairs: Sequence[MergedPair], merged: Sequence[Sequence[MergedFactors]], ranks: Mapping[str, int], stored: str
) -> list[PlannedTensor]:
    """Return the tensors of the pairs; `stored` is their dtype (safetensors' name)."""
    tensors = []
    for pair, modules in zip(pairs, merged, strict=True):
        rank, layout = ranks[pair.path], pair.layout
        shape_a, shape_b = layout.shapes(rank)
        tensors.append(planned(layout.a_name, stored, shape_a, partial(_joined, layout, modules, rank, "A")))
        tensors.append(planned(layout.b_name, stored, shape_b, partial(_joined, layout, modules, rank, "B")))
    return tensors


def _joined(layout: LoraPair, modules: Sequence[MergedFactors], rank: int, side: Literal["A", "B"]) -> Array:
    """Return one of the file's tensors from the modules' factors, zero-padded to the rank."""
    is_b = side == "B"
    if is_b != layout.transposed:
        parts = [module.load_b() for module in modules]
        factors = [padded(b, (len(b), rank)) for b in parts]
    else:
        parts = [module.load_a() for module in modules]
        factors = [padded(a, (rank, a.shape[1])) for a in parts]
    stack = factors[0][None] if len(factors) == 1 else np.stack(factors)
    stack = stack.swapaxes(1, 2) if layout.transposed else stack
    return layout.joined_b(stack, rank) if is_b else layout.joined_a(stack, rank)
