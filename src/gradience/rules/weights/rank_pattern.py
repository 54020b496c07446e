"""A rank for each module, as arguments that PEFT's LoraConfig accepts and really applies."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from gradience.adapters.patterns import dotted_tails
from gradience.rules.weights.ranks import bucket, cut, error_at
from gradience.schema.audit import ModuleAudit, ModuleRank, RankPattern, SuggestedRank

Number: TypeAlias = int | float
_T = TypeVar("_T", int, float)


class Patterns(NamedTuple):
    """Four fields of a LoraConfig that give every module its rank and alpha."""

    r: int
    lora_alpha: Number
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, Number]


def patterns_of(
    ranks: Mapping[str, int], alphas: Mapping[str, Number], *, default: tuple[int, Number] | None = None
) -> Patterns:
    """Return the fields for modules by path (as PEFT matches them); both mappings have the same keys.

    The default rank and alpha are the given ones, else the commonest of each; then there is at least one key.
    """
    r, alpha = default or (_commonest(ranks.values()), _commonest(alphas.values()))
    tails = {tail for path in ranks for tail in dotted_tails(path)[1:]}
    return Patterns(
        r,
        alpha,
        {_key(path, tails): rank for path, rank in ranks.items() if rank != r},
        {_key(path, tails): value for path, value in alphas.items() if value != alpha},
    )


def alpha_for(scale: float, rank: int, *, rslora: bool) -> Number:
    """Return the alpha that gives the scale at the rank: s r, or s sqrt(r) with rsLoRA; whole numbers as such."""
    alpha = scale * (math.sqrt(rank) if rslora else rank)
    near = round(alpha)
    return near if math.isclose(alpha, near, rel_tol=1e-12) else alpha


def _commonest(values: Iterable[_T]) -> _T:
    return Counter(values).most_common(1)[0][0]


def _key(path: str, tails: set[str]) -> str:
    return ("^" if path in tails else "") + re.escape(path)


def rank_pattern(modules: Sequence[ModuleAudit], *, bytes_per_param: float) -> RankPattern | None:
    """Each module at its k@90%, its scaling s unchanged; None without usable modules.

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


def of_pattern(pattern: RankPattern) -> SuggestedRank:
    """What a pattern costs and saves; its rank is that of the largest module."""
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
    """Return the path that PEFT matches: a module, or a module's 3-D parameter without the expert."""
    return module.name if module.expert is None else module.name.removesuffix(f"[{module.expert}]")


def _by_parameter(modules: Iterable[ModuleAudit]) -> dict[str, list[ModuleAudit]]:
    groups: dict[str, list[ModuleAudit]] = {}
    for module in modules:
        groups.setdefault(_parameter(module), []).append(module)
    return groups


def _suggested(module: ModuleAudit) -> int:
    return module.r if module.energy_rank_90 is None else module.energy_rank_90


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
