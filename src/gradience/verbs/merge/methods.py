"""One module merged: the update that a method defines, the factors that hold it, and what these leave out.

`linear` and `cat` are exact, `svd` is the best approximation of a rank, all from the factors in float64. TIES and DARE
work on single entries, so they form each dense update in float32, one module in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters.layout import PREFIX, Array, Module, all_finite, parse_key
from gradience.adapters.pairs import LoraPair, StoredPair, padded, stored_pairs
from gradience.adapters.traits import Operation, obstacles
from gradience.errors import AdapterError
from gradience.io.paths import Progress
from gradience.io.safetensors import DTYPES, PlannedTensor, planned
from gradience.io.spool import Spool
from gradience.schema.merge import MergeMethod
from gradience.spectral.dense import leading_part
from gradience.spectral.sums import (
    Pair,
    balanced_sum,
    balancing,
    gram_norm,
    is_narrow,
    low_rank_sum,
    numerical_rank,
    pair_grams,
    squared_distance,
    squared_norm,
    sum_grams,
)
from gradience.spectral.threads import each_in_threads
from gradience.spectral.update import reduced, stacked
from gradience.verbs.merge.dense import dense_target, difference
from gradience.verbs.sides import Side
from gradience.verbs.writing import STORED

_CONVERT: Final = "'gradience convert' makes a plain LoRA of most types"
_SAME: Final = ("fan_in_fan_out", "layer_replication", "ensure_weight_tying")
_DOUBLE: Final = 8  # bytes


def refuse(sides: Sequence[Side]) -> None:
    """Refuse adapters the sum of whose updates cannot be written as one plain LoRA.

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
    """Yield why one adapter cannot be merged: its update is another than s B A, or holds more than that."""
    return (refusal.text for refusal in obstacles(side.adapter, Operation.MERGE))


def obstacles_between(sides: Sequence[Side]) -> Iterator[str]:
    """Yield why plain LoRAs do not fit each other."""
    for field in _SAME:
        values = [side.raw.get(field) or None for side in sides]
        if any(value != values[0] for value in values):
            listed = " and ".join(f"{side.name} has {value!r}" for side, value in zip(sides, values, strict=True))
            yield f"{field} differs: {listed}"
    named = [sorted(side.raw["target_parameters"]) for side in sides if side.raw.get("target_parameters")]
    other = next((value for value in named if value != named[0]), None)
    if other is not None:
        yield f"target_parameters differs ({named[0]} and {other}), and with it which tensors are of which parameter"


class MergedPair(NamedTuple):
    """A pair of tensors to write; for its module, or for each expert, every adapter's module or None."""

    path: str
    layout: LoraPair
    rows: tuple[Row, ...]

    @property
    def is_parameter(self) -> bool:
        """Whether PEFT finds it through target_parameters: the path then ends with the parameter's own name."""
        base_name = _first(self.rows[0]).base_name or ""
        return base_name.rpartition(".")[2] == self.path.rpartition(".")[2]


def _first(row: Row) -> Module:
    return next(module for module in row if module is not None)


def merged_pairs(sides: Sequence[Side], rows: Mapping[str, Row]) -> list[MergedPair]:
    """Return the pairs of tensors to write, in the order of the modules' names.

    Raises:
        AdapterError: adapters hold one module in different layouts, or different numbers of experts.
    """
    held = [{module.name: pair for pair in stored_pairs(side.adapter) for module in pair.modules} for side in sides]
    grouped: dict[LoraPair, list[Row]] = {}
    paths: dict[LoraPair, str] = {}
    for name, row in rows.items():
        stored = [pairs[name] for pairs, module in zip(held, row, strict=True) if module is not None]
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
    """Return the layout under PEFT's names without the rank: adapters must have it in common."""
    a_name, b_name = (_saved_name(name) for name in (pair.layout.a_name, pair.layout.b_name))
    return pair.layout._replace(a_name=a_name, b_name=b_name, rank=0, experts=1)


def _saved_name(name: str) -> str:
    """Return a tensor's name as PEFT saves it: with its prefix, without an adapter's name."""
    key = parse_key(name)
    if key is None:
        raise AdapterError(f"{name!r} is not a tensor of a LoRA pair", advice="report this as a bug")
    return f"{PREFIX}{key.module}.{key.field}" + (f".{key.leaf}" if key.leaf else "")


def _described(layout: LoraPair) -> str:
    return f"{layout.a_name} (r, {', '.join(map(str, (layout.inner, *layout.kernel)))})"


def _merged_pair(path: str, layout: LoraPair, rows: list[Row]) -> MergedPair:
    holders = [tuple(module is not None for module in row) for row in rows]
    if any(held != holders[0] for held in holders):
        raise AdapterError(
            f"the adapters have different numbers of experts in {path}", advice="are they of one base model?"
        )
    return MergedPair(path, layout._replace(experts=len(rows)), tuple(rows))


