"""Each module on its way: its LoRA pair in the orientation of a plain layer, and the name that it will have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.adapters.lora import base_changing
from gradience.adapters.mlx import is_embedding_layer
from gradience.adapters.modules import Array, Module
from gradience.adapters.names import module_type
from gradience.base.weights import BaseWeights, Found
from gradience.convert.factored import Choice, Factored, from_dense, from_factors
from gradience.convert.source import Source
from gradience.errors import AdapterError
from gradience.rewrite.spool import Spool
from gradience.schema.convert import Target

__all__ = ["Piece", "Progress", "pieces_of"]

Progress = Callable[[int, int, str], None]

_MATRIX: Final = 2


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
        return tuple(found.info.shape[_MATRIX:])
    held = source.adapter.tensors
    for field in ("lora_mid", "lora_A", "hira_A", "hada_t1", "lokr_t2", "lokr_w2"):
        if field in module.keys:
            return tuple(held[module.keys[field]].shape[_MATRIX:])
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
