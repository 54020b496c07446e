"""Suggest the rank to which an update could be compressed after training, conservatively.

A suggestion is a hypothesis about the weights, to be verified by an evaluation. It never advises a lower rank for
training, because utilization falls with r by itself.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from msgspec.structs import replace

from gradience.adapters.patterns import Number, alpha_for, patterns_of
from gradience.schema.audit import ModuleAudit, ModuleRank, RankDisagreement, RankPattern, RankRule, SuggestedRank

BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Ranks that every serving engine accepts; tables of costs show these too."""

_ROUNDING: Final = 1e-9  # rounding error of an interpolated percentile must not add a rank


def whole(k: float, cap: int) -> int:
    """The least whole rank that holds k directions, at least 1 and at most `cap`, the present rank.

    >>> whole(2.5, 8), whole(6, 8), whole(9, 8)
    (3, 6, 8)
    """
    return max(1, min(math.ceil(k - _ROUNDING), cap))


def bucket(k: float, cap: int) -> int:
    """The least power of two that is at least k, but at most `cap`, the present rank; never 0.

    >>> bucket(2.5, 8), bucket(6, 8), bucket(6, 6)
    (4, 8, 6)
    """
    place = bisect_left(BUCKETS, k)
    return min(BUCKETS[place], cap) if place < len(BUCKETS) else cap


def percentile(values: Sequence[float], share: float) -> float:
    """The quantile of the values at `share` (0..1), interpolated linearly.

    >>> percentile([1, 2, 3, 10], 0.5)
    2.5
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def measured(modules: Sequence[ModuleAudit]) -> list[ModuleAudit]:
    """The modules with a known spectrum: finite, not zero, and given by factors."""
    return [m for m in modules if m.state == "ok" and m.energy_rank_90 is not None]


def suggest(modules: Sequence[ModuleAudit], rank: int, *, bytes_per_param: float = 0.0) -> SuggestedRank:
    """Cost and saving of cutting every module to at most `rank`."""
    kept, error, saved = cut(modules, lambda _: rank)
    return SuggestedRank(
        rank=rank,
        energy_kept=kept,
        relative_error=error,
        relative_error_worst=max((error_at(module, rank) for module in modules), default=0.0),
        params_saved=saved,
        bytes_saved=round(saved * bytes_per_param),
        for_engines=bucket(rank, max(module.r for module in modules)),
    )


Purpose: TypeAlias = Literal["median", "p90"]
_SHARES: Final[dict[Purpose, float]] = {"median": 0.5, "p90": 0.9}


def suggested_ranks(energy_ranks: Sequence[int], cap: int) -> dict[Purpose, int]:
    """The ranks that suffice for half and for nine tenths of the modules' k@90%; empty without modules."""
    if not energy_ranks:
        return {}
    return {name: whole(percentile(energy_ranks, share), cap) for name, share in _SHARES.items()}


def priced_ranks(energy_ranks: Sequence[int], cap: int) -> set[int]:
    """The ranks below `cap` whose error a report states: powers of two, suggested ranks, and every module's k@90%."""
    ranks = {*BUCKETS, *energy_ranks, *suggested_ranks(energy_ranks, cap).values()}
    return {rank for rank in ranks if 0 < rank < cap}


def priced(modules: Sequence[ModuleAudit], errors: Sequence[Sequence[float]]) -> list[ModuleAudit]:
    """The modules with their errors at the `priced_ranks`, and at a module's own rank where that leaves one.

    `errors` are each module's relative errors at rank 0, 1, ..., as far as they are known.
    """
    cap = max((m.r for m in modules), default=0)
    ranks = priced_ranks([m.energy_rank_90 or 1 for m in measured(modules)], cap)
    return [replace(m, relative_errors=_at(each, ranks, m.r)) for m, each in zip(modules, errors, strict=True)]


def _at(errors: Sequence[float], ranks: Iterable[int], own: int) -> dict[str, float]:
    return {str(k): errors[k] for k in sorted({*ranks, own}) if 0 < k < len(errors)}


def candidates(modules: Sequence[ModuleAudit], *, bytes_per_param: float = 0.0) -> list[SuggestedRank]:
    """Cost and saving of the powers of two below the largest present rank, and of the suggested ranks."""
    cap = max((m.r for m in modules), default=0)
    named = suggested_ranks([m.energy_rank_90 or 1 for m in modules], cap).values()
    ranks = sorted(rank for rank in {*BUCKETS, *named} if rank < cap)
    return [suggest(modules, rank, bytes_per_param=bytes_per_param) for rank in ranks]


