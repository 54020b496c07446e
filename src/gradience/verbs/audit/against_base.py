"""The comparison of each module's update with the base weight that it changes.

It takes the numbers of an adapter and its base's files. It returns them with the comparisons, and a summary of the
adapter as a whole.

`update_of` gives one module's update in the orientation of the base weight. It is kept as two factors wherever the
factors are all of it. Norms, singular vectors and the survival of a merge are then computed without the product in
memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from gradience.adapters.layout import Adapter, Array, LeftoverTensor, Module, check_shape, within_range
from gradience.base.coded import Weight, weight_of
from gradience.base.forms import DamagedCodesError, UnreadCodesError
from gradience.base.weights import BaseWeights, Norms, NormsCache, find_shards, matrix_of, plain_factors
from gradience.errors import AdapterError
from gradience.folder import OpenAdapter
from gradience.io import Progress, cache_folder
from gradience.io.safetensors import ThreadBuffer
from gradience.rules.weights import at_risk
from gradience.schema import real
from gradience.schema.audit import (
    BaseComparison,
    BaseReport,
    CodesSurvival,
    Intruders,
    LeftoverReason,
    MergeSurvival,
    ModuleAudit,
    NotCompared,
)
from gradience.spectral import each_in_threads, one_blas_thread, threads_for
from gradience.spectral.base import MergeSums, UpdatedWeight, count_below, merge_sums, overlaps
from gradience.spectral.batch import spectrum_of
from gradience.spectral.dense import dense_spectrum
from gradience.spectral.grams import Floats
from gradience.spectral.krylov import Operator, as_float32, spectral_norm
from gradience.spectral.update import decomposed
from gradience.verbs.audit.measured import AdapterNumbers, ModuleNumbers, RowSettings, broken_row, dense_row, module_row
from gradience.verbs.audit.options import AuditOptions
from gradience.verbs.audit.tied import on_embedding

if TYPE_CHECKING:
    from gradience.models.merged import PeftMerge, WeightChange

SHOWN_EPS: Final = (0.3, 0.5, 0.7)
_CAUSES: Final[Mapping[type[AdapterError], Literal["damaged_codes", "unread_codes"]]] = MappingProxyType(
    {DamagedCodesError: "damaged_codes", UnreadCodesError: "unread_codes"}
)
_HALF: Final = 2  # bytes of a 16-bit float
_LARGEST: Final = float(np.finfo(np.float32).max)
_SAME_NORM: Final = 1e-5  # relative: cached norms are used only if their Frobenius norm agrees with this weight's


def beside_base(
    measured: AdapterNumbers, opened: OpenAdapter, base: Path, options: AuditOptions, progress: Progress | None
) -> AdapterNumbers:
    """The numbers beside those of the base, one weight in memory at a time, or one for each core.

    Modules whose update only follows with the base are added at the end.

    Raises:
        AdapterError: the adapter's scale is not known, the base cannot be read, or PEFT cannot merge this kind.
        GradienceError: PEFT has to merge it, and is not installed.
    """
    if opened.is_unscaled:
        raise AdapterError(
            "a base is compared with the update at its scale, and no adapter_config.json states that",
            advice="give it with --adapter-config",
        )
    shown = progress or (lambda *_: None)
    at = _open_base(measured.adapter, base, options, shown)
    if at.adapter.by_peft and opened.config is not None:
        compared = _of_merge(at, opened.config, shown)
    else:
        compared = _of_modules(at, measured.modules, shown)
    at.norms.save()
    modules = [one.measured for one in compared.outcomes if one.measured is not None]
    report = _report_of(at, compared, [module.row for module in modules])
    return AdapterNumbers(compared.adapter, modules, measured.notes, report, at.weights)


class _OpenBase(NamedTuple):
    """A base's files, the norms that are known of them, and the adapter as its modules are called there."""

    adapter: Adapter
    weights: BaseWeights
    norms: NormsCache
    options: AuditOptions
    notes: list[str]
    memory: ThreadBuffer
    """Where weights are read to, each thread's own."""