class MergedModule(NamedTuple):
    """A module merged: its factors on disk, and what they cost."""

    name: str
    kind: str
    ranks: list[int]
    rank: int
    load_b: Callable[[], Array]
    load_a: Callable[[], Array]
    losses: Losses
    dense_bytes: int


def merged_modules(
    pairs: Sequence[MergedPair], recipe: Recipe, stored: str, spool: Spool, progress: Progress | None
) -> list[list[MergedModule]]:
    """Return the modules of each pair merged; `stored` is the dtype of their factors.

    One is in memory at a time, or one for each core where no dense matrix is formed.
    """
    tasks = [partial(_merged, row, recipe, stored, spool) for pair in pairs for row in pair.rows]
    found = []
    for one in (task() for task in tasks) if recipe.method in DENSE else each_in_threads(tasks):
        found.append(one)
        if progress is not None:
            progress(len(found), len(tasks), one.name)
    rest = iter(found)
    return [[next(rest) for _ in pair.rows] for pair in pairs]


def _merged(row: Row, recipe: Recipe, stored: str, spool: Spool) -> MergedModule:
    module = _first(row)
    factors, losses = merged_module(row, recipe, DTYPES[stored])
    load_b, load_a = spool.keep(factors.b), spool.keep(factors.a)
    return MergedModule(
        module.name,
        module.kind,
        ranks=[m.r if m is not None else 0 for m in row],
        rank=factors.b.shape[1],
        load_b=load_b,
        load_a=load_a,
        losses=losses,
        dense_bytes=math.prod(module.shape) * _DOUBLE if recipe.method in DENSE else 0,
    )


def ranks_of(pairs: Sequence[MergedPair], merged: Sequence[Sequence[MergedModule]], recipe: Recipe) -> dict[str, int]:
    """Return the rank of each path: one for all modules where `linear` found it, as far as their factors go."""
    ranks: dict[str, int] = {}
    most = max(module.rank for modules in merged for module in modules)
    for pair, modules in zip(pairs, merged, strict=True):
        for module in modules:
            rank = min(most, sum(module.ranks)) if recipe.method == "linear" else module.rank
            ranks[pair.path] = max(ranks.get(pair.path, 1), rank)
    return ranks


def common_dtype(sides: Sequence[Side], pairs: Sequence[MergedPair]) -> str:
    """Return the dtype that all factors have, by safetensors' name, if it is one that adapters are saved in."""
    found = {
        side.adapter.tensors[name].dtype
        for pair in pairs
        for side, module in zip(sides, pair.rows[0], strict=True)
        if module is not None
        for name in module.keys.values()
    }
    return found.pop() if len(found) == 1 and found <= set(STORED.values()) else "F32"


def tensors_of(
    pairs: Sequence[MergedPair], merged: Sequence[Sequence[MergedModule]], ranks: Mapping[str, int], stored: str
) -> list[PlannedTensor]:
    """Return the tensors of the pairs; `stored` is their dtype by safetensors' name."""
    tensors = []
    for pair, modules in zip(pairs, merged, strict=True):
        rank, layout = ranks[pair.path], pair.layout
        shape_a, shape_b = layout.shapes(rank)
        tensors.append(planned(layout.a_name, stored, shape_a, partial(_joined, layout, modules, rank, "A")))
        tensors.append(planned(layout.b_name, stored, shape_b, partial(_joined, layout, modules, rank, "B")))
    return tensors


def _joined(layout: LoraPair, modules: Sequence[MergedModule], rank: int, side: Literal["A", "B"]) -> Array:
    """Return one of the file's tensors from the modules' factors, each of which may be of a lower rank."""
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


DENSE: Final = frozenset({"ties", "dare_linear", "dare_ties"})

Part: TypeAlias = tuple[Array, Array, float]
Row = Sequence[Module | None]


class Recipe(NamedTuple):
    """A method with its options: one weight per adapter; `density` and `seed` where entries are dropped."""

    method: MergeMethod
    weights: tuple[float, ...]
    rank: int | None = None
    density: float | None = None
    seed: int = 0


class NewFactors(NamedTuple):
    """The factors as they will be stored: b (d_out, k) and a (k, d_in), with scale 1, in the base's orientation."""

    b: Array
    a: Array


class Losses(NamedTuple):
    """Squared Frobenius norms: of the target and what is left out of it; of the plain sum and the distance to it."""

    target: float
    left_out: float
    plain: float
    from_plain: float


