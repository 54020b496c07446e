"""The rules of thumb people use for a rank, side by side, and where they disagree.

Each reads one spectrum differently; none is right by itself. The energy rule alone has an error attached
(Eckart-Young), so suggestions follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from gradience.policy.ranks import BUCKETS, bucket, percentile
from gradience.schema.audit import ModuleAudit
from gradience.schema.ranks import RankDisagreement, RankRule

__all__ = ["disagreements", "rank_rules"]

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
    """Return median and 90th percentile of each rule over the modules; empty without modules."""
    return [_rule(name, modules) for name in _READ] if modules else []


def _rule(name: str, modules: Sequence[ModuleAudit]) -> RankRule:
    values = [float(_READ[name](m)) for m in modules]
    cap = max(m.r for m in modules)
    middle, tail = percentile(values, 0.5), percentile(values, 0.9)
    return RankRule(
        rule=name,
        says=_SAYS[name],
        median=middle,
        p90=tail,
        median_bucket=bucket(middle, cap),
        p90_bucket=bucket(tail, cap),
    )


def disagreements(modules: Sequence[ModuleAudit]) -> list[RankDisagreement]:
    """Return the modules where the rules lie more than one bucket apart, widest first."""
    found = []
    for module in modules:
        buckets = {name: bucket(read(module), module.r) for name, read in _READ.items()}
        apart = _steps(min(buckets.values()), max(buckets.values()))
        if apart > 1:
            found.append((apart, RankDisagreement(name=module.name, buckets=buckets, why=_why(module, buckets))))
    return [item for _, item in sorted(found, key=lambda pair: -pair[0])]


def _steps(low: int, high: int) -> int:
    """Return how many buckets lie between two ranks; a rank that is no bucket counts as the next one."""
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
