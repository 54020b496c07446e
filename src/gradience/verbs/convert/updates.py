"""The updates to write: each with its LoRA pair, and its name and layout in the target.

A layer gives one `LayerUpdate`, and so does a parameter of stacked experts, for all experts. The pair is exact if its
rank allows, else the best approximation of the rank asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters import module_type
from gradience.adapters.formats.foreign import is_embedding_layer
from gradience.adapters.layout import LARGEST_ENTRY, Array, LoadFactors, Module, within_range
from gradience.base.weights import BaseTensor, BaseWeights
from gradience.errors import AdapterError
from gradience.io import Progress
from gradience.rewriting.writing import ArraySpool
from gradience.schema.writing import TargetFormat
from gradience.spectral.grams import Floats
from gradience.spectral.sums import gram_norm, pair_grams
from gradience.spectral.update import (
    Approximation,
    LowRank,
    decomposed,
    leading_part,
    part_with_energy,
    rank_for_energy,
)
from gradience.verbs.convert.source import SourceAdapter

Factors: TypeAlias = tuple[Array, Array]
Method: TypeAlias = Literal["copied", "factors", "truncated", "dense"]

_FULL_RANK: Final = {"dora": "DoRA", "hira": "HiRA", "miss": "MiSS (bat)"}
_FLOATS: Final = (np.dtype(np.float32), np.dtype(np.float32))


class RankChoice(NamedTuple):
    """How much of an update to keep: at most a rank, or a share of its energy (squared Frobenius norm), or all."""

    rank: int | None = None
    energy: float | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing may be left out."""
        return self.rank is None and self.energy is None

    def of(self, sigma: Floats) -> int:
        """Return the number of singular values to keep; sigma holds all of them, largest first."""
        if self.rank is not None:
            return min(self.rank, len(sigma))
        if self.energy is not None:
            return rank_for_energy(sigma, self.energy, float(np.sum(sigma * sigma))) or len(sigma)
        return len(sigma)


class UpdatePair(NamedTuple):
    """The pair scale * b @ a, in the orientation of the base's weight.

    `norm` is the Frobenius norm of the update, `rest` that of the part left out.
    """

    rank: int
    scale: float
    shape: tuple[int, int]
    dtypes: tuple[np.dtype[Any], np.dtype[Any]]
    load: LoadFactors
    method: Method
    norm: float
    rest: float

    @property
    def relative_error(self) -> float | None:
        """The relative Frobenius error rest / norm, or None if the update is zero."""
        return self.rest / self.norm if self.norm > 0.0 else None


class LayerUpdate(NamedTuple):
    """The pair of one layer, or of one parameter of all experts, to be written in the target's files.

    `part.load` returns (b, a) in the orientation of the base's weight; for experts b (E, out, r) and a (E, r, in).
    """

    names: tuple[str, ...]
    """The source's modules, or stacks of experts, that it comes from."""
    kind: str
    path: str
    """The path in the target, of the layer or of the module that holds the parameter."""
    rank_before: int
    part: UpdatePair
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

    source: SourceAdapter
    choice: RankChoice
    spool: ArraySpool
    target: TargetFormat


def layer_updates(run: Conversion, paths: Mapping[str, str], progress: Progress | None = None) -> Iterator[LayerUpdate]:
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


def _layer(run: Conversion, module: Module, path: str) -> LayerUpdate:
    source, is_peft = run.source, run.source.adapter.file_format.is_peft
    embedding = is_embedding(source, module)
    stored, kernel, dora = _in_base(source.base, path, module), kernel_of(source, module, path), keeps_dora(run, module)
    if module.dense is None or dora:
        part = from_factors(module, run.choice, run.spool, scale=_scale(source, module), copy=_is_pair(source, module))
    else:
        part = _dense(run, module, stored)
    # The setting is about linear layers; a convolution's weight is (out, in, ...) always.
    fan_in_fan_out = is_peft and source.adapter.config.fan_in_fan_out and not kernel
    swapped = stored is not None and not kernel and stored.info.shape != module.shape == stored.info.shape[::-1]
    return LayerUpdate(
        (module.name,),
        module.kind,
        path,
        module.r,
        part,
        transposed=embedding or fan_in_fan_out,
        embedding=embedding,
        kernel=kernel,
        magnitude=_magnitude(module) if dora else None,
        stored_transposed=fan_in_fan_out or (swapped and not is_peft),
    )


def _is_pair(source: SourceAdapter, module: Module) -> bool:
    """Whether the file's own tensors are the two factors, in either orientation."""
    if source.adapter.file_format.is_peft and source.traits.peft_type != "LORA":
        return False
    computed = any(field.startswith(("hada_", "lokr_", "lora_mid", "lora_diag")) for field in module.keys)
    return not computed and not source.traits.bdlora