class _Outcome(NamedTuple):
    """A module's numbers, the reason if it was not compared, a note, and whether its norms came from the cache."""

    measured: ModuleNumbers | None
    missed: NotCompared | None = None
    note: str | None = None
    cached: bool = False


class _Compared(NamedTuple):
    """The adapter as the comparison left it, what each module gave, and how its update was found, if by PEFT."""

    adapter: Adapter
    outcomes: list[_Outcome]
    how: str = ""


class _Norms(NamedTuple):
    """The norms of a weight, whether the iteration converged, whether they are from the cache, and a note."""

    norms: Norms
    converged: bool
    cached: bool = False
    note: str | None = None


def _open_base(adapter: Adapter, base: Path, options: AuditOptions, progress: Progress) -> _OpenBase:
    files = find_shards(base)
    if options.norms_cache:
        progress(0, 0, "which base this is")
    norms = NormsCache(cache_folder("norms") if options.norms_cache else None, files)
    weights = BaseWeights(files)
    adapter, notes = on_embedding(adapter, weights)
    return _OpenBase(_as_stored(adapter, weights), weights, norms, options, notes, ThreadBuffer())


def _as_stored(adapter: Adapter, weights: BaseWeights) -> Adapter:
    """The adapter with the base's names of parameters that transformers has renamed since the base was saved."""
    every = (*adapter.modules, *adapter.base_dependent)
    if adapter.by_peft or all(_is_stored(module, weights) for module in every):
        return adapter
    from gradience.models.merged import renamed_tensors  # only for a missing name

    names = renamed_tensors(adapter, weights)

    def stored(module: Module) -> Module:
        name = names.get(_parameter(module))
        return module if name is None or _is_stored(module, weights) else dataclasses.replace(module, base_name=name)

    modules, dependent = ([*map(stored, group)] for group in (adapter.modules, adapter.base_dependent))
    return dataclasses.replace(adapter, modules=modules, base_dependent=dependent)


def _parameter(module: Module) -> str:
    return module.base_name or f"{module.name}.weight"


def _is_stored(module: Module, weights: BaseWeights) -> bool:
    """Whether the base has a tensor of this parameter, or of a slice of it."""
    name = _parameter(module)
    return weights.find(name) is not None or bool(
        module.expert is not None and weights.find_expert(name, module.expert)
    )


def _of_modules(base: _OpenBase, measured: Sequence[ModuleNumbers], progress: Progress) -> _Compared:
    """Compare each module; one that cannot be compared keeps its row unchanged.

    All cores work if each weight is only read and summed. If products of large matrices are needed, modules are
    compared one at a time.
    """
    adapter = base.adapter
    jobs: list[tuple[Module, ModuleNumbers | None]] = [*zip(adapter.modules, measured, strict=True)]
    jobs += [(module, None) for module in adapter.base_dependent]
    tasks = [partial(_of_module, base, *job) for job in jobs]
    is_light = not base.options.intruders and all(module.dense is None for module, _ in jobs)
    results = each_in_threads(tasks, ahead=1) if is_light else (task() for task in tasks)
    outcomes = []
    for place, (module, _) in enumerate(jobs):
        progress(place, len(jobs), module.name)
        outcomes.append(next(results))
    progress(len(jobs), len(jobs), "")
    return _Compared(adapter, outcomes)


def _of_merge(base: _OpenBase, config: Path, progress: Progress) -> _Compared:
    """Compare what PEFT's own merge changes, one module at a time.

    Raises:
        AdapterError: PEFT cannot merge this kind of adapter.
        GradienceError: PEFT is not installed.
    """
    from gradience.models import merged as by_peft  # torch, only where PEFT has to merge

    merge = by_peft.PeftMerge(base.adapter, config, base.weights)
    outcomes: list[_Outcome] = []
    left = []
    for place, name in enumerate(merge.modules):
        progress(place, len(merge.modules), name)
        try:
            outcomes += [_changed(base, merge, name, change) for change in merge.changes(name)]
        except by_peft.NotMergedError as error:
            left.append(LeftoverTensor(name, error.message, LeftoverReason.KIND_NOT_ANALYSED))
        except AdapterError as error:
            left.append(LeftoverTensor(name, error.message, LeftoverReason.NEEDS_BASE))
            outcomes.append(_Outcome(None, missed=NotCompared(name=name, reason=error.message)))
    progress(len(merge.modules), len(merge.modules), "")
    outcomes = list(_once(outcomes))
    roles = base.adapter.roles if left else by_peft.merged_roles(base.adapter)
    adapter = dataclasses.replace(base.adapter, roles=roles, skipped=left)
    return _Compared(adapter, [*outcomes, *_note_on_vectors(outcomes)], f"W' - W by PEFT {merge.version}'s own merge; ")