def cut(modules: Sequence[ModuleAudit], rank_of: Callable[[ModuleAudit], int]) -> tuple[float, float, int]:
    """Energy kept, relative error and parameters saved if each module is cut to the rank that `rank_of` gives it."""
    ranks = [(module, rank_of(module)) for module in modules]
    norms = [float(module.frobenius_norm or 0.0) for module in modules]
    largest = max(norms, default=0.0) or 1.0
    energies = [(norm / largest) ** 2 for norm in norms]  # scaled by the largest, so that no square overflows
    total = sum(energies)
    lost = sum(e * error_at(m, rank) ** 2 for e, (m, rank) in zip(energies, ranks, strict=True))
    share = min(lost / total, 1.0) if total else 0.0
    # Each direction has the same number of parameters, so params are in proportion to r
    return 1.0 - share, math.sqrt(share), sum(max(m.r - rank, 0) * m.params // m.r for m, rank in ranks)


def error_at(module: ModuleAudit, rank: int) -> float:
    """The module's relative error at one of the `priced_ranks`; at r and above, the error at r.

    The error at r is 0, except for an update whose rank r does not bound, such as PiSSA's or DoRA's.
    """
    return module.relative_errors.get(str(module.r), 0.0) if rank >= module.r else module.relative_errors[str(rank)]


_SAYS: Final = {
    "energy_90": "least k holding 90 % of the energy (relative error 31.6 % or less)",
    "effective_rank": "exp(entropy of the singular values), rounded",
    "stable_rank": "sum sigma^2 / sigma_1^2, rounded up",
    "knee": "k farthest above the chord of the cumulative energy curve",
}
_READ: Final[dict[str, Callable[[ModuleAudit], int]]] = {
    "energy_90": lambda m: m.energy_rank_90 or 1,
    "effective_rank": lambda m: max(round(m.effective_rank or 1.0), 1),
    "stable_rank": lambda m: max(math.ceil((m.stable_rank or 1.0) - 1e-9), 1),
    "knee": lambda m: max(m.knee_rank or 1, 1),
}


def rank_rules(modules: Sequence[ModuleAudit]) -> list[RankRule]:
    """Median and 90th percentile over the modules for each rule; empty without modules."""
    return [_rule(name, modules) for name in _READ] if modules else []


def _rule(name: str, modules: Sequence[ModuleAudit]) -> RankRule:
    values = [float(_READ[name](m)) for m in modules]
    cap = max(m.r for m in modules)
    middle, tail = percentile(values, 0.5), percentile(values, 0.9)
    return RankRule(
        rule=name, says=_SAYS[name], median=middle, p90=tail, median_rank=whole(middle, cap), p90_rank=whole(tail, cap)
    )


def disagreements(modules: Sequence[ModuleAudit]) -> list[RankDisagreement]:
    """The modules whose rules lie more than one bucket apart, widest first."""
    apart_by = []
    for module in modules:
        buckets = {name: bucket(read(module), module.r) for name, read in _READ.items()}
        apart = _steps(min(buckets.values()), max(buckets.values()))
        if apart > 1:
            apart_by.append((apart, RankDisagreement(name=module.name, buckets=buckets, why=_why(module, buckets))))
    return [item for _, item in sorted(apart_by, key=lambda pair: -pair[0])]


def _steps(low: int, high: int) -> int:
    """Number of buckets between two ranks; a rank between buckets counts as the next one up."""
    return sum(low < size < high for size in BUCKETS) + (low < high)


def _why(module: ModuleAudit, buckets: dict[str, int]) -> str:
    low, high = min(buckets.values()), max(buckets.values())
    peak = f"the first direction holds {1.0 / (module.stable_rank or 1.0):.0%} of the energy"
    if buckets["energy_90"] < high == buckets["effective_rank"]:
        return (
            f"{peak} and {module.energy_rank_90} hold 90 %; many small singular values follow, "
            "which the entropy of the effective rank counts and energy hardly does"
        )
    if low in {buckets["stable_rank"], buckets["knee"]} and buckets["energy_90"] == high:
        return (
            f"{peak} and {module.energy_rank_90} are needed for 90 %: stable rank and knee see the peak, "
            "k@90% the tail behind it"
        )
    return f"{peak}, and the spectrum falls without a clear bend: the rules cut at different places"


def rank_pattern(modules: Sequence[ModuleAudit], *, bytes_per_param: float) -> RankPattern | None:
    """The pattern that cuts each module to its k@90% and keeps its scaling s; None without usable modules.

    Modules without a spectrum (zero, not finite) keep their rank. Experts of one parameter share one rank.
    """
    groups = _by_parameter(modules)
    if not groups or not all(math.isfinite(float(m.scaling)) for m in modules):
        return None
    ranks = {path: max(_suggested(m) for m in members) for path, members in groups.items()}
    alphas = {path: _alpha(members[0], ranks[path]) for path, members in groups.items()}
    patterns = patterns_of(ranks, alphas)
    healthy = [m for m in modules if m.energy_rank_90 is not None]
    kept, error, saved = cut(healthy, lambda m: ranks[_parameter(m)])
    return RankPattern(
        r=patterns.r,
        lora_alpha=patterns.lora_alpha,
        use_rslora=modules[0].rslora,
        rank_pattern=patterns.rank_pattern,
        alpha_pattern=patterns.alpha_pattern,
        energy_kept=kept,
        relative_error=error,
        params_saved=saved,
        bytes_saved=round(saved * bytes_per_param),
        modules=[_row(m, ranks[_parameter(m)]) for m in modules],
    )


def of_pattern(pattern: RankPattern) -> SuggestedRank:
    """The cost and saving of a pattern; its rank is the largest of its modules' ranks."""
    rank = max((item.rank for item in pattern.modules), default=0)
    return SuggestedRank(
        rank=rank,
        energy_kept=pattern.energy_kept,
        relative_error=pattern.relative_error,
        relative_error_worst=max((item.relative_error for item in pattern.modules), default=0.0),
        params_saved=pattern.params_saved,
        bytes_saved=pattern.bytes_saved,
        for_engines=bucket(rank, max((item.r for item in pattern.modules), default=1)),
    )


def _parameter(module: ModuleAudit) -> str:
    """The path that PEFT matches: a module's, or that of a 3-D parameter without the expert's index."""
    return module.name if module.expert is None else module.name.removesuffix(f"[{module.expert}]")


def _by_parameter(modules: Iterable[ModuleAudit]) -> dict[str, list[ModuleAudit]]:
    groups: dict[str, list[ModuleAudit]] = {}
    for module in modules:
        groups.setdefault(_parameter(module), []).append(module)
    return groups


def _suggested(module: ModuleAudit) -> int:
    """The module's k@90%, but never above its r: the update of PiSSA or DoRA can need more than r directions."""
    return module.r if module.energy_rank_90 is None else min(module.energy_rank_90, module.r)


def _alpha(module: ModuleAudit, rank: int) -> Number:
    return alpha_for(float(module.scaling), rank, rslora=module.rslora)


def _row(module: ModuleAudit, rank: int) -> ModuleRank:
    healthy = module.energy_rank_90 is not None
    return ModuleRank(
        name=module.name,
        r=module.r,
        rank=rank,
        relative_error=error_at(module, rank) if healthy else 0.0,
        params_saved=(module.r - rank) * module.params // module.r,
    )


class Suggestions(NamedTuple):
    """The lower ranks at which an adapter could be stored, as its report has them."""

    suggested: dict[str, SuggestedRank]
    like_suggested: SuggestedRank | None
    candidates: list[SuggestedRank]
    rank_rules: list[RankRule]
    disagreements: list[RankDisagreement]
    per_layer: RankPattern | None


NO_SUGGESTIONS: Final = Suggestions({}, None, [], [], [], None)


def suggestions(modules: Sequence[ModuleAudit], *, bytes_per_param: float) -> Suggestions:
    """Every suggestion for modules whose errors are `priced`; `bytes_per_param` is the mean of their factors."""
    healthy = measured(modules)
    ranks = suggested_ranks([m.energy_rank_90 or 1 for m in healthy], max((m.r for m in healthy), default=0))
    pattern = rank_pattern(modules, bytes_per_param=bytes_per_param)
    return Suggestions(
        suggested={name: suggest(healthy, rank, bytes_per_param=bytes_per_param) for name, rank in ranks.items()},
        like_suggested=None if pattern is None else of_pattern(pattern),
        candidates=candidates(healthy, bytes_per_param=bytes_per_param),
        rank_rules=rank_rules(healthy),
        disagreements=disagreements(healthy),
        per_layer=pattern,
    )
