"""The verb: intruders of every module against its base, and a folder without so much of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Adapter, Array, Module
from gradience.adapters.open import open_adapter
from gradience.base.update import Update, update_of
from gradience.base.weights import BaseWeights, find_shards
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, PlannedTensor, TensorSource, copied, planned
from gradience.io.types import PathLike, Progress
from gradience.schema.audit import NotCompared
from gradience.schema.writing import MitigatedModule, MitigateReport, ModuleChange
from gradience.spectral.intruders import Overlaps, count_below, overlaps
from gradience.spectral.lanczos import Operator
from gradience.spectral.reduced import Floats
from gradience.verbs.writing import provenance_of, raw_config, refuse_place, write_adapter

_KINDS: Final = ("linear", "conv")
_NEAR: Final = (0.3, 0.5, 0.7)  # thresholds that the bounds should separate, as in an audit


class Options(NamedTuple):
    """What counts as an intruder, and what is left of it."""

    scale: float
    k: int = 10
    eps: float = 0.5
    seed: int = 0


class Found(NamedTuple):
    """The vectors shown to be intruders, as columns, and the counts before and after."""

    vectors: Array
    overlaps: Overlaps
    before: int
    undecided: int
    after: int
    relative_change: float


def reason_against(module: Module, b_shape: tuple[int, ...], out: int) -> str | None:
    """Return why a module is left as it is, or None; `b_shape` is of its lora_B, `out` the height of B A."""
    if module.kind not in _KINDS:
        return f"of kind {module.kind}: only linear and convolutional LoRA is looked at"
    if module.dense is not None or module.note is not None:
        return module.note or "its update is a function of the base weight"
    return None if b_shape[:2] == (out, module.r) else "its lora_B is no plain (out, r)"


def looked_at(module: Module, w: Array, b: Array, options: Options, *, turned: bool, dtype: np.dtype[Any]) -> Found:
    """Return a module's intruders; w as stored, b (out, r) from the file, `turned` where w is (in, out).

    The count after is of lora_B as it will be stored, in `dtype`.
    """
    wide = w.astype(np.float32, copy=False)
    update = update_of(module, wide)
    before = _overlaps(update, wide, options, turned=turned)
    vectors = np.asarray(before.left, np.float64)[:, before.upper < options.eps]
    count, undecided = count_below(before, options.eps)
    if not vectors.shape[1]:
        return Found(vectors, before, count, undecided, count, 0.0)
    stored = scaled(b, vectors, options.scale).astype(dtype).astype(np.float32)
    new = update._replace(a=stored.T) if turned else update._replace(b=stored)
    after, _ = count_below(_overlaps(new, wide, options, turned=turned), options.eps)
    a = (update.b.T if turned else update.a).astype(np.float64)
    return Found(vectors, before, count, undecided, after, _change(b, a, vectors, options.scale))


def scaled(b: Array, vectors: Floats, scale: float) -> Floats:
    """Return B - (1 - scale) U (U^T B)."""
    wide = b.astype(np.float64)
    return np.asarray(wide - (1.0 - scale) * (vectors @ (vectors.T @ wide)))


def _overlaps(update: Update, w: Array, options: Options, *, turned: bool) -> Overlaps:
    base, tuned = update.operators(w)
    if turned:
        base, tuned = (Operator(x.w.T, x.a.T, x.b.T) for x in (base, tuned))
    return overlaps(base, tuned, options.k, sorted({options.eps, *_NEAR}), seed=options.seed)


def _change(b: Array, a: Floats, vectors: Floats, scale: float) -> float:
    """Return norm(dW - dW') / norm(dW)."""
    wide = b.astype(np.float64)
    whole = math.sqrt(max(0.0, float(np.sum((wide.T @ wide) * (a @ a.T)))))
    taken = (1.0 - scale) * float(np.linalg.norm((vectors.T @ wide) @ a))
    return min(1.0, taken / whole) if whole > 0.0 else 0.0


class _Change(NamedTuple):
    """A tensor to rewrite: the vectors whose share in it is scaled."""

    vectors: Floats
    scale: float


def mitigate_adapter(
    path: PathLike,
    base: PathLike,
    out: PathLike | None = None,
    *,
    scale: float = 0.5,
    k: int = 10,
    eps: float = 0.5,
    seed: int = 0,
    adapter_config: PathLike | None = None,
    weights: PathLike | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> MitigateReport:
    """Write a copy of a PEFT LoRA adapter with dW' = (I - (1 - scale) U U^T) dW in each module.

    The columns of U are the module's intruder dimensions (arXiv 2410.21228): those of the k leading left singular
    vectors of W + dW whose overlap with every left singular vector of W is under eps. The rank stays. Whether that
    helps is a hypothesis: verify with an evaluation of what was learnt and of what should not be forgotten.

    Args:
        path: the folder that PEFT saved, or its weights file. It is not changed.
        base: the base model: a folder with safetensors, or organisation/name in the hub's local cache.
        out: the folder to write; None computes the report and writes nothing.
        scale: what is left of dW along each intruder, from 0 to 1.
        k: how many leading vectors to look at.
        eps: the overlap under which a vector is an intruder.
        seed: of the iterative method.
        adapter_config: a config elsewhere than beside the weights.
        weights: a weights file of another name.
        force: replace `out` if it is there, once the new folder is complete.
        progress: called with (modules done, modules in all, the module's name).

    Raises:
        AdapterError: the adapter or the base cannot be read, or no module can be looked at.
        OutputError: `out` exists, or cannot be written.
        ValueError: an option is out of its range.
    """
    if not (0.0 <= scale <= 1.0 and k >= 1 and 0.0 < eps <= 1.0):
        message = f"expected 0 <= scale <= 1, k >= 1 and 0 < eps <= 1; got {scale}, {k} and {eps}"
        raise ValueError(message)
    files, adapter = open_adapter(path, adapter_config=adapter_config, weights=weights)
    if adapter.format != "peft" or adapter.source is None:
        raise AdapterError(f"the adapter is in {adapter.format}'s format, not PEFT's", advice="see 'gradience convert'")
    shards = find_shards(Path(base))
    if out is not None:
        refuse_place(Path(out), [files], base=shards, force=force)
    run = _Run(adapter, adapter.source, BaseWeights(shards), Options(scale, k, eps, seed))
    run.look(progress)
    if out is not None:
        write_adapter(
            Path(out),
            tensors=run.tensors(),
            config=raw_config(files.config),
            metadata=adapter.source.metadata or None,
            force=force,
            provenance=provenance_of(
                "mitigate",
                [files.config, *(files.shards or [files.weights])],
                options={"scale": scale, "k": k, "eps": eps, "seed": seed},
                modules=run.changes,
            ),
        )
    return MitigateReport(
        source=str(path),
        base=str(base),
        out=None if out is None else str(out),
        scale=scale,
        k=k,
        eps=eps,
        before=sum(row.before for row in run.rows),
        after=sum(row.after for row in run.rows),
        modules=run.rows,
        not_looked_at=run.left,
    )


class _Run:
    """One adapter beside one base, a weight at a time."""

    def __init__(self, adapter: Adapter, source: TensorSource, base: BaseWeights, options: Options) -> None:
        self.rows: list[MitigatedModule] = []
        self.left: list[NotCompared] = []
        self._adapter = adapter
        self._source = source
        self._base = base
        self._options = options
        self.changes: list[ModuleChange] = []
        self._new: dict[str, _Change] = {}

    def look(self, progress: Progress | None) -> None:
        """Look at every module.

        Raises:
            AdapterError: there is none that can be looked at.
        """
        modules = [*self._adapter.modules, *self._adapter.base_dependent]
        for place, module in enumerate(modules):
            if progress is not None:
                progress(place, len(modules), module.name)
            try:
                self._look_at(module)
            except AdapterError as error:
                self.left.append(NotCompared(name=module.name, reason=str(error)))
        if progress is not None:
            progress(len(modules), len(modules), "")
        if not self.rows:
            first = f" (first: {self.left[0].name}: {self.left[0].reason})" if self.left else ""
            raise AdapterError(f"no module can be looked at{first}", advice="give a PEFT LoRA and its own base")

    def _look_at(self, module: Module) -> None:
        name = module.keys.get("lora_B", "")
        shape = self._source.tensors[name].shape if name else ()
        turned = self._adapter.config.fan_in_fan_out and len(shape) == 2
        if (reason := reason_against(module, shape, module.shape[1 if turned else 0])) is not None:
            raise AdapterError(reason)
        w = self._weight(module)
        if w.shape != module.shape:
            raise AdapterError(f"the base's weight is {list(w.shape)}, and the update {list(module.shape)}")
        b = self._source.read(name).reshape(shape[0], module.r)
        if not all(np.isfinite(x).all() for x in module.load()) or not np.isfinite(w).all():
            raise AdapterError("it holds NaN or infinite numbers")
        dtype = DTYPES[self._source.tensors[name].dtype]
        found = looked_at(module, w, b, self._options, turned=turned, dtype=dtype)
        if found.vectors.shape[1]:
            self._new[name] = _Change(found.vectors, self._options.scale)
        self.rows.append(_row(module, found))
        change = found.relative_change
        self.changes.append(
            ModuleChange(name=module.name, rank_before=module.r, rank_after=module.r, relative_error=change)
        )

    def _weight(self, module: Module) -> Array:
        name = module.base_name or f"{module.name}.weight"
        held = self._base.find(name)
        if held is None:
            raise AdapterError(f"the base has no {name}")
        return self._base.read(held)

    def tensors(self) -> list[PlannedTensor]:
        """Return the new file: every tensor bit for bit, but for lora_B where an intruder is scaled."""
        return [self._tensor(name) for name in self._source.tensors]

    def _tensor(self, name: str) -> PlannedTensor:
        change = self._new.get(name)
        if change is None:
            return copied(self._source, name)
        info = self._source.tensors[name]

        def load() -> Array:
            b = self._source.read(name)
            return scaled(b.reshape(len(b), -1), change.vectors, change.scale).reshape(info.shape)

        return planned(name, info.dtype, info.shape, load)


def _row(module: Module, found: Found) -> MitigatedModule:
    return MitigatedModule(
        name=module.name,
        before=found.before,
        scaled=found.vectors.shape[1],
        after=found.after,
        undecided=found.undecided,
        relative_change=found.relative_change,
        method="exact" if found.overlaps.exact else "lanczos",
        converged=found.overlaps.converged,
    )
