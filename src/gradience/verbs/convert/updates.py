"""The updates to write: each with its LoRA pair, and its name and layout in the target.

A layer gives one `Update`. A parameter of stacked experts gives one `Update` for all experts. MLX-LM and PEFT split
and fuse the projections of an expert layer differently, so one source stack may become two updates, or two may become
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters import module_type
from gradience.adapters.formats.foreign import is_embedding_layer
from gradience.adapters.layout import Array, Module
from gradience.base.weights import BaseWeights, Found
from gradience.errors import AdapterError
from gradience.io import Progress
from gradience.schema.writing import Target
from gradience.verbs.convert.factored import Choice, Factored, from_dense, from_factors, product_norm, refuse_non_finite
from gradience.verbs.convert.source import Source
from gradience.verbs.writing import Spool

Factors: TypeAlias = tuple[Array, Array]

_SWITCH: Final = ".switch_mlp"
_EXPERTS: Final = ".experts"
_PARAMETERS: Final = frozenset({"gate_up_proj", "gate_proj", "up_proj", "down_proj"})
_OLD_NAMES: Final = {".block_sparse_moe": ".mlp"}  # Mixtral's, in MLX-LM and in transformers 5


class Update(NamedTuple):
    """The pair of one layer, or of one parameter of all experts, to be written in the target's files.

    `part.load` returns (b, a) in the orientation of the base's weight; for experts b (E, out, r) and a (E, r, in).
    """

    names: tuple[str, ...]
    """The source's modules, or stacks of experts, that it comes from."""
    kind: str
    path: str
    """The path in the target, of the layer or of the module that holds the parameter."""
    rank_before: int
    part: Factored
    transposed: bool = False
    """Whether the base stores the weight transposed to the target's B A."""
    embedding: bool = False
    kernel: tuple[int, ...] = ()
    magnitude: Callable[[], Array] | None = None
    """DoRA's magnitudes, if DoRA is kept."""
    stored_transposed: bool = False
    """Whether the base stores a layer's weight (in, out)."""
    parameter: str | None = None
    """The leaf name of an expert layer's parameter; None for a layer."""
    experts: int = 1

    @property
    def target(self) -> str:
        """The path of the layer, or of the parameter (PEFT) or expert layer (MLX-LM)."""
        return self.path if self.parameter is None else f"{self.path}.{self.parameter}"

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (out, in) of B A; for an embedding, (width, number of rows)."""
        rows, columns = self.part.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def dtypes(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """The dtypes of (B, A) as they are stored."""
        of_b, of_a = self.part.dtypes
        return (of_a, of_b) if self.transposed else (of_b, of_a)

    def load(self) -> Factors:
        """Return b (E, out, r) and a (E, r, in) in the target's orientation; E = 1 for a layer."""
        b, a = self.part.load()
        if self.parameter is None:
            b, a = b[None], a[None]
        return (a.swapaxes(1, 2), b.swapaxes(1, 2)) if self.transposed else (b, a)


def is_router(path: str) -> bool:
    """Whether a layer beside experts is their router, which is a bare parameter in transformers 5."""
    return path.endswith((".mlp.gate", ".block_sparse_moe.gate"))


class Conversion(NamedTuple):
    """A conversion: the source, how much of each update to keep, the spool for new factors, and the target."""

    source: Source
    choice: Choice
    spool: Spool
    target: Target


def layer_updates(run: Conversion, paths: Mapping[str, str], progress: Progress | None = None) -> Iterator[Update]:
    """Yield the updates of the layers in `paths` (module's name to path in the target), one in memory at a time.

    Raises:
        AdapterError: a module has no exact LoRA and no rank or energy is given, or the base lacks its weight.
    """
    modules = [module for module in run.source.layers if module.name in paths]
    for place, module in enumerate(modules):
        if progress is not None:
            progress(place, len(modules), module.name)
        yield _layer(run, module, paths[module.name])
    if progress is not None:
        progress(len(modules), len(modules), "")


