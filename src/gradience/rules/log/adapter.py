"""TRN202 and its kin, UTL204, CMP213 and TYP214: what the newest audit in a log says of the adapter's weights.

All of it speaks of the update that was trained: what it could be compressed to afterwards, and at what cost.
None of it says to train with less rank: utilization falls as r grows, whatever the run. Of a log without an
audit UTL204 alone says that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from gradience.rules.evidence import ENERGY
from gradience.rules.log.facts import JUDGEMENT, LogRule, RunFacts, seen
from gradience.rules.rule import Observation, Rule, Threshold, Unknown, cite
from gradience.rules.weights.health import suggests_ranks
from gradience.rules.weights.rules import (
    LOW_RANK,
    NON_FINITE,
    RANDOM_LIKE,
    TOO_LARGE,
    ZERO_UPDATE,
    observe_size,
    observe_utilization,
    observe_verdict,
)
from gradience.schema.scalars import Json

IDLE_ENERGY = Threshold("idle_energy", 0.01, "fraction of the update's energy", JUDGEMENT)
IDLE_PARAMS = Threshold("idle_params", 0.1, "fraction of the LoRA parameters", JUDGEMENT)

_LOST = (("energy_rank_99", 0.01), ("energy_rank_95", 0.05), ("energy_rank_90", 0.10))  # energy lost from that rank on


def _utilization(facts: RunFacts) -> Observation | None:
    if facts.utilization_mean is None:
        raise Unknown("no lora_audit in the log ('gradience audit --append run.jsonl' adds one)")
    if no_weights(facts.audit or {}):
        raise Unknown("the audit in the log found no LoRA weights")
    verdict = (facts.audit or {}).get("verdict")
    if isinstance(verdict, str) and not suggests_ranks(verdict):
        raise Unknown(f"the adapter is {verdict}")
    suggested = _rank(facts.audit or {}, "suggested_r_global_90")
    return observe_utilization(facts.utilization_mean, rank=audited_rank(facts), suggested=suggested)


def no_weights(audit: Mapping[str, Json]) -> bool:
    """Whether an audit says that it found nothing to measure: its means are then no measurements."""
    return any(audit.get(name) == 0 for name in ("n_layers", "total_lora_params"))


def _health(rule: str, facts: RunFacts) -> Observation | None:
    verdict = (facts.audit or {}).get("verdict")
    if not isinstance(verdict, str):
        return None
    return observe_verdict(rule, verdict, "the audit in the log says so", source="the log")


def _large(facts: RunFacts) -> Observation | None:
    return _health("SIZ215", facts) or observe_size(_real(facts.audit or {}, "update_size"))


def _compressible(facts: RunFacts) -> Observation | None:
    audit = facts.audit
    if audit is None:
        return None
    verdict = audit.get("verdict")
    if isinstance(verdict, str) and not suggests_ranks(verdict):
        raise Unknown(f"the adapter is {verdict}: there is no rank to compress it to")
    rank = audited_rank(facts)
    middle, tail = (_rank(audit, key) for key in ("suggested_r_global_median", "suggested_r_global_90"))
    if rank is None or tail is None:
        raise Unknown("the audit in the log suggests no rank, or its modules do not share one")
    if tail >= rank:
        return None
    bound = error_bound(_modules(audit), tail) if "modules_omitted" not in audit else None
    return Observation(
        f"After training the update fits rank {tail} of {rank} in nine modules of ten"
        + (f", rank {middle} in half of them" if middle is not None and middle < tail else "")
        + f": {_cost(tail, bound)}.",
        {"rank": rank, "suggested_median": middle, "suggested_p90": tail, "error_bound": bound},
        action=f"Consider compressing the trained adapter to rank {tail} and evaluating it; keep training at r={rank}.",
        evidence=seen(
            f"k@90 % of the modules: median {audit.get('energy_rank_90_p50')}, p90 {audit.get('energy_rank_90_p90')}"
        ),
    )


def _cost(rank: int, bound: float | None) -> str:
    if bound is None:
        return "where 90 % of a module's energy is kept, its relative error is 31.6 % at most"
    return f"cut to rank {rank}, the relative error of the whole update is {bound:.1%} at most"


def error_bound(modules: Sequence[Mapping[str, Json]], rank: int) -> float | None:
    """An upper bound of the relative Frobenius error of cutting all modules to a rank; None without norms.

    From the ranks that hold 90, 95 and 99 % of the energy; below those, k of r directions hold k / r at least.
    """
    total = lost = 0.0
    for module in modules:
        norm, r = _real(module, "frobenius_norm"), _rank(module, "r")
        if norm is None or not r:
            return None
        total += norm * norm
        lost += norm * norm * _lost(module, rank, r)
    return math.sqrt(lost / total) if total > 0.0 else None


def _lost(module: Mapping[str, Json], rank: int, r: int) -> float:
    if rank >= r:
        return 0.0
    shares = [share for key, share in _LOST if (k := _rank(module, key)) is not None and rank >= k]
    return min([*shares, 1.0 - rank / r])


def _idle_types(facts: RunFacts) -> Observation | None:
    audit = facts.audit
    if audit is None:
        return None
    groups = audit.get("by_type")
    types = {k: v for k, v in groups.items() if isinstance(v, dict)} if isinstance(groups, dict) else {}
    params = sum(_real(group, "params") or 0.0 for group in types.values())
    if (
        len(types) < 2 or not params or all(_real(g, "energy_share") is None for g in types.values())
    ):  # of one kind there is nothing to compare
        raise Unknown("the audit in the log does not say how the energy is spread over two types of modules or more")
    idle = list(_idle(types, params))
    if not idle:
        return None
    name, share, energy, n = max(idle, key=lambda item: item[1])
    others = f" (and {', '.join(item[0] for item in idle if item[0] != name)})" if len(idle) > 1 else ""
    return Observation(
        f"Modules of type {name}{others} carry next to nothing: {n} modules, {share:.0%} of the LoRA parameters, "
        f"{energy:.2%} of the update's energy.",
        {"type": name, "modules": n, "params_share": share, "energy_share": energy},
        evidence=seen(f"energy_share of {name} {energy:.4f}"),
    )


def _idle(types: Mapping[str, Mapping[str, Json]], params: float) -> Iterator[tuple[str, float, float, int]]:
    for name, group in types.items():
        share, energy = (_real(group, "params") or 0.0) / params, _real(group, "energy_share")
        if energy is not None and energy < IDLE_ENERGY.value and share >= IDLE_PARAMS.value:
            yield name, share, energy, _rank(group, "n") or 0


def audited_rank(facts: RunFacts) -> int | None:
    """The rank that the audited modules share, None where they differ; the config's where no module says."""
    ranks = {rank for module in _modules(facts.audit or {}) if (rank := _rank(module, "r")) is not None}
    if ranks:
        return ranks.pop() if len(ranks) == 1 else None
    return None if facts.config.lora.rank_pattern else facts.config.lora.r


