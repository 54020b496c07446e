"""The verdict on one weight: the merge that made M from W and dW, if there is one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

import msgspec
import numpy as np

from gradience.adapters.layout import Module
from gradience.prove.verify_merge.delta import HALVES, UNIT, Delta, narrower, rounded
from gradience.prove.verify_merge.measure import Sums, distance, exact, excess, is_weight, measure, mismatches
from gradience.prove.verify_merge.replays import Case, Dora, is_merge, replays, with_factor
from gradience.schema.merge import MergeReplay, ModuleVerdict

FAILING: Final = {
    "absent": "without the update",
    "scaled": "with another factor of it",
    "other": "with something else",
}
"""The verdicts that the merged model does not contain the adapter, in words."""

_SAME: Final = 0.02  # relative: two factors that differ by less are taken for the same (heuristic)

_FEW: Final = 36
"""Entries: if a merge would change fewer, they are not evidence. n random signs all agree at sqrt(n) sigma, here 6."""

_RESOLVED: Final = 0.9  # if a replay's own coefficient is at least this, M's over it is the factor (heuristic)
_NEAR: Final = 0.01  # relative difference of two factors; also the smallest factor that is reported (heuristic)
_SIGMAS: Final = 6.0
_ROUNDINGS: Final = 3  # roundings of dW in 16 bits: of each factor, and of their product
_FULL_TRIES: Final = 3  # replays that fit the probe and are then tried on all rows


def usual_factors(module: Module) -> dict[float, str]:
    """Return the factors of dW that common mistakes lead to, each with its mistake in words."""
    s, r = module.scale, float(module.r)
    root = math.sqrt(r)
    found = {2.0: "merged twice, or at twice the strength", 0.5: "merged at half strength", -1.0: "subtracted"}
    mistakes = {
        "as if alpha / r had been left out": 1.0 / s if s else 0.0,
        "as if it had been scaled twice": s,
        "as if alpha had not been divided by r": root if module.rslora else r,
        "as if rsLoRA's alpha / sqrt(r) had been taken for alpha / r": 1.0 / root if module.rslora else 0.0,
        "as if alpha / r had been taken for rsLoRA's alpha / sqrt(r)": 0.0 if module.rslora else root,
    }
    for why, factor in mistakes.items():
        if factor not in {0.0, 1.0}:
            found[factor] = f"{found[factor]}, or {why}" if factor in found else why
    return found


def causes_of(module: Module, factor: float) -> str | None:
    """Return the mistakes that would explain a factor of dW, or None."""
    near = [why for usual, why in usual_factors(module).items() if math.isclose(usual, factor, rel_tol=_SAME)]
    return "; ".join(near) or None


class Judgement(NamedTuple):
    """The verdict on one weight and its evidence; the fields are those of `VerifiedModule`."""

    verdict: ModuleVerdict
    sums: Sums
    replay: MergeReplay | None = None
    factor: float | None = None
    precision: str | None = None
    reason: str | None = None


class _Exact(NamedTuple):
    replay: MergeReplay
    sums: Sums


class Judge:
    """The judge of all weights of one model; it first tries the replay that matched an earlier weight."""

    def __init__(self) -> None:
        self._met: dict[tuple[str, str], MergeReplay] = {}
        self._rescaled: dict[tuple[str, str], MergeReplay] = {}

    def verdict(
        self, case: Case, module: Module, *, plain: Delta | None = None, dora: Sequence[Dora] = ()
    ) -> Judgement:
        """Return the verdict on one weight.

        Args:
            case: the weight, its merged counterpart and the update.
            module: the adapter's module.
            plain: s B A, if the true update is a function of W.
            dora: the possible DoRA updates of the module.
        """
        found = self._exact(case, module) if case.delta.is_known else self._exact_dora(case, dora, module)
        if found is not None:
            return _when_exact(found)
        nearest = _nearest(case, replays(case.base, case.merged, scale=module.scale))
        sums = measure(case, nearest)
        if not (math.isfinite(sums.ee) and math.isfinite(sums.dd)):
            return Judgement("other", sums, reason=_not_finite(case))
        if any(is_weight(case, through) for through in dict.fromkeys((case.base, case.merged, *HALVES))):
            return _when_base(sums)
        if (precision := _precision(case, nearest, sums)) is not None:
            resolved = _is_evidence(sums)
            return Judgement("within_rounding", sums, precision=precision) if resolved else _below_resolution(sums)
        return (
            (None if plain is None else _without_base_change(case, module, plain, sums))
            or _scaled_dora(case, dora, module)
            or _scaled(case, module, nearest)
            or Judgement("other", sums, reason=_likeness(sums))
        )

    def _exact(self, case: Case, module: Module) -> _Exact | None:
        key = (case.base, case.merged)
        met = self._met.get(key)
        if met is not None and case.delta.is_known and (sums := exact(case, met)) is not None:
            return _Exact(met, sums)
        found = _first_exact(case, replays(case.base, case.merged, scale=module.scale))
        if found is not None:
            self._met[key] = found.replay
        return found

    def _exact_dora(self, case: Case, dora: Sequence[Dora], module: Module) -> _Exact | None:
        key = (case.base, case.merged)
        likely = replays(case.base, case.merged, scale=module.scale)
        found = _first_rescaled(case, dora, dict.fromkeys([self._rescaled.get(key, likely[0]), *likely]))
        if found is None:
            return None
        self._rescaled[key] = found
        sums = measure(case, MergeReplay(weight=found.weight))
        # M is a possible result of the replay, so the replay changes exactly what M changes.
        sums = sums._replace(would_change=sums.changed, pd=sums.ed, spread=0.0)
        return _Exact(msgspec.structs.replace(found, rescaled=True), sums)


def _first_rescaled(case: Case, dora: Sequence[Dora], some: Iterable[MergeReplay]) -> MergeReplay | None:
    return next((replay for replay in some for each in dora if is_merge(case, each, replay)), None)


def _scaled_dora(case: Case, dora: Sequence[Dora], module: Module) -> Judgement | None:
    """Return the verdict if M is a DoRA merge with a wrong scale, else None."""
    if not dora:
        return None
    orders = [replay for replay in replays(case.base, case.merged, scale=module.scale) if replay.factors is None]
    some = (with_factor(replay, factor) for factor in usual_factors(module) for replay in orders)
    found = _first_rescaled(case, dora, some)
    if found is None:
        return None
    replay = msgspec.structs.replace(found, rescaled=True)
    reason = f"f (W + {found.factor:g} s B A), f by its norm: {usual_factors(module)[found.factor]}"
    return Judgement("scaled", measure(case, MergeReplay(weight=found.weight)), replay, found.factor, reason=reason)


def _first_exact(case: Case, some: Iterable[MergeReplay]) -> _Exact | None:
    """Return the first replay that gives M exactly, or None; those that match on the probe are tried on all rows."""
    if not case.delta.is_known:
        return None
    at = case.probe()
    likely = (replay for replay in some if not mismatches(case, replay, at))
    for replay in islice(likely, _FULL_TRIES):
        if (sums := exact(case, replay)) is not None:
            return _Exact(replay, sums)
    return None


def _nearest(case: Case, some: Iterable[MergeReplay]) -> MergeReplay:
    """Return the replay nearest to M on the probe, among those whose dtype can represent M."""
    at = case.probe()
    m = case.pair(at)[1]
    possible = {dtype for dtype in UNIT if not narrower(dtype, case.merged) or np.array_equal(rounded(m, dtype), m)}
    distances = [(distance(case, replay, at), replay) for replay in some if replay.weight in possible]
    # NaN is neither less nor more than a number, and would win where it comes first
    return min(distances, key=lambda item: math.inf if math.isnan(item[0]) else item[0])[1]


def _when_exact(found: _Exact) -> Judgement:
    if found.sums.dd == 0.0:
        return Judgement("unresolved", found.sums, reason="the update is zero")
    if found.sums.changed == 0:
        return _below_resolution(found.sums)
    return Judgement("exact", found.sums, replay=found.replay)


def _when_base(sums: Sums) -> Judgement:
    if sums.dd == 0.0:
        return Judgement("unresolved", sums, reason="the update is zero")
    sums = sums._replace(changed=0)
    return Judgement("absent", sums) if _is_evidence(sums) else _below_resolution(sums)


def _below_resolution(sums: Sums) -> Judgement:
    return Judgement("unresolved", sums, reason="rounding leaves nothing of the update, or too little to tell")


def _is_evidence(sums: Sums) -> bool:
    """Return whether a merge would change enough to distinguish M from W."""
    return sums.would_change >= _FEW or (sums.expected is not None and abs(sums.expected) > _RESOLVED)


def _precision(case: Case, replay: MergeReplay, sums: Sums) -> str | None:
    """Return the dtype whose roundings of dW explain the difference of M from W + factor dW, or None.

    The relative error of dW must be within the dtype's bound in every entry. Also, M must not contain systematically
    more or less of dW than the replay: their coefficients may differ by that bound, plus six standard deviations of a
    sum of errors with random signs.
    """
    if sums.coefficient is None or sums.expected is None:
        return None
    factor = replay.factor * replay.times
    off = abs(sums.coefficient - sums.expected)
    chance = _SIGMAS * math.sqrt(sums.spread) / sums.dd
    left = excess(case, replay, factor)
    fits = (dtype for dtype, bound in _bounds(case.delta.rank) if left <= bound and off <= abs(factor) * bound + chance)
    return next(fits, None)


def _bounds(rank: int) -> Iterator[tuple[str, float]]:
    """Yield each dtype with a bound on the relative error of dW: r products summed in float32, or 16-bit roundings."""
    yield "F32", (rank + 8) * UNIT["F32"]
    yield "F16", _ROUNDINGS * UNIT["F16"]
    yield "BF16", _ROUNDINGS * UNIT["BF16"]


def _scaled(case: Case, module: Module, nearest: MergeReplay) -> Judgement | None:
    """Return the verdict if M is W + factor dW for a factor other than 1, else None."""
    usual = list(_wrong_ones(case, module, nearest))
    if (found := _first_exact(case, usual)) is not None:
        factor = found.replay.factor * found.replay.times
        return Judgement("scaled", found.sums, found.replay, factor, reason=causes_of(module, factor))
    for replay in _near_ones(case, module, MergeReplay(weight=nearest.weight), usual):
        sums = measure(case, replay)
        precision = _precision(case, replay, sums)
        if precision is not None and _is_evidence(sums):
            factor = replay.factor * replay.times
            return Judgement("scaled", sums, None, factor, precision, causes_of(module, factor))
    return None


def _wrong_ones(case: Case, module: Module, nearest: MergeReplay) -> Iterator[MergeReplay]:
    """Yield the replays that common mistakes lead to, in the nearest order of arithmetic and in plain ones."""
    plain = (MergeReplay(weight=weight) for weight in (nearest.weight, case.base, case.merged))
    for order in dict.fromkeys((nearest, *plain)):
        yield with_factor(order, 1.0, times=2)
        for factor in usual_factors(module):
            yield with_factor(order, factor)


def _near_ones(case: Case, module: Module, plain: MergeReplay, usual: Iterable[MergeReplay]) -> Iterator[MergeReplay]:
    """Yield replays with likely factors: common ones near the least-squares factor, then the latter itself."""
    sums = measure(case, plain)
    if sums.coefficient is None or sums.expected is None:
        return
    # Where rounding removes much of dW, c does not give the factor, and only common factors can be tried
    if sums.expected < _RESOLVED:
        yield _nearest(case, usual)
        return
    factor = sums.coefficient / sums.expected
    yield from (with_factor(plain, f) for f in usual_factors(module) if math.isclose(f, factor, rel_tol=_NEAR))
    if abs(factor) > _NEAR:
        yield with_factor(plain, factor)


def _likeness(sums: Sums) -> str:
    if sums.dd == 0.0:
        return "the update is zero, and yet it changed"
    cosine = sums.ed / math.sqrt(sums.ee * sums.dd) if sums.ee > 0.0 else 0.0
    return f"cosine of M - W with dW: {cosine:.3f}"


def _without_base_change(case: Case, module: Module, plain: Delta, sums: Sums) -> Judgement | None:
    """Return the verdict if M is W + s B A although the true update is a function of W, else None."""
    other = replace(case, delta=plain)
    found = _first_exact(other, replays(case.base, case.merged, scale=module.scale))
    if found is None:
        return None
    replay = msgspec.structs.replace(found.replay, without_base_change=True)
    if module.magnitude is not None:
        return Judgement("other", sums, replay, reason="W + s B A: DoRA's magnitude was left out")
    if "lora_diag" in module.keys:
        return Judgement("other", sums, replay, reason="W + s B A: KaSA's truncation of the base was left out")
    return Judgement(
        "exact", found.sums, replay, reason="W + s B A: exact if this base is what the adapter was trained on"
    )


def _not_finite(case: Case) -> str:
    for name, x in (("the merged tensor", case.m), ("the base's tensor", case.w)):
        if not np.isfinite(x[:].astype(np.float32)).all():
            return f"{name} holds NaN or infinite numbers"
    return "the update holds NaN or infinite numbers"