def merged_module(row: Row, recipe: Recipe, dtype: np.dtype[Any]) -> tuple[NewFactors, Losses]:
    """Return the module's factors and what they cost. `row` holds each adapter's module, or None.

    Raises:
        AdapterError: an update is not finite, or the factors do not fit the dtype.
    """
    parts = list(_parts(row, recipe.weights))
    name = next(module.name for module in row if module is not None)
    most = max(module.r for module in row if module is not None)
    if recipe.method not in DENSE and is_narrow(parts):
        return _merged_sum(name, parts, recipe, dtype, most)
    _refuse_broken(name, parts)
    with np.errstate(over="ignore"):
        plain = stacked(parts)
    with np.errstate(over="ignore", invalid="ignore"):
        grams = pair_grams(*plain)
        energy = squared_norm(*plain, grams=grams)
    _refuse_overflow(name, energy, parts)
    if recipe.method in DENSE:
        target = dense_target(name, row, parts, recipe)
        low = leading_part(target, min(recipe.rank or most, *target.shape)).low
        rounded = _rounded(*low.factors(len(low.sigma)), dtype, name)
        lost = Losses(float(np.sum(target * target)), difference(target, rounded), energy, 0.0)
        return rounded, lost._replace(from_plain=squared_distance(plain, rounded))
    factors = _factors(plain, grams, recipe, most) if energy > 0.0 or recipe.method == "cat" else _zero_update(*plain)
    rounded = _rounded(*factors, dtype, name)
    away = squared_distance(plain, rounded, grams=grams) if energy > 0.0 else 0.0
    return rounded, Losses(energy, away, energy, away)


def _refuse_broken(name: str, parts: Sequence[Part]) -> None:
    if not all(all_finite(b) and all_finite(a) and math.isfinite(c) for b, a, c in parts):
        raise AdapterError(
            f"{name} holds NaN or infinite numbers in one of the adapters", advice="'gradience audit' says which"
        )


def _refuse_overflow(name: str, energy: float, parts: Sequence[Part]) -> None:
    """Refuse a sum whose squared norm is not finite, which what is not finite in a factor makes it."""
    if not math.isfinite(energy):
        _refuse_broken(name, parts)
        raise AdapterError(f"{name}: the weighted sum is over the range of float64", advice="give smaller --weights")


def _merged_sum(
    name: str, parts: Sequence[Part], recipe: Recipe, dtype: np.dtype[Any], most: int
) -> tuple[NewFactors, Losses]:
    """Return the factors of the weighted sum and what they cost; `most` is the largest rank of the adapters."""
    with np.errstate(over="ignore", invalid="ignore"):
        grams = sum_grams(parts)
        energy = gram_norm(grams, lambda: stacked(parts))
        _refuse_overflow(name, energy, parts)
        found = None
        if recipe.method != "cat":
            if energy == 0.0:
                return _rounded(*_zero_update(*parts[0][:2]), dtype, name), Losses(0.0, 0.0, 0.0, 0.0)
            found = low_rank_sum(parts, grams, recipe.rank or most if recipe.method == "svd" else None, dtype)
        b, a, lost = balanced_sum(parts, grams, dtype) if found is None else found
    _refuse_unfit(name, b, a, dtype)
    lost = lost if energy > 0.0 else 0.0
    return NewFactors(b, a), Losses(energy, lost, energy, lost)


def _refuse_unfit(name: str, b: Array, a: Array, dtype: np.dtype[Any]) -> None:
    if not (all_finite(b) and all_finite(a)):
        raise AdapterError(f"{name}: the merged factors do not fit {dtype}", advice="name a wider --dtype")


def _parts(row: Row, weights: Sequence[float]) -> Iterator[Part]:
    """Yield (b, a, w s) of each adapter that has the module."""
    for module, weight in zip(row, weights, strict=True):
        if module is not None:
            yield (*module.load(), weight * module.scale)


def _factors(plain: tuple[Array, Array], grams: Pair, recipe: Recipe, most: int) -> tuple[Array, Array]:
    """Return the factors of the weighted sum: as they are, at the rank it has, or at the rank that was asked for."""
    held = len(plain[1])
    if recipe.method == "cat":
        return _balanced(*plain)
    rank = numerical_rank(*plain, grams=grams) if recipe.method == "linear" else min(recipe.rank or most, held)
    return _balanced(*plain) if rank >= held else reduced(*plain, 1.0, rank, grams=grams[::-1])


def _zero_update(b: Array, a: Array) -> tuple[Array, Array]:
    """Return the factors of an update of zero."""
    return np.zeros((len(b), 1)), np.zeros((1, a.shape[1]))


def _balanced(b: Array, a: Array) -> tuple[Array, Array]:
    """Return the factors with column k of b as long as row k of a, up to a power of two: no digit is lost."""
    step = balancing(np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1))
    return b * step, a / step[:, None]


def _rounded(b: Array, a: Array, dtype: np.dtype[Any], name: str) -> NewFactors:
    with np.errstate(over="ignore"):
        rounded = NewFactors(b.astype(dtype), a.astype(dtype))
    _refuse_unfit(name, *rounded, dtype)
    return rounded