def _note_on_vectors(outcomes: Sequence[_Outcome]) -> Iterator[_Outcome]:
    vectors = sum(one.measured is not None and len(one.measured.row.shape) == 1 for one in outcomes)
    if vectors:
        text = f"{vectors} of {len(outcomes)} changes are of vectors (norms, biases): these have a size, no spectrum"
        yield _Outcome(None, note=text)


def _changed(base: _OpenBase, merge: PeftMerge, name: str, change: WeightChange) -> _Outcome:
    """The row of one tensor that a merge changes; a vector has norms, but no spectrum."""
    is_vector, leaf = change.before.ndim == 1, change.leaf
    # A vector is compared as a matrix of one row: norms and the survival of a merge are the same.
    rows = 1 if is_vector else len(change.before)
    w, update = change.before.reshape(rows, -1), change.change.reshape(rows, -1)
    module = Module(
        name=name if leaf == "weight" else f"{name}.{leaf}",
        kind=merge.kind.lower(),
        shape=(w.shape[0], w.shape[1]),
        r=0,
        alpha=0.0,
        scale=1.0,
        params=merge.parameters(name) if leaf == "weight" else 0,
        load=lambda: (update, np.eye(len(update.T), dtype=update.dtype)),
        dense=lambda _: update,
    )
    with threads_for(min(w.shape)):
        weight = Weight(change.found.name, change.found.name, change.found.info.dtype, w)
        done = _beside(base, module, None, weight)
    assert done.measured is not None  # noqa: S101  # `_beside` makes one, or raises
    row = msgspec.structs.replace(done.measured.row, alpha=None)
    return done._replace(measured=done.measured._replace(row=_of_vector(row) if is_vector else row))


def _of_module(base: _OpenBase, module: Module, measured: ModuleNumbers | None) -> _Outcome:
    if measured is not None and measured.row.state == "non_finite":
        return _Outcome(measured)
    try:
        return _compared(base, module, measured)
    except AdapterError as error:
        cause = _CAUSES.get(type(error))
        return _Outcome(measured, missed=NotCompared(name=module.name, reason=error.message, cause=cause))


def _compared(base: _OpenBase, module: Module, measured: ModuleNumbers | None) -> _Outcome:
    weight = weight_of(base.weights, _parameter(module), module.expert, base.memory)
    if weight is None:
        raise AdapterError(f"the base has no {_parameter(module)}")
    # Only modules with factors are compared by several threads at once, which `threads_for` does not allow.
    with one_blas_thread() if module.dense is None else threads_for(min(weight.w.shape)):
        return _beside(base, module, measured, weight)