def _layer(run: Conversion, module: Module, path: str) -> Update:
    source, is_peft = run.source, run.source.adapter.file_format.is_peft
    embedding = _is_embedding(source, module)
    found = _in_base(source.base, path, module)
    kernel = _kernel(source, module, found)
    keeps_dora = module.magnitude is not None and run.choice.everything and _takes_dora(source, module, run.target)
    if module.dense is None or keeps_dora:
        part = from_factors(module, run.choice, run.spool, scale=_scale(source, module), copy=_is_pair(source, module))
    else:
        part = _dense(run, module, found)
    fan_in_fan_out = is_peft and source.adapter.config.fan_in_fan_out and not kernel
    swapped = found is not None and not kernel and found.info.shape != module.shape == found.info.shape[::-1]
    return Update(
        (module.name,),
        module.kind,
        path,
        module.r,
        part,
        transposed=embedding or fan_in_fan_out,
        embedding=embedding,
        kernel=kernel,
        magnitude=_magnitude(source, module, run.target) if keeps_dora else None,
        stored_transposed=fan_in_fan_out or (swapped and not is_peft),
    )


def _is_pair(source: Source, module: Module) -> bool:
    """Whether the file's own tensors are the two factors, in either orientation."""
    if source.adapter.file_format.is_peft and source.traits.peft_type != "LORA":
        return False
    computed = any(field.startswith(("hada_", "lokr_", "lora_mid", "lora_diag")) for field in module.keys)
    return not computed and not source.traits.bdlora


def _scale(source: Source, module: Module) -> float:
    """Return the scale to write: 1 for PEFT types other than LoRA, else the module's own.

    A pair that is copied keeps its scale, and so does its lora_bias.
    """
    return 1.0 if source.adapter.file_format.is_peft and source.traits.peft_type != "LORA" else module.scale


def _is_embedding(source: Source, module: Module) -> bool:
    if source.adapter.file_format.embeds_by_name:
        return is_embedding_layer(module.name)
    return module.kind == "embedding" or any("embedding_A" in field for field in module.keys)


def _in_base(base: BaseWeights | None, path: str, module: Module) -> Found | None:
    if base is None:
        return None
    return base.find(module.base_name or f"{path}.weight") or base.find(f"{path}.weight")


def _dense(run: Conversion, module: Module, found: Found | None) -> Factored:
    """Return the pair that approximates an update which is a function of the base weight, or equals it."""
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
    """Return an upper bound on the update's rank, or None if it may have full rank."""
    if module.magnitude is not None or module.kind == "hira":
        return None
    if module.kind == "miss":
        return None if source.adapter.config.init_weights == "bat" else module.r
    if "lora_diag" in module.keys or source.traits.start.changes_base:
        return 2 * module.r  # the trained pair, and the part that was taken out of the base
    return module.r if module.kind == "vera" else None


def _kernel(source: Source, module: Module, found: Found | None) -> tuple[int, ...]:
    """Return the kernel's sizes if the layer is a convolution, else an empty tuple.

    Raises:
        AdapterError: the layer seems to be a convolution, and only the base could tell its kernel.
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
    """Whether the target can hold the module's magnitudes unchanged, because its norms run over the same axis."""
    if (source.adapter.file_format.is_peft and target == "peft") or _is_embedding(source, module):
        return False
    if "magnitude" in module.keys:  # kohya's files; their norms may also run over inputs
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


def expert_updates(modules: Sequence[Module], target: Target) -> list[Update]:
    """Return the updates of all stacked experts in the target's layout.

    Raises:
        AdapterError: a stack has no known counterpart in the target.
    """
    stacks: dict[str, list[Module]] = {}
    for module in modules:
        stacks.setdefault(module.name.partition("[")[0], []).append(module)
    found = [_stack(name, experts) for name, experts in stacks.items()]
    if target == "mlx":
        return [part for stack in found for part in _unfused(stack)]
    return list(_fused(found))


