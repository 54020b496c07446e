"""The verb `mitigate`: write a copy of an adapter whose intruder dimensions are scaled down.

Intruder dimensions (arXiv 2410.21228) are leading left singular vectors of W + dW that resemble no singular vector of
W. Modules are compared with their base weights one at a time. Only `lora_B` changes, so rank, scale and config stay.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.adapters.layout import LARGEST_ENTRY, Adapter, Array, Module, within_range
from gradience.adapters.open import open_adapter
from gradience.adapters.pairs import LoraPair, layout_of
from gradience.adapters.traits import Operation, module_obstacle, obstacles
from gradience.base.weights import BaseWeights, find_shards
from gradience.errors import AdapterError
from gradience.io import PathLike, Progress
from gradience.io.safetensors import PlannedTensor, TensorSource, copied, planned
from gradience.judge.audit.against_base import Update, update_of
from gradience.rewrite.options import MitigateOptions
from gradience.rewrite.sides import raw_config
from gradience.rewrite.writing import (
    PEFT_METADATA,
    Changes,
    NewAdapter,
    SourceFiles,
    provenance_of,
    refuse_place,
    write_adapter,
)
from gradience.schema.audit import NotCompared
from gradience.schema.writing import MitigatedModule, MitigateReport, ModuleChange
from gradience.spectral import one_blas_thread
from gradience.spectral.base import Overlaps, count_below, overlaps
from gradience.spectral.grams import Floats
from gradience.spectral.krylov import as_float32

_NEAR: Final = (0.3, 0.5, 0.7)  # an overlap's bounds should be on one side of each of these, as in an audit


_DEFAULTS: Final = MitigateOptions()


def mitigate_adapter(
    path: PathLike,
    base: PathLike,
    out: PathLike | None = None,
    *,
    options: MitigateOptions = _DEFAULTS,
    adapter_config: PathLike | None = None,
    weights: PathLike | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **keywords: Any,
) -> MitigateReport:
    """Write a copy of a PEFT LoRA adapter with dW' = (I - (1 - scale) U U^T) dW in each module.

    The columns of U are the module's intruder dimensions (arXiv 2410.21228): those of the k leading left singular
    vectors of W + dW whose overlap with every left singular vector of W is under eps. The rank stays. That this helps
    is a hypothesis: evaluate both what was learnt and what should not be forgotten.

    Args:
        path: the folder that PEFT saved, or its weights file. It is not changed.
        base: the base model: a folder with safetensors, or organisation/name in the hub's local cache.
        out: the folder to write; None computes the report and writes nothing.
        options: what an intruder is, and what is left of it.
        adapter_config: the config, if it is not beside the weights.
        weights: the weights file, if it has an unusual name.
        force: replace `out` if it exists, once the new folder is complete.
        progress: called with (modules done, modules in all, the module's name).
        keywords: single options by name, such as `scale=0.0`; they win over `options`.

    Raises:
        AdapterError: the adapter or the base cannot be read, or no module can be compared with its base.
        OptionError: an option is out of its range.
        OutputError: `out` exists, or cannot be written.
        TypeError: no option has such a name.
    """
    options = replace(options, **keywords)
    options.refuse_bad()
    files, adapter = open_adapter(path, adapter_config=adapter_config, weights=weights)
    refusal = next(obstacles(adapter, Operation.MITIGATE), None)
    if refusal is not None or adapter.source is None:
        why = "its tensors cannot be read again" if refusal is None else refusal.text
        raise AdapterError(f"cannot mitigate this adapter: {why}", advice="see 'gradience convert'")
    shards = find_shards(Path(base))
    if out is not None:
        refuse_place(Path(out), [files], base=shards, force=force)
    run = _Run(adapter, adapter.source, BaseWeights(shards), options)
    run.measure(progress)
    if out is not None:
        new = NewAdapter(run.tensors(), raw_config(files.config), adapter.source.metadata or PEFT_METADATA)
        sources = SourceFiles([files.config, *adapter.weights])
        record = partial(provenance_of, "mitigate", sources, asdict(options), Changes(run.changes))
        write_adapter(Path(out), new, record, sources=sources, force=force)
    return MitigateReport(
        source=str(path),
        base=str(base),
        out=None if out is None else str(out),
        scale=options.scale,
        k=options.k,
        eps=options.eps,
        before=sum(row.before for row in run.rows),
        after=sum(row.after for row in run.rows),
        alpha_after=sum(row.alpha_after for row in run.rows),
        modules=run.rows,
        not_looked_at=run.left_out,
    )


class _Run:
    """The comparison of one adapter with its base, one weight in memory at a time."""

    def __init__(self, adapter: Adapter, source: TensorSource, base: BaseWeights, options: MitigateOptions) -> None:
        self.rows: list[MitigatedModule] = []
        self.changes: list[ModuleChange] = []
        self.left_out: list[NotCompared] = []
        self._adapter = adapter
        self._source = source
        self._base = base
        self._options = options
        self._intruders: dict[str, Floats] = {}
        """Tensor name of each lora_B to rewrite, to the intruders as columns."""

    def measure(self, progress: Progress | None) -> None:
        """Compare every module with its base weight.

        Raises:
            AdapterError: no module can be compared.
        """
        modules = [*self._adapter.modules, *self._adapter.base_dependent]
        for place, module in enumerate(modules):
            if progress is not None:
                progress(place, len(modules), module.name)
            try:
                self._measure(module)
            except AdapterError as error:
                self.left_out.append(NotCompared(name=module.name, reason=str(error)))
        if progress is not None:
            progress(len(modules), len(modules), "")
        if not self.rows:
            first = f" (first: {self.left_out[0].name}: {self.left_out[0].reason})" if self.left_out else ""
            raise AdapterError(
                f"no module can be compared with its base{first}", advice="give a PEFT LoRA and its own base"
            )

    def _measure(self, module: Module) -> None:
        layout = self._layout(module)
        w = self._weight(module)
        if w.shape != module.shape:
            raise AdapterError(f"the base's weight is {list(w.shape)}, and the update {list(module.shape)}")
        if not within_range(*module.load(), w):
            raise AdapterError(f"it holds NaN, or numbers over the limit of {LARGEST_ENTRY:g}")
        b = self._source.read(layout.b_name).reshape(layout.out, layout.rank)
        with one_blas_thread():
            found = mitigated(module, w, b, self._options, transposed=layout.transposed)
        if found.vectors.shape[1]:
            self._intruders[layout.b_name] = found.vectors
        self.rows.append(
            MitigatedModule(
                name=module.name,
                before=found.before,
                scaled=found.vectors.shape[1],
                after=found.after,
                undecided=found.undecided,
                relative_change=found.relative_change,
                method="exact" if found.overlaps.exact else "lanczos",
                converged=found.overlaps.converged,
                alpha_factor=1.0 - found.relative_change,
                alpha_after=found.alpha_after,
            )
        )
        rank, change = module.r, found.relative_change
        self.changes.append(ModuleChange(name=module.name, rank_before=rank, rank_after=rank, relative_error=change))

    def _layout(self, module: Module) -> LoraPair:
        """Return the layout of a module's pair; AdapterError if its lora_B cannot be projected."""
        if (refusal := module_obstacle(module, Operation.MITIGATE)) is not None:
            raise AdapterError(refusal.text)
        layout = layout_of(self._adapter, [module])
        shape = self._source.tensors[layout.b_name].shape
        if shape[:2] != (module.shape[1 if layout.transposed else 0], module.r):
            raise AdapterError(f"its lora_B is of shape {list(shape)}, not (out, r)")  # BD-LoRA's blocks
        return layout

    def _weight(self, module: Module) -> Array:
        name = module.base_name or f"{module.name}.weight"
        held = self._base.find(name)
        if held is None:
            raise AdapterError(f"the base has no {name}")
        return self._base.read(held)

    def tensors(self) -> list[PlannedTensor]:
        """Return the tensors of the new file. All are copied bit for bit, except each lora_B with an intruder."""
        return [self._tensor(name) for name in self._source.tensors]

    def _tensor(self, name: str) -> PlannedTensor:
        if name not in self._intruders:
            return copied(self._source, name)
        info = self._source.tensors[name]
        return planned(name, info.dtype, info.shape, partial(self._scaled, name))

    def _scaled(self, name: str) -> Array:
        b = self._source.read(name)
        return scaled(b.reshape(len(b), -1), self._intruders[name], self._options.scale).reshape(b.shape)


class Mitigated(NamedTuple):
    """The vectors that certainly are intruders, as columns, and the counts of intruders before and after scaling."""

    vectors: Floats
    overlaps: Overlaps
    before: int
    undecided: int
    after: int
    relative_change: float
    alpha_after: int
    """The intruders that would be left if the whole update were scaled by 1 - relative_change instead."""


def mitigated(module: Module, w: Array, b: Array, options: MitigateOptions, *, transposed: bool) -> Mitigated:
    """Return a module's intruders, with the counts before and after scaling.

    The count after scaling is that of lora_B as it will be stored, rounded to its dtype.

    Args:
        module: a module with plain factors.
        w: the base weight as stored.
        b: lora_B (out, r) as stored.
        options: the definition of an intruder, and the scale.
        transposed: whether w is stored as (in, out).

    Raises:
        AdapterError: the update may hold entries that float32 cannot.
    """
    base = as_float32(w)
    update = update_of(module, base)
    if not update.fits_float32(_bound(update)):
        raise AdapterError("its update is beyond float32")
    before = _overlaps(update, base, options, transposed=transposed)
    vectors = np.asarray(before.left, np.float64)[:, before.upper < options.eps]
    count, undecided = count_below(before, options.eps)
    if not vectors.shape[1]:
        return Mitigated(vectors, before, count, undecided, count, 0.0, count)
    stored = scaled(b, vectors, options.scale).astype(b.dtype).astype(np.float32)
    new = update._replace(a=stored.T) if transposed else update._replace(b=stored)
    after, _ = count_below(_overlaps(new, base, options, transposed=transposed), options.eps)
    a = (update.b.T if transposed else update.a).astype(np.float64)
    change = _relative_change(b, a, vectors, options.scale)
    smaller = update._replace(scale=(1.0 - change) * update.scale)
    by_alpha, _ = count_below(_overlaps(smaller, base, options, transposed=transposed), options.eps)
    return Mitigated(vectors, before, count, undecided, after, change, by_alpha)


def scaled(b: Array, vectors: Floats, scale: float) -> Floats:
    """Return B - (1 - scale) U (U^T B) in float64; `vectors` are the columns of U."""
    exact = b.astype(np.float64)
    return np.asarray(exact - (1.0 - scale) * (vectors @ (vectors.T @ exact)))


def _overlaps(update: Update, w: Array, options: MitigateOptions, *, transposed: bool) -> Overlaps:
    base, tuned = update.operators(w)
    if transposed:
        base, tuned = (x.turned() for x in (base, tuned))
    return overlaps(base, tuned, options.k, sorted({options.eps, *_NEAR}), seed=options.seed)


def _bound(update: Update) -> float:
    """A bound on the spectral norm of an update of plain factors: the product of their Frobenius norms, in float64."""
    b, a = (float(np.linalg.norm(x.astype(np.float64))) for x in (update.b, update.a))
    return abs(update.scale) * b * a


def _relative_change(b: Array, a: Floats, vectors: Floats, scale: float) -> float:
    """Return norm(dW - dW') / norm(dW)."""
    exact = b.astype(np.float64)
    norm = math.sqrt(max(0.0, float(np.sum((exact.T @ exact) * (a @ a.T)))))
    removed = (1.0 - scale) * float(np.linalg.norm((vectors.T @ exact) @ a))
    return min(1.0, removed / norm) if norm > 0.0 else 0.0
