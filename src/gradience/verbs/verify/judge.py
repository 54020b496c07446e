"""The verdict on one weight: whether M is a merge of W and dW."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Array, Module
from gradience.schema.merge import ModuleVerdict
from gradience.verbs.verify.delta import UNIT, Delta, working
from gradience.verbs.verify.measure import (
    F16_HALF_STEP,
    Case,
    EntrySums,
    Merge,
    blocks,
    distance,
    is_cast,
    measure,
    relative_change,
)

FAILING: Final = {
    "absent": "without the update",
    "scaled": "with another factor of it",
    "other": "with something else",
}
"""The verdicts that the merged model does not contain the adapter, in words."""

_SAME: Final = 0.02  # relative: two factors that differ by less are taken for the same (heuristic)

FEW: Final = 36
"""Entries: if a merge would change fewer, they are not evidence. n random signs all agree at sqrt(n) sigma, here 6."""

_RESOLVED: Final = 0.9  # if a merge's own coefficient is at least this, M's over it is the factor (heuristic)
_NEAR: Final = 0.01  # relative difference of two factors; also the smallest factor that is reported (heuristic)
SIGMAS: Final = 6.0
_ROUNDINGS: Final = 3  # roundings of dW in 16 bits: of each factor, and of their product


def usual_factors(module: Module) -> dict[float, str]:
    """Return the factors of dW that common mistakes lead to, each with its mistake in words."""
    s, r = module.scale, float(module.r)
    root = math.sqrt(r)
    factors = {2.0: "merged twice, or at twice the strength", 0.5: "merged at half strength", -1.0: "subtracted"}
    mistakes = {
        "as if alpha / r had been left out": 1.0 / s if s else 0.0,
        "as if it had been scaled twice": s,
        "as if alpha had not been divided by r": root if module.rslora else r,
        "as if rsLoRA's alpha / sqrt(r) had been taken for alpha / r": 1.0 / root if module.rslora else 0.0,
        "as if alpha / r had been taken for rsLoRA's alpha / sqrt(r)": 0.0 if module.rslora else root,
    }
    for why, factor in mistakes.items():
        if factor not in {0.0, 1.0}:
            factors[factor] = f"{factors[factor]}, or {why}" if factor in factors else why
    return factors


def causes_of(module: Module, factor: float) -> str | None:
    """Return the mistakes that would explain a factor of dW, or None."""
    near = [why for usual, why in usual_factors(module).items() if math.isclose(usual, factor, rel_tol=_SAME)]
    return "; ".join(near) or None


class Judgement(NamedTuple):
    """The verdict on one weight and its evidence; the fields are those of `VerifiedModule`."""

    verdict: ModuleVerdict
    sums: EntrySums = EntrySums()
    summed_in: str | None = None
    factor: float | None = None
    precision: str | None = None
    reason: str | None = None
    without_base_change: bool = False
    lost: float | None = None
    expected_lost: float | None = None


class _Nearest(NamedTuple):
    """The merge nearest to M, and the sums for it."""

    merge: Merge
    sums: EntrySums


def verdict_on(case: Case, module: Module, *, plain: Delta | None = None) -> Judgement:
    """Return the verdict on one weight.

    Args:
        case: the weight, its merged counterpart and the update.
        module: the adapter's module.
        plain: s B A, if the true update is a function of W.
    """
    near = _nearest(case)
    sums = near.sums
    if not sums.is_finite:
        return Judgement("other", sums, reason=_not_finite(case))
    # Before `exact`: where rounding leaves nothing of dW, a merge gives W, too.
    if is_cast(case.w, case.m, case.base, case.merged):
        return _when_base(sums)
    if case.delta.is_known and not sums.missed:
        return Judgement("exact", sums, near.merge.dtype) if sums.dd > 0.0 else _when_base(sums)
    if (precision := _precision(case, sums)) is not None:
        is_told = _is_evidence(sums)
        return Judgement("within_rounding", sums, precision=precision) if is_told else _below_resolution(sums)
    return (
        (None if plain is None else _without_base_change(case, module, plain, sums))
        or _scaled(case, module, near)
        or Judgement("other", sums, reason=_likeness(sums))
    )


def _nearest(case: Case) -> _Nearest:
    """Return the merge in M's own dtype, or in the one used for computing if that is nearer to M."""
    numbers = case.held()
    computing = "F64" if working(case.base, case.merged) == np.float64 else "F32"
    tried: list[_Nearest] = []
    for dtype in dict.fromkeys((numbers, computing)):
        merge = Merge(dtype, numbers)
        tried.append(_Nearest(merge, measure(case, merge)))
        if not tried[-1].sums.missed:
            return tried[-1]
    return min(tried, key=lambda one: one.sums.excess)


def _when_base(sums: EntrySums) -> Judgement:
    if sums.dd == 0.0:
        return Judgement("unresolved", sums, reason="the update is zero")
    # A cast through 16 bits changes entries, and not by the update.
    sums = sums._replace(changed=0)
    return Judgement("absent", sums) if _is_evidence(sums) else _below_resolution(sums)


def _below_resolution(sums: EntrySums) -> Judgement:
    return Judgement("unresolved", sums, reason="rounding leaves nothing of the update, or too little to tell")


