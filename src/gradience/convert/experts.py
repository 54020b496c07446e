"""LoRA on stacked experts: transformers' fused parameters and MLX-LM's separate layers, each as the other.

transformers 5 stores `experts.gate_up_proj` (E, 2 inner, hidden), the gate's rows above the other's, and
`experts.down_proj`; PEFT's pair of a parameter is `adapters/experts.py`'s. MLX-LM has `switch_mlp.gate_proj`, `up_proj`
and `down_proj`, each with `lora_a` (E, r, in) and `lora_b` (E, out, r).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters.modules import Array, Module
from gradience.convert.factored import product_norm, refuse_non_finite
from gradience.errors import AdapterError
from gradience.schema.convert import Target

__all__ = ["Experts", "experts_of", "is_router"]

Pair: TypeAlias = tuple[Array, Array]

_SWITCH: Final = ".switch_mlp"
_EXPERTS: Final = ".experts"
_OLD_NAMES: Final = {".block_sparse_moe": ".mlp"}  # Mixtral's, in MLX-LM and in transformers 5


class Experts(NamedTuple):
    """One parameter's pair for all experts: `load` returns b (E, out, r) and a (E, r, in)."""

    names: tuple[str, ...]
    path: str
    parameter: str
    stacked: int
    rank: int
    rank_before: int
    scale: float
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    norm: float
    load: Callable[[], Pair]

    @property
    def target(self) -> str:
        """The parameter's (PEFT) or the layer's (MLX-LM) path."""
        return f"{self.path}.{self.parameter}"


def experts_of(modules: Sequence[Module], target: Target) -> list[Experts]:
    """Return the pairs of all stacked experts as the target has them.

    Raises:
        AdapterError: a stack is of a kind whose counterpart is not known.
    """
    stacks: dict[str, list[Module]] = {}
    for module in modules:
        stacks.setdefault(module.name.partition("[")[0], []).append(module)
    found = {name: _stack(name, experts) for name, experts in stacks.items()}
    if target == "mlx":
        return [part for stack in found.values() for part in _unfused(stack)]
    return list(_fused(list(found.values())))


def is_router(path: str) -> bool:
    """Return whether a layer beside experts is their router, a bare parameter in transformers 5."""
    return path.endswith((".mlp.gate", ".block_sparse_moe.gate"))


def _stack(name: str, experts: Sequence[Module]) -> Experts:
    path, _, parameter = name.rpartition(".")
    if not path.endswith((_SWITCH, _EXPERTS)) or parameter not in {
        "gate_up_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }:
        raise AdapterError(f"{name}: experts of this name are laid out in a way that is not known here")
    squares = 0.0
    for module in experts:
        b, a = module.load()
        refuse_non_finite(module, b, a)
        squares += (module.scale * product_norm(b, a)) ** 2

    def load() -> Pair:
        pairs = [module.load() for module in experts]
        return np.stack([b for b, _ in pairs]), np.stack([a for _, a in pairs])

    first = experts[0]
    dtype = first.load()[0].dtype
    rank = first.r
    return Experts(
        (name,), path, parameter, len(experts), rank, rank, first.scale, first.shape, dtype, math.sqrt(squares), load
    )


def _unfused(stack: Experts) -> Iterator[Experts]:
    """Yield MLX-LM's layers of a parameter: a fused one is two with the same A, and half of B's rows each."""
    path = stack.path.removesuffix(_EXPERTS) + _SWITCH
    if stack.parameter != "gate_up_proj":
        yield stack._replace(path=path)
        return
    inner = stack.shape[0] // 2
    for parameter, rows in (("gate_proj", slice(0, inner)), ("up_proj", slice(inner, None))):
        yield stack._replace(
            path=path,
            parameter=parameter,
            shape=(inner, stack.shape[1]),
            norm=_norm_of(stack, rows),
            load=_rows(stack.load, rows),
        )


def _rows(load: Callable[[], Pair], rows: slice) -> Callable[[], Pair]:
    def part() -> Pair:
        b, a = load()
        return b[:, rows], a

    return part


def _norm_of(stack: Experts, rows: slice) -> float:
    b, a = stack.load()
    return abs(stack.scale) * math.sqrt(sum(product_norm(b[e, rows], a[e]) ** 2 for e in range(stack.stacked)))


def _fused(stacks: Sequence[Experts]) -> Iterator[Experts]:
    """Yield PEFT's parameters, in the order in which transformers registers them."""
    by_path: dict[str, dict[str, Experts]] = {}
    for stack in stacks:
        if not stack.path.endswith(_SWITCH):
            raise AdapterError(f"{stack.names[0]}: only MLX-LM's switch_mlp has a known counterpart in transformers")
        by_path.setdefault(stack.path, {})[stack.parameter] = stack
    for path, held in by_path.items():
        target = path.removesuffix(_SWITCH)
        for old, new in _OLD_NAMES.items():
            target = target.removesuffix(old) + new if target.endswith(old) else target
        gate, up = held.get("gate_proj"), held.get("up_proj")
        if gate is not None or up is not None:
            yield _gate_up(gate, up)._replace(path=target + _EXPERTS)
        if "down_proj" in held:
            yield held["down_proj"]._replace(path=target + _EXPERTS)


def _gate_up(gate: Experts | None, up: Experts | None) -> Experts:
    """Return one pair for both halves: B of two blocks and A of two layers, or one A where both have the same."""
    one = gate or up
    if one is None or (gate is not None and up is not None and (gate.shape, gate.stacked) != (up.shape, up.stacked)):
        raise AdapterError("gate_proj and up_proj of an expert layer have different shapes")
    halves = [half for half in (gate, up) if half is not None]
    shared = len(halves) > 1 and np.array_equal(halves[0].load()[1], halves[1].load()[1])
    rank = one.rank if shared else sum(half.rank for half in halves)

    def load() -> Pair:
        pairs = [half.load() for half in halves]
        inner = one.shape[0]
        b = np.zeros((one.stacked, 2 * inner, rank), one.dtype)
        column = 0
        for half, (b_half, _) in zip(halves, pairs, strict=True):
            top = 0 if half is gate else inner
            b[:, top : top + inner, column : column + half.rank] = b_half
            column += 0 if shared else half.rank
        return b, pairs[0][1] if shared else np.concatenate([a for _, a in pairs], axis=1)

    return one._replace(
        names=tuple(name for half in halves for name in half.names),
        parameter="gate_up_proj",
        rank=rank,
        shape=(2 * one.shape[0], one.shape[1]),
        norm=math.sqrt(sum(half.norm**2 for half in halves)),
        load=load,
    )