def _beside(base: _OpenBase, module: Module, measured: ModuleNumbers | None, weight: Weight) -> _Outcome:
    """The module compared with its weight."""
    options, update = base.options, update_of(module, weight)
    sums = update.merged(weight)
    if not math.isfinite(sums.weight):
        raise AdapterError(f"{weight.name} holds NaN or infinite weights")
    norms, converged, cached, note = _norms_of(base.norms, weight, math.sqrt(sums.weight), options.seed)
    settled = True
    if module.dense is not None:
        measured, settled = _of_weight(dataclasses.replace(module, shape=weight.shape), update, options)
    elif measured is None or measured.row.state == "not_known":
        raise AdapterError(module.note or "its update is not known")
    row = measured.row
    size, frobenius = (math.nan if n is None else float(n) for n in (row.spectral_norm, row.frobenius_norm))
    is_update = 0.0 < size < math.inf
    counts_intruders = options.intruders and is_update
    if counts_intruders and not update.fits_float32(size):
        counts_intruders, note = False, f"{weight.name}: the update is beyond float32, so its intruders are not known"
    # Intruders are of the output side: a weight that is stored (in, out) is turned for them.
    is_turned = base.adapter.config.fan_in_fan_out and module.kind != "embedding"
    comparison = BaseComparison(
        weight=weight.name,
        dtype=weight.dtype,
        codes=None if weight.coded is None else weight.coded.form,
        update="factors" if module.dense is None else "dense",
        spectral_norm=norms.spectral,
        frobenius_norm=norms.frobenius,
        update_frobenius_norm=real(frobenius),
        converged=converged and settled,
        held=_held(sums) if _is_plain(module) else None,
        survival=MergeSurvival(dtype=_target(weight.dtype), **_left_of(sums)) if is_update else None,
        in_codes=CodesSurvival(**_left_of(sums.in_codes)) if is_update and sums.in_codes is not None else None,
        intruders=_intruders(update, weight, options, is_turned=is_turned) if counts_intruders else None,
    )
    row = msgspec.structs.replace(row, base=comparison, **_ratios(size, frobenius, norms))
    return _Outcome(measured._replace(row=row), note=note, cached=cached)


def _of_weight(module: Module, update: Update, options: AuditOptions) -> tuple[ModuleNumbers, bool]:
    """The numbers of an update computed from the weight, and whether its iterations converged."""
    settings = RowSettings(options.top_singular_values)
    values = update.sigma if update.dense is None else update.dense
    if values is None or not np.isfinite(values).all():
        return broken_row(module), True
    if update.dense is None:
        limit = min(len(values), *module.shape)
        return module_row(module, spectrum_of(values), settings, limit=limit), True
    spectrum = dense_spectrum(update.dense, values=module.r, seed=options.seed)
    return dense_row(module, spectrum, settings), spectrum.converged


def _norms_of(cache: NormsCache, weight: Weight, frobenius: float, seed: int) -> _Norms:
    known = cache.get(weight.key)
    if known is not None and math.isclose(known.frobenius, frobenius, rel_tol=_SAME_NORM):
        return _Norms(known, converged=True, cached=True)
    note = None if known is None else f"the cached norms of {weight.key} are of another weight: computed again"
    top = spectral_norm(weight.w, seed=seed)
    norms = Norms(spectral=top.value, frobenius=frobenius)
    if top.converged:
        cache.put(weight.key, norms)
    return _Norms(norms, top.converged, note=note)


def _intruders(update: Update, weight: Weight, options: AuditOptions, *, is_turned: bool) -> Intruders:
    eps = options.intruder_eps
    base, tuned = update.operators(as_float32(weight.floats()))
    if is_turned:
        base, tuned = (x.turned() for x in (base, tuned))
    every_eps = sorted({eps, *SHOWN_EPS})
    nearest = overlaps(base, tuned, options.intruder_k, every_eps, seed=options.seed)
    count, undecided = count_below(nearest, eps)
    return Intruders(
        k=len(nearest.lower),
        eps=eps,
        count=count,
        counts={f"{e:g}": count_below(nearest, e)[0] for e in every_eps},
        undecided=undecided,
        method="exact" if nearest.exact else "lanczos",
        converged=nearest.converged,
    )