def _scale(source: SourceAdapter, module: Module) -> float:
    """Return the scale to write: 1 for PEFT types other than LoRA, else the module's own.

    A pair that is copied keeps its scale, and so does its lora_bias.
    """
    return 1.0 if source.adapter.file_format.is_peft and source.traits.peft_type != "LORA" else module.scale


def is_embedding(source: SourceAdapter, module: Module) -> bool:
    """Whether a module is an embedding."""
    if source.adapter.file_format.embeds_by_name:
        return is_embedding_layer(module.name)
    return module.kind == "embedding" or any("embedding_A" in field for field in module.keys)


def _in_base(base: BaseWeights | None, path: str, module: Module) -> BaseTensor | None:
    if base is None:
        return None
    return base.find(module.base_name or f"{path}.weight") or base.find(f"{path}.weight")


def _dense(run: Conversion, module: Module, stored: BaseTensor | None) -> UpdatePair:
    """Return the pair that approximates an update which is a function of the base weight, or equals it."""
    update, base = module.dense, run.source.base
    if base is None or update is None:
        raise AdapterError(
            f"{module.name}: {module.note or 'its update is a function of the base weight'}",
            advice="give the base model that it was trained on with --base PATH",
        )
    if stored is None:
        raise AdapterError(
            f"the base has no weight for {module.name}", advice="give the base model that it was trained on"
        )

    def matrix() -> Array:
        return update(base.read(stored, module.expert).astype(np.float64)).astype(np.float64, copy=False)

    scale, bound = _scale(run.source, module), _rank_bound(run.source, module)
    return from_dense(module, matrix, run.choice, run.spool, scale=scale, bound=bound)


def _rank_bound(source: SourceAdapter, module: Module) -> int | None:
    """Return an upper bound on the update's rank, or None if it may have full rank."""
    if module.magnitude is not None:
        return None
    if module.kind == "miss" and source.raw.get("init_weights") != "bat":
        return source.raw.get("r") if isinstance(source.raw.get("r"), int) else None
    if "lora_diag" in module.keys or source.traits.start.changes_base:
        return 2 * module.r  # the trained pair, and the part that was taken out of the base
    return module.r if module.kind == "vera" else None


def kernel_of(source: SourceAdapter, module: Module, path: str) -> tuple[int, ...]:
    """Return the kernel's sizes if the layer is a convolution, else an empty tuple.

    Raises:
        AdapterError: the layer seems to be a convolution, and only the base could tell its kernel.
    """
    stored = _in_base(source.base, path, module)
    if stored is not None and module.expert is None:
        return tuple(stored.info.shape[2:])
    infos = source.adapter.tensors
    # Factors that have the kernel as their last axes.
    for field in ("lora_mid", "lora_A", "hira_A", "hada_t1", "lokr_t2", "lokr_w2"):
        if field in module.keys:
            return tuple(infos[module.keys[field]].shape[2:])
    leaf = module.name.rpartition(".")[2].lower()
    if module.kind in {"loha", "lokr"} and ("conv" in leaf or module_type(module.name) == "conv"):
        raise AdapterError(
            f"{module.name}: a convolution by its name, whose kernel the file does not say",
            advice="give the base model with --base PATH",
        )
    return ()


def _takes_dora(source: SourceAdapter, module: Module, target: TargetFormat) -> bool:
    """Whether the target can hold the module's magnitudes unchanged, because its norms run over the same axis."""
    is_turned = target == "mlx" and source.adapter.config.fan_in_fan_out
    if is_turned or (source.adapter.file_format.is_peft and target == "peft") or is_embedding(source, module):
        return False
    if "magnitude" in module.keys:  # kohya's files; their norms may also run over inputs
        rows, *rest = source.adapter.tensors[module.keys["magnitude"]].shape
        return rows == module.shape[0] and all(n == 1 for n in rest)
    return True


def keeps_dora(run: Conversion, module: Module) -> bool:
    """Whether the module stays a DoRA in the target."""
    return module.magnitude is not None and run.choice.everything and _takes_dora(run.source, module, run.target)


def _magnitude(module: Module) -> Callable[[], Array] | None:
    read = module.magnitude
    return None if read is None else lambda: read().reshape(-1)