def _is_evidence(sums: EntrySums) -> bool:
    """Return whether a merge would change enough to distinguish M from W."""
    return sums.would_change >= FEW or (sums.expected is not None and abs(sums.expected) > _RESOLVED)


def _precision(case: Case, sums: EntrySums, factor: float = 1.0) -> str | None:
    """Return the dtype whose roundings of dW explain the difference of M from W + factor dW, or None.

    The relative error of dW must be within the dtype's bound in every entry. Also, M must not contain systematically
    more or less of dW than the merge: their coefficients may differ by that bound, plus six standard deviations of a
    sum of errors with random signs.
    """
    if sums.coefficient is None or sums.expected is None:
        return None
    off = abs(sums.coefficient - sums.expected)
    chance = SIGMAS * math.sqrt(sums.spread) / sums.dd
    fits = (
        dtype
        for dtype, bound in _bounds(case.delta.rank)
        if sums.excess <= bound and off <= abs(factor) * bound + chance
    )
    return next(fits, None)


def _bounds(rank: int) -> Iterator[tuple[str, float]]:
    """Yield each dtype with a bound on the relative error of dW: r products summed in float32, or 16-bit roundings."""
    yield "F32", (rank + 8) * UNIT["F32"]
    yield "F16", _ROUNDINGS * UNIT["F16"]
    yield "BF16", _ROUNDINGS * UNIT["BF16"]


def _scaled(case: Case, module: Module, near: _Nearest) -> Judgement | None:
    """Return the verdict if M is W + factor dW for a factor other than 1, else None."""
    for factor in _factors(case, module, near):
        sums = measure(case, near.merge._replace(factor=factor))
        precision = _precision(case, sums, factor)
        if precision is not None and _is_evidence(sums):
            summed_in, precision = (None, precision) if sums.missed else (near.merge.dtype, None)
            return Judgement("scaled", sums, summed_in, factor, precision, causes_of(module, factor))
    return None


def _factors(case: Case, module: Module, near: _Nearest) -> Iterator[float]:
    """Yield likely factors: those of common mistakes near the least-squares factor, then the latter itself."""
    sums, usual = near.sums, usual_factors(module)
    if sums.coefficient is None or sums.expected is None:
        return
    # Where rounding removes much of dW, c does not give the factor, and only common factors can be tried
    if sums.expected < _RESOLVED:
        at = case.probe()
        yield min(usual, key=lambda factor: distance(case, near.merge._replace(factor=factor), at))
        return
    factor = sums.coefficient / sums.expected
    yield from (one for one in usual if math.isclose(one, factor, rel_tol=_NEAR))
    if abs(factor) > _NEAR:
        yield factor


def _likeness(sums: EntrySums) -> str:
    if sums.dd == 0.0:
        return "the update is zero, and yet it changed"
    cosine = sums.ed / math.sqrt(sums.ee * sums.dd) if sums.ee > 0.0 else 0.0
    return f"cosine of M - W with dW: {cosine:.3f}"


def _without_base_change(case: Case, module: Module, plain: Delta, sums: EntrySums) -> Judgement | None:
    """Return the verdict if M is W + s B A although the true update is a function of W, else None."""
    near = _nearest(replace(case, delta=plain))
    if near.sums.missed:
        return None
    left_out = "DoRA's magnitude" if module.magnitude is not None else "KaSA's truncation of the base"
    if module.magnitude is not None or "lora_diag" in module.keys:
        reason = f"W + s B A: {left_out} was left out"
        return Judgement("other", sums, near.merge.dtype, reason=reason, without_base_change=True)
    reason = "W + s B A: exact if this base is what the adapter was trained on"
    return Judgement("exact", near.sums, near.merge.dtype, reason=reason, without_base_change=True)


def _not_finite(case: Case) -> str:
    for name, x in (("the merged tensor", case.m), ("the base's tensor", case.w)):
        if not np.isfinite(x.astype(np.float32)).all():
            return f"{name} holds NaN or infinite numbers"
    return "the update holds NaN or infinite numbers"


def copied(held: Array, w: Array | None, m: Array, dtypes: tuple[str, str, str]) -> Judgement:
    """Return the verdict on whether the merged model's tensor holds the adapter's values.

    Args:
        held: the adapter's tensor.
        w: the base's tensor, of the same shape; None if the base has none in floats.
        m: the merged model's tensor.
        dtypes: the dtypes of these three, by safetensors' names; that of no tensor is empty.
    """
    own, base, merged = dtypes
    if not np.isfinite(m.astype(np.float32)).all():
        return Judgement("other", reason="the merged tensor holds NaN or infinite numbers")
    is_base = w is not None and is_cast(w, m, base, merged)
    if is_cast(held, m, own, merged):
        return Judgement("unresolved", reason="the adapter's values are the base's") if is_base else Judgement("exact")
    if is_base:
        return Judgement("absent")
    bound = 2.0 * UNIT[merged]
    if all(np.all(np.abs(y - x) <= bound * np.abs(x) + F16_HALF_STEP) for x, y in blocks(held, m, own, merged)):
        return Judgement("within_rounding")
    return Judgement("other", reason=f"norm(M - saved) / norm(saved): {relative_change(held, m, own, merged):.3g}")