def _report_of(base: _OpenBase, compared: _Compared, rows: Sequence[ModuleAudit]) -> BaseReport:
    """The comparison of the whole adapter with the base."""
    pairs = [(m, m.base) for m in rows if m.base is not None]
    # `hypot`, because the square of a large norm overflows.
    update_norm = math.hypot(*(float(b.update_frobenius_norm) for _, b in pairs))
    base_norm = math.hypot(*(float(b.frobenius_norm) for _, b in pairs))
    survivals = [b.survival for _, b in pairs if b.survival is not None and b.survival.cosine is not None]
    intruders = [b.intruders for _, b in pairs if b.intruders is not None]
    in_codes = [b.in_codes for _, b in pairs if b.in_codes is not None and b.in_codes.cosine is not None]
    udr = [m.udr for m, _ in pairs if isinstance(m.udr, float)]
    held, held_error = held_of([b for _, b in pairs])
    notes = (base.norms.refused, *(one.note for one in compared.outcomes), *base.notes)
    return BaseReport(
        path=str(base.weights.files[0].path.parent),
        identity=base.norms.identity or None,
        files=len(base.weights.files),
        compared=len(pairs),
        not_compared=[one.missed for one in compared.outcomes if one.missed is not None],
        norms_cached=sum(one.cached for one in compared.outcomes),
        relative_frobenius=update_norm / base_norm if base_norm else None,
        held=held,
        held_error=held_error,
        udr_median=_median(udr),
        udr_max=max(udr, default=None),
        sdi_median=_median(m.sdi for m, _ in pairs if isinstance(m.sdi, float)),
        survival_dtype=survivals[0].dtype if survivals else None,
        survival_cosine_median=_median(s.cosine for s in survivals if s.cosine is not None),
        survival_changed_median=_median(s.changed for s in survivals),
        survival_at_risk=sum(at_risk(m) for m, _ in pairs),
        codes=dict(Counter(b.codes for _, b in pairs if b.codes is not None).most_common()),
        in_codes_changed_median=_median(s.changed for s in in_codes),
        in_codes_cosine_median=_median(s.cosine for s in in_codes if s.cosine is not None),
        intruder_total=sum(i.count for i in intruders) if intruders else None,
        intruder_modules=sum(i.count > 0 for i in intruders) if intruders else None,
        method=f"{compared.how}norms by Lanczos, seed {base.options.seed}, to 1e-5{_way(intruders)}",
        notes=[note for note in notes if note is not None],
    )


def _way(intruders: Iterable[Intruders]) -> str:
    """How the intruders were counted."""
    return {
        frozenset({"exact"}): "; intruders by dense SVD",
        frozenset({"lanczos"}): "; intruders by Lanczos with bounds on every overlap",
        frozenset({"exact", "lanczos"}): "; intruders by dense SVD of small, bounded Lanczos of large weights",
    }.get(frozenset(one.method for one in intruders), "")


def _held(sums: MergeSums) -> float | None:
    held = sums.along / sums.intended if 0.0 < sums.intended < math.inf else math.nan
    return held if math.isfinite(held) else None


def _is_plain(module: Module) -> bool:
    """Whether the update is s B A alone, so that W says nothing of it unless it was added."""
    return module.dense is None and module.factored is None and module.kind in {"linear", "conv"}


def held_of(compared: Iterable[BaseComparison]) -> tuple[float | None, float | None]:
    """How often the base holds the whole update already, and the standard error of that ratio of sums over modules.

    dW is trained beside a W that it hardly resembles, so <W, dW> / norm(dW)^2 is near 0; of W + dW it is near 1. The
    error is that of a ratio estimate, sqrt(sum (x - held y)^2) / sum y.
    """
    pairs = [(b.held * (y := float(b.update_frobenius_norm) ** 2), y) for b in compared if b.held is not None]
    total = sum(y for _, y in pairs)
    if not 0.0 < total < math.inf:
        return None, None
    held = sum(x for x, _ in pairs) / total
    return held, math.hypot(*(x - held * y for x, y in pairs)) / total if len(pairs) > 1 else None


def _once(done: Iterable[_Outcome]) -> Iterator[_Outcome]:
    """Yield the results, of modules that share a tensor and its change only the first, and then a note."""
    kept: dict[tuple[str, object], str] = {}
    for one in done:
        row = None if one.measured is None else one.measured.row
        # One tensor under two names is tied, if its change is the same too; another norm is another change.
        same = (row.base.weight, row.frobenius_norm) if row is not None and row.base is not None else None
        if row is not None and same in kept:
            yield _Outcome(None, note=f"{row.name} is tied to {kept[same]}: its change is given once")
            continue
        if row is not None and same is not None:
            kept[same] = row.name
        yield one


_OF_MATRICES: Final = (
    *("stable_rank", "effective_rank", "participation_ratio", "energy_rank_90", "energy_rank_95", "energy_rank_99"),
    *("knee_rank", "udr", "sdi"),
)


