"""Each module on its way: its LoRA pair in the orientation of a plain layer, and the name that it will have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters.formats.mlx import is_embedding_layer
from gradience.adapters.kinds.lora import base_changing
from gradience.adapters.layout import Array, Module
from gradience.adapters.names import module_type
from gradience.base.weights import BaseWeights, Found
from gradience.errors import AdapterError
from gradience.io.spool import Spool
from gradience.io.types import Progress
from gradience.schema.writing import Target
from gradience.verbs.convert.factored import Choice, Factored, from_dense, from_factors, product_norm, refuse_non_finite
from gradience.verbs.convert.source import Source


class Piece(NamedTuple):
    """A module, its pair, and its path in the target; `turned` where the pair is of the transposed weight."""

    module: Module
    path: str
    part: Factored
    turned: bool
    embedding: bool
    kernel: tuple[int, ...]
    magnitude: Callable[[], Array] | None = None
    """DoRA's, where it is carried over."""
    stored_turned: bool = False
    """Whether the base stores the weight (in, out)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the layer; an embedding's are its width and its number of rows."""
        rows, columns = self.part.shape
        return (columns, rows) if self.turned else (rows, columns)

    def a(self) -> Array:
        """Return A (r, in)."""
        b, a = self.part.load()
        return b.T if self.turned else a

    def b(self) -> Array:
        """Return B (out, r)."""
        b, a = self.part.load()
        return a.T if self.turned else b

    @property
    def dtypes(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """The types of (A, B) as they are kept."""
        of_b, of_a = self.part.dtypes
        return (of_b, of_a) if self.turned else (of_a, of_b)


def pieces_of(
    source: Source,
    choice: Choice,
    spool: Spool,
    *,
    target: Target,
    paths: Mapping[str, str],
    progress: Progress | None = None,
) -> Iterator[Piece]:
    """Yield the modules that `paths` names (module's name to path in the target), one in memory at a time.

    Raises:
        AdapterError: a module has no exact LoRA and nothing says how much to keep, or the base lacks its weight.
    """
    run = _Run(source, choice, spool, target)
    jobs = [module for module in source.layers if module.name in paths]
    for place, module in enumerate(jobs):
        if progress is not None:
            progress(place, len(jobs), module.name)
        yield _piece(run, module, paths[module.name])
    if progress is not None:
        progress(len(jobs), len(jobs), "")


class _Run(NamedTuple):
    source: Source
    choice: Choice
    spool: Spool
    target: Target


def _piece(run: _Run, module: Module, path: str) -> Piece:
    source, target = run.source, run.target
    embedding = _is_embedding(source, module)
    found = _in_base(source.base, path, module)
    kernel = _kernel(source, module, found)
    keeps_dora = module.magnitude is not None and run.choice.everything and _takes_dora(source, module, target)
    if module.dense is None or keeps_dora:
        part = from_factors(module, run.choice, run.spool, scale=_scale(source, module), copy=_is_pair(source, module))
    else:
        part = _dense(run, module, found)
    fan = source.adapter.format == "peft" and source.adapter.config.fan_in_fan_out and not kernel
    swapped = found is not None and not kernel and found.info.shape != module.shape == found.info.shape[::-1]
    return Piece(
        module,
        path,
        part,
        turned=embedding or fan,
        embedding=embedding,
        kernel=kernel,
        magnitude=_magnitude(source, module, target) if keeps_dora else None,
        stored_turned=fan or (swapped and source.adapter.format != "peft"),
    )


def _is_pair(source: Source, module: Module) -> bool:
    """Return whether the file's own numbers are the two factors, however they are turned."""
    if source.adapter.format == "peft" and not _is_lora(source):
        return False
    computed = any(field.startswith(("hada_", "lokr_", "lora_mid", "lora_diag")) for field in module.keys)
    return not computed and not source.adapter.config.use_bdlora


def _is_lora(source: Source) -> bool:
    return (source.adapter.config.peft_type or "LORA").upper() == "LORA"


def _scale(source: Source, module: Module) -> float:
    """Return the scale to write: the module's own where its pair (or its lora_bias) is kept, else 1."""
    return module.scale if source.adapter.format != "peft" or _is_lora(source) else 1.0


def _is_embedding(source: Source, module: Module) -> bool:
    if source.adapter.format == "mlx":
        return is_embedding_layer(module.name)
    return module.kind == "embedding" or any("embedding_A" in field for field in module.keys)


def _in_base(base: BaseWeights | None, path: str, module: Module) -> Found | None:
    if base is None:
        return None
    return base.find(module.base_name or f"{path}.weight") or base.find(f"{path}.weight")


def _dense(run: _Run, module: Module, found: Found | None) -> Factored:
    """Return the pair of an update that is a function of the base weight."""
    update, base = module.dense, run.source.base
    if base is None or update is None:
        raise AdapterError(
            f"{module.name}: {module.note or 'its update is a function of the base weight'}",
            advice="give the base model that it was trained on with --base PATH",
        )
    if found is None:
        raise AdapterError(
            f"the base has no weight for {module.name}", advice="give the base model that it was trained on"
        )

    def matrix() -> Array:
        return update(base.read(found, module.expert).astype(np.float64)).astype(np.float64, copy=False)

    scale, bound = _scale(run.source, module), _rank_bound(run.source, module)
    return from_dense(module, matrix, run.choice, run.spool, scale=scale, bound=bound)


def _rank_bound(source: Source, module: Module) -> int | None:
    """Return the rank that the update cannot exceed, or None where it may be full."""
    config = source.adapter.config
    if module.magnitude is not None or module.kind == "hira":
        return None
    if module.kind == "miss":
        return None if config.init_weights == "bat" else module.r
    if "lora_diag" in module.keys or base_changing(config.init_lora_weights) is not None:
        return 2 * module.r  # the trained pair, and the part that was taken out of the base
    return module.r if module.kind == "vera" else None


def _kernel(source: Source, module: Module, found: Found | None) -> tuple[int, ...]:
    """Return the kernel's sizes where the layer is a convolution, else nothing.

    Raises:
        AdapterError: only the base could say.
    """
    if found is not None and module.expert is None:
        return tuple(found.info.shape[2:])
    held = source.adapter.tensors
    for field in ("lora_mid", "lora_A", "hira_A", "hada_t1", "lokr_t2", "lokr_w2"):
        if field in module.keys:
            return tuple(held[module.keys[field]].shape[2:])
    leaf = module.name.rpartition(".")[2].lower()
    if module.kind in {"loha", "lokr"} and ("conv" in leaf or module_type(module.name) == "conv"):
        raise AdapterError(
            f"{module.name}: a convolution by its name, whose kernel the file does not say",
            advice="give the base model with --base PATH",
        )
    return ()


def _takes_dora(source: Source, module: Module, target: Target) -> bool:
    """Return whether the target can hold the module's magnitudes as they are: norms over the same axis."""
    if source.adapter.format == "peft" and target == "peft":
        return False
    if _is_embedding(source, module):
        return False
    if source.adapter.format == "kohya":
        rows, *rest = source.adapter.tensors[module.keys["magnitude"]].shape
        return rows == module.shape[0] and all(n == 1 for n in rest)
    return True


def _magnitude(source: Source, module: Module, target: Target) -> Callable[[], Array] | None:
    read = module.magnitude
    if read is None:
        return None
    if target == "mlx" and source.adapter.config.fan_in_fan_out:
        raise AdapterError(f"{module.name}: DoRA of a weight stored (in, out) has its norms over another axis")
    return lambda: read().reshape(-1)


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