def from_factors(module: Module, choice: RankChoice, spool: ArraySpool, *, scale: float, copy: bool) -> UpdatePair:
    """Return the module's own pair, cut to a lower rank if the choice asks for it.

    Args:
        module: a module whose factors can be loaded.
        choice: how much to keep.
        spool: where to put factors that are not the file's own.
        scale: the scale to write; if factors are copied, it must be the module's.
        copy: whether the file's own numbers are a LoRA pair, which is then copied bit for bit.

    Raises:
        AdapterError: a factor holds NaN or infinite values.
    """
    b, a = module.load()
    refuse_non_finite(module, b, a)
    norm, shape = abs(module.scale) * product_norm(b, a), (len(b), a.shape[1])
    if not copy:
        b, a = _without_zeros(b, a)
    # A product such as LoHa's can have more terms than the matrix has rank: cut to that, it is still exact.
    if a.shape[0] > min(len(b), a.shape[1]) and not copy:
        return _truncated(decomposed(b, a, module.scale), RankChoice(min(len(b), a.shape[1])), choice, spool, scale)
    if not choice.everything:
        low = decomposed(b, a, module.scale)
        if (kept := choice.of(low.sigma)) < a.shape[0]:
            return _truncated(low, RankChoice(kept), RankChoice(), spool, scale)
    if copy:
        return UpdatePair(a.shape[0], module.scale, shape, (b.dtype, a.dtype), module.load, "copied", norm, 0.0)
    ratio = module.scale / scale if scale else 1.0
    load = _kept(spool, b, a.astype(np.float64) * ratio)
    return UpdatePair(a.shape[0], scale, shape, _FLOATS, load, "factors", norm, 0.0)


def _kept(spool: ArraySpool, b: Array, a: Array) -> LoadFactors:
    """Put computed factors into the spool in float32, as they will be stored, and return their loader."""
    left, right = spool.keep(b.astype(np.float32)), spool.keep(a.astype(np.float32))
    return lambda: (left(), right())


def _truncated(low: LowRank, first: RankChoice, second: RankChoice, spool: ArraySpool, scale: float) -> UpdatePair:
    # A zero update keeps one term, because a pair of rank 0 cannot be written.
    kept = max(1, min(first.of(low.sigma), second.of(low.sigma)))
    load = _kept(spool, *low.factors(kept, scale))
    norm = float(np.linalg.norm(low.sigma))
    rest = low.error(kept)
    method: Method = "truncated" if rest > 0.0 else "factors"
    return UpdatePair(kept, scale, (len(low.u), low.v.shape[1]), _FLOATS, load, method, norm, rest)


def _without_zeros(b: Array, a: Array) -> tuple[Array, Array]:
    """Return the pair without exactly zero rank-one terms, such as AdaLoRA prunes; at least one term is kept."""
    terms = np.flatnonzero(b.any(axis=0) & a.any(axis=1))
    if len(terms) == a.shape[0]:
        return b, a
    terms = terms if len(terms) else np.zeros(1, dtype=np.intp)
    return b[:, terms], a[terms]


def product_norm(b: Array, a: Array) -> float:
    """Return the Frobenius norm of b @ a."""
    return math.sqrt(gram_norm(pair_grams(b, a), lambda: (b, a)))


def refuse_non_finite(module: Module, *arrays: Array) -> None:
    """Refuse a module with numbers that are not finite or too large.

    Raises:
        AdapterError: an array holds NaN, infinite values, or values beyond float32's range.
    """
    if not within_range(*arrays):
        raise AdapterError(
            f"{module.name} holds NaN or infinite values, or some over the limit of {LARGEST_ENTRY:g}",
            advice="see 'gradience audit' for which modules do; nothing can be converted from them",
        )


def from_dense(
    module: Module,
    matrix: Callable[[], Floats],
    choice: RankChoice,
    spool: ArraySpool,
    *,
    scale: float,
    bound: int | None,
) -> UpdatePair:
    """Return the leading part of a dense update; `bound` is an upper bound on its rank, if one is known.

    Raises:
        AdapterError: there is no bound and the choice is to keep everything, or the update is not finite.
    """
    if bound is None and choice.everything:
        raise AdapterError(
            f"{module.name}: {_FULL_RANK.get(module.kind, module.kind)} has updates of full rank, which no LoRA of "
            "low rank is exactly",
            advice="give the rank to keep with --rank N, or the share of its squared norm with --energy E",
        )
    dense = matrix()
    refuse_non_finite(module, dense)
    part = _part(dense, choice, min(dense.shape) if bound is None else min(bound, *dense.shape))
    kept = max(1, len(part.low.sigma))
    load = _kept(spool, *part.low.factors(kept, scale))
    return UpdatePair(kept, scale, (dense.shape[0], dense.shape[1]), _FLOATS, load, "dense", part.norm, part.rest)


def _part(dense: Floats, choice: RankChoice, bound: int) -> Approximation:
    if choice.energy is not None:
        part = part_with_energy(dense, choice.energy)
        return part if len(part.low.sigma) <= bound else leading_part(dense, bound)
    return leading_part(dense, bound if choice.rank is None else min(choice.rank, bound))
