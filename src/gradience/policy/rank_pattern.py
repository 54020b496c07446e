"""A rank for each module, as arguments that PEFT's LoraConfig accepts and really applies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gradience.policy.pattern_keys import Number, alpha_for, patterns_of
from gradience.policy.ranks import bucket, cut, error_at
from gradience.schema.audit import ModuleAudit
from gradience.schema.ranks import ModuleRank, RankPattern

__all__ = ["rank_pattern"]


def rank_pattern(modules: Sequence[ModuleAudit], *, bytes_per_param: float) -> RankPattern | None:
    """Return each module at the bucket of its k@90, its scaling s unchanged; None without usable modules.

    Modules without a spectrum (zero, not finite) keep their rank. Experts of one parameter share theirs.
    """
    groups = _by_parameter(modules)
    if not groups or not all(math.isfinite(float(m.scaling)) for m in modules):
        return None
    ranks = {path: max(_suggested(m) for m in members) for path, members in groups.items()}
    alphas = {path: _alpha(members[0], ranks[path]) for path, members in groups.items()}
    found = patterns_of(ranks, alphas)
    healthy = [m for m in modules if m.energy_rank_90 is not None]
    kept, error, saved = cut(healthy, lambda m: ranks[_parameter(m)])
    return RankPattern(
        r=found.r,
        lora_alpha=found.lora_alpha,
        use_rslora=modules[0].rslora,
        rank_pattern=found.rank_pattern,
        alpha_pattern=found.alpha_pattern,
        energy_kept=kept,
        relative_error=error,
        params_saved=saved,
        bytes_saved=round(saved * bytes_per_param),
        modules=[_row(m, ranks[_parameter(m)]) for m in modules],
    )


def _parameter(module: ModuleAudit) -> str:
    """Return the path that PEFT matches: a module, or a module's 3-D parameter without the expert."""
    return module.name if module.expert is None else module.name.removesuffix(f"[{module.expert}]")


def _by_parameter(modules: Iterable[ModuleAudit]) -> dict[str, list[ModuleAudit]]:
    groups: dict[str, list[ModuleAudit]] = {}
    for module in modules:
        groups.setdefault(_parameter(module), []).append(module)
    return groups


def _suggested(module: ModuleAudit) -> int:
    return module.r if module.energy_rank_90 is None else bucket(module.energy_rank_90, module.r)


def _alpha(module: ModuleAudit, rank: int) -> Number:
    return alpha_for(float(module.scaling), rank, rslora=module.rslora)


def _row(module: ModuleAudit, rank: int) -> ModuleRank:
    healthy = module.energy_rank_90 is not None
    return ModuleRank(
        name=module.name,
        r=module.r,
        rank=min(rank, module.r),
        relative_error=error_at(module, rank) if healthy else 0.0,
        params_saved=max(module.r - rank, 0) * module.params // module.r,
    )