def _of_vector(row: ModuleAudit) -> ModuleAudit:
    """The row of a vector's change, from that of a matrix of one row: norms, but nothing of a spectrum."""
    nothing: dict[str, Any] = dict.fromkeys(_OF_MATRICES)
    return msgspec.structs.replace(row, shape=[math.prod(row.shape)], top_singular_values=[], **nothing)


def _median(values: Iterable[float]) -> float | None:
    listed = list(values)
    return median(listed) if listed else None


def _ratios(size: float, frobenius: float, norms: Norms) -> dict[str, float | str | None]:
    """The update beside its weight: udr and its log10, sdi, by spectral norms, relative_frobenius by the others."""
    if norms.spectral <= 0.0 or norms.frobenius <= 0.0:
        return {}
    udr = size / norms.spectral
    return {
        "udr": real(udr),
        "sdi": math.log10(udr) if udr > 0.0 and math.isfinite(udr) else None,
        "relative_frobenius": real(frobenius / norms.frobenius),
    }


class Update(NamedTuple):
    """The update `scale * b @ a`, or `dense` if the update is held as a full matrix.

    `sigma` holds the singular values if this module factored the update, so that b and a are orthogonal factors. It is
    None if b and a are the adapter's own factors, or if the update is dense.
    """

    b: Array
    a: Array
    scale: float
    dense: Array | None = None
    sigma: Floats | None = None

    def fits_float32(self, size: float) -> bool:
        """Whether `operators` are finite, for an update of that spectral norm, which bounds its entries."""
        factor = abs(self.scale) * float(np.max(np.abs(self.b), initial=0.0)) if self.dense is None else 0.0
        return max(size, factor) <= _LARGEST

    def operators(self, w: Array) -> tuple[Operator, Operator]:
        """W and W + dW as operators, for a weight that `as_float32` has converted."""
        base = Operator.of(w)
        if self.dense is not None:
            return base, Operator.of(as_float32(w + self.dense))
        left = (self.b.astype(np.float32) * np.float32(self.scale)).astype(np.float32)
        return base, base.plus(left, self.a)

    def merged(self, weight: Weight) -> MergeSums:
        """Sums over the entries of a merge into a weight."""
        # PEFT rounds the product of 16-bit factors to their dtype before it adds the product to the weight.
        stored = self.b.dtype.name if self.dense is None and self.b.dtype.itemsize == _HALF else "float32"
        left, right, dense = self.b, self.a, self.dense
        if weight.is_turned:
            left, right, dense = right.T, left.T, None if dense is None else dense.T
        whole = UpdatedWeight(weight.w, left, right, dense)
        return merge_sums(whole, scale=self.scale, target=_target(weight.dtype), delta_dtype=stored)


def update_of(module: Module, weight: Weight) -> Update:
    """The module's update in the orientation of the model's parameter.

    Raises:
        AdapterError: the base weight has another shape.
    """
    if module.factored is not None:
        b, a = module.factored(weight.floats())
        check_shape((len(b), a.shape[1]), weight.shape)
        if not within_range(b, a):
            return Update(b, a, 1.0, sigma=np.full(1, np.nan))
        # Orthogonal factors, because the part that the initialisation took out of the base is large beside the update.
        low = decomposed(b, a)
        return Update((low.u * low.sigma).astype(np.float32), low.v.astype(np.float32), 1.0, sigma=low.sigma)
    if module.dense is not None:
        w = weight.floats()
        return Update(w[:, :0], w[:0], 1.0, matrix_of(module.dense, w))
    b, a = plain_factors(module, weight.shape)
    return Update(b, a, module.scale)


def _target(dtype: str) -> Literal["bfloat16", "float16"]:
    """The dtype in which a merge is judged: float16 for a float16 weight, else bfloat16, in which models are served."""
    return "float16" if dtype == "F16" else "bfloat16"


def _left_of(sums: MergeSums) -> dict[str, Any]:
    """What a merge leaves of an update: the fields that a survival in 16 bits has, and one in the base's codes."""
    return {
        "changed": sums.changed / sums.entries,
        "cosine": sums.cosine,
        "gain": math.sqrt(sums.realised / sums.intended) if sums.intended > 0.0 else None,
    }