def _stack(name: str, experts: Sequence[Module]) -> Update:
    """Return the update of one stacked parameter in the source's layout; its factors are the file's own numbers."""
    path, _, parameter = name.rpartition(".")
    if not path.endswith((_SWITCH, _EXPERTS)) or parameter not in _PARAMETERS:
        raise AdapterError(f"{name}: experts of this name are laid out in a way that is not known here")
    squares = 0.0
    for module in experts:
        b, a = module.load()
        refuse_non_finite(module, b, a)
        squares += (module.scale * product_norm(b, a)) ** 2

    def load() -> Factors:
        pairs = [module.load() for module in experts]
        return np.stack([b for b, _ in pairs]), np.stack([a for _, a in pairs])

    first = experts[0]
    dtype = first.load()[0].dtype
    part = Factored(first.r, first.scale, first.shape, (dtype, dtype), load, "copied", math.sqrt(squares), 0.0)
    return Update((name,), "expert", path, first.r, part, parameter=parameter, experts=len(experts))


def _unfused(stack: Update) -> Iterator[Update]:
    """Yield MLX-LM's layers for a parameter; a fused parameter gives two, with the same A and half of B's rows each."""
    path = stack.path.removesuffix(_EXPERTS) + _SWITCH
    if stack.parameter != "gate_up_proj":
        yield stack._replace(path=path)
        return
    half = stack.part.shape[0] // 2
    for parameter, rows in (("gate_proj", slice(0, half)), ("up_proj", slice(half, None))):
        part = stack.part._replace(
            shape=(half, stack.part.shape[1]), norm=_norm_of(stack, rows), load=_rows_of(stack, rows)
        )
        yield stack._replace(path=path, parameter=parameter, part=part)


def _rows_of(stack: Update, rows: slice) -> Callable[[], Factors]:
    def load() -> Factors:
        b, a = stack.part.load()
        return b[:, rows], a

    return load


def _norm_of(stack: Update, rows: slice) -> float:
    squares = sum(product_norm(b[rows], a) ** 2 for b, a in zip(*stack.part.load(), strict=True))
    return abs(stack.part.scale) * math.sqrt(squares)


def _fused(stacks: Sequence[Update]) -> Iterator[Update]:
    """Yield the updates of PEFT's parameters, in the order in which transformers registers the parameters."""
    by_path: dict[str, dict[str, Update]] = {}
    for stack in stacks:
        if not stack.path.endswith(_SWITCH):
            raise AdapterError(f"{stack.names[0]}: only MLX-LM's switch_mlp has a known counterpart in transformers")
        by_path.setdefault(stack.path, {})[stack.parameter or ""] = stack
    for path, held in by_path.items():
        target = path.removesuffix(_SWITCH)
        for old, new in _OLD_NAMES.items():
            target = target.removesuffix(old) + new if target.endswith(old) else target
        gate, up = held.get("gate_proj"), held.get("up_proj")
        if gate is not None or up is not None:
            yield _gate_up(gate, up)._replace(path=target + _EXPERTS)
        if "down_proj" in held:
            yield held["down_proj"]._replace(path=target + _EXPERTS)


def _gate_up(gate: Update | None, up: Update | None) -> Update:
    """Return one update for gate_proj and up_proj: B is block-diagonal and A stacks both.

    If both have the same A, it is kept once, and B stacks both.
    """
    one = gate or up
    if one is None or (gate and up and (gate.part.shape, gate.experts) != (up.part.shape, up.experts)):
        raise AdapterError("gate_proj and up_proj of an expert layer have different shapes")
    halves = [half for half in (gate, up) if half is not None]
    shared = len(halves) > 1 and np.array_equal(halves[0].part.load()[1], halves[1].part.load()[1])
    rank = one.part.rank if shared else sum(half.part.rank for half in halves)
    out, inner = one.part.shape

    def load() -> Factors:
        pairs = [half.part.load() for half in halves]
        b = np.zeros((one.experts, 2 * out, rank), one.part.dtypes[0])
        column = 0
        for half, (b_half, _) in zip(halves, pairs, strict=True):
            top = 0 if half is gate else out
            b[:, top : top + out, column : column + half.part.rank] = b_half
            column += 0 if shared else half.part.rank
        return b, pairs[0][1] if shared else np.concatenate([a for _, a in pairs], axis=1)

    norm = math.sqrt(sum(half.part.norm**2 for half in halves))
    return one._replace(
        names=tuple(name for half in halves for name in half.names),
        parameter="gate_up_proj",
        part=one.part._replace(rank=rank, shape=(2 * out, inner), norm=norm, load=load),
    )