def _modules(audit: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    modules = audit.get("modules")
    return [m for m in modules if isinstance(m, dict)] if isinstance(modules, list) else []


def _real(values: Mapping[str, Json], key: str) -> float | None:
    value = values.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def _rank(values: Mapping[str, Json], key: str) -> int | None:
    value = _real(values, key)
    return int(value) if value is not None and value.is_integer() and value >= 0 else None


RULES: tuple[Rule[RunFacts], ...] = (
    *(rule.over(partial(_health, rule.id)) for rule in (NON_FINITE, ZERO_UPDATE, RANDOM_LIKE)),
    TOO_LARGE.over(_large),
    LOW_RANK.over(_utilization),
    LogRule(
        id="CMP213",
        title="compressible after training",
        severity="info",
        condition="the audit in the log: nine modules of ten keep 90 % of their energy at a lower rank than theirs",
        observe=_compressible,
        confidence=0.5,
        evidence=(
            cite("Eckart-Young", "no rank-k matrix is closer: the squared error is the energy of what is cut off"),
        ),
        rationale="A smaller adapter is cheaper to store and to serve; the rank it was trained with may still have "
        "been needed to get there.",
        action="Consider compressing the trained adapter, and evaluate it.",
        scope="trained LoRA adapters; logs that hold an audit; an error in weights, not in quality",
        verify="Evaluate the compressed adapter on held-out data beside the whole one.",
    ),
    LogRule(
        id="TYP214",
        title="modules that carry nothing",
        severity="info",
        condition="the audit in the log: a type of modules with over {idle_params} of the parameters and under "
        "{idle_energy} of the energy",
        observe=_idle_types,
        confidence=0.4,
        evidence=(ENERGY,),
        rationale="Parameters that hardly move cost memory and optimizer state.",
        action="Leave these modules out of a copy of the adapter and evaluate it; it is no verdict on the next run.",
        scope="LoRA on several types of modules; energy of dW, not relative to the base weights",
        verify="Held-out loss with and without them.",
        thresholds=(IDLE_ENERGY, IDLE_PARAMS),
    ),
)
